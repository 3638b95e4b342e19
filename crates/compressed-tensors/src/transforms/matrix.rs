//! A square transform matrix, kept as its rule where it has one, and its product with rows of values.

use std::sync::Arc;

use rayon::prelude::*;

use super::{
    hadamard::{KnownHadamard, check_sylvester_size, sylvester_is_positive},
    mersenne_twister::MersenneTwister,
    precision::Precision,
};
use crate::{Error, ErrorKind, Result};

/// A transform matrix M of `size` x `size`.
///
/// Hadamard matrices hold +-1 and are divided by [`divisor`](Self::divisor) after a product. They are
/// kept as signs and a small factor, so that a size of 16,384 costs kilobytes.
#[derive(Clone, Debug)]
pub struct TransformMatrix {
    size: usize,
    precision: Precision,
    structure: Structure,
    /// M = R[p][:, p].
    permutation: Option<Arc<[usize]>>,
    transposed: bool,
}

#[derive(Clone, Debug)]
enum Structure {
    Sylvester,
    /// diag(signs) * (known^T kron Sylvester).
    Random {
        signs: Arc<[i8]>,
        known: KnownHadamard,
    },
    /// Row-major entries, each of the matrix's precision.
    Dense(Arc<[f64]>),
}

impl TransformMatrix {
    /// Sylvester's matrix.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] unless `size` is a power of two.
    pub fn hadamard(size: usize, precision: Precision) -> Result<Self> {
        check_sylvester_size(size)?;
        Ok(Self { size, precision, structure: Structure::Sylvester, permutation: None, transposed: false })
    }

    /// A Hadamard matrix of a wider choice of sizes with random row signs.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] where no known matrix divides the size by a power of two.
    pub fn random_hadamard(size: usize, precision: Precision, rng: &mut MersenneTwister) -> Result<Self> {
        let known = KnownHadamard::factor_of(size)?;
        let signs = (0..size).map(|_| rng.sign()).collect();
        let structure = Structure::Random { signs, known };
        Ok(Self { size, precision, structure, permutation: None, transposed: false })
    }

    /// Uniform entries in `[0, 1)`, drawn row by row in the matrix's precision.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for a size of 0, [`ErrorKind::Unsupported`] for 16-bit precision.
    pub fn random(size: usize, precision: Precision, rng: &mut MersenneTwister) -> Result<Self> {
        let n_entries = size.checked_mul(size).filter(|n| *n > 0).ok_or_else(|| {
            Error::from(ErrorKind::InvalidField {
                field: "size".to_owned(),
                found: size.to_string(),
                expected: "a size of at least 1 whose square can be addressed".to_owned(),
            })
        })?;
        let entries: Arc<[f64]> = match precision {
            Precision::F64 => (0..n_entries).map(|_| rng.uniform_f64()).collect(),
            Precision::F32 => (0..n_entries).map(|_| f64::from(rng.uniform_f32())).collect(),
            Precision::F16 | Precision::BF16 => {
                return Err(Error::from(ErrorKind::Unsupported {
                    what: "a random-matrix transform with 16-bit precision".to_owned(),
                }));
            }
        };
        Ok(Self { size, precision, structure: Structure::Dense(entries), permutation: None, transposed: false })
    }

    /// Rows and columns.
    pub fn size(&self) -> usize {
        self.size
    }

    /// In which width products are rounded.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// By what a product is divided: the root of the size for Hadamard matrices, nothing for others.
    pub fn divisor(&self) -> Option<f64> {
        match self.structure {
            Structure::Sylvester | Structure::Random { .. } => Some((self.size as f64).sqrt()),
            Structure::Dense(_) => None,
        }
    }

    /// The permutation in use.
    pub fn permutation(&self) -> Option<&[usize]> {
        self.permutation.as_deref()
    }

    /// The same matrix with rows and columns taken in the order `permutation`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] where it is no permutation of `0..size`.
    pub fn permuted(&self, permutation: Vec<usize>) -> Result<Self> {
        let mut seen = vec![false; self.size];
        let fresh = |i: &usize| seen.get_mut(*i).is_some_and(|it| !std::mem::replace(it, true));
        if permutation.len() != self.size || !permutation.iter().all(fresh) {
            return Err(Error::from(ErrorKind::InvalidField {
                field: "perm".to_owned(),
                found: format!("{} entries", permutation.len()),
                expected: format!("a permutation of 0..{}", self.size),
            }));
        }
        Ok(Self { permutation: Some(permutation.into()), ..self.clone() })
    }

    /// What undoes the matrix: the transpose of a Hadamard matrix, else the inverse by LU in f64,
    /// rounded to the matrix's precision.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where the matrix is singular in f64.
    pub fn inverse(&self) -> Result<Self> {
        match &self.structure {
            Structure::Sylvester | Structure::Random { .. } => Ok(self.transpose()),
            Structure::Dense(entries) => {
                let mut inverse = invert(entries, self.size)?;
                self.precision.round_all(&mut inverse);
                Ok(Self { structure: Structure::Dense(inverse.into()), ..self.clone() })
            }
        }
    }

    /// The transpose.
    #[must_use]
    pub fn transpose(&self) -> Self {
        Self { transposed: !self.transposed, ..self.clone() }
    }

    /// The matrix without permutation and transposition, as it is saved.
    #[must_use]
    pub fn stored(&self) -> Self {
        Self { permutation: None, transposed: false, ..self.clone() }
    }

    /// One entry, before the division; both indices are below the size.
    pub fn entry(&self, row: usize, col: usize) -> f64 {
        let (i, j) = if self.transposed { (col, row) } else { (row, col) };
        let at = |k: usize| self.permutation.as_ref().map_or(k, |p| p[k]);
        let (i, j) = (at(i), at(j));
        match &self.structure {
            Structure::Sylvester => sign_of(sylvester_is_positive(i, j)),
            Structure::Random { signs, known } => {
                let b = self.size / known.size();
                let positive = known.is_positive(j / b, i / b) == sylvester_is_positive(i % b, j % b);
                f64::from(signs[i]) * sign_of(positive)
            }
            Structure::Dense(entries) => entries[i * self.size + j],
        }
    }

    /// All entries, row-major, before the division.
    pub fn entries(&self) -> Vec<f64> {
        (0..self.size * self.size).map(|at| self.entry(at / self.size, at % self.size)).collect()
    }

    /// Multiplies each run of `size` values, taken as a row, by the matrix, and divides.
    ///
    /// Values are rounded to the matrix's precision first; products are summed in f64, rounded to the
    /// precision, divided and rounded again. A sum whose exact value fits f64 has no order, which holds
    /// for all 16-bit weights under a Hadamard matrix.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where `values` does not divide into such runs.
    pub fn multiply_rows(&self, values: &mut [f64]) -> Result<()> {
        if !values.len().is_multiple_of(self.size) {
            return Err(Error::from(ErrorKind::Shape {
                tensor: "values".to_owned(),
                found: vec![values.len()],
                expected: format!("a multiple of the transform size {}", self.size),
            }));
        }
        let divisor = self.divisor().map(|it| self.precision.round(it));
        values.par_chunks_mut(self.size).for_each_init(
            || vec![0.0; self.size],
            |scratch, row| {
                self.precision.round_all(row);
                self.multiply_row(row, scratch);
                self.precision.round_all(row);
                if let Some(divisor) = divisor {
                    row.iter_mut().for_each(|y| *y = self.precision.round(*y / divisor));
                }
            },
        );
        Ok(())
    }

    fn multiply_row(&self, row: &mut [f64], scratch: &mut [f64]) {
        // x R[p][:, p] is: put x[k] at p[k], multiply by R, read out at p; the same holds for the transpose.
        if let Some(order) = &self.permutation {
            for (k, p) in order.iter().enumerate() {
                scratch[*p] = row[k];
            }
            row.copy_from_slice(scratch);
        }
        match &self.structure {
            Structure::Sylvester => sylvester_in_place(row),
            Structure::Random { signs, known } => self.multiply_row_by_random(row, scratch, signs, *known),
            Structure::Dense(entries) => {
                self.multiply_row_by_dense(row, scratch, entries);
            }
        }
        if let Some(order) = &self.permutation {
            for (k, p) in order.iter().enumerate() {
                scratch[k] = row[*p];
            }
            row.copy_from_slice(scratch);
        }
    }

    fn multiply_row_by_random(&self, row: &mut [f64], scratch: &mut [f64], signs: &[i8], known: KnownHadamard) {
        let flip = |row: &mut [f64]| row.iter_mut().zip(signs).for_each(|(x, s)| *x *= f64::from(*s));
        if !self.transposed {
            flip(row);
        }
        let b = self.size / known.size();
        scratch.fill(0.0);
        for (to, sums) in scratch.chunks_mut(b).enumerate() {
            for (from, values) in row.chunks(b).enumerate() {
                let positive = if self.transposed { known.is_positive(from, to) } else { known.is_positive(to, from) };
                let sign = sign_of(positive);
                sums.iter_mut().zip(values).for_each(|(sum, x)| *sum += sign * x);
            }
        }
        row.copy_from_slice(scratch);
        row.chunks_mut(b).for_each(sylvester_in_place);
        if self.transposed {
            flip(row);
        }
    }

    fn multiply_row_by_dense(&self, row: &mut [f64], scratch: &mut [f64], entries: &[f64]) {
        if self.transposed {
            for (sum, column) in scratch.iter_mut().zip(entries.chunks(self.size)) {
                *sum = column.iter().zip(row.iter()).map(|(m, x)| m * x).sum();
            }
        } else {
            scratch.fill(0.0);
            for (x, entries) in row.iter().zip(entries.chunks(self.size)) {
                scratch.iter_mut().zip(entries).for_each(|(sum, m)| *sum += x * m);
            }
        }
        row.copy_from_slice(scratch);
    }
}

fn sign_of(positive: bool) -> f64 {
    if positive { 1.0 } else { -1.0 }
}

/// Multiplies a row by Sylvester's matrix (which is symmetric) with butterflies.
fn sylvester_in_place(row: &mut [f64]) {
    let mut half = 1;
    while half < row.len() {
        for pair in row.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// The inverse of a row-major matrix by Gauss-Jordan elimination of `[A | I]` with partial pivoting.
fn invert(entries: &[f64], n: usize) -> Result<Vec<f64>> {
    let singular = || Error::from(ErrorKind::Unsupported { what: "inverting a singular transform matrix".to_owned() });
    let mut lu = entries.to_vec();
    let mut order: Vec<usize> = (0..n).collect();
    for k in 0..n {
        let pivot = (k..n).max_by(|a, b| lu[a * n + k].abs().total_cmp(&lu[b * n + k].abs())).ok_or_else(singular)?;
        if lu[pivot * n + k] == 0.0 || !lu[pivot * n + k].is_finite() {
            return Err(singular());
        }
        if pivot != k {
            order.swap(pivot, k);
            for j in 0..n {
                lu.swap(pivot * n + j, k * n + j);
            }
        }
        let (above, below) = lu.split_at_mut((k + 1) * n);
        let pivot_row = &above[k * n..];
        for row in below.chunks_mut(n) {
            let factor = row[k] / pivot_row[k];
            row[k] = factor;
            for j in k + 1..n {
                row[j] -= factor * pivot_row[j];
            }
        }
    }
    let mut inverse = vec![0.0; n * n];
    let mut column = vec![0.0; n];
    for j in 0..n {
        for i in 0..n {
            let known: f64 = (0..i).map(|k| lu[i * n + k] * column[k]).sum();
            column[i] = if order[i] == j { 1.0 } else { 0.0 } - known;
        }
        for i in (0..n).rev() {
            let known: f64 = (i + 1..n).map(|k| lu[i * n + k] * column[k]).sum();
            column[i] = (column[i] - known) / lu[i * n + i];
            inverse[i * n + j] = column[i];
        }
    }
    Ok(inverse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transforms::DEFAULT_SEED;

    fn matrices() -> Vec<TransformMatrix> {
        let mut rng = MersenneTwister::new(DEFAULT_SEED);
        let mut all = vec![
            TransformMatrix::hadamard(16, Precision::F64).unwrap(),
            TransformMatrix::random_hadamard(24, Precision::F64, &mut rng).unwrap(),
            TransformMatrix::random_hadamard(40, Precision::F64, &mut rng).unwrap(),
            TransformMatrix::random(7, Precision::F64, &mut rng).unwrap(),
        ];
        for m in all.clone() {
            all.push(m.permuted(rng.permutation(m.size()).unwrap()).unwrap());
        }
        let transposed: Vec<_> = all.iter().map(TransformMatrix::transpose).collect();
        all.extend(transposed);
        all
    }

    #[test]
    fn the_fast_product_is_the_product_with_the_entries() {
        for m in matrices() {
            let n = m.size();
            let rows: Vec<f64> = (0..2 * n).map(|i| (i * i % 23) as f64 - 11.0).collect();
            let mut fast = rows.clone();
            m.multiply_rows(&mut fast).unwrap();
            for (row, got) in rows.chunks(n).zip(fast.chunks(n)) {
                for (j, got) in got.iter().enumerate() {
                    let sum: f64 = (0..n).map(|i| row[i] * m.entry(i, j)).sum();
                    let expected = m.divisor().map_or(sum, |d| sum / d);
                    assert!((got - expected).abs() < 1e-12, "{m:?} column {j}: {got} for {expected}");
                }
            }
        }
    }

    #[test]
    fn the_inverse_undoes_the_matrix() {
        for m in matrices() {
            let rows: Vec<f64> = (0..m.size()).map(|i| i as f64 - 3.0).collect();
            let mut there_and_back = rows.clone();
            m.multiply_rows(&mut there_and_back).unwrap();
            m.inverse().unwrap().multiply_rows(&mut there_and_back).unwrap();
            for (a, b) in rows.iter().zip(&there_and_back) {
                assert!((a - b).abs() < 1e-9, "{m:?}");
            }
        }
    }

    #[test]
    fn rows_that_the_size_does_not_divide_are_refused() {
        let m = TransformMatrix::hadamard(4, Precision::F64).unwrap();
        let error = m.multiply_rows(&mut [0.0; 6]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { found, .. } if found == &[6]));
    }

    #[test]
    fn a_list_with_a_repeat_is_no_permutation() {
        let m = TransformMatrix::hadamard(4, Precision::F64).unwrap();
        for bad in [vec![0, 1, 2, 2], vec![0, 1, 2], vec![0, 1, 2, 4]] {
            let error = m.permuted(bad).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::InvalidField { field, .. } if field == "perm"));
        }
    }

    #[test]
    fn a_singular_matrix_has_no_inverse() {
        assert!(invert(&[1.0, 2.0, 2.0, 4.0], 2).is_err());
        assert!(invert(&[f64::NAN], 1).is_err());
    }

    #[test]
    fn sixteen_bit_random_matrices_are_refused() {
        let error = TransformMatrix::random(2, Precision::BF16, &mut MersenneTwister::new(0)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }));
    }
}
