//! Products with a part of a matrix, added to what is there.

use crate::gemm::driver::multiply_f32;
use crate::gemm::tile::Write;
use crate::gemm::update::{Region, Update};
use crate::{Mat, MatMut, Profile};

/// `to += x h`: x (n, K), h (K, P), to (n, P); a chain over k in rising order that starts at what is there.
pub(super) fn add_product(profile: Profile, x: &[f32], h: Mat<'_, f32>, to: &mut [f32]) {
    update(profile, x, h, to, false);
}

/// `to -= x h` in the same order, for n rows (P) that lie at `places` of `to`.
pub(super) fn subtract_scattered(profile: Profile, x: &[f32], h: Mat<'_, f32>, to: &mut [f32], places: &[usize]) {
    let of = |place: usize| place..place + h.cols();
    let mut gathered: Vec<f32> = Vec::with_capacity(places.len() * h.cols());
    places.iter().for_each(|place| gathered.extend_from_slice(&to[of(*place)]));
    update(profile, x, h, &mut gathered, true);
    places.iter().zip(gathered.chunks_exact(h.cols())).for_each(|(place, it)| to[of(*place)].copy_from_slice(it));
}

fn update(profile: Profile, x: &[f32], h: Mat<'_, f32>, to: &mut [f32], negate: bool) {
    let rows = x.len() / h.rows();
    if let (Ok(x), Ok(to)) = (Mat::new(x, rows, h.rows()), MatMut::new(to, rows, h.cols())) {
        multiply_f32(profile, x, h, to, Update { write: Write::Continue, region: Region::All, negate });
    }
}
