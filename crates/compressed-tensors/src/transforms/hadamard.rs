//! Hadamard matrices: Sylvester's by rule, others from the table that the reference ships.

use crate::{Error, ErrorKind, Result};

/// Bits of the known matrices in ascending size, each row-major, LSB first, padded to whole bytes; 1 is +1.
///
/// They come from N. J. A. Sloane's library of Hadamard matrices, one for each size, chosen by the
/// reference. Several powers of two are not Sylvester's (32 is Paley's), so that a rule cannot replace
/// the table.
static KNOWN: &[u8] = include_bytes!("known_hadamard.bin");

/// Whether `H[i][j]` of Sylvester's matrix is +1; the size does not matter.
pub(super) fn sylvester_is_positive(i: usize, j: usize) -> bool {
    (i & j).count_ones().is_multiple_of(2)
}

/// The sizes in the table: 1, 2, 4, 8 and the multiples of 4 from 12 to 256.
pub fn known_sizes() -> impl DoubleEndedIterator<Item = usize> + Clone {
    [1, 2, 4, 8].into_iter().chain((12..257).step_by(4))
}

/// A matrix of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownHadamard {
    size: usize,
    bits: &'static [u8],
}

impl KnownHadamard {
    /// The matrix of this size, if the table has one.
    pub fn of_size(size: usize) -> Option<Self> {
        let mut from = 0;
        for known in known_sizes() {
            let n_bytes = (known * known).div_ceil(8);
            if known == size {
                return KNOWN.get(from..from + n_bytes).map(|bits| Self { size, bits });
            }
            from += n_bytes;
        }
        None
    }

    /// The largest matrix of the table whose size times a power of two is `n`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] where there is none.
    pub fn factor_of(n: usize) -> Result<Self> {
        known_sizes()
            .rev()
            .find(|size| n.is_multiple_of(*size) && (n / size).is_power_of_two())
            .and_then(Self::of_size)
            .ok_or_else(|| {
                Error::from(ErrorKind::InvalidField {
                    field: "size".to_owned(),
                    found: n.to_string(),
                    expected: "1, 2 or a multiple of 4 up to 256, times a power of two".to_owned(),
                })
            })
    }

    /// Rows and columns.
    pub fn size(self) -> usize {
        self.size
    }

    /// Whether the element is +1; both indices are below the size.
    pub fn is_positive(self, row: usize, col: usize) -> bool {
        let bit = row * self.size + col;
        self.bits.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
    }
}

/// Refuses sizes that Sylvester's rule does not reach.
///
/// # Errors
/// [`ErrorKind::InvalidField`] unless `size` is a positive power of two.
pub(super) fn check_sylvester_size(size: usize) -> Result<()> {
    if size.is_power_of_two() {
        return Ok(());
    }
    Err(Error::from(ErrorKind::InvalidField {
        field: "size".to_owned(),
        found: size.to_string(),
        expected: "a power of two for type `hadamard`; `random-hadamard` has more sizes".to_owned(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_used_up_exactly() {
        let bytes: usize = known_sizes().map(|n| (n * n).div_ceil(8)).sum();
        assert_eq!(bytes, KNOWN.len());
        assert_eq!(known_sizes().count(), 66);
    }

    #[test]
    fn rows_of_every_known_matrix_are_orthogonal() {
        for size in known_sizes() {
            let known = KnownHadamard::of_size(size).unwrap();
            for i in 0..size {
                for j in [(i + 1) % size, (i * 7 + 3) % size] {
                    let agree = (0..size).filter(|k| known.is_positive(i, *k) == known.is_positive(j, *k)).count();
                    assert_eq!(agree, if i == j { size } else { size / 2 }, "size {size}, rows {i} and {j}");
                }
            }
        }
    }

    #[test]
    fn the_largest_factor_wins() {
        for (n, size) in [(512, 256), (11_008, 172), (344, 172), (3, 0), (1, 1), (24, 24), (80, 80), (0, 0)] {
            assert_eq!(KnownHadamard::factor_of(n).map_or(0, KnownHadamard::size), size, "of {n}");
        }
    }
}
