//! Sums over a row in a fixed order, and rows spread over threads.

/// Number of partial sums that a row reduction keeps.
pub(crate) const LANES: usize = 16;

/// Sum of `f(x[i])`: lane i % 16 sums its elements in order, then lanes fold in halves (8, 4, 2, 1).
#[inline(always)]
pub(crate) fn lane_sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane += f(x);
    }
    fold(lanes, |a, b| a + b)
}

/// Largest element, minus infinity for an empty row; a NaN is passed over.
#[inline(always)]
pub(crate) fn lane_max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if x > *lane { x } else { *lane };
    }
    fold(lanes, |a, b| if b > a { b } else { a })
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Number of rows of `width` that fill `len` exactly.
pub(crate) fn check_rows(place: &'static str, len: usize, width: usize) -> crate::Result<usize> {
    let rows = len.checked_div(width).unwrap_or(0);
    crate::error::check_len(place, len, &[rows, width])?;
    Ok(rows)
}
