//! The seam to whatever runs the model: modules by name, their parameters by rows, tapped values.
//!
//! Modifiers (one level up) see a model only through [`ModuleStore`], and activations only through
//! [`Activation`]. Pipelines (one level up, beside them) implement both over their engine, usually as a
//! handle that streams row slabs from a checkpoint. Both traits are [`Any`], so that a modifier that
//! needs more than this seam (a backward pass through a decoder layer, say) upcasts and downcasts to a
//! type that both sides know from a crate below; a store of another type is an ordinary error.

use std::{any::Any, ops::Range};

use compressed_tensors::{Array, DType};
use indexmap::IndexMap;
use kernels::Profile;

use crate::{
    Result,
    error::{Error, ErrorKind},
};

/// What is known of a parameter without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterFacts {
    /// Element type as stored.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
}

/// A module as patterns and modifiers see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleFacts {
    /// Dotted path; the root is `""`.
    pub name: String,
    /// Other names that patterns may mean it by.
    pub aliases: Vec<String>,
    /// Class names, its own first, then those it inherits from, as Hugging Face calls them.
    pub classes: Vec<String>,
    /// Parameters by local name, in definition order.
    pub parameters: IndexMap<String, ParameterFacts>,
    /// Whether the module belongs to the machinery (an observer, an online transform): never matched.
    pub internal: bool,
    /// Whether the run leaves the module as it is: patterns match it, and no modifier takes it up.
    pub frozen: bool,
}

impl ModuleFacts {
    /// All its names, its path first.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str)
    }
}

/// A fault about a name that a model lacks.
pub(crate) fn unknown(what: &'static str, name: &str) -> Error {
    ErrorKind::UnknownModule { what, name: name.to_owned() }.into()
}

/// A model whose modules a modifier reads and changes.
pub trait ModuleStore: Any + Send {
    /// All modules in definition order, parents before children.
    fn modules(&self) -> &[ModuleFacts];

    /// The facts of one module. A store with many modules answers from an index.
    ///
    /// # Errors
    /// An unknown module.
    fn module(&self, name: &str) -> Result<&ModuleFacts> {
        self.modules().iter().find(|it| it.name == name).ok_or_else(|| unknown("module", name))
    }

    /// Which instruction set computes on it: the best of this processor unless the store says otherwise.
    fn profile(&self) -> Profile {
        Profile::detect()
    }

    /// Copies rows of a parameter, converted to f32. A row is all but the first dimension; a vector has
    /// rows of one element.
    ///
    /// # Errors
    /// An unknown parameter, rows outside it, an `out` of another length, or a failed read.
    fn read_rows(&self, parameter: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// Replaces rows of a parameter, rounded to its dtype.
    ///
    /// # Errors
    /// As [`ModuleStore::read_rows`].
    fn write_rows(&mut self, parameter: &str, rows: Range<usize>, values: &[f32]) -> Result<()>;

    /// A whole parameter as stored. For small ones: scales, zero points, biases.
    ///
    /// # Errors
    /// An unknown parameter or a failed read.
    fn array(&self, parameter: &str) -> Result<Array>;

    /// Adds a parameter to its module, or replaces it.
    ///
    /// # Errors
    /// An unknown module.
    fn set_array(&mut self, parameter: &str, array: Array) -> Result<()>;

    /// Removes a parameter, or a module with everything below it.
    ///
    /// # Errors
    /// An unknown name.
    fn remove(&mut self, name: &str) -> Result<()>;

    /// Runs a module once more on what it was given in batches of the current wave, with some parameters replaced by values of
    /// their shape, and shows `see` the first value that it gives, with its position in `batches`; several may be seen at a
    /// time, in any order. Only for modules that a modifier named in [`reruns`](crate::Modifier::reruns); no tap is fed.
    ///
    /// # Errors
    /// A store that cannot run its model, which is what the default says; a module or batch whose inputs were not kept; what
    /// `see` finds.
    fn rerun(&self, module: &str, _batches: &[usize], _replaced: &[(&str, &[f32])], _see: See<'_>) -> Result<()> {
        Err(Error::failed(format_args!("this store cannot run module `{module}` again")))
    }
}

/// Takes a value of a module that runs again, and the position of its batch.
pub type See<'a> = &'a (dyn Fn(usize, &dyn Activation) -> Result<()> + Sync);

impl dyn ModuleStore {
    /// The store as the type that implements it.
    ///
    /// # Errors
    /// A store of another type.
    pub fn as_engine<T: ModuleStore>(&mut self) -> Result<&mut T> {
        let store: &mut dyn Any = self;
        store
            .downcast_mut()
            .ok_or_else(|| Error::failed(format_args!("this pipeline's model is no {}", std::any::type_name::<T>())))
    }
}

/// A value at a tap: what a module was given or gave, in the engine's own form.
pub trait Activation: Any {
    /// Element type of the value.
    fn dtype(&self) -> DType;

    /// Extents, `(B, T, C)` for hidden states.
    fn shape(&self) -> &[usize];

    /// Copies rows, converted to f32. A row is the last dimension.
    ///
    /// # Errors
    /// Rows outside the value, an `out` of another length, or a dtype that is no float.
    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()>;

    /// All elements as little-endian bytes, row after row, where they lie so in memory.
    fn as_bytes(&self) -> Option<&[u8]> {
        None
    }
}

impl dyn Activation {
    /// The value as the type that implements it.
    pub fn downcast_ref<T: Activation>(&self) -> Option<&T> {
        let value: &dyn Any = self;
        value.downcast_ref()
    }
}

/// One value that reached a tap.
#[derive(Clone, Copy)]
pub struct Sample<'a> {
    /// Position of the batch in the loader, from 0.
    pub batch_idx: usize,
    /// Which of several calls of the module in this batch, from 0.
    pub call_idx: usize,
    /// Identity of the value's place in the model: taps that show the same value in every batch, such as
    /// the inputs of q, k and v, have the same. `None` where the pipeline does not know.
    pub edge: Option<usize>,
    /// The value.
    pub value: &'a dyn Activation,
    /// The value in a run in which nothing has been changed, for whom [`hears_unchanged`](crate::Modifier::hears_unchanged).
    /// `None` where nothing has been changed yet, and where other tokens came by.
    pub unchanged: Option<&'a dyn Activation>,
    /// Which rows count, where a loss mask is in force.
    pub mask: Option<&'a [bool]>,
}

impl Activation for Array {
    fn dtype(&self) -> DType {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let columns = self.shape.last().copied().unwrap_or(1);
        let (from, to) = (rows.start.saturating_mul(columns), rows.end.saturating_mul(columns));
        if from > to || to > self.elements() || out.len() != to - from {
            return Err(Error::failed(format_args!(
                "rows {rows:?} of shape {:?} do not fill {} elements",
                self.shape,
                out.len()
            )));
        }
        let width = self.dtype.bits() / 8;
        let convert: fn(&[u8]) -> f32 = match self.dtype {
            DType::F32 => |it| f32::from_le_bytes([it[0], it[1], it[2], it[3]]),
            DType::BF16 => |it| half::bf16::from_le_bytes([it[0], it[1]]).to_f32(),
            DType::F16 => |it| half::f16::from_le_bytes([it[0], it[1]]).to_f32(),
            other => return Err(Error::failed(format_args!("an activation is {other}, expected a float"))),
        };
        let bytes = self.data.get(from * width..to * width);
        let bytes = bytes.ok_or_else(|| Error::failed("an array holds fewer bytes than its shape says"))?;
        for (slot, chunk) in out.iter_mut().zip(bytes.chunks_exact(width)) {
            *slot = convert(chunk);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_array_is_an_activation_and_refuses_rows_outside_it() {
        let data = [1.0f32, 2.0, 3.0, 4.0].iter().flat_map(|it| it.to_le_bytes()).collect();
        let array = Array { dtype: DType::F32, shape: vec![1, 2, 2], data };
        let mut out = [0.0; 2];
        Activation::read_rows(&array, 1..2, &mut out).unwrap();
        assert_eq!(out, [3.0, 4.0]);
        assert!(Activation::read_rows(&array, 1..3, &mut [0.0; 4]).is_err());
        assert!(Activation::read_rows(&array, 0..2, &mut out).is_err());
        let short = Array { data: vec![0; 4], ..array };
        assert!(Activation::read_rows(&short, 1..2, &mut out).is_err());
    }
}
