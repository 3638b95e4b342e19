//! Runs in which one modifier divides what another has heard.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use lifecycle::{
    CompressionLifecycle, Division, Divisors, Event, InitializeArgs, Modifier, ModuleStore, RecipeInput, Registry,
    Result, Sample, Settings, State, StateUpdate, Tap, TapPoint,
};
use models::TraceInputs;
use pipelines::{Basic, ErrorKind, ModelStore, Partition, Passes, Sequential, WaveKind};
use tensor::Routing;

use crate::{Nobody, batches, model};

const WIDTH: usize = 32;
const ATTENTION: &[&str] = &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"];

/// Divides what the modules of one name give, and multiplies what `balanced` do with it.
struct Divider {
    settings: Settings,
    module: &'static str,
    balanced: &'static [&'static str],
    divisors: Vec<Divisors>,
    /// Whether it says that all else gives what it gave.
    promises: bool,
}

impl Divider {
    fn new(module: &'static str, balanced: &'static [&'static str]) -> Self {
        Self { settings: Settings::default(), module, balanced, divisors: Vec::new(), promises: false }
    }

    /// Powers of two, so that nothing is rounded.
    fn by() -> Vec<f32> {
        (0..WIDTH).map(|channel| [1.0, 4.0, 0.5][channel % 3]).collect()
    }
}

impl Modifier for Divider {
    fn type_name(&self) -> &str {
        "DividerModifier"
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.divisions(model)?.into_iter().flat_map(|it| [vec![it.module], it.balanced].concat()).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.divisions(model)?.into_iter().map(|it| Tap::new(it.module, TapPoint::Output)).collect())
    }

    fn divisions(&self, model: &dyn ModuleStore) -> Result<Vec<Division>> {
        let layers = model.modules().iter().filter_map(|it| it.name.strip_suffix(self.module));
        let one = |layer: &str| Division {
            module: format!("{layer}{}", self.module),
            balanced: self.balanced.iter().map(|it| format!("{layer}{it}")).collect(),
        };
        Ok(layers.map(one).collect())
    }

    fn rescales(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        let norms = self.divisions(model)?.into_iter().map(|it| it.module);
        Ok(if self.promises { norms.collect() } else { Vec::new() })
    }

    fn take_divisors(&mut self) -> Vec<Divisors> {
        std::mem::take(&mut self.divisors)
    }

    fn on_initialize(&mut self, _state: &mut State) -> Result<bool> {
        Ok(true)
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let by = Self::by();
        let model = state.model_mut()?;
        for Division { module, balanced } in
            self.divisions(model)?.into_iter().filter(|it| modules.contains(&it.module))
        {
            let mut norm = vec![0.0; WIDTH];
            model.read_rows(&format!("{module}.weight"), 0..WIDTH, &mut norm)?;
            norm.iter_mut().zip(&by).for_each(|(it, by)| *it /= by);
            model.write_rows(&format!("{module}.weight"), 0..WIDTH, &norm)?;
            for name in balanced.iter().map(|it| format!("{it}.weight")) {
                let rows = model.array(&name)?.shape[0];
                let mut weight = vec![0.0; rows * WIDTH];
                model.read_rows(&name, 0..rows, &mut weight)?;
                weight.iter_mut().enumerate().for_each(|(idx, it)| *it *= by[idx % WIDTH]);
                model.write_rows(&name, 0..rows, &weight)?;
            }
            self.divisors.push(Divisors { module, by: by.clone() });
        }
        Ok(())
    }
}

/// Sums of squares of each channel, by module.
type Squares = BTreeMap<String, Vec<f64>>;

/// Adds up squares of the inputs of linears, and hands them on at the end of their wave.
struct Squarer {
    settings: Settings,
    can_divide: bool,
    squares: Squares,
    finished: Arc<Mutex<Squares>>,
}

impl Modifier for Squarer {
    fn type_name(&self) -> &str {
        "SquarerModifier"
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(model.modules().iter().filter(|it| it.name.ends_with("_proj")).map(|it| it.name.clone()).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.writes(model)?.into_iter().map(|it| Tap::new(it, TapPoint::Input)).collect())
    }

    fn divisible(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        if self.can_divide { self.taps(model) } else { Ok(Vec::new()) }
    }

    fn divide(&mut self, taps: &[Tap], divisors: &[f32]) -> Result<()> {
        for tap in taps {
            assert_eq!(tap.point, TapPoint::Input);
            let squares = self.squares.get_mut(&tap.module).unwrap();
            squares.iter_mut().zip(divisors).for_each(|(it, by)| *it /= f64::from(*by) * f64::from(*by));
        }
        Ok(())
    }

    fn on_initialize(&mut self, _state: &mut State) -> Result<bool> {
        Ok(true)
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        let shape = sample.value.shape().to_vec();
        let width = *shape.last().unwrap();
        let mut values = vec![0.0; shape.iter().product()];
        sample.value.read_rows(0..values.len() / width, &mut values)?;
        let squares = self.squares.entry(tap.module.clone()).or_insert_with(|| vec![0.0; width]);
        values.iter().enumerate().for_each(|(idx, it)| squares[idx % width] += f64::from(*it) * f64::from(*it));
        Ok(())
    }

    fn on_sequential_epoch_end(&mut self, _state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let of_wave = modules.iter().filter_map(|it| self.squares.remove_entry(it));
        self.finished.lock().unwrap().extend(of_wave);
        Ok(())
    }
}

/// Runs a divider, if one is given, and behind it a squarer; gives the kind of the waves, the passes, and the squares.
fn run(divider: Option<Divider>, can_divide: bool, partition: Partition, passes: Passes) -> (WaveKind, usize, Squares) {
    try_run(divider, can_divide, partition, Some(passes)).unwrap()
}

/// The same where it may fail; without passes by the basic pipeline.
fn try_run(
    divider: Option<Divider>,
    can_divide: bool,
    partition: Partition,
    passes: Option<Passes>,
) -> pipelines::Result<(WaveKind, usize, Squares)> {
    let (_dir, model, engine) = model();
    let finished = Arc::default();
    let settings = Settings::default();
    let squarer = Squarer { settings, can_divide, squares: Squares::new(), finished: Arc::clone(&finished) };
    let divider = divider.map(|it| RecipeInput::Modifier(Box::new(it)));
    let recipe = divider.into_iter().chain([RecipeInput::Modifier(Box::new(squarer))]).collect();
    let mut lifecycle = CompressionLifecycle::new(Registry::default());
    let store = ModelStore::new(Arc::clone(&model), engine.clone()).unwrap();
    let state = StateUpdate { model: Some(Box::new(store)), ..StateUpdate::default() };
    let recipe = Some(RecipeInput::List(recipe));
    lifecycle.initialize(InitializeArgs { recipe, state, ..InitializeArgs::default() }).unwrap();
    let batches = batches(&engine);
    let (routing, is_basic, passes) = (Routing::All, passes.is_none(), passes.unwrap_or_default());
    let run = Sequential { model, engine, partition, routing, window: 2, spill: None, passes };
    let kind = run.waves(&lifecycle, TraceInputs::Ids).unwrap().kind;
    let times = match is_basic {
        true => Basic { sequential: run }.run(&mut lifecycle, batches, &mut Nobody)?,
        false => run.run(&mut lifecycle, batches, &mut Nobody)?,
    };
    lifecycle.finalize().unwrap();
    let finished = finished.lock().unwrap().clone();
    Ok((kind, times.passes, finished))
}

#[test]
fn one_pass_serves_a_modifier_that_divides_and_one_that_can_divide_what_it_heard() {
    for (partition, kind) in [(Partition::BeforeTargets, WaveKind::Targets), (Partition::Compat, WaveKind::Layers)] {
        let norms = || Some(Divider::new("input_layernorm", ATTENTION));
        let alone = run(None, false, partition, Passes::Own);
        let together = run(norms(), true, partition, Passes::Own);
        let apart = run(norms(), false, partition, Passes::Own);
        assert_eq!((together.0, together.1), (kind, alone.1), "{partition:?}");
        // Where it cannot, it hears the waves in which something is divided once more.
        assert_eq!((apart.0, apart.1), (kind, alone.1 + 2), "{partition:?}");
        // Nothing was rounded, so that statistics that were divided are those of divided values to the bit.
        assert_eq!(together.2, apart.2, "{partition:?}");
        assert_eq!(together.2.len(), 2 * 7);
        let squares = |of: &Squares, name: &str| of[&format!("model.layers.0.{name}")].clone();
        let by = Divider::by();
        for name in ATTENTION {
            let divided = squares(&alone.2, name).into_iter().zip(&by).map(|(it, by)| it / f64::from(by * by));
            assert_eq!(squares(&together.2, name), divided.collect::<Vec<_>>(), "{partition:?} {name}");
        }
        assert_eq!(squares(&together.2, "mlp.down_proj"), squares(&alone.2, "mlp.down_proj"));
    }
}

#[test]
fn values_that_nobody_makes_up_for_are_heard_again_where_more_of_the_layer_is_heard() {
    let without_v = || Some(Divider::new("input_layernorm", &ATTENTION[..2]));
    for partition in [Partition::BeforeTargets, Partition::Compat] {
        let alone = run(None, true, partition, Passes::Own);
        let together = run(without_v(), true, partition, Passes::Own);
        let apart = run(without_v(), false, partition, Passes::Own);
        let further = if partition == Partition::Compat { 2 } else { 0 };
        assert_eq!(together.1, alone.1 + further, "{partition:?}");
        assert_eq!(together.2, apart.2, "{partition:?}");
    }
}

#[test]
fn a_division_that_is_made_up_for_by_what_does_not_read_it_takes_whole_layers() {
    let elsewhere = Divider::new("post_attention_layernorm", &["self_attn.o_proj"]);
    let (kind, passes, _) = run(Some(elsewhere), true, Partition::BeforeTargets, Passes::Own);
    assert_eq!((kind, passes), (WaveKind::Layers, 2 * 2));
}

#[test]
fn a_joint_pass_over_a_layer_keeps_what_was_heard() {
    let alone = run(None, true, Partition::Compat, Passes::Joint);
    let joint = run(Some(Divider::new("input_layernorm", ATTENTION)), true, Partition::Compat, Passes::Joint);
    assert_eq!((joint.0, joint.1), (WaveKind::Layers, alone.1));
    let name = "model.layers.0.self_attn.q_proj";
    assert_eq!(joint.2[name], alone.2[name]);
}

#[test]
fn a_modifier_that_changes_what_it_promised_to_leave_is_refused_with_the_module() {
    let joint = (Partition::Compat, Some(Passes::Joint));
    for (partition, passes) in [Partition::BeforeTargets, Partition::Compat]
        .into_iter()
        .flat_map(|it| [(it, Some(Passes::Own)), (it, None)])
        .chain([joint])
    {
        let promising = |balanced| Some(Divider { promises: true, ..Divider::new("input_layernorm", balanced) });
        try_run(promising(ATTENTION), true, partition, passes).unwrap();
        let error = try_run(promising(&ATTENTION[..2]), true, partition, passes).unwrap_err();
        let ErrorKind::Moved { modifier, module, percent } = error.kind() else { panic!("{error}") };
        assert_eq!((modifier.as_str(), module.as_str()), ("DividerModifier", "model.layers.0.self_attn.v_proj"));
        assert!(*percent > 10.0, "{percent}");
        let text = error.to_string();
        assert!(text.contains("has changed what `model.layers.0.self_attn.v_proj` gives by"), "{text}");
    }
}
