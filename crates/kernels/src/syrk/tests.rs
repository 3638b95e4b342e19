//! The symmetric update against its reference.

use half::bf16;

use super::{PANEL_TOKENS, accumulate, accumulate_cross, reference};
use crate::gemm::tests::numbers;
use crate::{Element, Mat, Profile};

fn agree<I: Element>() {
    for profile in Profile::available() {
        for (tokens, cols) in [(0, 3), (1, 1), (5, 31), (300, 33), (513, 47), (1100, 70), (140, 300)] {
            let x = numbers::<I>(tokens * cols, 1);
            let x = Mat::new(&x, tokens, cols).unwrap();
            let start = numbers::<f32>(cols * cols, 2);
            let (mut want, mut got) = (start.clone(), start.clone());
            reference::accumulate(profile, x, &mut want);
            accumulate(profile, x, &mut got).unwrap();
            assert_eq!(want, got, "{profile:?} {tokens} {cols}");
        }
    }
}

#[test]
fn the_upper_triangle_has_the_bits_of_the_reference_and_the_lower_one_is_left_alone() {
    agree::<f32>();
    agree::<bf16>();
}

#[test]
fn calls_that_split_at_panels_and_any_number_of_threads_give_the_same_bits() {
    let (tokens, cols) = (3 * PANEL_TOKENS + 11, 290);
    let x = numbers::<bf16>(tokens * cols, 3);
    for profile in Profile::available() {
        let mut whole = vec![0.0; cols * cols];
        accumulate(profile, Mat::new(&x, tokens, cols).unwrap(), &mut whole).unwrap();
        for n_threads in [1, 2, 4] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
            let mut parts = vec![0.0; cols * cols];
            for rows in x.chunks(PANEL_TOKENS * cols) {
                let rows = Mat::new(rows, rows.len() / cols, cols).unwrap();
                pool.install(|| accumulate(profile, rows, &mut parts)).unwrap();
            }
            assert_eq!(whole, parts, "{profile:?} {n_threads} threads");
        }
    }
}

#[test]
fn what_two_have_in_common_has_the_bits_of_the_moment_where_they_are_one() {
    let (tokens, cols) = (PANEL_TOKENS + 70, 45);
    let (x, other) = (numbers::<f32>(tokens * cols, 4), numbers::<f32>(tokens * 7, 5));
    let (x, other) = (Mat::new(&x, tokens, cols).unwrap(), Mat::new(&other, tokens, 7).unwrap());
    for profile in Profile::available() {
        let start = numbers::<f32>(cols * cols, 6);
        let (mut whole, mut moment) = (start.clone(), start);
        accumulate_cross(profile, x, x, &mut whole).unwrap();
        accumulate(profile, x, &mut moment).unwrap();
        let upper = (0..cols).flat_map(|i| (i..cols).map(move |j| i * cols + j));
        assert!(upper.into_iter().all(|at| whole[at] == moment[at]), "{profile:?}");
        assert!((1..cols).any(|i| whole[i * cols] != moment[i * cols]), "the lower triangle is written too");
        let (mut one, mut other_way) = (vec![0.0; cols * 7], vec![0.0; cols * 7]);
        accumulate_cross(profile, x, other, &mut one).unwrap();
        accumulate_cross(profile, other, x, &mut other_way).unwrap();
        assert!((0..cols).all(|i| (0..7).all(|j| one[i * 7 + j] == other_way[j * cols + i])), "{profile:?}");
    }
    assert!(accumulate_cross(Profile::PORTABLE, x, other, &mut [0.0; 3]).is_err());
}
