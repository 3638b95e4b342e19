//! Finished modules go to the output, and their written form takes their place in the model.

use std::collections::{HashMap, HashSet};

use checkpoint::{DoneUnit, UnitCommit, Writer};
use indexmap::IndexMap;
use lifecycle::{CompressionLifecycle, ModuleStore};
use pipelines::{Committer, ModelStore, ModifierData, Wave};
use serde_json::{Value, json};

use super::{plan::PlannedModule, target::read_planned};
use crate::{
    Interrupt, Progress,
    error::{Error, ErrorKind, Result},
};

/// Writes modules to an output.
pub(super) struct OutputCommitter<'a> {
    pub(super) modules: &'a IndexMap<String, PlannedModule>,
    pub(super) writer: &'a Writer,
    pub(super) progress: &'a dyn Progress,
    pub(super) interrupt: &'a Interrupt,
    done: HashMap<String, DoneUnit>,
    /// What modifiers said of each wave.
    pub(super) said: Vec<Value>,
}

impl<'a> OutputCommitter<'a> {
    pub(super) fn new(
        modules: &'a IndexMap<String, PlannedModule>,
        writer: &'a Writer,
        progress: &'a dyn Progress,
        interrupt: &'a Interrupt,
    ) -> Self {
        let done = writer.resumed().done.iter().map(|it| (it.name.clone(), it.clone())).collect();
        Self { modules, writer, progress, interrupt, done, said: Vec::new() }
    }

    fn planned<'w>(&self, wave: &'w Wave) -> impl Iterator<Item = &'a PlannedModule> + use<'a, 'w> {
        let modules = self.modules;
        wave.modules.iter().filter_map(|it| modules.get(it))
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
            let array = store.array(&spec.name)?;
            if (array.dtype, &array.shape) != (spec.dtype, &spec.shape) {
                let what = format!("`{}` of {} {:?}", spec.name, array.dtype, array.shape);
                return Err(ErrorKind::Unplanned { what }.into());
            }
            self.writer.write_at(&spec.name, 0, &array.data)?;
        }
        Ok(())
    }
}

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

    fn concerns(&self, wave: &Wave) -> bool {
        self.planned(wave).next().is_some()
    }

    fn is_done(&self, wave: &Wave) -> bool {
        self.planned(wave).all(|it| self.done.contains_key(&it.name))
    }

    fn replay(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle) -> Result<Option<Value>> {
        let mut snapshot = None;
        for module in self.planned(wave) {
            let Some(kept) = self.done.get(&module.name).and_then(|it| it.snapshot.as_ref()) else { continue };
            let changed = kept["changed"].as_array().into_iter().flatten();
            let changed = changed.filter_map(|it| it.as_str().map(str::to_owned)).collect();
            if let Some(said) = kept["said"].as_array() {
                self.said.extend(said.iter().cloned());
            }
            if kept["lifecycle"].is_object() {
                snapshot = Some(kept["lifecycle"].clone());
            }
            self.read_back(engine_store(lifecycle)?, module, &changed)?;
            self.progress.advance(module.input_bytes());
        }
        Ok(snapshot)
    }

    fn commit(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle, data: Vec<ModifierData>) -> Result<()> {
        let said: Vec<Value> =
            data.into_iter().map(|it| json!({"modifier": it.type_name, "wave": wave.index, "data": it.data})).collect();
        let snapshot = lifecycle.snapshot()?;
        let store = engine_store(lifecycle)?;
        let mut units = Vec::new();
        let mut changes = Vec::new();
        for module in self.planned(wave) {
            let changed = changed_of(store, module);
            if !self.done.contains_key(&module.name) {
                self.write(store, module)?;
                units.push(UnitCommit {
                    name: module.name.clone(),
                    tensors: module.outputs().into_iter().map(|it| it.name).collect(),
                    files: Vec::new(),
                    snapshot: Some(json!({ "changed": changed })),
                });
            }
            store.forget_added(&module.name);
            changes.push((module, changed.into_iter().collect::<HashSet<_>>()));
        }
        if let Some(Value::Object(last)) = units.last_mut().and_then(|it| it.snapshot.as_mut()) {
            last.insert("lifecycle".to_owned(), snapshot);
            last.insert("said".to_owned(), Value::Array(said.clone()));
        }
        self.said.extend(said);
        self.writer.commit(&units)?;
        for (module, changed) in changes {
            self.read_back(store, module, &changed)?;
            self.progress.advance(module.input_bytes());
        }
        Ok(())
    }

    fn release(&mut self, wave: &Wave, lifecycle: &mut CompressionLifecycle) -> Result<()> {
        let store = engine_store(lifecycle)?;
        wave.modules.iter().for_each(|it| store.forget(it));
        Ok(())
    }

    fn check(&self) -> Result<()> {
        match self.interrupt.signal() {
            Some(signal) => Err(ErrorKind::Interrupted { signal }.into()),
            None => Ok(()),
        }
    }
}
