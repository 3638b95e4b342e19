//! The gate of integer products: the sums of the reference on every path.

use super::*;
use crate::bf16;

/// Codes of both signs, the ends of the range among them, the same on every run.
fn codes(len: usize, seed: u64) -> Vec<i8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        if state.is_multiple_of(5) { i8::MIN } else { (state >> 40) as i8 }
    };
    (0..len).map(next).collect()
}

/// All tails of rows, columns and k around the tiles of every kernel, and more than one block of each.
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
    (15, 514, 64),
    (29, 303, 48),
    (43, 1030, 95),
    (169, 70, 130),
    (5, 4101, 33),
    (2060, 24, 20),
    (3, 40, 1100),
];

#[test]
fn sums_are_those_of_the_reference_on_every_path_and_tail() {
    for profile in Profile::available() {
        for path in [Path::Words(tiles::words(profile)), Path::best(profile)] {
            for &(rows, depth, cols) in SHAPES {
                let (x, w, zeros) = (codes(rows * depth, 1), codes(cols * depth, 2), codes(rows, 3));
                let (x, w) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
                for zeros in [None, Some(&zeros[..])] {
                    let (mut want, mut got) = (vec![0; rows * cols], vec![-7; rows * cols]);
                    reference::products(x, w, zeros, MatMut::new(&mut want, rows, cols).unwrap());
                    let sums = row_sums(w, path, zeros);
                    multiply(profile, path, (x, w), (zeros, &sums), MatMut::new(&mut got, rows, cols).unwrap());
                    assert!(want == got, "{profile:?} {} {rows} {depth} {cols} {}", path.offset(), zeros.is_some());
                }
            }
        }
    }
}

#[test]
fn transposed_operands_and_parts_of_rows_have_the_same_sums() {
    let (rows, depth, cols) = (21, 70, 37);
    let (x, w) = (codes(rows * depth, 4), codes(cols * depth, 5));
    let lefts = [Mat::new(&x, rows, depth).unwrap(), Mat::new(&x, depth, rows).unwrap().transposed()];
    let rights = [Mat::new(&w, cols, depth).unwrap(), Mat::new(&w, depth, cols).unwrap().transposed()];
    for profile in Profile::available() {
        for (x, w) in lefts.into_iter().flat_map(|x| rights.map(|w| (x, w))) {
            for (x, w) in [(x, w), (x.sub(2, 17, 3, 61), w.sub(1, 33, 3, 61))] {
                let (mut want, mut got) = (vec![0; x.rows() * w.rows()], vec![0; x.rows() * w.rows()]);
                reference::products(x, w, None, MatMut::new(&mut want, x.rows(), w.rows()).unwrap());
                products(profile, x, w, None, MatMut::new(&mut got, x.rows(), w.rows()).unwrap()).unwrap();
                assert!(want == got, "{profile:?}");
            }
        }
    }
}

#[test]
fn the_longest_sum_of_the_largest_products_is_exact() {
    let (x, w) = (vec![i8::MIN; MAX_DEPTH], vec![i8::MIN; MAX_DEPTH]);
    let (x, w) = (Mat::new(&x, 1, MAX_DEPTH).unwrap(), Mat::new(&w, 1, MAX_DEPTH).unwrap());
    for profile in Profile::available() {
        let mut y = [0];
        products(profile, x, w, Some(&[i8::MAX]), MatMut::new(&mut y, 1, 1).unwrap()).unwrap();
        assert_eq!(y, [255 * 128 * MAX_DEPTH as i32], "{profile:?}");
    }
}

fn scaled<O: Element + PartialEq>() {
    for profile in Profile::available() {
        for (rows, depth, cols) in [(1, 9, 3), (33, 130, 300), (2050, 4, 1030)] {
            let (x, w, zeros) = (codes(rows * depth, 6), codes(cols * depth, 7), codes(rows, 8));
            let (x, w) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
            let number = |i: usize| 0.001 + (i * 37 % 101) as f32 / 977.0;
            let (of_x, of_w): (Vec<f32>, Vec<f32>) = ((0..rows).map(number).collect(), (0..cols).map(number).collect());
            let bias: Vec<f32> = (0..cols).map(|i| number(i) - 0.05).collect();
            let each = Scales { x: &of_x, w: &of_w, zero_points: Some(&zeros) };
            let one = Scales { x: &[0.03], w: &[0.007], zero_points: Some(&[-5]) };
            for (scales, bias) in [(each, Some(&bias[..])), (one, None), (Scales { zero_points: None, ..each }, None)] {
                let (mut want, mut got) = (vec![O::default(); rows * cols], vec![O::from_f32(-1.0); rows * cols]);
                reference::linear(x, w, &scales, bias, MatMut::new(&mut want, rows, cols).unwrap());
                linear(profile, x, w, &scales, bias, MatMut::new(&mut got, rows, cols).unwrap()).unwrap();
                assert!(want == got, "{profile:?} {rows} {depth} {cols}");
            }
        }
    }
}

#[test]
fn scaled_sums_have_the_bits_of_the_reference() {
    scaled::<f32>();
    scaled::<bf16>();
}

#[test]
fn shapes_that_do_not_fit_are_refused_with_the_argument() {
    let codes = vec![0i8; MAX_DEPTH + 1];
    let long = Mat::new(&codes, 1, MAX_DEPTH + 1).unwrap();
    let short = Mat::new(&codes[..6], 2, 3).unwrap();
    let mut y = [0; 4];
    let place = |x, w, zeros: Option<&[i8]>, y: &mut [i32], rows, cols| {
        let y = MatMut::new(y, rows, cols).unwrap();
        products(Profile::PORTABLE, x, w, zeros, y).unwrap_err().place()
    };
    assert_eq!(place(long, long, None, &mut y[..1], 1, 1), "int8 gemm: columns of x");
    assert_eq!(place(short, long, None, &mut y[..2], 2, 1), "int8 gemm: columns of w");
    assert_eq!(place(short, short, None, &mut y[..2], 1, 2), "int8 gemm: rows of y");
    assert_eq!(place(short, short, None, &mut y[..2], 2, 1), "int8 gemm: columns of y");
    assert_eq!(place(short, short, Some(&[1, 2, 3]), &mut y, 2, 2), "int8 gemm: zero points");
    let refused = |scales: Scales<'_>, bias: Option<&[f32]>| {
        let mut y = [0.0f32; 4];
        linear(Profile::PORTABLE, short, short, &scales, bias, MatMut::new(&mut y, 2, 2).unwrap()).unwrap_err().place()
    };
    let fits = Scales { x: &[1.0], w: &[1.0], zero_points: None };
    assert_eq!(refused(Scales { x: &[1.0; 3], ..fits }, None), "int8 gemm: scales of x");
    assert_eq!(refused(Scales { w: &[1.0; 3], ..fits }, None), "int8 gemm: scales of w");
    assert_eq!(refused(fits, Some(&[1.0])), "int8 gemm: bias");
}
