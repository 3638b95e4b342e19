//! Softmax of rows.

pub mod reference;

use crate::error::check_len;
use crate::rows::{over_rows, twins};
use crate::{Element, Profile, Result};

/// `y = exp(x - max) / sum` for each row of `width`: x (rows, width), y (rows, width); f32 arithmetic, rounded once.
///
/// The sum goes over 16 lanes as in [`crate::rms_norm`].
/// A row of minus infinities gives zeros.
pub fn softmax<T: Element>(profile: Profile, width: usize, x: &[T], y: &mut [T]) -> Result<()> {
    check_len("softmax: y", y.len(), &[x.len()])?;
    crate::rows::check_rows("softmax: x", x.len(), width)?;
    over_rows(width, x, y, |x, y| softmax_rows(profile, width, x, y));
    Ok(())
}

twins! {
    /// The loop on this thread; arguments agree.
    fn softmax_rows<T>(width: usize, x: &[T], y: &mut [T]) = reference::softmax;
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::tests::numbers;

    fn agree<T: Element>() {
        for (rows, width) in [(1, 1), (3, 15), (70, 64), (40, 1030)] {
            let x = numbers::<T>(rows * width, 1);
            let mut want = vec![T::default(); x.len()];
            reference::softmax(width, &x, &mut want);
            for profile in Profile::available() {
                let mut got = vec![T::default(); x.len()];
                softmax(profile, width, &x, &mut got).unwrap();
                assert_eq!(got, want, "{profile:?} {rows} {width}");
            }
        }
    }

    #[test]
    fn all_profiles_have_the_bits_of_the_reference() {
        agree::<f32>();
        agree::<bf16>();
    }

    #[test]
    fn rows_sum_to_one_and_a_row_of_minus_infinities_gives_zeros() {
        let mut x = numbers::<f32>(300, 2);
        x[200..].fill(f32::NEG_INFINITY);
        let mut y = vec![0.5; 300];
        softmax(Profile::detect(), 100, &x, &mut y).unwrap();
        for (x, y) in x.chunks(100).zip(y.chunks(100)).take(2) {
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            // An exponential of 2 ulp, a sum of 100 terms, a quotient.
            assert!(x.iter().zip(y).all(|(&x, &y)| (f64::from(y) * sum / f64::from(x).exp() - 1.0).abs() < 2e-6));
        }
        assert!(y[200..].iter().all(|&y| y == 0.0));
    }
}
