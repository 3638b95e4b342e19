//! What a wave gave before a modifier changed it, for modifiers that promise to leave that as it was.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use graph::{Extent, ModuleId, Subgraph};
use lifecycle::Activation;
use models::{Hooks, Model, Run, Tap};
use serde_json::Value;
use tensor::{Budget, Engine, Tensor};

use crate::{
    ModifierData, Wave,
    activation::TensorActivation,
    change::change,
    course::Course,
    error::{ErrorKind, Result},
    needs::modifier_bytes,
    waves::Declared,
};

/// How far the middle one of the rows of an output may move, as a share of itself. Weights that are scaled are rounded once more,
/// which moves outputs by some thousandths; a scale that is not made up for moves them by about themselves. Single rows may move
/// far, for experts are chosen otherwise where two are equally good.
pub(crate) const ROUNDING: f64 = 0.1;
/// Rows of an output that are compared, evenly spread.
const ROWS: usize = 64;

/// Rows of what modules give on one batch.
type Outputs = BTreeMap<ModuleId, Vec<Vec<f32>>>;

/// What a wave is given in one batch.
pub(crate) struct Given {
    inputs: HashMap<String, Tensor>,
    n_tokens: usize,
}

impl Given {
    /// Of the first batch, if a modifier rescales some of the wave.
    ///
    /// # Errors
    /// Values that cannot be read back.
    pub(crate) fn of(
        course: &Course<'_>,
        (wave, subgraph): (&Wave, &Subgraph),
        budget: &Budget,
    ) -> Result<Option<Self>> {
        let promising = course.declared.iter().any(|it| !it.rescales.is_disjoint(&wave.ids));
        let Some(shape) = course.shapes.first().filter(|_| promising) else { return Ok(None) };
        let inputs = course.boundaries.fetch(0, &subgraph.input_names, budget)?;
        Ok(Some(Self { inputs, n_tokens: shape.iter().product() }))
    }
}

/// Lets one modifier change a wave, and compares what the wave gives before and after if the modifier promises to leave that.
/// Buffers that wait for their next use make way for what modifiers hold meanwhile.
///
/// # Errors
/// What the modifier refuses, and as [`Promise::check`].
pub(crate) fn change_as_promised(
    run: (&Model, &Engine),
    (wave, subgraph): (&Wave, Option<&Subgraph>),
    course: &mut Course<'_>,
    idx: usize,
    given: Option<&Given>,
) -> Result<Vec<ModifierData>> {
    let both = subgraph.zip(given);
    let promise =
        both.map(|(subgraph, it)| Promise::of(run, (wave, subgraph), &course.declared[idx], it)).transpose()?;
    run.1.budget.make_room(modifier_bytes(run.0, wave, &course.declared));
    let mut said = change(course.lifecycle, &[idx], wave)?;
    if let (Some(promise), Some(subgraph)) = (promise.flatten(), subgraph) {
        promise.check(run, subgraph, course.lifecycle.modifiers()[idx].modifier().type_name(), &mut said)?;
    }
    Ok(said)
}

/// The promise of one modifier for one wave.
struct Promise {
    inputs: HashMap<String, Tensor>,
    n_tokens: usize,
    /// Linears, and all modules around them.
    kept: BTreeSet<ModuleId>,
    before: Outputs,
}

impl Promise {
    /// Runs a wave on what it is given in one batch, if the modifier rescales some of it.
    ///
    /// # Errors
    /// A run that fails.
    fn of(
        (model, engine): (&Model, &Engine),
        (wave, subgraph): (&Wave, &Subgraph),
        modifier: &Declared,
        given: &Given,
    ) -> Result<Option<Self>> {
        if modifier.rescales.is_disjoint(&wave.ids) {
            return Ok(None);
        }
        let is_kept = |it: &ModuleId| wave.ids.contains(it) && !modifier.rescales.contains(it);
        let linears = wave.ids.iter().filter(|it| model.linear(**it).is_some());
        let around = linears.flat_map(|it| std::iter::successors(Some(*it), |it| model.tree().parent(*it)));
        let kept: BTreeSet<ModuleId> = around.filter(is_kept).collect();
        let Given { inputs, n_tokens } = given;
        let before = outputs((model, engine), subgraph, (&kept, *n_tokens), inputs.clone())?;
        Ok(Some(Self { inputs: inputs.clone(), n_tokens: *n_tokens, kept, before }))
    }

    /// Runs the wave again, and says beside each mapping of the modifier how far the outputs behind it have moved.
    ///
    /// # Errors
    /// `Moved` with the first module that moved beyond [`ROUNDING`]; a run that fails.
    fn check(
        self,
        (model, engine): (&Model, &Engine),
        subgraph: &Subgraph,
        modifier: &str,
        data: &mut [ModifierData],
    ) -> Result<()> {
        let after = outputs((model, engine), subgraph, (&self.kept, self.n_tokens), self.inputs)?;
        let both = self.before.iter().filter_map(|(module, before)| Some((*module, before, after.get(module)?)));
        let moved: Vec<(&str, f64)> =
            both.map(|(module, before, after)| (model.tree().path(module), distance(before, after))).collect();
        // Behind the first everything moves, and what holds it.
        let is_far = |it: &&(&str, f64)| it.1 > ROUNDING;
        let is_linear = |it: &&(&str, f64)| model.tree().find(it.0).is_some_and(|it| model.linear(it).is_some());
        let far = moved.iter().filter(is_far).find(is_linear).or_else(|| moved.iter().find(is_far));
        if let Some((module, share)) = far {
            let (modifier, module) = (modifier.to_owned(), (*module).to_owned());
            return Err(ErrorKind::Moved { modifier, module, percent: 100.0 * share }.into());
        }
        let moved: HashMap<&str, f64> = moved.into_iter().collect();
        for entry in data.iter_mut().filter_map(|it| it.data.as_array_mut()).flatten() {
            let balance = entry["balance"].as_array().into_iter().flatten().filter_map(Value::as_str);
            if let Some(farthest) = balance.filter_map(|it| moved.get(it)).copied().reduce(f64::max) {
                entry["outputs_moved"] = farthest.into();
            }
        }
        Ok(())
    }
}

/// How far the middle one of rows has moved, as a share of what it was: infinitely where it is no number any more.
fn distance(before: &[Vec<f32>], after: &[Vec<f32>]) -> f64 {
    let energy = |values: &mut dyn Iterator<Item = f64>| values.map(|it| it * it).sum::<f64>();
    let share = |(before, after): (&Vec<f32>, &Vec<f32>)| {
        let moved = energy(&mut before.iter().zip(after).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let was = energy(&mut before.iter().map(|it| f64::from(*it)));
        let share = if moved == 0.0 { 0.0 } else { (moved / was).sqrt() };
        if share.is_nan() { f64::INFINITY } else { share }
    };
    let mut shares: Vec<f64> = before.iter().zip(after).map(share).collect();
    shares.sort_by(f64::total_cmp);
    shares.get(shares.len() / 2).copied().unwrap_or(0.0)
}

/// Rows of what modules give when a subgraph runs, of those that give one for every token: experts may be given others the next
/// time.
fn outputs(
    (model, engine): (&Model, &Engine),
    subgraph: &Subgraph,
    (modules, n_tokens): (&BTreeSet<ModuleId>, usize),
    mut inputs: HashMap<String, Tensor>,
) -> Result<Outputs> {
    let hooks = Hooks::new();
    let found: Arc<Mutex<Outputs>> = Arc::default();
    let hook = |&module: &ModuleId| {
        let (found, budget) = (Arc::clone(&found), engine.budget.clone());
        hooks.add(module, Tap::Output, move |observation| {
            if let Some(value) = observation.values.iter().flatten().next() {
                let rows = rows_of(&TensorActivation(value.dense(&budget)?), n_tokens)?;
                found.lock().unwrap_or_else(PoisonError::into_inner).entry(module).or_default().extend(rows);
            }
            Ok(None)
        })
    };
    let guards: Vec<_> = modules.iter().map(hook).collect();
    let run = Run { engine, hooks: Some(&hooks) };
    model.run_subgraph(run, subgraph, |name| inputs.remove(name), &Extent::Whole)?;
    drop(guards);
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(found)
}

/// Rows of a value, none where it has not one for every token.
fn rows_of(value: &TensorActivation, n_tokens: usize) -> lifecycle::Result<Vec<Vec<f32>>> {
    let columns = value.shape().last().copied().unwrap_or(0);
    if value.shape().iter().product::<usize>() != n_tokens * columns {
        return Ok(Vec::new());
    }
    let chosen: BTreeSet<usize> = (0..ROWS).map(|it| it * n_tokens / ROWS).filter(|it| *it < n_tokens).collect();
    let row = |row: usize| {
        let mut values = vec![0.0; columns];
        value.read_rows(row..row + 1, &mut values).map(|()| values)
    };
    chosen.into_iter().map(row).collect()
}
