//! Parameters: on disk until a run needs them, changed in memory only where somebody changed them.

mod laid_out;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use compressed_tensors::experts::{ExpertLayout, ExpertPart, split_fused_experts};
use tensor::{DType, Engine, LaidOut, Op, Tensor};

use crate::error::{BoxedError, Error, ErrorKind, Result};

/// Where tensors come from: a checkpoint, or whatever stands for one.
pub trait Weights: Send + Sync {
    /// Dtype and shape of a tensor; none where it does not exist.
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)>;

    /// Fills `out` with the tensor's little-endian bytes from `offset_bytes` on.
    ///
    /// # Errors
    /// Whatever keeps it from doing so.
    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> Result<(), BoxedError>;
}

impl Weights for checkpoint::Source {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        self.get(name).map(|entry| (entry.dtype, entry.shape.clone()))
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> Result<(), BoxedError> {
        let entry = self.require(name)?;
        Ok(Self::read_into(self, entry, offset_bytes, out)?)
    }
}

/// A parameter of a [`Store`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(pub(crate) usize);

/// A parameter: its names and the shape that the config implies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterInfo {
    /// Name in the model: the path of its module and its own name.
    pub path: String,
    /// Name of its tensor on disk; of a part of a larger tensor the name that it is written under.
    pub name: String,
    /// Name that it is written under.
    pub written: String,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// The type that it is computed with in.
    pub dtype: DType,
    /// The tensor that holds it beside others.
    pub stacked_in: Option<String>,
}

/// A parameter before anybody looked where it is on disk.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) path: String,
    pub(crate) written: String,
    pub(crate) shape: Vec<usize>,
    /// Names that a checkpoint may use for it, the usual one first.
    pub(crate) names: Vec<String>,
    /// Where it is if no tensor has one of the names.
    pub(crate) stack: Option<Stack>,
    /// The type that it is computed with in, where it is not the model's.
    pub(crate) dtype: Option<DType>,
}

/// A tensor that holds one linear of all experts of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Stack {
    pub(crate) tensor: String,
    /// The name from which those of its parts are made.
    pub(crate) canonical: String,
    /// The name of the part.
    pub(crate) part: String,
    pub(crate) layout: ExpertLayout,
}

/// All parameters of a model, in the order of its modules.
pub struct Store {
    weights: Arc<dyn Weights>,
    dtype: DType,
    infos: Vec<ParameterInfo>,
    /// How to take those that are stacked out of their tensors.
    parts: HashMap<ParameterId, ExpertPart>,
    by_name: HashMap<String, ParameterId>,
    slots: Mutex<Vec<Slot>>,
}

#[derive(Default)]
struct Slot {
    holders: usize,
    resident: Option<Tensor>,
    changed: Option<Tensor>,
    /// What was set, where its type is not the one computed in.
    exact: Option<Tensor>,
    /// What is in memory, in the order in which it is multiplied.
    laid_out: Option<Arc<LaidOut>>,
    /// Whether that is all that is held.
    is_only_laid_out: bool,
}

/// Keeps parameters in memory, once they are read, until it is dropped.
pub struct Held<'a> {
    store: &'a Store,
    ids: Vec<ParameterId>,
}

impl Store {
    /// A store over `weights` that computes in `dtype`.
    pub(crate) fn new(weights: Arc<dyn Weights>, dtype: DType, wanted: Vec<Wanted>) -> Result<Self> {
        let mut stacks = Stacks::default();
        let (mut infos, mut parts) = (Vec::new(), HashMap::new());
        for (idx, Wanted { path, written, shape, names, stack, dtype: own }) in wanted.into_iter().enumerate() {
            let id = ParameterId(idx);
            let alone = names.iter().find_map(|name| weights.spec(name).map(|(_, found)| (name.clone(), found)));
            let (name, found, stacked_in) = match (alone, stack) {
                (Some((name, found)), _) => (name, found, None),
                (None, Some(stack)) => {
                    let part = stacks.part(weights.as_ref(), &stack)?;
                    let found = part.shape.clone();
                    parts.insert(id, part);
                    (written.clone(), found, Some(stack.tensor))
                }
                (None, None) => {
                    let name = names.into_iter().next().unwrap_or(written);
                    return Err(Error::from(ErrorKind::MissingTensor).at(name));
                }
            };
            if found != shape {
                return Err(Error::from(ErrorKind::Shape { found, expected: shape }).at(&name));
            }
            infos.push(ParameterInfo { path, name, written, shape, dtype: own.unwrap_or(dtype), stacked_in });
        }
        let mut by_name = HashMap::new();
        let names = |names: fn(&ParameterInfo) -> &String| infos.iter().map(names).cloned().zip((0..).map(ParameterId));
        for (name, id) in names(|it| &it.name).chain(names(|it| &it.path)).chain(names(|it| &it.written)) {
            by_name.entry(name).or_insert(id);
        }
        let slots = Mutex::new(infos.iter().map(|_| Slot::default()).collect());
        Ok(Self { weights, dtype, infos, parts, by_name, slots })
    }

    /// The type that the model computes in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All parameters.
    pub fn parameters(&self) -> impl ExactSizeIterator<Item = (ParameterId, &ParameterInfo)> {
        self.infos.iter().enumerate().map(|(idx, info)| (ParameterId(idx), info))
    }

    /// Looks a parameter up by its name on disk, in the model, or as it is written.
    pub fn find(&self, name: &str) -> Option<ParameterId> {
        self.by_name.get(name).copied()
    }

    /// Name and shape.
    pub fn info(&self, id: ParameterId) -> &ParameterInfo {
        &self.infos[id.0]
    }

    /// The parameter in the type that the model computes in: what [`Store::set`] was given, else what is on disk.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`], [`ErrorKind::Graph`] where the budget does not allow it; placed at the parameter.
    pub fn get(&self, engine: &Engine, id: ParameterId) -> Result<Tensor> {
        if let Some(tensor) = self.in_memory(id) {
            return Ok(tensor);
        }
        let tensor = self.load(engine, id).map_err(|error| error.at(&self.infos[id.0].name))?;
        let slot = &mut self.lock()[id.0];
        if slot.holders > 0 {
            slot.resident = Some(tensor.clone());
        }
        Ok(tensor)
    }

    /// The parameter as it is on disk, in its own type, whatever was set.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn original(&self, engine: &Engine, id: ParameterId) -> Result<Tensor> {
        let ParameterInfo { name, shape, .. } = &self.infos[id.0];
        let (tensor, part) = self.place(id);
        let spec = self.weights.spec(tensor).ok_or(ErrorKind::MissingTensor);
        let (dtype, _) = spec.map_err(|kind| Error::from(kind).at(tensor))?;
        let read = |out: &mut [u8]| {
            let Some(part) = part else {
                return Ok(self.weights.read_into(tensor, 0, out).map_err(ErrorKind::Weights)?);
            };
            let start = part.source.start as u64;
            if part.is_contiguous() {
                return Ok(self.weights.read_into(tensor, start, out).map_err(ErrorKind::Weights)?);
            }
            let mut lines = vec![0; part.source.len()];
            self.weights.read_into(tensor, start, &mut lines).map_err(ErrorKind::Weights)?;
            out.copy_from_slice(&part.extract(&lines)?);
            Ok(())
        };
        Tensor::build_bytes(&engine.budget, dtype, shape, read).map_err(|error: Error| error.at(name))
    }

    /// The tensor that holds a parameter, and its part of it; a tensor of its own, once there is one, goes before a stack.
    fn place(&self, id: ParameterId) -> (&str, Option<&ExpertPart>) {
        let ParameterInfo { name, stacked_in, .. } = &self.infos[id.0];
        match (stacked_in, self.parts.get(&id)) {
            (Some(stack), Some(part)) if self.weights.spec(name).is_none() => (stack, Some(part)),
            _ => (name, None),
        }
    }

    /// Rows `start..start + len` of a parameter; only they are read where it is not in memory.
    ///
    /// # Errors
    /// As [`Store::get`], and [`tensor::ErrorKind::Index`] for rows beyond the last.
    pub fn rows(&self, engine: &Engine, id: ParameterId, start: usize, len: usize) -> Result<Tensor> {
        let ParameterInfo { name, shape, .. } = &self.infos[id.0];
        if let Some(tensor) = self.in_memory(id) {
            return tensor.slice(0, start, len).map_err(|error| Error::from(error).at(name));
        }
        let bound = shape.first().copied().unwrap_or(0);
        if start.checked_add(len).is_none_or(|end| end > bound) {
            let found = start.saturating_add(len) as i64;
            return Err(Error::from(tensor::Error::from(tensor::ErrorKind::Index { found, bound: bound + 1 })).at(name));
        }
        let mut shape = shape.clone();
        shape[0] = len;
        self.read_rows(engine, id, &shape, &[(start, len)])
    }

    /// The rows `ids` of a parameter, in rising order of id, each once; only they are read where it is not in memory.
    pub(crate) fn gather(&self, engine: &Engine, id: ParameterId, ids: &BTreeSet<u32>) -> Result<Tensor> {
        let mut shape = self.infos[id.0].shape.clone();
        shape[0] = ids.len();
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for id in ids.iter().map(|&id| id as usize) {
            match runs.last_mut() {
                Some((start, len)) if *start + *len == id => *len += 1,
                _ => runs.push((id, 1)),
            }
        }
        self.read_rows(engine, id, &shape, &runs)
    }

    /// Reads runs of rows one below the other into a tensor of `shape`, in the type computed in.
    fn read_rows(&self, engine: &Engine, id: ParameterId, shape: &[usize], runs: &[(usize, usize)]) -> Result<Tensor> {
        let tensor = self.read_stored_rows(engine, id, shape, runs)?;
        self.converted(engine, id, tensor).map_err(|error| error.at(&self.infos[id.0].name))
    }

    /// Reads runs of rows one below the other into a tensor of `shape`.
    fn read_stored_rows(
        &self,
        engine: &Engine,
        id: ParameterId,
        shape: &[usize],
        runs: &[(usize, usize)],
    ) -> Result<Tensor> {
        let name = &self.infos[id.0].name;
        let placed = |error: Error| error.at(name);
        if let (Some(_), &[(start, len)]) = (self.place(id).1, runs) {
            return self.original(engine, id)?.slice(0, start, len).map_err(|error| placed(error.into()));
        }
        let spec = self.weights.spec(name).ok_or(ErrorKind::MissingTensor);
        let (dtype, _) = spec.map_err(|kind| placed(kind.into()))?;
        let n_rows = shape[0].max(1);
        let read = |out: &mut [u8]| {
            let row_bytes = out.len() / n_rows;
            let mut rest = out;
            for &(start, len) in runs {
                let (part, after) = rest.split_at_mut(len * row_bytes);
                rest = after;
                let offset_bytes = (start as u64).saturating_mul(row_bytes as u64);
                self.weights.read_into(name, offset_bytes, part).map_err(ErrorKind::Weights)?;
            }
            Ok(())
        };
        Tensor::build_bytes(&engine.budget, dtype, shape, read).map_err(placed)
    }

    /// The parameter where it is in memory, changed or held.
    pub(crate) fn in_memory(&self, id: ParameterId) -> Option<Tensor> {
        let slots = self.lock();
        slots[id.0].changed.as_ref().or(slots[id.0].resident.as_ref()).cloned()
    }

    fn load(&self, engine: &Engine, id: ParameterId) -> Result<Tensor> {
        let original = self.original(engine, id)?;
        self.converted(engine, id, original)
    }

    fn converted(&self, engine: &Engine, id: ParameterId, tensor: Tensor) -> Result<Tensor> {
        let (found, dtype) = (tensor.dtype(), self.infos[id.0].dtype);
        if found == dtype {
            return Ok(tensor);
        }
        if !matches!(found, DType::F32 | DType::BF16 | DType::F16) {
            return Err(ErrorKind::DType { found, expected: "F32, BF16 or F16" }.into());
        }
        let mut cast = Op::Cast { dtype }.forward(engine, vec![tensor])?;
        cast.pop().ok_or_else(|| ErrorKind::Arity { found: 0, expected: "1" }.into())
    }

    /// Puts `tensor` in the place of a parameter until [`Store::reset`]; the disk stays as it is.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] and [`ErrorKind::DType`], placed at the parameter.
    pub fn set(&self, engine: &Engine, id: ParameterId, tensor: Tensor) -> Result<()> {
        let ParameterInfo { name, shape: expected, .. } = &self.infos[id.0];
        if tensor.shape() != expected.as_slice() {
            let kind = ErrorKind::Shape { found: tensor.shape().to_vec(), expected: expected.clone() };
            return Err(Error::from(kind).at(name));
        }
        let exact = (tensor.dtype() != self.infos[id.0].dtype).then(|| tensor.clone());
        let tensor = self.converted(engine, id, tensor).map_err(|error| error.at(name))?;
        let slot = &mut self.lock()[id.0];
        slot.resident = None;
        slot.laid_out = None;
        slot.changed = Some(tensor);
        slot.exact = exact;
        Ok(())
    }

    /// Forgets what [`Store::set`] was given.
    pub fn reset(&self, id: ParameterId) {
        let slot = &mut self.lock()[id.0];
        slot.changed = None;
        slot.exact = None;
        slot.laid_out = None;
    }

    /// Puts a tensor of the parameter's shape and the type computed in (none: what is on disk) in the place of a change for a
    /// while, and gives that change; what is held of the disk stays in memory.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] and [`ErrorKind::DType`], placed at the parameter.
    pub fn exchange(&self, id: ParameterId, tensor: Option<Tensor>) -> Result<Option<Tensor>> {
        let ParameterInfo { name, shape: expected, dtype, .. } = &self.infos[id.0];
        if let Some(tensor) = &tensor {
            let found = tensor.shape().to_vec();
            if found != *expected {
                return Err(Error::from(ErrorKind::Shape { found, expected: expected.clone() }).at(name));
            }
            if tensor.dtype() != *dtype {
                let kind = ErrorKind::DType { found: tensor.dtype(), expected: "the type that the model computes in" };
                return Err(Error::from(kind).at(name));
            }
        }
        let slot = &mut self.lock()[id.0];
        slot.laid_out = None;
        Ok(std::mem::replace(&mut slot.changed, tensor))
    }

    /// The type that the parameter has on disk.
    ///
    /// # Errors
    /// [`ErrorKind::MissingTensor`], placed at the parameter.
    pub fn stored_dtype(&self, id: ParameterId) -> Result<DType> {
        let (name, _) = self.place(id);
        let spec = self.weights.spec(name).ok_or(ErrorKind::MissingTensor);
        spec.map(|(dtype, _)| dtype).map_err(|kind| Error::from(kind).at(name))
    }

    /// Rows of the parameter as it would be stored: what [`Store::set`] was given, else what is on disk, in its own type.
    ///
    /// # Errors
    /// As [`Store::rows`].
    pub fn stored_rows(&self, engine: &Engine, id: ParameterId, start: usize, len: usize) -> Result<Tensor> {
        let ParameterInfo { name, shape, dtype, .. } = &self.infos[id.0];
        let known = {
            let slots = self.lock();
            let slot = &slots[id.0];
            let is_own = self.stored_dtype(id)? == *dtype;
            let held = slot.changed.as_ref().or(slot.resident.as_ref()).filter(|_| is_own);
            slot.exact.as_ref().or(held).cloned()
        };
        if let Some(tensor) = known {
            return tensor.slice(0, start, len).map_err(|error| Error::from(error).at(name));
        }
        let bound = shape.first().copied().unwrap_or(0);
        if start.checked_add(len).is_none_or(|end| end > bound) {
            let found = start.saturating_add(len) as i64;
            return Err(Error::from(tensor::Error::from(tensor::ErrorKind::Index { found, bound: bound + 1 })).at(name));
        }
        let mut shape = shape.clone();
        shape[0] = len;
        self.read_stored_rows(engine, id, &shape, &[(start, len)])
    }

    /// Whether the parameter differs from the disk.
    pub fn is_changed(&self, id: ParameterId) -> bool {
        self.lock()[id.0].changed.is_some()
    }

    /// Keeps parameters in memory from their first use until the guard is dropped.
    pub fn hold(&self, ids: impl IntoIterator<Item = ParameterId>) -> Held<'_> {
        let ids: Vec<_> = ids.into_iter().collect();
        let mut slots = self.lock();
        ids.iter().for_each(|id| slots[id.0].holders += 1);
        drop(slots);
        Held { store: self, ids }
    }

    /// Bytes of parameters in memory, changed ones included.
    pub fn resident_bytes(&self) -> u64 {
        let slots = self.lock();
        let of = |slot: &Slot| {
            let dense: u64 = slot.resident.iter().chain(&slot.changed).map(Tensor::storage_bytes).sum();
            dense + slot.laid_out.as_ref().map_or(0, |it| it.bytes())
        };
        slots.iter().map(of).sum()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Parts of the tensors that were asked for.
#[derive(Default)]
struct Stacks(HashMap<String, HashMap<String, ExpertPart>>);

impl Stacks {
    /// A part of a stack.
    fn part(&mut self, weights: &dyn Weights, stack: &Stack) -> Result<ExpertPart> {
        let missing = || Error::from(ErrorKind::MissingTensor).at(&stack.part);
        if !self.0.contains_key(&stack.tensor) {
            let (dtype, shape) = weights.spec(&stack.tensor).ok_or_else(missing)?;
            let parts = split_fused_experts(&stack.canonical, dtype, &shape, stack.layout);
            let parts = parts.map_err(|error| Error::from(error).at(&stack.tensor))?.unwrap_or_default();
            let parts = parts.into_iter().map(|part| (part.name.clone(), part)).collect();
            self.0.insert(stack.tensor.clone(), parts);
        }
        self.0.get(&stack.tensor).and_then(|parts| parts.get(&stack.part)).cloned().ok_or_else(missing)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut slots = self.store.lock();
        for id in &self.ids {
            let slot = &mut slots[id.0];
            slot.holders -= 1;
            if slot.holders == 0 {
                slot.resident = None;
                slot.laid_out = None;
                slot.is_only_laid_out = false;
            }
        }
    }
}
