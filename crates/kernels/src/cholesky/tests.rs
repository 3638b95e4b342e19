//! Factor and inverse against their references, and against what they are for.

use super::{
    factor_f32, factor_f64, inverse_factor_f32, inverse_factor_f64, invert_lower_f32, invert_lower_f64, reference,
};
use crate::gemm::tests::numbers;
use crate::{ErrorKind, Profile};

/// A symmetric positive definite matrix.
fn matrix(n: usize) -> Vec<f64> {
    let x = numbers::<f32>(2 * n * n, 1);
    let mut h = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..n {
            let dot: f64 = x.chunks(n).map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
            h[i * n + j] = dot + if i == j { 0.01 * n as f64 } else { 0.0 };
        }
    }
    h
}

const SIZES: &[usize] = &[1, 2, 17, 63, 64, 65, 128, 200, 330];

#[test]
fn factor_and_inverse_have_the_bits_of_the_reference_on_any_number_of_threads() {
    for profile in Profile::available() {
        for &n in SIZES {
            let h = matrix(n);
            let single: Vec<f32> = h.iter().map(|&x| x as f32).collect();
            let (mut want, mut want_single) = (h.clone(), single.clone());
            reference::factor_f64(profile, &mut want, n).unwrap();
            reference::factor_f32(profile, &mut want_single, n).unwrap();
            let (mut inverse, mut inverse_single) = (want.clone(), want_single.clone());
            reference::invert_lower_f64(profile, &mut inverse, n);
            reference::invert_lower_f32(profile, &mut inverse_single, n);
            for n_threads in [1, 2, 4] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
                pool.install(|| {
                    let (mut got, mut got_single) = (h.clone(), single.clone());
                    factor_f64(profile, &mut got, n).unwrap();
                    factor_f32(profile, &mut got_single, n).unwrap();
                    assert!(got == want && got_single == want_single, "factor {profile:?} {n} {n_threads}");
                    invert_lower_f64(profile, &mut got, n).unwrap();
                    invert_lower_f32(profile, &mut got_single, n).unwrap();
                    assert!(got == inverse && got_single == inverse_single, "inverse {profile:?} {n} {n_threads}");
                });
            }
        }
    }
}

/// Sums of 200 terms whose condition number is below 1e4, in f64.
const RESIDUAL: f64 = 1e-9;

#[test]
fn the_inverse_factor_times_its_transpose_times_h_is_one() {
    let n = 200;
    let h = matrix(n);
    let mut u = h.clone();
    // Only the upper triangle is read.
    (0..n).for_each(|i| u[i * n..i * n + i].fill(f64::NAN));
    inverse_factor_f64(Profile::detect(), &mut u, n).unwrap();
    for i in 0..n {
        for j in 0..n {
            // (U^T U H)_ij
            let product: f64 =
                (0..n).map(|k| (0..=k.min(i)).map(|m| u[m * n + i] * u[m * n + k]).sum::<f64>() * h[k * n + j]).sum();
            assert!((product - f64::from(u8::from(i == j))).abs() < RESIDUAL, "{i} {j} {product}");
            assert!(j >= i || u[i * n + j] == 0.0);
        }
    }
    let mut single: Vec<f32> = h.iter().map(|&x| x as f32).collect();
    inverse_factor_f32(Profile::detect(), &mut single, n).unwrap();
    // f32 has 2^-24 a step, times the condition number.
    assert!(single.iter().zip(&u).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-4));
}

#[test]
fn a_matrix_that_is_not_positive_definite_is_refused_with_its_pivot() {
    let n = 150;
    let mut h = vec![0.0f32; n * n];
    (0..n).for_each(|i| h[i * n + i] = 1.0);
    h[100 * n + 100] = -2.0;
    for profile in Profile::available() {
        let error = factor_f32(profile, &mut h.clone(), n).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::NotPositiveDefinite { pivot: 100, value: -2.0 });
        let error = inverse_factor_f32(profile, &mut h.clone(), n).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::NotPositiveDefinite { pivot: 100, value: -2.0 });
        assert_eq!(error.place(), "cholesky: a");
    }
    h[100 * n + 100] = f32::NAN;
    assert!(factor_f32(Profile::detect(), &mut h, n).is_err());
    assert!(inverse_factor_f32(Profile::detect(), &mut [1.0; 3], 2).is_err());
    assert!(inverse_factor_f32(Profile::detect(), &mut [], 0).is_ok());
}
