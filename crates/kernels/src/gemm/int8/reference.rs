//! Products of 8-bit integers in plain loops.

use super::Scales;
use crate::{Element, Mat, MatMut};

/// (x - zero_points) @ w^T, element by element; shapes agree.
#[expect(non_snake_case, reason = "shapes are capital letters in reference loops")]
pub fn products(x: Mat<'_, i8>, w: Mat<'_, i8>, zero_points: Option<&[i8]>, mut y: MatMut<'_, i32>) {
    let (M, K, O) = (x.rows(), x.cols(), w.rows());
    for i in 0..M {
        for j in 0..O {
            let mut sum = 0;
            for k in 0..K {
                let zero_point = zero_points.map_or(0, |it| i32::from(it[i]));
                sum += (i32::from(x.at(i, k)) - zero_point) * i32::from(w.at(j, k));
            }
            y.row_mut(i)[j] = sum;
        }
    }
}

/// The sums of [`products`] times the scales, plus the bias; shapes agree.
#[expect(non_snake_case, reason = "shapes are capital letters in reference loops")]
pub fn linear<T: Element>(
    x: Mat<'_, i8>,
    w: Mat<'_, i8>,
    scales: &Scales<'_>,
    bias: Option<&[f32]>,
    mut y: MatMut<'_, T>,
) {
    let (M, O) = (x.rows(), w.rows());
    fn of<S: Copy>(all: &[S], idx: usize) -> S {
        if all.len() == 1 { all[0] } else { all[idx] }
    }
    for i in 0..M {
        for j in 0..O {
            let zero_point = scales.zero_points.map(|it| [of(it, i)]);
            let zero_point = zero_point.as_ref().map(|it| &it[..]);
            let mut sum = [0];
            let one = MatMut::new(&mut sum, 1, 1).expect("one element");
            products(x.sub(i, 1, 0, x.cols()), w.sub(j, 1, 0, w.cols()), zero_point, one);
            let scaled = sum[0] as f32 * of(scales.x, i) * of(scales.w, j);
            y.row_mut(i)[j] = T::from_f32(bias.map_or(scaled, |bias| scaled + bias[j]));
        }
    }
}
