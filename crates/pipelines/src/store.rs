//! A [`Model`] as modifiers see it: modules with facts, parameters by rows, kept inputs to run modules again on.

use std::{collections::HashMap, ops::Range, sync::Arc};

use compressed_tensors::{
    Array, DType,
    numbers::{read_f32, write_f32},
};
use graph::ModuleId;
use lifecycle::{Error, ErrorKind, ModuleFacts, ModuleStore, ParameterFacts, Result, See};
use models::{Model, ParameterId, ParameterInfo, Run};
use tensor::{Engine, Profile, Routing, Tensor};

use crate::{activation::TensorActivation, lanes::Lanes};

/// A model, what was added to its modules, and the inputs that were kept of some.
pub struct ModelStore {
    model: Arc<Model>,
    engine: Engine,
    facts: Vec<ModuleFacts>,
    at: HashMap<String, usize>,
    added: HashMap<String, Array>,
    kept: HashMap<(ModuleId, usize), Vec<Tensor>>,
    lanes: Arc<Lanes>,
}

impl ModelStore {
    /// A view of `model`, which runs with `engine`.
    ///
    /// # Errors
    /// A parameter that the weights lack.
    pub fn new(model: Arc<Model>, engine: Engine) -> crate::Result<Self> {
        let tree = model.tree();
        let mut facts = Vec::with_capacity(tree.ids().len());
        for id in tree.ids() {
            let name = tree.path(id).to_owned();
            let mut module = ModuleFacts {
                aliases: model.other_names(id),
                classes: model.classes(id).into_iter().map(str::to_owned).collect(),
                ..ModuleFacts::default()
            };
            for &parameter in model.own_parameters(id) {
                let info = model.store().info(parameter);
                let local = info.path.strip_prefix(&name).map(|it| it.trim_start_matches('.'));
                if let Some(local) = local {
                    let dtype = model.store().stored_dtype(parameter)?;
                    let shape = info.shape.clone();
                    module.parameters.insert(local.to_owned(), ParameterFacts { dtype, shape });
                }
            }
            facts.push(ModuleFacts { name, ..module });
        }
        let at = facts.iter().enumerate().map(|(idx, it)| (it.name.clone(), idx)).collect();
        Ok(Self { model, engine, facts, at, added: HashMap::new(), kept: HashMap::new(), lanes: Arc::default() })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// With what it runs.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Leaves modules as they are: patterns match them, and no modifier takes them up.
    pub fn freeze(&mut self, is_frozen: impl Fn(&str) -> bool) {
        self.facts.iter_mut().for_each(|it| it.frozen = is_frozen(&it.name));
    }

    /// Threads for modules that run again.
    pub(crate) fn set_lanes(&mut self, lanes: Arc<Lanes>) {
        self.lanes = lanes;
    }

    /// Keeps what a module was given in a batch.
    pub(crate) fn keep(&mut self, module: ModuleId, batch_idx: usize, inputs: Vec<Tensor>) {
        self.kept.insert((module, batch_idx), inputs);
    }

    /// Drops what was kept.
    pub(crate) fn forget_kept(&mut self) {
        self.kept.clear();
    }

    /// Whether a parameter of the model, not one that was added, differs from the checkpoint.
    pub fn is_changed(&self, parameter: &str) -> bool {
        self.model.store().find(parameter).is_some_and(|id| self.model.store().is_changed(id))
    }

    /// Bytes of rows of a parameter of the model in its own type.
    ///
    /// # Errors
    /// An unknown parameter, rows outside it, a failed read.
    pub fn row_bytes(&self, parameter: &str, rows: Range<usize>) -> crate::Result<Vec<u8>> {
        let id = self.find(parameter)?;
        let tensor =
            self.model.store().stored_rows(&self.engine, id, rows.start, rows.end.saturating_sub(rows.start))?;
        let tensor = tensor.dense(&self.engine.budget)?;
        Ok(tensor.as_bytes()?.to_vec())
    }

    /// Replaces a parameter of the model by bytes of its own type.
    ///
    /// # Errors
    /// An unknown parameter, another number of bytes.
    pub fn set_bytes(&mut self, parameter: &str, bytes: &[u8]) -> crate::Result<()> {
        let id = self.find(parameter)?;
        let store = self.model.store();
        let shape = store.info(id).shape.clone();
        let tensor = Tensor::build_bytes(&self.engine.budget, store.stored_dtype(id)?, &shape, |out| {
            if out.len() != bytes.len() {
                return Err(tensor::ErrorKind::Length { found: bytes.len(), expected: out.len() }.into());
            }
            out.copy_from_slice(bytes);
            Ok::<(), tensor::Error>(())
        })?;
        Ok(store.set(&self.engine, id, tensor)?)
    }

    /// Forgets changes of a module's parameters and what was added to it.
    pub fn forget(&mut self, module: &str) {
        let Some(id) = self.model.tree().find(module) else { return };
        self.model.own_parameters(id).iter().for_each(|it| self.model.store().reset(*it));
        self.forget_added(module);
    }

    /// Hands the bytes of a module's changed parameters to `put`, with their type on disk, and forgets the changes.
    ///
    /// A parameter that shares its tensor on disk with another one stays as it was set.
    ///
    /// # Errors
    /// A failed read, and what `put` finds.
    pub fn move_changes<E: From<crate::Error>>(
        &mut self,
        module: &str,
        mut put: impl FnMut(&ParameterInfo, DType, &[u8]) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let Some(id) = self.model.tree().find(module) else { return Ok(()) };
        let is_shared = |id| self.model.separated().is_some_and(|it| it.head == id || it.embedding == id);
        let store = self.model.store();
        for &id in self.model.own_parameters(id).iter().filter(|it| store.is_changed(**it) && !is_shared(**it)) {
            let info = store.info(id);
            let rows = info.shape.first().copied().unwrap_or(1);
            let dtype = store.stored_dtype(id).map_err(crate::Error::from)?;
            put(info, dtype, &self.row_bytes(&info.path, 0..rows)?)?;
            store.reset(id);
        }
        Ok(())
    }

    /// Forgets what was added to a module.
    pub fn forget_added(&mut self, module: &str) {
        let Some(&at) = self.at.get(module) else { return };
        let added = &mut self.added;
        self.facts[at].parameters.retain(|local, _| added.remove(&full(module, local)).is_none());
    }

    fn find(&self, parameter: &str) -> Result<ParameterId> {
        self.model.store().find(parameter).ok_or_else(|| unknown("parameter", parameter))
    }

    fn check_rows(&self, id: ParameterId, rows: &Range<usize>, len: usize) -> Result<usize> {
        let shape = &self.model.store().info(id).shape;
        let width: usize = shape.iter().skip(1).product();
        let bound = shape.first().copied().unwrap_or(1);
        if rows.start > rows.end || rows.end > bound || len != (rows.end - rows.start) * width {
            let message = format!("rows {rows:?} of shape {shape:?} do not fit {len} elements");
            return Err(Error::failed(message));
        }
        Ok(width)
    }
}

impl ModuleStore for ModelStore {
    fn modules(&self) -> &[ModuleFacts] {
        &self.facts
    }

    fn profile(&self) -> Profile {
        self.engine.profile
    }

    fn module(&self, name: &str) -> Result<&ModuleFacts> {
        self.at.get(name).map(|it| &self.facts[*it]).ok_or_else(|| unknown("module", name))
    }

    fn read_rows(&self, parameter: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        if let Some(array) = self.added.get(parameter) {
            return lifecycle::Activation::read_rows(array, rows, out);
        }
        let id = self.find(parameter)?;
        self.check_rows(id, &rows, out.len())?;
        let tensor = self.model.store().stored_rows(&self.engine, id, rows.start, rows.end - rows.start);
        let tensor = tensor.and_then(|it| Ok(it.dense(&self.engine.budget)?)).map_err(Error::failed)?;
        let bytes = tensor.as_bytes().map_err(Error::failed)?;
        read_f32(tensor.dtype(), bytes, out).map_err(Error::failed)
    }

    fn write_rows(&mut self, parameter: &str, rows: Range<usize>, values: &[f32]) -> Result<()> {
        let id = self.find(parameter)?;
        let width = self.check_rows(id, &rows, values.len())?;
        let store = self.model.store();
        let dtype = store.stored_dtype(id).map_err(Error::failed)?;
        let shape = store.info(id).shape.clone();
        let n_rows = shape.first().copied().unwrap_or(1);
        let whole = rows == (0..n_rows);
        let before =
            if whole { None } else { Some(store.stored_rows(&self.engine, id, 0, n_rows).map_err(Error::failed)?) };
        let row_bytes = width * dtype.bits() / 8;
        let tensor = Tensor::build_bytes(&self.engine.budget, dtype, &shape, |out| {
            if let Some(before) = before {
                out.copy_from_slice(before.dense(&self.engine.budget)?.as_bytes()?);
            }
            write_f32(dtype, values, &mut out[rows.start * row_bytes..rows.end * row_bytes])?;
            Ok::<(), models::Error>(())
        });
        tensor.and_then(|it| store.set(&self.engine, id, it)).map_err(Error::failed)
    }

    fn array(&self, parameter: &str) -> Result<Array> {
        if let Some(array) = self.added.get(parameter) {
            return Ok(array.clone());
        }
        let id = self.find(parameter)?;
        let shape = self.model.store().info(id).shape.clone();
        let dtype = self.model.store().stored_dtype(id).map_err(Error::failed)?;
        let data = self.row_bytes(parameter, 0..shape.first().copied().unwrap_or(1)).map_err(Error::failed)?;
        Ok(Array { dtype, shape, data })
    }

    fn set_array(&mut self, parameter: &str, array: Array) -> Result<()> {
        if let Ok(id) = self.find(parameter) {
            let store = self.model.store();
            let (dtype, shape) = (store.stored_dtype(id).map_err(Error::failed)?, &store.info(id).shape);
            if (dtype, shape) != (array.dtype, &array.shape) {
                let message = format!("{} {:?} does not take the place of {dtype} {shape:?}", array.dtype, array.shape);
                return Err(Error::failed(message));
            }
            return self.set_bytes(parameter, &array.data).map_err(Error::failed);
        }
        let (module, local) = parameter.rsplit_once('.').unwrap_or(("", parameter));
        let at = *self.at.get(module).ok_or_else(|| unknown("module", module))?;
        let facts = ParameterFacts { dtype: array.dtype, shape: array.shape.clone() };
        self.facts[at].parameters.insert(local.to_owned(), facts);
        self.added.insert(parameter.to_owned(), array);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        if self.added.remove(name).is_none() {
            return Err(Error::failed(format_args!("`{name}` is part of the model and cannot be removed")));
        }
        let (module, local) = name.rsplit_once('.').unwrap_or(("", name));
        if let Some(&at) = self.at.get(module) {
            self.facts[at].parameters.shift_remove(local);
        }
        Ok(())
    }

    fn rerun(&self, module: &str, batches: &[usize], replaced: &[(&str, &[f32])], see: See<'_>) -> Result<()> {
        let id = self.model.tree().find(module).ok_or_else(|| unknown("module", module))?;
        let kept = |batch: &usize| {
            let missing =
                || Error::failed(format_args!("the inputs of module `{module}` in batch {batch} were not kept"));
            self.kept.get(&(id, *batch)).ok_or_else(missing)
        };
        let inputs = batches.iter().map(kept).collect::<Result<Vec<_>>>()?;
        let mut before = Vec::with_capacity(replaced.len());
        let mut outcome = Ok(());
        for (parameter, values) in replaced {
            match self.exchange(parameter, values) {
                Ok(it) => before.push(it),
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let outcome = outcome.and_then(|()| self.run_kept(id, &inputs, see));
        for (parameter, tensor) in before {
            self.model.store().exchange(parameter, tensor).map_err(Error::failed)?;
        }
        outcome
    }
}

impl ModelStore {
    /// Runs a module on inputs side by side, and shows what it gives with the number of each.
    fn run_kept(&self, module: ModuleId, inputs: &[&Vec<Tensor>], see: See<'_>) -> Result<()> {
        let engine = self.engine.with_routing(Routing::Chosen);
        let run = |(idx, inputs): (usize, Vec<Tensor>)| {
            let run = Run { engine: &engine, hooks: None };
            let first = self.model.call_module(run, module, inputs).map_err(Error::failed)?.into_iter().next();
            let name = || self.model.tree().path(module);
            let output = first.ok_or_else(|| Error::failed(format_args!("module `{}` gives no value", name())))?;
            see(idx, &TensorActivation(output.dense(&engine.budget).map_err(Error::failed)?))
        };
        let begin = |idx: usize| Ok((idx, inputs[idx].clone()));
        // Its weights have been in memory since the module was heard.
        self.lanes.stream_behind(0, inputs.len(), begin, run, |_, ()| Ok(()))
    }

    /// Puts values in the place of a parameter, rounded to its own type and then to the one computed in.
    fn exchange(&self, parameter: &str, values: &[f32]) -> Result<(ParameterId, Option<Tensor>)> {
        let id = self.find(parameter)?;
        let store = self.model.store();
        let own = store.stored_dtype(id).map_err(Error::failed)?;
        let shape = &store.info(id).shape;
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::failed(format_args!("{} values for `{parameter}` of shape {shape:?}", values.len())));
        }
        let tensor = Tensor::build_bytes(&self.engine.budget, store.dtype(), shape, |out| {
            if narrower(own, store.dtype()) {
                let mut rounded = vec![0; values.len() * own.bits() / 8];
                write_f32(own, values, &mut rounded)?;
                let mut wide = vec![0.0; values.len()];
                read_f32(own, &rounded, &mut wide)?;
                write_f32(store.dtype(), &wide, out)?;
            } else {
                write_f32(store.dtype(), values, out)?;
            }
            Ok::<(), models::Error>(())
        });
        let tensor = tensor.map_err(Error::failed)?;
        Ok((id, store.exchange(id, Some(tensor)).map_err(Error::failed)?))
    }
}

fn narrower(own: DType, computed: DType) -> bool {
    own != computed && own != DType::F32
}

fn full(module: &str, local: &str) -> String {
    if module.is_empty() { local.to_owned() } else { format!("{module}.{local}") }
}

fn unknown(what: &'static str, name: &str) -> Error {
    ErrorKind::UnknownModule { what, name: name.to_owned() }.into()
}
