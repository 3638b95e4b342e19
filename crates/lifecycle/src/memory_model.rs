//! [`MemoryModel`]: a model store whose parameters lie in memory, for small models and for tests.

use std::ops::Range;

use compressed_tensors::{Array, DType};
use indexmap::IndexMap;

use crate::{
    Result,
    error::Error,
    model::{Activation, ModuleFacts, ModuleStore, ParameterFacts, unknown},
};

/// A model that holds every parameter as an array.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemoryModel {
    modules: Vec<ModuleFacts>,
    arrays: IndexMap<String, Array>,
}

impl MemoryModel {
    /// A model without modules.
    pub fn new() -> Self {
        Self::default()
    }

    /// A model of which only the facts are known, such as the headers of its files say.
    pub fn from_facts(modules: Vec<ModuleFacts>) -> Self {
        Self { modules, arrays: IndexMap::new() }
    }

    /// Adds a module of a class, with its parameters by local name.
    #[must_use]
    pub fn with_module<'a>(
        mut self,
        name: &str,
        class: &str,
        parameters: impl IntoIterator<Item = (&'a str, Array)>,
    ) -> Self {
        let mut facts =
            ModuleFacts { name: name.to_owned(), classes: vec![class.to_owned()], ..ModuleFacts::default() };
        for (local, array) in parameters {
            facts.parameters.insert(local.to_owned(), facts_of(&array));
            self.arrays.insert(joined(name, local), array);
        }
        self.modules.push(facts);
        self
    }

    fn stored(&self, parameter: &str) -> Result<&Array> {
        self.arrays.get(parameter).ok_or_else(|| unknown("parameter", parameter))
    }
}

/// An f32 array from its rows.
///
/// # Errors
/// Rows of different lengths.
pub fn f32_array(rows: &[Vec<f32>]) -> Result<Array> {
    let columns = rows.first().map_or(0, Vec::len);
    if rows.iter().any(|it| it.len() != columns) {
        return Err(Error::failed("the rows have different lengths"));
    }
    let data = rows.iter().flatten().flat_map(|it| it.to_le_bytes()).collect();
    Ok(Array { dtype: DType::F32, shape: vec![rows.len(), columns], data })
}

fn facts_of(array: &Array) -> ParameterFacts {
    ParameterFacts { dtype: array.dtype, shape: array.shape.clone() }
}

fn joined(module: &str, local: &str) -> String {
    if module.is_empty() { local.to_owned() } else { format!("{module}.{local}") }
}

/// The parameter as rows of all but the first dimension.
fn as_rows(array: &Array) -> Array {
    let rows = array.shape.first().copied().unwrap_or(1);
    let columns = array.elements().checked_div(rows).unwrap_or(0);
    Array { shape: vec![rows, columns], ..array.clone() }
}

impl ModuleStore for MemoryModel {
    fn modules(&self) -> &[ModuleFacts] {
        &self.modules
    }

    fn read_rows(&self, parameter: &str, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        Activation::read_rows(&as_rows(self.stored(parameter)?), rows, out)
    }

    fn write_rows(&mut self, parameter: &str, rows: Range<usize>, values: &[f32]) -> Result<()> {
        // Reading the rows first checks that they exist and that their dtype is a float.
        self.read_rows(parameter, rows.clone(), &mut values.to_vec())?;
        let array = self.arrays.get_mut(parameter).ok_or_else(|| unknown("parameter", parameter))?;
        let bytes: Vec<u8> = match array.dtype {
            DType::BF16 => values.iter().flat_map(|it| half::bf16::from_f32(*it).to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|it| half::f16::from_f32(*it).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|it| it.to_le_bytes()).collect(),
        };
        let from = bytes.len().checked_div(rows.len()).unwrap_or(0) * rows.start;
        array.data[from..from + bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn array(&self, parameter: &str) -> Result<Array> {
        self.stored(parameter).cloned()
    }

    fn set_array(&mut self, parameter: &str, array: Array) -> Result<()> {
        let (module, local) = parameter.rsplit_once('.').unwrap_or(("", parameter));
        let facts = self.modules.iter_mut().find(|it| it.name == module).ok_or_else(|| unknown("module", module))?;
        facts.parameters.insert(local.to_owned(), facts_of(&array));
        self.arrays.insert(parameter.to_owned(), array);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        let (module, local) = name.rsplit_once('.').unwrap_or(("", name));
        if self.arrays.shift_remove(name).is_some() {
            for facts in self.modules.iter_mut().filter(|it| it.name == module) {
                facts.parameters.shift_remove(local);
            }
            return Ok(());
        }
        let below = |it: &str| it == name || it.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
        let before = self.modules.len();
        self.modules.retain(|it| !below(&it.name));
        self.arrays.retain(|it, _| !below(it));
        if self.modules.len() == before { Err(unknown("module", name)) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> MemoryModel {
        let weight = f32_array(&[vec![1.0, 2.0], vec![3.0, 4.0]]).unwrap();
        let bias = Array { dtype: DType::BF16, shape: vec![2], data: vec![0, 0x3f, 0, 0x40] };
        let parameters = [("weight", weight.clone()), ("bias", bias)];
        MemoryModel::new().with_module("a.b", "Linear", parameters).with_module("a.bc", "Linear", [("weight", weight)])
    }

    #[test]
    fn rows_are_read_and_written_and_rounded_to_the_dtype() {
        let mut model = model();
        let mut out = [0.0; 2];
        model.write_rows("a.b.weight", 1..2, &[5.0, 6.0]).unwrap();
        model.read_rows("a.b.weight", 1..2, &mut out).unwrap();
        assert_eq!(out, [5.0, 6.0]);
        model.read_rows("a.b.bias", 0..2, &mut out).unwrap();
        assert_eq!(out, [0.5, 2.0]);
        model.write_rows("a.b.bias", 1..2, &[1.001]).unwrap();
        model.read_rows("a.b.bias", 0..2, &mut out).unwrap();
        assert_eq!(out, [0.5, 1.0]);
        for (parameter, rows, values) in [("a.b.weight", 1..3, 4), ("a.b.weight", 0..1, 1), ("a.b.absent", 0..1, 2)] {
            assert!(model.write_rows(parameter, rows, &vec![0.0; values]).is_err());
        }
    }

    #[test]
    fn parameters_and_modules_come_and_go() {
        let mut model = model();
        let scale = f32_array(&[vec![1.0]]).unwrap();
        model.set_array("a.b.weight_scale", scale.clone()).unwrap();
        assert_eq!(model.array("a.b.weight_scale").unwrap(), scale);
        assert!(model.module("a.b").unwrap().parameters.contains_key("weight_scale"));
        assert!(model.set_array("z.weight", scale).is_err());
        model.remove("a.b.bias").unwrap();
        assert!(!model.module("a.b").unwrap().parameters.contains_key("bias"));
        model.remove("a.b").unwrap();
        assert!(model.array("a.b.weight").is_err());
        assert!(model.array("a.bc.weight").is_ok(), "a name that begins alike stays");
        assert!(model.remove("a.b").is_err());
    }
}
