//! Finished modules go to the output, and their written form takes their place in the model.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use checkpoint::{DoneUnit, UnitCommit, Writer};
use compressed_tensors::numbers::read_f32;
use indexmap::IndexMap;
use lifecycle::{CompressionLifecycle, ModuleStore};
use modifiers::quantization::ModuleRecord;
use pipelines::{Committer, ModelStore, ModifierData, Wave};
use serde_json::{Value, json};

use super::{
    metrics::log_errors,
    overlay::Overlay,
    plan::PlannedModule,
    target::{check_scales, read_planned},
};
use crate::{
    Interrupt, Progress,
    error::{Error, ErrorKind, InContext, Result},
};

/// A modifier that runs alone.
struct Turn {
    /// Modules that it writes.
    writes: HashSet<String>,
    /// Modules that one before it wrote.
    earlier: HashSet<String>,
    /// Modules that one after it writes.
    later: HashSet<String>,
    /// Whether others come after it.
    is_last: bool,
}

/// Writes modules to an output.
pub(super) struct OutputCommitter<'a> {
    pub(super) modules: &'a IndexMap<String, PlannedModule>,
    overlay: &'a Overlay,
    pub(super) writer: &'a Writer,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
    done: HashMap<String, DoneUnit>,
    turn: Option<Turn>,
    pub(super) told: Told,
}

/// What modifiers told, of this run and of those before it that were interrupted.
#[derive(Default)]
pub(super) struct Told {
    /// Of each module.
    pub(super) records: HashMap<String, ModuleRecord>,
    /// Of each wave beside.
    pub(super) said: Vec<Value>,
}

impl Told {
    /// What the journal kept of a unit.
    fn take_up(&mut self, snapshot: &Value) {
        if let Ok(record) = serde_json::from_value::<ModuleRecord>(snapshot["record"].clone()) {
            self.records.insert(record.module.clone(), record);
        }
        self.say(snapshot["said"].as_array().into_iter().flatten().cloned());
    }

    /// Adds sayings, each in the place of what the same modifier said of the same wave.
    fn say(&mut self, said: impl IntoIterator<Item = Value>) {
        for it in said {
            self.said.retain(|old| (&old["modifier"], &old["wave"]) != (&it["modifier"], &it["wave"]));
            self.said.push(it);
        }
    }
}

/// Parts what modifiers say of a wave: records of modules, and the rest.
fn part(wave: &Wave, data: Vec<ModifierData>) -> (HashMap<String, ModuleRecord>, Vec<Value>) {
    let mut records = HashMap::new();
    let mut said = Vec::new();
    for ModifierData { type_name, data } in data {
        let entries = match data {
            Value::Array(entries) => entries,
            other => vec![other],
        };
        let mut rest = Vec::new();
        for entry in entries {
            let is_record = entry.get("module").is_some();
            match serde_json::from_value::<ModuleRecord>(entry.clone()) {
                Ok(record) if is_record => drop(records.insert(record.module.clone(), record)),
                _ => rest.push(entry),
            }
        }
        if !rest.is_empty() {
            said.push(json!({"modifier": type_name, "wave": wave.index, "data": rest}));
        }
    }
    (records, said)
}

impl<'a> OutputCommitter<'a> {
    pub(super) fn new(
        modules: &'a IndexMap<String, PlannedModule>,
        overlay: &'a Overlay,
        writer: &'a Writer,
        progress: &'a dyn Progress,
        interrupt: &'a Interrupt,
    ) -> Self {
        let done: HashMap<_, _> = writer.resumed().done.iter().map(|it| (it.name.clone(), it.clone())).collect();
        let mut told = Told::default();
        writer.resumed().done.iter().filter_map(|it| it.snapshot.as_ref()).for_each(|it| told.take_up(it));
        Self { modules, overlay, writer, progress, interrupt, done, turn: None, told }
    }

    /// The modules of a wave that are final behind it.
    fn planned<'w>(&'w self, wave: &'w Wave) -> impl Iterator<Item = &'a PlannedModule> + use<'a, 'w> {
        let modules = self.modules;
        let is_final = |it: &&PlannedModule| match &self.turn {
            Some(turn) if turn.writes.contains(&it.name) => !turn.later.contains(&it.name),
            // What nobody writes has no better time.
            Some(turn) => turn.is_last && !turn.earlier.contains(&it.name),
            None => true,
        };
        wave.modules.iter().filter_map(|it| modules.get(it)).filter(is_final)
    }

    /// Whether the turn changes a module of the wave that is not final behind it.
    fn prepares(&self, wave: &Wave) -> bool {
        let is_prepared = |turn: &Turn, it: &String| turn.writes.contains(it) && turn.later.contains(it);
        self.turn.as_ref().is_some_and(|turn| wave.modules.iter().any(|it| is_prepared(turn, it)))
    }

    /// Puts the written form of a module in the place of what it was, where it was changed.
    ///
    /// A weight that nobody changed goes on as it was: that is what the reference's calibration sees.
    fn read_back(&self, store: &mut ModelStore, module: &PlannedModule, changed: &HashSet<String>) -> Result<()> {
        if let Some(weight) = &module.weight {
            let name = format!("{}.weight", module.name);
            if changed.contains(&name) {
                store.set_bytes(&name, &weight.read_back(self.writer)?)?;
            }
        }
        for spec in module.dense.iter().filter(|it| changed.contains(&it.name)) {
            store.set_bytes(&spec.name, &read_planned(self.writer, spec)?)?;
        }
        Ok(())
    }

    fn write(&self, store: &ModelStore, module: &PlannedModule) -> Result<()> {
        if let Some(weight) = &module.weight {
            weight.write(store, self.writer)?;
        }
        for spec in &module.dense {
            let bytes = store.row_bytes(&spec.name, 0..spec.shape.first().copied().unwrap_or(1))?;
            self.writer.write_at(&spec.name, 0, &bytes)?;
        }
        for spec in &module.scales {
            let array = store.array(&module.path_of(spec))?;
            if (array.dtype, &array.shape) != (spec.dtype, &spec.shape) {
                let what = format!("`{}` of {} {:?}", spec.name, array.dtype, array.shape);
                return Err(ErrorKind::Unplanned { what }.into());
            }
            if !spec.name.ends_with("zero_point") {
                let mut values = vec![0.0; array.elements()];
                read_f32(array.dtype, &array.data, &mut values).context(&module.name)?;
                check_scales(&module.name, spec.name.rsplit('.').next().unwrap_or_default(), &values)?;
            }
            self.writer.write_at(&spec.name, 0, &array.data)?;
        }
        Ok(())
    }
}

/// The store of the engine.
fn engine_store(lifecycle: &mut CompressionLifecycle) -> Result<&mut ModelStore> {
    let store = lifecycle.state.model_mut().and_then(|it| it.as_engine::<ModelStore>());
    Ok(store?)
}

fn changed_of(store: &ModelStore, module: &PlannedModule) -> Vec<String> {
    let weight = module.weight.iter().map(|_| format!("{}.weight", module.name));
    weight.chain(module.dense.iter().map(|it| it.name.clone())).filter(|it| store.is_changed(it)).collect()
}

impl Committer for OutputCommitter<'_> {
    type Error = Error;

    fn turn(&mut self, modifier: usize, lifecycle: &CompressionLifecycle) -> Result<()> {
        let model = lifecycle.state.model()?;
        let writes = lifecycle.modifiers().iter().map(|it| it.modifier().writes(model));
        let mut writes = writes.collect::<lifecycle::Result<Vec<_>>>()?;
        let later = writes.split_off(modifier + 1);
        let own = writes.pop().unwrap_or_default();
        let all = |names: Vec<Vec<String>>| names.into_iter().flatten().collect();
        let is_last = later.is_empty();
        self.turn = Some(Turn { writes: all(vec![own]), earlier: all(writes), later: all(later), is_last });
        Ok(())
    }

    fn concerns(&self, wave: &Wave) -> bool {
        self.planned(wave).next().is_some() || self.prepares(wave)
    }

    fn is_done(&self, wave: &Wave) -> bool {
        // What is not final is found again, by the same numbers.
        self.planned(wave).all(|it| self.done.contains_key(&it.name)) && !self.prepares(wave)
    }

    fn replay(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle) -> Result<Option<Value>> {
        let mut snapshot = None;
        let planned: Vec<&PlannedModule> = self.planned(wave).collect();
        for module in planned {
            let Some(kept) = self.done.get(&module.name).and_then(|it| it.snapshot.as_ref()) else { continue };
            let changed = kept["changed"].as_array().into_iter().flatten();
            let changed = changed.filter_map(|it| it.as_str().map(str::to_owned)).collect();
            if kept["lifecycle"].is_object() {
                snapshot = Some(kept["lifecycle"].clone());
            }
            self.read_back(engine_store(lifecycle)?, module, &changed)?;
            self.progress.advance(module.input_bytes());
        }
        Ok(snapshot)
    }

    fn commit(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle, data: Vec<ModifierData>) -> Result<()> {
        let (mut records, said) = part(wave, data);
        let snapshot = lifecycle.snapshot()?;
        let store = engine_store(lifecycle)?;
        let mut units = Vec::new();
        let mut changes = Vec::new();
        let planned: Vec<&PlannedModule> = self.planned(wave).collect();
        for module in planned {
            let changed = changed_of(store, module);
            if !self.done.contains_key(&module.name) {
                let begin = Instant::now();
                self.write(store, module)?;
                let mut record = records.remove(&module.name);
                if let Some(it) = &mut record {
                    it.seconds += begin.elapsed().as_secs_f64();
                }
                let kept = record.as_ref().map_or(Value::Null, ModuleRecord::value);
                self.told.records.extend(record.map(|it| (module.name.clone(), it)));
                units.push(UnitCommit {
                    name: module.name.clone(),
                    tensors: module.outputs().into_iter().map(|it| it.name).collect(),
                    files: Vec::new(),
                    snapshot: Some(json!({ "changed": changed, "record": kept })),
                });
            }
            store.forget_added(&module.name);
            changes.push((module, changed.into_iter().collect::<HashSet<_>>()));
        }
        if let Some(Value::Object(last)) = units.last_mut().and_then(|it| it.snapshot.as_mut()) {
            last.insert("lifecycle".to_owned(), snapshot);
            last.insert("said".to_owned(), Value::Array(said.clone()));
        }
        self.told.say(said);
        self.writer.commit(&units)?;
        for (module, changed) in &changes {
            self.read_back(store, module, changed)?;
            self.progress.advance(module.input_bytes());
        }
        if let Some(loggers) = &mut lifecycle.state.loggers {
            let records = changes.iter().filter_map(|(module, _)| self.told.records.get(&module.name));
            log_errors(loggers, wave, records)?;
        }
        Ok(())
    }

    fn release(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle) -> Result<()> {
        let store = engine_store(lifecycle)?;
        let Some(turn) = self.turn.as_ref().filter(|it| !it.is_last) else {
            wave.modules.iter().for_each(|it| store.forget(it));
            return Ok(());
        };
        // The next modifier sees what this one has left.
        let folder = self.writer.scratch_dir()?;
        for module in &wave.modules {
            store.move_changes(module, |info, dtype, bytes| self.overlay.put(info, dtype, bytes, &folder))?;
            if !turn.later.contains(module) {
                store.forget_added(module);
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        match self.interrupt.signal() {
            Some(signal) => Err(ErrorKind::Interrupted { signal }.into()),
            None => Ok(()),
        }
    }
}
