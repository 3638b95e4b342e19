//! Matrix products in plain loops.

use super::{PANEL, block_float};
use crate::element::Kind;
use crate::{Element, Isa, Mat, MatMut, Profile};

/// a @ b + bias, element by element; shapes agree.
#[expect(non_snake_case, reason = "shapes are capital letters in reference loops")]
pub fn matmul<I: Element, O: Element>(
    profile: Profile,
    a: Mat<'_, I>,
    b: Mat<'_, I>,
    bias: Option<&[f32]>,
    mut y: MatMut<'_, O>,
) {
    let (M, K, O_) = (a.rows(), a.cols(), b.cols());
    for i in 0..M {
        for j in 0..O_ {
            let dot = dot(profile, I::KIND, K, |k| (a.at(i, k).to_f32(), b.at(k, j).to_f32()));
            let sum = bias.map_or(dot, |bias| dot + bias[j]);
            y.row_mut(i)[j] = O::from_f32(sum);
        }
    }
}

/// Sum of `pair(k).0 * pair(k).1` over k in the order that [`super::matmul`] states.
fn dot(profile: Profile, kind: Kind, len: usize, pair: impl Fn(usize) -> (f32, f32)) -> f32 {
    let mut total = None;
    for start in (0..len).step_by(panel(profile, kind)) {
        total = Some(add_panel(profile, kind, panel(profile, kind).min(len - start), |k| pair(start + k), total));
    }
    total.unwrap_or(0.0)
}

/// Elements of k whose sum starts anew.
pub(crate) fn panel(profile: Profile, kind: Kind) -> usize {
    match () {
        () if by_pairs(profile, kind) => 2 * PANEL,
        () if by_codes(profile, kind) => block_float::RUN,
        () => PANEL,
    }
}

/// One partial sum, and what was there before it.
pub(crate) fn add_panel(
    profile: Profile,
    kind: Kind,
    len: usize,
    pair: impl Fn(usize) -> (f32, f32),
    before: Option<f32>,
) -> f32 {
    if by_codes(profile, kind) {
        return block_float::reference::add_run(len, pair, before.unwrap_or(0.0));
    }
    let partial = dot_panel(profile, kind, len, pair);
    before.map_or(partial, |before| before + partial)
}

/// One partial sum: a chain over k in rising order, from zero.
pub(crate) fn dot_panel(profile: Profile, kind: Kind, len: usize, pair: impl Fn(usize) -> (f32, f32)) -> f32 {
    let mut partial = 0.0f32;
    if by_pairs(profile, kind) {
        for k in (0..len).step_by(2) {
            let (odd, even) = (if k + 1 < len { pair(k + 1) } else { (0.0, 0.0) }, pair(k));
            partial = flush(flush(odd.0).mul_add(flush(odd.1), partial));
            partial = flush(flush(even.0).mul_add(flush(even.1), partial));
        }
        return partial;
    }
    for k in 0..len {
        let (x, w) = pair(k);
        partial = multiply_add(profile, x, w, partial);
    }
    partial
}

/// Whether products are taken by `vdpbf16ps`.
fn by_pairs(profile: Profile, kind: Kind) -> bool {
    profile.isa() == Isa::Avx512Bf16 && kind == Kind::Bf16
}

/// Whether runs of k share powers of two.
fn by_codes(profile: Profile, kind: Kind) -> bool {
    profile.isa() == Isa::Avx512Vnni && kind == Kind::Bf16
}

/// x * w + sum, rounded once, or twice under the portable profile.
pub(crate) fn multiply_add(profile: Profile, x: f32, w: f32, sum: f32) -> f32 {
    if profile == Profile::PORTABLE { sum + x * w } else { x.mul_add(w, sum) }
}

/// Zero of the same sign for a denormal, as `vdpbf16ps` does on input and output.
pub(crate) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}
