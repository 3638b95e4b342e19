//! The gate of the matrix product: the bits of the reference, and rows that depend on nothing beside them.

use half::{bf16, f16};

use super::driver::multiply_f32;
use super::tile::Write;
use super::update::{Region, Update};
use super::{BlockPanels, PANEL, PANEL_COLS, Panels, linear, matmul, matmul_blocks, matmul_laid_out, reference};
use crate::{Element, Mat, MatMut, Profile};

/// Numbers of both signs and of widely differing size, the same on every run.
pub(crate) fn numbers<T: Element>(len: usize, seed: u64) -> Vec<T> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::from_f32(
            ((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0) * if state.is_multiple_of(8) { 8.0 } else { 1.0 },
        )
    };
    (0..len).map(next).collect()
}

fn threads<R: Send>(n_threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap().install(f)
}

fn same_bits<T: Element>(left: &[T], right: &[T]) -> bool {
    left.iter().zip(right).all(|(a, b)| a.to_f32().to_bits() == b.to_f32().to_bits())
}

/// All tails of rows, columns and k around the tiles of every kernel.
const SHAPES: &[(usize, usize, usize)] = &[
    (1, 1, 1),
    (1, 7, 33),
    (2, 0, 5),
    (3, 2, 31),
    (5, 9, 16),
    (6, 17, 17),
    (7, 255, 8),
    (13, 256, 32),
    (14, 257, 33),
    (15, 511, 64),
    (16, 512, 40),
    (17, 513, 9),
    (29, 300, 48),
    (43, 1030, 95),
    (169, 70, 130),
    // Beyond a block of panels, of f32 and of pairs.
    (5, 1100, 33),
    (9, 2100, 40),
];

fn agree<I: Element, O: Element>() {
    for profile in Profile::available() {
        for &(rows, depth, cols) in SHAPES {
            let (x, w) = (numbers::<I>(rows * depth, 1), numbers::<I>(cols * depth, 2));
            let bias = numbers::<f32>(cols, 3);
            let (x, w) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
            for bias in [None, Some(&bias[..])] {
                let (mut want, mut got) = (vec![O::default(); rows * cols], vec![O::from_f32(f32::NAN); rows * cols]);
                reference::matmul(profile, x, w.transposed(), bias, MatMut::new(&mut want, rows, cols).unwrap());
                linear(profile, x, w, bias, MatMut::new(&mut got, rows, cols).unwrap()).unwrap();
                assert!(same_bits(&want, &got), "{profile:?} {rows} {depth} {cols} {}", bias.is_some());
            }
        }
    }
}

#[test]
fn linear_has_the_bits_of_the_reference_for_every_type_and_tail() {
    agree::<f32, f32>();
    agree::<bf16, f32>();
    agree::<bf16, bf16>();
    agree::<f16, f32>();
    agree::<f16, f16>();
}

/// A product of `x` with parts of `w` as it is laid out for the profile.
type ByParts<'a, O> = Box<dyn Fn((usize, usize), Option<&[f32]>, MatMut<'_, O>) -> crate::Result<()> + 'a>;

fn plain<'a, I: Element, O: Element>(profile: Profile, x: Mat<'a, I>, w: Mat<'a, I>) -> Option<ByParts<'a, O>> {
    let panels = Panels::new(profile, w.transposed())?;
    Some(Box::new(move |cols, bias, y| matmul_laid_out(profile, x, &panels, cols, bias, y)))
}

fn blocks<'a, O: Element>(profile: Profile, x: Mat<'a, bf16>, w: Mat<'a, bf16>) -> Option<ByParts<'a, O>> {
    let Some(panels) = BlockPanels::new(profile, w.transposed()) else { return plain(profile, x, w) };
    Some(Box::new(move |cols, bias, y| matmul_blocks(profile, x, &panels, cols, bias, y)))
}

type LayOut<I, O> = for<'a> fn(Profile, Mat<'a, I>, Mat<'a, I>) -> Option<ByParts<'a, O>>;

fn laid_out<I: Element, O: Element>(lay_out: LayOut<I, O>) {
    // Columns beyond what the sums of 2,048 rows leave room for, and all tails of a panel.
    let shapes = SHAPES.iter().copied().chain([(2060, 70, 1090), (3, 700, 1061)]);
    for (profile, (rows, depth, cols)) in
        Profile::available().flat_map(|it| shapes.clone().map(move |shape| (it, shape)))
    {
        let (x, w) = (numbers::<I>(rows * depth, 1), numbers::<I>(cols * depth, 2));
        let bias = numbers::<f32>(cols, 3);
        let (x, w) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
        let (mut want, mut got) = (vec![O::default(); rows * cols], vec![O::from_f32(f32::NAN); rows * cols]);
        linear(profile, x, w, Some(&bias), MatMut::new(&mut want, rows, cols).unwrap()).unwrap();
        let Some(by) = lay_out(profile, x, w) else {
            assert_eq!((profile.isa(), size_of::<I>()), (crate::Isa::Avx512Bf16, 2));
            continue;
        };
        by((0, cols), Some(&bias), MatMut::new(&mut got, rows, cols).unwrap()).unwrap();
        assert!(same_bits(&want, &got), "{profile:?} {rows} {depth} {cols}");
        let first = if cols > PANEL_COLS { PANEL_COLS } else { 0 };
        let mut part = vec![O::default(); rows * (cols - first)];
        let y = MatMut::new(&mut part, rows, cols - first).unwrap();
        by((first, cols - first), Some(&bias[first..]), y).unwrap();
        for (part, want) in part.chunks(cols - first).zip(want.chunks(cols)) {
            assert!(same_bits(part, &want[first..]), "{profile:?} {rows} {depth} {cols} from {first}");
        }
    }
}

#[test]
fn an_operand_that_is_laid_out_gives_the_same_bits() {
    laid_out::<f32, f32>(plain);
    laid_out::<bf16, bf16>(blocks);
    laid_out::<f16, f32>(plain);
}

#[test]
fn an_operand_of_bf16_gives_the_bits_of_its_numbers_in_f32() {
    let (rows, depth, cols) = (37, 1500, 70);
    let (x, w) = (numbers::<f32>(rows * depth, 1), numbers::<bf16>(cols * depth, 2));
    let wide: Vec<f32> = w.iter().map(|it| it.to_f32()).collect();
    let x = Mat::new(&x, rows, depth).unwrap();
    for profile in Profile::available() {
        let Some(panels) = Panels::new(profile, Mat::new(&w, cols, depth).unwrap().transposed()) else { continue };
        let (mut want, mut got) = (vec![0.0f32; rows * cols], vec![f32::NAN; rows * cols]);
        let wide = Mat::new(&wide, cols, depth).unwrap();
        linear(profile, x, wide, None, MatMut::new(&mut want, rows, cols).unwrap()).unwrap();
        matmul_laid_out(profile, x, &panels, (0, cols), None, MatMut::new(&mut got, rows, cols).unwrap()).unwrap();
        assert!(same_bits(&want, &got), "{profile:?}");
    }
}

#[test]
fn panels_of_another_profile_are_refused() {
    let x = [0.0f32; 6];
    let panels = Panels::new(Profile::PORTABLE, Mat::new(&x, 3, 2).unwrap()).unwrap();
    for profile in Profile::available().filter(|it| *it != Profile::PORTABLE) {
        let (a, mut y) = (Mat::new(&x, 2, 3).unwrap(), [0.0f32; 4]);
        assert!(matmul_laid_out(profile, a, &panels, (0, 2), None, MatMut::new(&mut y, 2, 2).unwrap()).is_err());
    }
}

#[test]
fn nothing_of_an_earlier_product_shows_in_the_next_one() {
    fn product(profile: Profile, (x, w): (&[bf16], &[bf16]), [rows, depth, cols]: [usize; 3]) -> Vec<bf16> {
        let mut y = vec![bf16::ZERO; rows * cols];
        let (x, w) = (Mat::new(x, rows, depth).unwrap(), Mat::new(w, cols, depth).unwrap());
        linear(profile, x, w, None, MatMut::new(&mut y, rows, cols).unwrap()).unwrap();
        y
    }
    // One thread has the buffers of both products.
    threads(1, || {
        for profile in Profile::available() {
            for [rows, depth, cols] in [[15, 0, 33], [15, 7, 33], [31, 519, 1030]] {
                let (x, w) = (numbers::<bf16>(rows * depth, 1), numbers::<bf16>(cols * depth, 2));
                let nan = vec![bf16::NAN; 1100 * 600];
                let poisoned = product(profile, (&nan[..40 * 600], &nan), [40, 600, 1100]);
                assert!(poisoned.iter().all(|it| it.is_nan()));
                let mut want = vec![bf16::ZERO; rows * cols];
                let (a, b) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
                reference::matmul(profile, a, b.transposed(), None, MatMut::new(&mut want, rows, cols).unwrap());
                assert!(same_bits(&want, &product(profile, (&x, &w), [rows, depth, cols])), "{profile:?} {depth}");
            }
        }
    });
}

fn all_layouts<I: Element>() {
    for profile in Profile::available() {
        for (rows, depth, cols) in [(9, 21, 35), (31, 40, 33), (33, 519, 70)] {
            let (a, b) = (numbers::<I>(rows * depth, 4), numbers::<I>(cols * depth, 5));
            let lefts = [Mat::new(&a, rows, depth).unwrap(), Mat::new(&a, depth, rows).unwrap().transposed()];
            let rights = [Mat::new(&b, depth, cols).unwrap(), Mat::new(&b, cols, depth).unwrap().transposed()];
            for left in lefts {
                for right in rights {
                    let (mut want, mut got) = (vec![0.0f32; rows * cols], vec![0.0f32; rows * cols]);
                    reference::matmul(profile, left, right, None, MatMut::new(&mut want, rows, cols).unwrap());
                    matmul(profile, left, right, None, MatMut::new(&mut got, rows, cols).unwrap()).unwrap();
                    assert!(same_bits(&want, &got), "{profile:?} {rows} {depth} {cols}");
                }
            }
        }
    }
}

#[test]
fn transposed_operands_have_the_bits_of_the_reference() {
    all_layouts::<f32>();
    all_layouts::<bf16>();
    all_layouts::<f16>();
}

/// Rows 1 to 130, taken from every offset class, on 1, 2 and 4 threads, against one product of all rows.
fn rows_stand_alone<I: Element>() {
    let (total, depth, cols) = (140, 2 * PANEL + 37, 71);
    let (x, w) = (numbers::<I>(total * depth, 6), numbers::<I>(cols * depth, 7));
    let w = Mat::new(&w, cols, depth).unwrap();
    for profile in Profile::available() {
        let mut whole = vec![0.0f32; total * cols];
        threads(1, || {
            let y = MatMut::new(&mut whole, total, cols).unwrap();
            linear(profile, Mat::new(&x, total, depth).unwrap(), w, None, y).unwrap();
        });
        for n_threads in [1, 2, 4] {
            threads(n_threads, || {
                for rows in 1..=130 {
                    let offset = rows * 7 % (total - rows + 1);
                    let part = Mat::new(&x[offset * depth..(offset + rows) * depth], rows, depth).unwrap();
                    let mut y = vec![f32::NAN; rows * cols];
                    linear(profile, part, w, None, MatMut::new(&mut y, rows, cols).unwrap()).unwrap();
                    assert!(
                        same_bits(&y, &whole[offset * cols..]),
                        "{profile:?} {n_threads} threads, {rows} rows at {offset}"
                    );
                }
            });
        }
    }
}

#[test]
fn a_row_of_f32_depends_on_itself_alone_for_1_to_130_rows_and_1_2_4_threads() {
    rows_stand_alone::<f32>();
}

#[test]
fn a_row_of_bf16_depends_on_itself_alone_for_1_to_130_rows_and_1_2_4_threads() {
    rows_stand_alone::<bf16>();
}

#[test]
fn a_column_depends_on_itself_alone_across_blocks_of_columns_and_rows() {
    let (rows, depth, cols) = (2100, 40, 2090);
    for profile in Profile::available() {
        let (a, b) = (numbers::<bf16>(rows * depth, 8), numbers::<bf16>(cols * depth, 9));
        let (a, b) = (Mat::new(&a, rows, depth).unwrap(), Mat::new(&b, cols, depth).unwrap());
        let mut whole = vec![bf16::ZERO; rows * cols];
        threads(2, || linear(profile, a, b, None, MatMut::new(&mut whole, rows, cols).unwrap()).unwrap());
        let (row, col) = (2040, 2030);
        let mut part = vec![bf16::ZERO; 60 * 60];
        let (a, b) = (a.sub(row, 60, 0, depth), b.sub(col, 60, 0, depth));
        linear(profile, a, b, None, MatMut::new(&mut part, 60, 60).unwrap()).unwrap();
        for (i, part) in part.chunks(60).enumerate() {
            assert!(same_bits(part, &whole[(row + i) * cols + col..]), "{profile:?} row {i}");
        }
    }
}

#[test]
fn parts_of_a_result_that_threads_share_out_have_the_bits_of_the_whole() {
    let depth = 9;
    for profile in Profile::available() {
        for (region, rows, cols) in [
            (Region::All, 2100, 300),
            (Region::All, 300, 2100),
            (Region::Upper, 2100, 2100),
            (Region::Lower, 2100, 2100),
        ] {
            let (a, b) = (numbers::<f32>(rows * depth, 15), numbers::<f32>(depth * cols, 16));
            let (a, b) = (Mat::new(&a, rows, depth).unwrap(), Mat::new(&b, depth, cols).unwrap());
            let start = numbers::<f32>(rows * cols, 17);
            let update = Update { write: Write::Continue, region, negate: true };
            let by = |n_threads| {
                let mut c = start.clone();
                threads(n_threads, || multiply_f32(profile, a, b, MatMut::new(&mut c, rows, cols).unwrap(), update));
                c
            };
            let whole = by(1);
            let is_wanted = |i: usize, j: usize| match region {
                Region::All => true,
                Region::Upper => j >= i,
                Region::Lower => j <= i,
            };
            let places = (0..rows).flat_map(|i| (0..cols).map(move |j| (i, j)));
            assert!(places.zip(start.iter().zip(&whole)).all(|((i, j), (a, b))| is_wanted(i, j) || a == b));
            for n_threads in [2, 3, 4] {
                assert!(same_bits(&whole, &by(n_threads)), "{profile:?} {region:?} {rows} {cols} {n_threads}");
            }
        }
    }
}

#[test]
fn avx2_and_avx512_give_the_same_bits() {
    let (x, w) = (numbers::<f32>(20 * 700, 10), numbers::<f32>(40 * 700, 11));
    let results: Vec<Vec<f32>> = Profile::available()
        .filter(|&profile| profile != Profile::PORTABLE)
        .map(|profile| {
            let mut y = vec![0.0; 20 * 40];
            let (x, w) = (Mat::new(&x, 20, 700).unwrap(), Mat::new(&w, 40, 700).unwrap());
            linear(profile, x, w, None, MatMut::new(&mut y, 20, 40).unwrap()).unwrap();
            y
        })
        .collect();
    assert!(results.windows(2).all(|pair| same_bits(&pair[0], &pair[1])));
}

/// f32 rounds each of K steps by at most 2^-24 of a partial sum of about sqrt(K); denormals are lost only below 1e-37.
const AGAINST_F64: f64 = 2e-6;

#[test]
fn bf16_products_are_near_the_exact_sum_under_every_profile() {
    let (depth, cols) = (4096, 8);
    let (x, w) = (numbers::<bf16>(depth, 12), numbers::<bf16>(cols * depth, 13));
    for profile in Profile::available() {
        let mut y = vec![0.0f32; cols];
        let (left, right) = (Mat::new(&x, 1, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
        linear(profile, left, right, None, MatMut::new(&mut y, 1, cols).unwrap()).unwrap();
        for (y, w) in y.iter().zip(w.chunks(depth)) {
            let exact: f64 = x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum();
            let size: f64 = x.iter().zip(w).map(|(x, w)| (x.to_f64() * w.to_f64()).abs()).sum();
            let lost = if profile.isa() == crate::Isa::Avx512Vnni { lost_by_blocks(&x, w) } else { 0.0 };
            assert!((f64::from(*y) - exact).abs() <= AGAINST_F64 * size + lost, "{profile:?} {y} {exact}");
        }
    }
}

/// What block floating point may lose of a sum: 2^-12 of the largest number of a run for each number of either operand.
fn lost_by_blocks(x: &[bf16], w: &[bf16]) -> f64 {
    let sizes = |run: &[bf16]| run.iter().map(|it| it.to_f64().abs()).collect::<Vec<_>>();
    let runs = x.chunks(128).zip(w.chunks(128)).map(|(x, w)| (sizes(x), sizes(w)));
    let largest = |run: &[f64]| run.iter().copied().fold(0.0, f64::max);
    runs.map(|(x, w)| largest(&x) * w.iter().sum::<f64>() + largest(&w) * x.iter().sum::<f64>()).sum::<f64>() / 4096.0
}

#[test]
fn numbers_of_a_run_that_differ_by_up_to_sixteen_times_lose_nothing() {
    let (depth, cols) = (700, 40);
    // Whole numbers from 16 to 240 of either sign, and zero; all sums are exact in f32.
    let near = |it: &bf16| match it.to_f32().abs() {
        size if size < 0.1 => bf16::ZERO,
        size => bf16::from_f32((16.0 + (224.0 * size).min(224.0).floor()).copysign(it.to_f32())),
    };
    let near = |len, seed| numbers::<bf16>(len, seed).iter().map(near).collect::<Vec<_>>();
    let (x, w) = (near(depth, 18), near(cols * depth, 19));
    for profile in Profile::available() {
        let mut y = vec![0.0f32; cols];
        let (left, right) = (Mat::new(&x, 1, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
        linear(profile, left, right, None, MatMut::new(&mut y, 1, cols).unwrap()).unwrap();
        for (y, w) in y.iter().zip(w.chunks(depth)) {
            let exact: f64 = x.iter().zip(w).map(|(x, w)| x.to_f64() * w.to_f64()).sum();
            assert_eq!(f64::from(*y), exact, "{profile:?}");
        }
    }
}

#[test]
fn denormals_overflow_and_nan_have_the_bits_of_the_reference() {
    let (depth, cols) = (64, 40);
    let special = [1e-39, -3e-40, 2e-20, 1e38, -3e38, 1.0, 0.0, -0.0];
    let x: Vec<bf16> = (0..depth).map(|i| bf16::from_f32(special[i % 7 % special.len()])).collect();
    let mut w = numbers::<bf16>(cols * depth, 14);
    for (i, w) in w.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
        *w = bf16::from_f32(special[i / 3 % special.len()]);
    }
    w[depth] = bf16::NAN;
    for profile in Profile::available() {
        let (left, right) = (Mat::new(&x, 1, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
        let (mut want, mut got) = (vec![0.0f32; cols], vec![0.0f32; cols]);
        reference::matmul(profile, left, right.transposed(), None, MatMut::new(&mut want, 1, cols).unwrap());
        linear(profile, left, right, None, MatMut::new(&mut got, 1, cols).unwrap()).unwrap();
        for (want, got) in want.iter().zip(&got) {
            assert!(want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan(), "{profile:?} {want} {got}");
        }
        assert!(got[1].is_nan());
    }
}

#[test]
fn shapes_that_do_not_fit_are_refused_by_name() {
    let (a, b) = ([0.0f32; 6], [0.0f32; 8]);
    let (a, b) = (Mat::new(&a, 2, 3).unwrap(), Mat::new(&b, 2, 4).unwrap());
    let mut y = [0.0f32; 8];
    let error = matmul(Profile::PORTABLE, a, b, None, MatMut::new(&mut y, 2, 4).unwrap()).unwrap_err();
    assert_eq!(
        (error.place(), error.to_string().as_str()),
        ("gemm: rows of b", "extent 2, expected 3 (in `gemm: rows of b`)")
    );
}
