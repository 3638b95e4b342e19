//! bf16 operands as codes of block floating point.

use super::{Pack, Strip, WORDS, bytes_of, transpose};
use crate::gemm::block_float::{Codes, RUN, RUN_STEPS, Scale, steps};
use crate::rows::twins;
use crate::{Profile, bf16};

/// Lanes that become codes at a time, in the first cache.
const LANES: usize = 32;

/// Lines that are asked for before they are read.
const AHEAD: usize = 16;

impl Pack<Codes> for bf16 {
    fn steps(depth: usize) -> usize {
        steps(depth)
    }

    fn pack(profile: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [Codes]) {
        let to = bytes_of(to);
        for (run, start) in (0..strip.depth).step_by(RUN).enumerate() {
            let depth = RUN.min(strip.depth - start);
            for lane in (0..strip.lanes).step_by(LANES) {
                let lanes = LANES.min(strip.lanes - lane);
                let data = &strip.data[lane * strip.lane_stride + start * strip.k_stride..];
                let part = Strip { data, lanes, depth, ..strip };
                let to = &mut to[run * RUN_STEPS * width + lane..];
                if strip.k_stride == 1 {
                    along_k(profile, part, width, to);
                } else {
                    encode_lanes(profile, part, width, to);
                }
            }
        }
    }
}

/// One run of lanes whose numbers lie together.
fn along_k(profile: Profile, strip: Strip<'_, bf16>, width: usize, to: &mut [u32]) {
    let n_steps = strip.depth.div_ceil(2);
    let mut held = [0; LANES * RUN / 2];
    for lane in 0..strip.lanes {
        let codes = &mut held[lane * RUN / 2..][..n_steps];
        let of_codes = encode_run(profile, &strip.data[lane * strip.lane_stride..][..strip.depth], codes);
        to[n_steps * width + lane] = of_codes.to_bits();
    }
    let word = |lane: usize, step: usize| held[lane * RUN / 2 + step];
    if strip.lanes >= 8 {
        let runs = |lane: usize, step: usize| held[lane * RUN / 2 + step..].as_ptr().cast();
        return transpose::<WORDS>(strip.lanes, n_steps, runs, width, to, word);
    }
    for step in 0..n_steps {
        for lane in 0..strip.lanes {
            to[step * width + lane] = word(lane, step);
        }
    }
}

twins! {
    /// Codes of a run, two a word; returns what they are multiplied with.
    fn encode_run(run: &[bf16], to: &mut [u32]) -> f32 = run_body;
}

twins! {
    /// One run of neighbouring lanes, or of lanes that lie anyhow: a step for two k, and what the codes are multiplied with.
    fn encode_lanes(strip: Strip<'_, bf16>, width: usize, to: &mut [u32]) = lanes_body;
}

#[inline(always)]
fn run_body(run: &[bf16], to: &mut [u32]) -> f32 {
    let scale = Scale::of(run.iter().fold(0, |largest, it| largest.max(it.to_bits() & 0x7fff)));
    let (pairs, last) = run.as_chunks::<2>();
    for (to, [even, odd]) in to.iter_mut().zip(pairs) {
        *to = words(even.to_bits(), odd.to_bits(), scale.to_codes);
    }
    if let ([last], Some(to)) = (last, to.get_mut(pairs.len())) {
        *to = words(last.to_bits(), 0, scale.to_codes);
    }
    scale.of_codes
}

// Loops over numbers of lanes that are known when they are compiled become vectors.
#[inline(always)]
fn lanes_body(strip: Strip<'_, bf16>, width: usize, to: &mut [u32]) {
    let Strip { data, lane_stride, k_stride, lanes, depth } = strip;
    let (mut lines, mut largest) = ([[bf16::ZERO; LANES]; RUN], [0; LANES]);
    for k in 0..depth {
        prefetch(data.as_ptr().wrapping_add((k + AHEAD) * k_stride));
        let line = &mut lines[k];
        if lane_stride == 1 {
            copy(&data[k * k_stride..][..lanes], &mut line[..lanes]);
        } else {
            (0..lanes).for_each(|lane| line[lane] = strip.at(lane, k));
        }
        for lane in 0..LANES {
            largest[lane] = (line[lane].to_bits() & 0x7fff).max(largest[lane]);
        }
    }
    let scales = largest.map(Scale::of);
    let to_codes = scales.map(|it| it.to_codes);
    let n_steps = depth.div_ceil(2);
    for step in 0..n_steps {
        let (even, odd) = (&lines[2 * step], &lines[2 * step + 1]);
        let mut codes = [0; LANES];
        for lane in 0..LANES {
            codes[lane] = words(even[lane].to_bits(), odd[lane].to_bits(), to_codes[lane]);
        }
        copy(&codes[..lanes], &mut to[step * width..][..lanes]);
    }
    let of_codes = scales.map(|it| it.of_codes.to_bits());
    copy(&of_codes[..lanes], &mut to[n_steps * width..][..lanes]);
}

/// Asks for a line of the caches that is about to be read: lines that lie far apart are not foreseen by the processor.
#[inline(always)]
fn prefetch(at: *const bf16) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64, and an address that is not there is passed over.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Copies up to [`LANES`] elements by moves of lengths that are known; the last eight may overlap those before them.
#[inline(always)]
fn copy<T: Copy>(from: &[T], to: &mut [T]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<LANES>(), to.first_chunk_mut::<LANES>()) {
        *to = *from;
        return;
    }
    let (eights, _) = from.as_chunks::<8>();
    for (from, to) in eights.iter().zip(to.as_chunks_mut::<8>().0) {
        *to = *from;
    }
    match (from.last_chunk::<8>(), to.last_chunk_mut::<8>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to.copy_from_slice(from),
    }
}

/// Two codes.
#[inline(always)]
fn words(even: u16, odd: u16, to_codes: f32) -> u32 {
    code(even, to_codes) & 0xffff | code(odd, to_codes) << 16
}

/// The nearest whole number, ties to even, in the low half; zero for what is not finite, whose scale is zero.
#[inline(always)]
fn code(bits: u16, to_codes: f32) -> u32 {
    /// 1.5 * 2^23: added to a small number it leaves the nearest whole one in the low bits.
    const WHOLE: f32 = 12_582_912.0;
    (f32::from_bits(u32::from(bits) << 16) * to_codes + WHOLE).to_bits()
}
