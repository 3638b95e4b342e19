//! Root-mean-square normalization.

pub mod reference;

use crate::error::check_len;
use crate::rows::{over_rows, twins};
use crate::{Element, Profile, Result};

/// When the normalized row is rounded to the element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounded {
    /// Before it is multiplied by the weight, and again after (Llama).
    BeforeWeight,
    /// Only after it was multiplied by the weight (Gemma).
    AfterWeight,
}

/// The parameters of a norm.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'a> {
    /// Weight (C); none is a weight of ones.
    pub weight: Option<&'a [f32]>,
    /// Added to the weight: 1 for norms that store their distance from one, else 0.
    pub weight_offset: f32,
    /// Added to the mean square.
    pub eps: f32,
    /// When the normalized row is rounded.
    pub rounded: Rounded,
}

/// `y = x / sqrt(mean(x^2) + eps) * (weight_offset + weight)` for each row of C: x (rows, C), y (rows, C).
///
/// The mean is an f32 sum in 16 lanes (element i in lane i % 16, in order, lanes folded by halves); division and square root are
/// those of IEEE 754.
pub fn rms_norm<T: Element>(profile: Profile, norm: &RmsNorm<'_>, width: usize, x: &[T], y: &mut [T]) -> Result<()> {
    check_len("rms_norm: y", y.len(), &[x.len()])?;
    crate::rows::check_rows("rms_norm: x", x.len(), width)?;
    if let Some(weight) = norm.weight {
        check_len("rms_norm: weight", weight.len(), &[width])?;
    }
    over_rows(width, x, y, |x, y| normalize(profile, norm, width, x, y));
    Ok(())
}

twins! {
    /// The loop on this thread; arguments agree.
    fn normalize<T>(norm: &RmsNorm<'_>, width: usize, x: &[T], y: &mut [T]) = reference::rms_norm;
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::tests::numbers;

    fn agree<T: Element>() {
        for (rows, width) in [(1, 1), (3, 15), (70, 64), (40, 1030)] {
            let (x, weight) = (numbers::<T>(rows * width, 1), numbers::<f32>(width, 2));
            for rounded in [Rounded::BeforeWeight, Rounded::AfterWeight] {
                for weight in [None, Some(&weight[..])] {
                    let norm = RmsNorm { weight, weight_offset: 1.0, eps: 1e-5, rounded };
                    let mut want = vec![T::default(); x.len()];
                    reference::rms_norm(&norm, width, &x, &mut want);
                    for profile in Profile::available() {
                        let mut got = vec![T::default(); x.len()];
                        rms_norm(profile, &norm, width, &x, &mut got).unwrap();
                        assert_eq!(got, want, "{profile:?} {rows} {width}");
                    }
                }
            }
        }
    }

    #[test]
    fn all_profiles_have_the_bits_of_the_reference() {
        agree::<f32>();
        agree::<bf16>();
    }

    #[test]
    fn a_row_is_scaled_to_mean_square_one() {
        let x = numbers::<f32>(333, 3);
        let mut y = vec![0.0; 333];
        let norm = RmsNorm { weight: None, weight_offset: 0.0, eps: 1e-6, rounded: Rounded::BeforeWeight };
        rms_norm(Profile::detect(), &norm, 333, &x, &mut y).unwrap();
        let mean: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / 333.0;
        // Three f32 roundings and those of a sum of 333 terms in 16 lanes.
        let near = |(x, y): (&f32, &f32)| (f64::from(*y) - f64::from(*x) / (mean + 1e-6).sqrt()).abs() < 2e-6;
        assert!(x.iter().zip(&y).all(near));
        assert_eq!(rms_norm(Profile::PORTABLE, &norm, 4, &x, &mut y).unwrap_err().place(), "rms_norm: x");
    }
}
