//! Moments and changes against their references.

use half::{bf16, f16};

use super::{PANEL_TOKENS, ROWS, accumulate, energy, reference};
use crate::gemm::PANEL;
use crate::gemm::tests::numbers;
use crate::{Element, ErrorKind, Profile};

/// What sums in another order may differ by, relative to their terms.
const RTOL: f64 = 1e-12;
/// The same where sums of panels are f32, of at most [`PANEL`] additions.
const F32_RTOL: f64 = 5e-6;

fn close(rtol: f64, want: &[f64], got: &[f64]) {
    let largest = want.iter().fold(0.0f64, |largest, it| largest.max(it.abs()));
    for (want, got) in want.iter().zip(got) {
        assert!((want - got).abs() <= rtol * largest, "{got} for {want}");
    }
}

#[test]
fn moments_and_energies_are_those_of_the_reference_and_the_lower_triangle_is_left_alone() {
    for profile in Profile::available() {
        for (tokens, cols, rows) in [(0, 3, 2), (1, 1, 1), (5, 31, 7), (PANEL + 9, 290, ROWS + 3)] {
            let x = numbers::<f32>(tokens * cols, 1);
            let (mut want, mut got) = (vec![0.0; cols * cols], vec![0.0; cols * cols]);
            reference::accumulate(&x, cols, &mut want);
            accumulate(profile, &x, cols, &mut got).unwrap();
            close(RTOL, &want, &got);
            assert!((0..cols).all(|i| got[i * cols..i * cols + i].iter().all(|it| *it == 0.0)));
            let d: Vec<f64> = numbers::<f32>(rows * cols, 2).iter().map(|it| f64::from(*it)).collect();
            let (mut want_energy, mut got_energy) = (vec![0.0; rows], vec![7.0; rows]);
            reference::energy(&want, &d, &mut want_energy);
            energy(profile, &got, &d, &mut got_energy).unwrap();
            close(RTOL, &want_energy, &got_energy);
        }
    }
}

#[test]
fn moments_of_narrow_tokens_are_f32_within_panels_and_f64_across_them() {
    fn check<E: Element>(profile: Profile, tokens: usize, cols: usize) {
        let x = numbers::<E>(tokens * cols, 4);
        let (mut want, mut whole, mut parts) = (vec![0.0; cols * cols], vec![0.0; cols * cols], vec![0.0; cols * cols]);
        reference::accumulate(&x, cols, &mut want);
        accumulate(profile, &x, cols, &mut whole).unwrap();
        close(F32_RTOL, &want, &whole);
        assert!((0..cols).all(|i| whole[i * cols..i * cols + i].iter().all(|it| *it == 0.0)));
        for n_threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            parts.fill(0.0);
            for x in x.chunks(PANEL_TOKENS * cols) {
                pool.install(|| accumulate(profile, x, cols, &mut parts)).unwrap();
            }
            assert_eq!(whole, parts, "{profile:?} {n_threads} threads");
        }
        // An f32 would lose what one token adds to many.
        let (mut long, one) = (vec![1e9; cols * cols], &x[..cols]);
        accumulate(profile, one, cols, &mut long).unwrap();
        let mut added = vec![1e9; cols * cols];
        reference::accumulate(one, cols, &mut added);
        assert_eq!(long[0], added[0]);
    }
    for profile in Profile::available() {
        for (tokens, cols) in [(1, 1), (5, 31), (2 * PANEL_TOKENS + 9, 290)] {
            check::<bf16>(profile, tokens, cols);
            check::<f16>(profile, tokens, cols);
        }
    }
}

#[test]
fn moments_have_the_same_bits_however_tokens_are_cut_and_by_any_number_of_threads() {
    let (tokens, cols) = (2 * PANEL + 11, 190);
    let x = numbers::<f32>(tokens * cols, 3);
    for profile in Profile::available() {
        let mut whole = vec![0.0; cols * cols];
        accumulate(profile, &x, cols, &mut whole).unwrap();
        for n_threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let mut parts = vec![0.0; cols * cols];
            for x in x.chunks(37 * cols) {
                pool.install(|| accumulate(profile, x, cols, &mut parts)).unwrap();
            }
            assert_eq!(whole, parts, "{profile:?} {n_threads} threads");
        }
    }
}

#[test]
fn slices_that_do_not_fit_are_refused() {
    let error = accumulate(Profile::PORTABLE, &[0.0; 5], 2, &mut [0.0; 4]).unwrap_err();
    assert_eq!((error.kind(), error.place()), (&ErrorKind::Length { found: 5, expected: 4 }, "moments: x"));
    assert!(accumulate(Profile::PORTABLE, &[0.0; 4], 2, &mut [0.0; 3]).is_err());
    assert!(energy(Profile::PORTABLE, &[0.0; 4], &[0.0; 5], &mut [0.0; 2]).is_err());
}
