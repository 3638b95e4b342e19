//! Makes the matrices of one scheme: sizes, random draws, sharing, and what is saved of them.

use indexmap::IndexMap;

use super::{
    config::{TransformArgs, TransformLocation, TransformScheme, TransformType},
    matrix::TransformMatrix,
    mersenne_twister::{DEFAULT_SEED, MersenneTwister},
    precision::Precision,
};
use crate::{Array, DType, Error, ErrorKind, ModuleTensors, Result};

/// Makes and keeps the matrices of one scheme.
///
/// There is one matrix for each size, shared by all modules and locations, drawn in order of first use.
/// Its precision is that of the first use, as in the reference: `precision` of the scheme where the
/// transform runs with the model, f64 where it is folded into a weight.
#[derive(Clone)]
pub struct TransformFactory {
    kind: TransformType,
    scheme: TransformScheme,
    rng: MersenneTwister,
    matrices: IndexMap<usize, TransformMatrix>,
    inverses: IndexMap<usize, TransformMatrix>,
}

impl TransformFactory {
    /// A factory with the seed that the reference ends up with.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`] for a type that does not exist.
    pub fn new(scheme: &TransformScheme) -> Result<Self> {
        Self::with_seed(scheme, DEFAULT_SEED)
    }

    /// A factory with a seed of one's own.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_seed(scheme: &TransformScheme, seed: u64) -> Result<Self> {
        Ok(Self {
            kind: TransformType::from_name(&scheme.r#type)?,
            scheme: scheme.clone(),
            rng: MersenneTwister::new(seed),
            matrices: IndexMap::new(),
            inverses: IndexMap::new(),
        })
    }

    /// The matrix that `args` applies to a dimension of `width` values.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] where `head_dim` does not divide the width or no such matrix exists.
    pub fn matrix(&mut self, args: &TransformArgs, width: usize) -> Result<TransformMatrix> {
        let size = self.size(width)?;
        if !self.matrices.contains_key(&size) {
            let matrix = self.make(size, args.location)?;
            self.matrices.insert(size, matrix);
        }
        let matrix = &self.matrices[&size];
        if !args.inverse {
            return Ok(matrix.clone());
        }
        if !self.inverses.contains_key(&size) {
            self.inverses.insert(size, matrix.inverse()?);
        }
        Ok(self.inverses[&size].clone())
    }

    fn size(&self, width: usize) -> Result<usize> {
        match self.scheme.head_dim {
            None => Ok(width),
            Some(head_dim) if head_dim > 0 && width.is_multiple_of(head_dim) => Ok(head_dim),
            Some(head_dim) => Err(Error::from(ErrorKind::InvalidField {
                field: "head_dim".to_owned(),
                found: head_dim.to_string(),
                expected: format!("a divisor of the width {width}"),
            })),
        }
    }

    fn make(&mut self, size: usize, location: TransformLocation) -> Result<TransformMatrix> {
        let precision =
            if location.is_online() { Precision::from_dtype(self.scheme.precision)? } else { Precision::F64 };
        let matrix = match self.kind {
            TransformType::Hadamard => TransformMatrix::hadamard(size, precision)?,
            TransformType::RandomHadamard => TransformMatrix::random_hadamard(size, precision, &mut self.rng)?,
            TransformType::RandomMatrix => return TransformMatrix::random(size, precision, &mut self.rng),
        };
        if self.scheme.randomize { matrix.permuted(self.rng.permutation(size)?) } else { Ok(matrix) }
    }
}

/// What a transform leaves in the module it acts on: nothing if it was folded into a weight, else
/// `{group}_{location}.weight` (+-1 or random entries, not divided) and `{group}_{location}.perm`.
///
/// Modules that share a matrix are tied: the caller saves the tensors of the first module only.
pub fn saved_tensors(group: &str, location: TransformLocation, matrix: &TransformMatrix) -> ModuleTensors {
    let mut saved = ModuleTensors::new();
    if !location.is_online() {
        return saved;
    }
    let prefix = format!("{group}_{}", location.as_str());
    let stored = matrix.stored();
    let size = matrix.size();
    saved.insert(format!("{prefix}.weight"), stored.precision().to_array(vec![size, size], &stored.entries()));
    if let Some(order) = matrix.permutation() {
        let data = order.iter().flat_map(|it| (*it as i64).to_le_bytes()).collect();
        saved.insert(format!("{prefix}.perm"), Array { dtype: DType::I64, shape: vec![size], data });
    }
    saved
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn factory(scheme: serde_json::Value) -> TransformFactory {
        TransformFactory::new(&TransformScheme::from_json(&scheme).unwrap()).unwrap()
    }

    fn args(location: TransformLocation) -> TransformArgs {
        TransformArgs { targets: vec!["Linear".into()], location, inverse: false, ignore: Vec::new() }
    }

    #[test]
    fn the_first_use_fixes_the_precision_of_a_size() {
        let mut online_first = factory(json!({"type": "random-hadamard"}));
        let online = online_first.matrix(&args(TransformLocation::Input), 8).unwrap();
        let folded = online_first.matrix(&args(TransformLocation::WeightInput), 8).unwrap();
        assert_eq!((online.precision(), folded.precision()), (Precision::F32, Precision::F32));
        assert_eq!(online.entries(), folded.entries());
        assert_eq!(online_first.matrix(&args(TransformLocation::WeightInput), 16).unwrap().precision(), Precision::F64);
    }

    #[test]
    fn a_head_dim_that_does_not_divide_is_refused() {
        let error = factory(json!({"type": "hadamard", "head_dim": 16})).matrix(&args(TransformLocation::Input), 24);
        assert!(matches!(error.unwrap_err().kind(), ErrorKind::InvalidField { field, .. } if field == "head_dim"));
    }

    #[test]
    fn an_unknown_type_is_refused_when_matrices_are_made() {
        let scheme = TransformScheme::from_json(&json!({"type": "fourier"})).unwrap();
        assert!(TransformFactory::new(&scheme).is_err());
    }

    #[test]
    fn folded_transforms_leave_nothing_behind() {
        let mut factory = factory(json!({"type": "hadamard", "randomize": true}));
        let matrix = factory.matrix(&args(TransformLocation::WeightInput), 8).unwrap();
        assert!(saved_tensors("R1", TransformLocation::WeightInput, &matrix).is_empty());
        let saved = saved_tensors("R1", TransformLocation::QAttn, &matrix);
        assert_eq!(saved.keys().collect::<Vec<_>>(), ["R1_q_attn.weight", "R1_q_attn.perm"]);
    }
}
