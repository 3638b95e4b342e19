//! Layer normalization.

pub mod reference;

use crate::error::check_len;
use crate::rows::{over_rows, twins};
use crate::{Element, Profile, Result};

/// The parameters of a norm.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Weight (C); none is a weight of ones.
    pub weight: Option<&'a [f32]>,
    /// Bias (C).
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f32,
}

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias` for each row of C: x (rows, C), y (rows, C).
///
/// Mean and variance (mean of squared distances from the mean) are f32 sums in 16 lanes as in [`crate::rms_norm`]; the result is
/// rounded to the element type once.
pub fn layer_norm<T: Element>(
    profile: Profile,
    norm: &LayerNorm<'_>,
    width: usize,
    x: &[T],
    y: &mut [T],
) -> Result<()> {
    check_len("layer_norm: y", y.len(), &[x.len()])?;
    crate::rows::check_rows("layer_norm: x", x.len(), width)?;
    for (name, parameter) in [("layer_norm: weight", norm.weight), ("layer_norm: bias", norm.bias)] {
        if let Some(parameter) = parameter {
            check_len(name, parameter.len(), &[width])?;
        }
    }
    over_rows(width, x, y, |x, y| normalize(profile, norm, width, x, y));
    Ok(())
}

twins! {
    /// The loop on this thread; arguments agree.
    fn normalize<T>(norm: &LayerNorm<'_>, width: usize, x: &[T], y: &mut [T]) = reference::layer_norm;
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::tests::numbers;

    fn agree<T: Element>() {
        for (rows, width) in [(1, 1), (3, 15), (70, 64), (40, 1030)] {
            let (x, weight, bias) = (numbers::<T>(rows * width, 1), numbers::<f32>(width, 2), numbers::<f32>(width, 3));
            for (weight, bias) in [(None, None), (Some(&weight[..]), None), (Some(&weight[..]), Some(&bias[..]))] {
                let norm = LayerNorm { weight, bias, eps: 1e-5 };
                let mut want = vec![T::default(); x.len()];
                reference::layer_norm(&norm, width, &x, &mut want);
                for profile in Profile::available() {
                    let mut got = vec![T::default(); x.len()];
                    layer_norm(profile, &norm, width, &x, &mut got).unwrap();
                    assert_eq!(got, want, "{profile:?} {rows} {width}");
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
    fn a_row_gets_mean_zero_and_variance_one() {
        let x: Vec<f32> = numbers::<f32>(500, 4).iter().map(|x| x + 3.0).collect();
        let mut y = vec![0.0; 500];
        let norm = LayerNorm { weight: None, bias: None, eps: 0.0 };
        layer_norm(Profile::detect(), &norm, 500, &x, &mut y).unwrap();
        let mean = y.iter().map(|&y| f64::from(y)).sum::<f64>() / 500.0;
        let variance = y.iter().map(|&y| (f64::from(y) - mean).powi(2)).sum::<f64>() / 500.0;
        // Sums of 500 f32 terms.
        assert!(mean.abs() < 1e-6 && (variance - 1.0).abs() < 1e-6, "{mean} {variance}");
    }
}
