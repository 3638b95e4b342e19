//! Operands in the order in which tiles read them: for each k, the rows (of a) or columns (of b) of one panel together.

pub(crate) mod block_float;
mod int8;

use super::tile::Pair;
use crate::{Element, Isa, Mat, Profile, bf16};

/// A strip of an operand: `lanes` rows of a or columns of b, and a run of k.
#[derive(Clone, Copy)]
pub struct Strip<'a, S> {
    data: &'a [S],
    lane_stride: usize,
    k_stride: usize,
    lanes: usize,
    depth: usize,
}

impl<'a, S: Copy> Strip<'a, S> {
    /// Rows `rows` and columns `depth` of the left operand.
    pub(crate) fn of_rows(a: Mat<'a, S>, rows: (usize, usize), depth: (usize, usize)) -> Self {
        let offset = rows.0 * a.row_stride() + depth.0 * a.col_stride();
        let data = a.data().get(offset..).unwrap_or_default();
        Self { data, lane_stride: a.row_stride(), k_stride: a.col_stride(), lanes: rows.1, depth: depth.1 }
    }

    fn at(&self, lane: usize, k: usize) -> S {
        self.data[lane * self.lane_stride + k * self.k_stride]
    }
}

/// An operand type S that can be laid out as elements T of a tile.
pub trait Pack<T>: Copy {
    /// Steps that `depth` elements take.
    fn steps(depth: usize) -> usize;

    /// Fills `to`, `width` elements a step; lanes beyond the strip's are left at zero.
    fn pack(profile: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [T]);
}

impl Pack<f32> for f32 {
    fn steps(depth: usize) -> usize {
        depth
    }

    fn pack(profile: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [f32]) {
        if strip.k_stride == 1 && strip.lanes >= 8 && profile.isa() != Isa::Portable {
            let runs = |lane: usize, k: usize| strip.data[lane * strip.lane_stride + k..].as_ptr().cast();
            let word = |lane: usize, k: usize| strip.at(lane, k).to_bits();
            return transpose::<WORDS>(strip.lanes, strip.depth, runs, width, bytes_of(to), word);
        }
        plain(strip, width, to);
    }
}

impl Pack<f64> for f64 {
    fn steps(depth: usize) -> usize {
        depth
    }

    fn pack(_: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [f64]) {
        plain(strip, width, to);
    }
}

impl Pack<f64> for f32 {
    fn steps(depth: usize) -> usize {
        depth
    }

    fn pack(_: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [f64]) {
        for (k, to) in to.chunks_exact_mut(width).enumerate().take(strip.depth) {
            let lanes = strip.data[k * strip.k_stride..].iter().step_by(strip.lane_stride);
            to.iter_mut().zip(lanes).take(strip.lanes).for_each(|(to, from)| *to = f64::from(*from));
        }
    }
}

/// Lanes and depth of the patch that is widened at a time; it stays in the first cache.
const PATCH: (usize, usize) = (32, 64);

/// Elements go through a small patch of f32.
fn widen<S: Element>(profile: Profile, strip: Strip<'_, S>, width: usize, to: &mut [f32]) {
    let mut patch = [0.0f32; PATCH.0 * PATCH.1];
    for k in (0..strip.depth).step_by(PATCH.1) {
        let depth = PATCH.1.min(strip.depth - k);
        for lane in (0..strip.lanes).step_by(PATCH.0) {
            let lanes = PATCH.0.min(strip.lanes - lane);
            let along_k = strip.k_stride == 1;
            let (lines, run) = if along_k { (lanes, depth) } else { (depth, lanes) };
            let line_stride = if along_k { strip.lane_stride } else { strip.k_stride };
            for line in 0..lines {
                let start = lane * strip.lane_stride + k * strip.k_stride + line * line_stride;
                let to = &mut patch[line * run..(line + 1) * run];
                if along_k || strip.lane_stride == 1 {
                    crate::cast::widen(profile, &strip.data[start..start + run], to);
                } else {
                    for (to, from) in to.iter_mut().zip(strip.data[start..].iter().step_by(strip.lane_stride)) {
                        *to = from.to_f32();
                    }
                }
            }
            let (lane_stride, k_stride) = if along_k { (run, 1) } else { (1, run) };
            let patch = Strip { data: &patch, lane_stride, k_stride, lanes, depth };
            f32::pack(profile, patch, width, &mut to[k * width + lane..]);
        }
    }
}

impl Pack<f32> for bf16 {
    fn steps(depth: usize) -> usize {
        depth
    }

    fn pack(profile: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [f32]) {
        if profile.isa() == Isa::Portable || strip.lanes < 8 {
            return widen(profile, strip, width, to);
        }
        if strip.k_stride == 1 {
            let runs = |lane: usize, k: usize| strip.data[lane * strip.lane_stride + k..].as_ptr().cast();
            let word = |lane: usize, k: usize| u32::from(strip.at(lane, k).to_bits()) << 16;
            return transpose::<HALVES>(strip.lanes, strip.depth, runs, width, bytes_of(to), word);
        }
        if strip.lane_stride == 1 {
            for k in 0..strip.depth {
                let from = &strip.data[k * strip.k_stride..][..strip.lanes];
                widen_line(from, &mut to[k * width..][..strip.lanes]);
            }
            return;
        }
        widen(profile, strip, width, to);
    }
}

impl Pack<f32> for crate::f16 {
    fn steps(depth: usize) -> usize {
        depth
    }

    fn pack(profile: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [f32]) {
        widen(profile, strip, width, to);
    }
}

impl Pack<Pair> for bf16 {
    fn steps(depth: usize) -> usize {
        depth.div_ceil(2)
    }

    fn pack(_: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [Pair]) {
        let whole = strip.depth / 2;
        let pair = |lane: usize, step: usize| {
            u32::from(strip.at(lane, 2 * step).to_bits()) | u32::from(strip.at(lane, 2 * step + 1).to_bits()) << 16
        };
        if strip.k_stride == 1 && strip.lanes >= 8 {
            let runs = |lane: usize, step: usize| strip.data[lane * strip.lane_stride + 2 * step..].as_ptr().cast();
            transpose::<WORDS>(strip.lanes, whole, runs, width, bytes_of(to), pair);
        } else if strip.lane_stride == 1 {
            for step in 0..whole {
                let even = &strip.data[2 * step * strip.k_stride..][..strip.lanes];
                let odd = &strip.data[(2 * step + 1) * strip.k_stride..][..strip.lanes];
                for ((to, even), odd) in to[step * width..].iter_mut().zip(even).zip(odd) {
                    *to = Pair(u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16);
                }
            }
        } else {
            for step in 0..whole {
                for lane in 0..strip.lanes {
                    to[step * width + lane] = Pair(pair(lane, step));
                }
            }
        }
        if strip.depth % 2 == 1 {
            for lane in 0..strip.lanes {
                to[whole * width + lane] = Pair(u32::from(strip.at(lane, strip.depth - 1).to_bits()));
            }
        }
    }
}

/// Element by element.
pub(crate) fn plain<S: Copy>(strip: Strip<'_, S>, width: usize, to: &mut [S]) {
    if strip.lane_stride == 1 {
        for k in 0..strip.depth {
            to[k * width..][..strip.lanes].copy_from_slice(&strip.data[k * strip.k_stride..][..strip.lanes]);
        }
        return;
    }
    for lane in 0..strip.lanes {
        for k in 0..strip.depth {
            to[k * width + lane] = strip.at(lane, k);
        }
    }
}

/// The words behind a slice of four-byte elements.
fn bytes_of<T>(to: &mut [T]) -> &mut [u32] {
    const { assert!(size_of::<T>() == 4 && align_of::<T>() == 4) };
    // SAFETY: T is f32 or words here: four bytes, aligned as u32, any bits valid.
    unsafe { std::slice::from_raw_parts_mut(to.as_mut_ptr().cast(), to.len()) }
}

/// Elements of k that are laid out for all lanes before the next.
#[cfg(target_arch = "x86_64")]
const STRETCH: usize = 64;

/// Elements of four bytes, moved as they are.
const WORDS: bool = false;
/// Elements of two bytes, the upper halves of words whose lower halves are zero: bf16 widened to f32.
const HALVES: bool = true;

/// `to[k * width + lane] = word at (lane, k)` for `lanes >= 8`, in squares of eight; `runs` finds where a lane's elements from k on
/// are.
///
/// The last square overlaps the one before it where `lanes` is no multiple of eight.
#[cfg(target_arch = "x86_64")]
fn transpose<const WIDENS: bool>(
    lanes: usize,
    depth: usize,
    runs: impl Fn(usize, usize) -> *const u8,
    width: usize,
    to: &mut [u32],
    word: impl Fn(usize, usize) -> u32,
) {
    let squares = depth / 8 * 8;
    // A stretch of k for all lanes, so that what is written stays in the first cache until its lines are full.
    for stretch in (0..squares).step_by(STRETCH) {
        let end = squares.min(stretch + STRETCH);
        for lane in (0..lanes).step_by(8) {
            let first = lane.min(lanes - 8);
            for k in (stretch..end).step_by(8) {
                let mut from = [std::ptr::null(); 8];
                for (i, from) in from.iter_mut().enumerate() {
                    *from = runs(first + i, k);
                }
                let start = k * width + first;
                let to = &mut to[start..start + 7 * width + 8];
                // SAFETY: `runs` indexed each line's first element, and the squares end within its `depth` elements; `to` covers
                // eight lines; every profile that calls this has AVX2.
                unsafe { square::<WIDENS>(from, to.as_mut_ptr(), width) };
            }
        }
    }
    for k in squares..depth {
        for lane in 0..lanes {
            to[k * width + lane] = word(lane, k);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn transpose<const WIDENS: bool>(
    lanes: usize,
    depth: usize,
    _: impl Fn(usize, usize) -> *const u8,
    width: usize,
    to: &mut [u32],
    word: impl Fn(usize, usize) -> u32,
) {
    for k in 0..depth {
        for lane in 0..lanes {
            to[k * width + lane] = word(lane, k);
        }
    }
}

/// Eight elements or more; the last eight overlap those before them.
#[cfg(target_arch = "x86_64")]
fn widen_line(from: &[bf16], to: &mut [f32]) {
    let last = from.len() - 8;
    for start in (0..last).step_by(8).chain([last]) {
        let (from, to) = (&from[start..start + 8], &mut to[start..start + 8]);
        // SAFETY: both hold eight elements; every profile that calls this has AVX2.
        unsafe { store_words(load::<HALVES>(from.as_ptr().cast()), to.as_mut_ptr()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn widen_line(from: &[bf16], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_f32());
}

/// Eight elements as words.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn load<const WIDENS: bool>(from: *const u8) -> std::arch::x86_64::__m256 {
    use std::arch::x86_64::*;
    // SAFETY: the caller's pointer covers eight elements.
    unsafe {
        if WIDENS {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        } else {
            _mm256_loadu_ps(from.cast())
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn store_words(words: std::arch::x86_64::__m256, to: *mut f32) {
    // SAFETY: the caller's pointer covers eight words.
    unsafe { std::arch::x86_64::_mm256_storeu_ps(to, words) };
}

/// Transposes eight lines of eight elements.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn square<const WIDENS: bool>(from: [*const u8; 8], to: *mut u32, width: usize) {
    use std::arch::x86_64::*;
    // A closure would be compiled without the vectors of this function.
    let mut r = [_mm256_setzero_ps(); 8];
    for i in 0..8 {
        // SAFETY: the caller's pointers cover eight elements each.
        r[i] = unsafe { load::<WIDENS>(from[i]) };
    }
    let mut t = [_mm256_setzero_ps(); 8];
    for i in 0..4 {
        t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    }
    let mut s = [_mm256_setzero_ps(); 8];
    for i in 0..2 {
        s[4 * i] = _mm256_shuffle_ps::<0x44>(t[4 * i], t[4 * i + 2]);
        s[4 * i + 1] = _mm256_shuffle_ps::<0xee>(t[4 * i], t[4 * i + 2]);
        s[4 * i + 2] = _mm256_shuffle_ps::<0x44>(t[4 * i + 1], t[4 * i + 3]);
        s[4 * i + 3] = _mm256_shuffle_ps::<0xee>(t[4 * i + 1], t[4 * i + 3]);
    }
    for i in 0..4 {
        let (low, high) =
            (_mm256_permute2f128_ps::<0x20>(s[i], s[i + 4]), _mm256_permute2f128_ps::<0x31>(s[i], s[i + 4]));
        // SAFETY: the caller's pointer covers eight lines of `width`, the last of eight words.
        unsafe {
            _mm256_storeu_ps(to.wrapping_add(i * width).cast(), low);
            _mm256_storeu_ps(to.wrapping_add((i + 4) * width).cast(), high);
        }
    }
}
