//! Second moments in plain loops.

use crate::Element;

/// h += x^T @ x above and on the diagonal; x holds whole rows of `cols`, `h` holds cols * cols elements.
#[expect(non_snake_case, reason = "shapes are capital letters in reference loops")]
pub fn accumulate<E: Element>(x: &[E], N: usize, h: &mut [f64]) {
    for x in x.chunks_exact(N.max(1)) {
        for i in 0..N {
            for j in i..N {
                h[i * N + j] += f64::from(x[i].to_f32()) * f64::from(x[j].to_f32());
            }
        }
    }
}

/// `d H d^T` of each row of d, from the upper triangle of H.
#[expect(non_snake_case, reason = "shapes are capital letters in reference loops")]
pub fn energy(h: &[f64], d: &[f64], out: &mut [f64]) {
    let N = d.len().checked_div(out.len()).unwrap_or(0);
    for (d, out) in d.chunks_exact(N.max(1)).zip(out) {
        *out = 0.0;
        for i in 0..N {
            for j in i..N {
                let times = if i == j { 1.0 } else { 2.0 };
                *out += times * d[i] * h[i * N + j] * d[j];
            }
        }
    }
}
