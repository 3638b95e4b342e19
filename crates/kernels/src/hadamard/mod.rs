//! The fast Walsh-Hadamard transform.

pub mod reference;

use rayon::prelude::*;

use crate::error::{Error, ErrorKind};
use crate::rows::twins;
use crate::{Profile, Result};

/// Multiplies every row (rows, N) by the Sylvester Hadamard matrix of N, a power of two, and then by `scale`; in place, in f32.
///
/// Butterflies go from neighbours to halves; the scale is applied once, at the end.
pub fn transform_f32(profile: Profile, x: &mut [f32], n: usize, scale: f32) -> Result<()> {
    check(x.len(), n)?;
    let chunk = (crate::rows::TASK_ELEMENTS / n).max(1) * n;
    x.par_chunks_mut(chunk).for_each(|x| rows_f32(profile, x, n, scale));
    Ok(())
}

/// As [`transform_f32`], in f64.
pub fn transform_f64(profile: Profile, x: &mut [f64], n: usize, scale: f64) -> Result<()> {
    check(x.len(), n)?;
    let chunk = (crate::rows::TASK_ELEMENTS / n).max(1) * n;
    x.par_chunks_mut(chunk).for_each(|x| rows_f64(profile, x, n, scale));
    Ok(())
}

twins! {
    /// The loop on this thread; arguments agree.
    fn rows_f32(x: &mut [f32], n: usize, scale: f32) = reference::transform_f32;
}

twins! {
    /// The loop on this thread; arguments agree.
    fn rows_f64(x: &mut [f64], n: usize, scale: f64) = reference::transform_f64;
}

fn check(len: usize, n: usize) -> Result<()> {
    if !n.is_power_of_two() {
        let kind = ErrorKind::Extent { found: n, expected: "a power of two".into() };
        return Err(Error::new("hadamard: n", kind));
    }
    crate::rows::check_rows("hadamard: x", len, n).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gemm::tests::numbers;

    #[test]
    fn rows_are_multiplied_by_the_sylvester_matrix_with_the_bits_of_the_reference() {
        for n in [1, 2, 64, 1024] {
            let x = numbers::<f32>(70 * n, 1);
            let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
            let (mut want, mut want_wide) = (x.clone(), wide.clone());
            reference::transform_f32(&mut want, n, 0.125);
            reference::transform_f64(&mut want_wide, n, 0.125);
            for profile in Profile::available() {
                let (mut got, mut got_wide) = (x.clone(), wide.clone());
                transform_f32(profile, &mut got, n, 0.125).unwrap();
                transform_f64(profile, &mut got_wide, n, 0.125).unwrap();
                assert!(got == want && got_wide == want_wide, "{profile:?} {n}");
            }
            for (row, out) in wide.chunks(n).zip(want_wide.chunks(n)).take(2) {
                for (j, out) in out.iter().enumerate() {
                    let signed = |(i, x): (usize, &f64)| if (i & j).count_ones() % 2 == 0 { *x } else { -x };
                    let sum: f64 = row.iter().enumerate().map(signed).sum();
                    // Sums of 1024 f64 terms up to 8.
                    assert!((out - sum * 0.125).abs() < 1e-10);
                }
            }
        }
        assert_eq!(transform_f32(Profile::PORTABLE, &mut [0.0; 6], 3, 1.0).unwrap_err().place(), "hadamard: n");
        assert_eq!(transform_f32(Profile::PORTABLE, &mut [0.0; 6], 4, 1.0).unwrap_err().place(), "hadamard: x");
    }
}
