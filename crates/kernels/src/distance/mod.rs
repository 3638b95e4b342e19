//! How far values are from others of their type.

pub mod reference;

use crate::error::check_len;
use crate::rows::twins;
use crate::{Element, Profile, Result};

/// Sum of squared differences, on this thread: each difference and each square is rounded to the type, and 16 sums in f64, one
/// for each element modulo 16, fold in rising order.
pub fn squared<E: Element>(profile: Profile, a: &[E], b: &[E]) -> Result<f64> {
    check_len("distance: b", b.len(), &[a.len()])?;
    Ok(sum(profile, a, b))
}

twins! {
    /// The loop; lengths agree.
    fn sum<E>(a: &[E], b: &[E]) -> f64 = reference::squared;
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::squared;
    use crate::gemm::tests::numbers;
    use crate::{Element, ErrorKind, Profile};

    #[test]
    fn the_sum_is_that_of_rounded_squares_of_rounded_differences_under_every_profile() {
        let (a, b) = (numbers::<bf16>(1003, 1), numbers::<bf16>(1003, 2));
        let round = |it: f32| bf16::from_f32(it).to_f32();
        let term = |(a, b): (&bf16, &bf16)| {
            let difference = round(Element::to_f32(*a) - Element::to_f32(*b));
            f64::from(round(difference * difference))
        };
        let want: f64 = a.iter().zip(&b).map(term).sum();
        let found: Vec<f64> = Profile::available().map(|it| squared(it, &a, &b).unwrap()).collect();
        assert!((found[0] / want - 1.0).abs() < 1e-12, "{} for {want}", found[0]);
        assert!(found.iter().all(|it| *it == found[0]));
        let error = squared(Profile::PORTABLE, &a, &b[1..]).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::Length { found: 1002, expected: 1003 });
    }
}
