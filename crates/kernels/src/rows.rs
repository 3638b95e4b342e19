//! Sums over a row in a fixed order, and plain loops compiled for each instruction set.

use rayon::prelude::*;

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

/// Sum of `term(x[i], y[i])` in f64: lane i % 16 sums its terms in order, then lanes fold in rising order.
#[inline(always)]
pub(crate) fn lane_sum_of_pairs<T: Copy>(x: &[T], y: &[T], term: impl Fn(T, T) -> f64) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (x, rest_x) = x.as_chunks::<LANES>();
    let (y, rest_y) = y.as_chunks::<LANES>();
    for (x, y) in x.iter().zip(y) {
        for lane in 0..LANES {
            lanes[lane] += term(x[lane], y[lane]);
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest_x.iter().zip(rest_y)) {
        *lane += term(*x, *y);
    }
    lanes.iter().sum()
}

/// Sum of `x[i] * y[i]` in f64, as [`lane_sum_of_pairs`].
#[inline(always)]
pub(crate) fn lane_dot(x: &[f32], y: &[f32]) -> f64 {
    lane_sum_of_pairs(x, y, |x, y| f64::from(x) * f64::from(y))
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

/// Elements of a task of row-wise work.
pub(crate) const TASK_ELEMENTS: usize = 1 << 15;

/// Runs `f` over chunks of whole rows of x and y, on all threads; `width` divides both lengths.
pub(crate) fn over_rows<A: Sync, B: Send>(width: usize, x: &[A], y: &mut [B], f: impl Fn(&[A], &mut [B]) + Sync) {
    let chunk = (TASK_ELEMENTS / width.max(1)).max(1) * width.max(1);
    if x.len() <= chunk {
        f(x, y);
    } else {
        x.par_chunks(chunk).zip(y.par_chunks_mut(chunk)).for_each(|(x, y)| f(x, y));
    }
}

/// Number of rows of `width` that fill `len` exactly.
pub(crate) fn check_rows(place: &'static str, len: usize, width: usize) -> crate::Result<usize> {
    let rows = len.checked_div(width).unwrap_or(0);
    crate::error::check_len(place, len, &[rows, width])?;
    Ok(rows)
}

/// Defines a function that runs a plain loop compiled for the profile's instruction set.
///
/// The loop is `#[inline(always)]` and neither fuses nor reorders floating-point operations, so that all instances give the same
/// bits.
macro_rules! twins {
    (
        $(#[$meta:meta])* $vis:vis fn $name:ident $(<$($type:ident),+>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;
    ) => {
        $(#[$meta])*
        $vis fn $name $(<$($type: $crate::Element),+>)? (profile: $crate::Profile, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2 $(<$($type: $crate::Element),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                unsafe fn avx512 $(<$($type: $crate::Element),+>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body($($arg),*)
                }
                match profile.isa() {
                    // SAFETY: a profile exists only where the processor has its instructions.
                    $crate::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::Isa::Portable => {}
                    // SAFETY: as above; all others have AVX-512.
                    _ => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = profile;
            $body($($arg),*)
        }
    };
}

/// As `twins`, for loops `body::<FUSED>` that fuse multiplication and addition under all profiles but the portable one.
macro_rules! fused_twins {
    (
        $(#[$meta:meta])* $vis:vis fn $name:ident ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:path;
    ) => {
        $(#[$meta])*
        $vis fn $name(profile: $crate::Profile, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                    $body($crate::rows::Fused::<true>, $($arg),*)
                }
                #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
                unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
                    $body($crate::rows::Fused::<true>, $($arg),*)
                }
                match profile.isa() {
                    // SAFETY: a profile exists only where the processor has its instructions.
                    $crate::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::Isa::Portable => {}
                    // SAFETY: as above; all others have AVX-512.
                    _ => return unsafe { avx512($($arg),*) },
                }
            }
            let _ = profile;
            $body($crate::rows::Fused::<false>, $($arg),*)
        }
    };
}

/// Whether multiplication and addition are fused, as a type.
#[derive(Clone, Copy)]
pub(crate) struct Fused<const FUSED: bool>;

macro_rules! multiply_add {
    ($name:ident, $float:ident) => {
        impl<const FUSED: bool> Fused<FUSED> {
            /// x * y + sum.
            #[inline(always)]
            pub(crate) fn $name(self, x: $float, y: $float, sum: $float) -> $float {
                if FUSED { x.mul_add(y, sum) } else { sum + x * y }
            }
        }
    };
}

multiply_add!(f32, f32);
multiply_add!(f64, f64);

pub(crate) use {fused_twins, twins};
