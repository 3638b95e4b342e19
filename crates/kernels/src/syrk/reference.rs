//! Symmetric rank-k update in plain loops.

use crate::gemm::reference::{add_panel, panel};
use crate::{Element, Mat, Profile};

/// h += x^T @ x above and on the diagonal; `h` holds N * N elements.
#[expect(non_snake_case, reason = "shapes are capital letters in reference loops")]
pub fn accumulate<I: Element>(profile: Profile, x: Mat<'_, I>, h: &mut [f32]) {
    let (T, N) = (x.rows(), x.cols());
    let panel = panel(profile, I::KIND);
    for start in (0..T).step_by(panel) {
        let end = (start + panel).min(T);
        for i in 0..N {
            for j in i..N {
                let pair = |t: usize| (x.at(start + t, i).to_f32(), x.at(start + t, j).to_f32());
                h[i * N + j] = add_panel(profile, I::KIND, end - start, pair, Some(h[i * N + j]));
            }
        }
    }
}
