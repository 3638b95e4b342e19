//! Operands of 8-bit integers, laid out as words of 16 bits or as they are.

use super::{Pack, Strip, WORDS, bytes_of, transpose};
use crate::Profile;
use crate::gemm::int8::{Bytes, Words};

/// Steps that are laid out for all lanes before the next.
const STRETCH: usize = 64;

impl Pack<Words> for i8 {
    fn steps(depth: usize) -> usize {
        depth.div_ceil(2)
    }

    fn pack(_: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [Words]) {
        let words =
            |even: i8, odd: i8| Words(u32::from(i16::from(even) as u16) | u32::from(i16::from(odd) as u16) << 16);
        let whole = strip.depth / 2;
        for stretch in (0..whole).step_by(STRETCH) {
            let steps = STRETCH.min(whole - stretch);
            for lane in 0..strip.lanes {
                let to = to[stretch * width + lane..].iter_mut().step_by(width).take(steps);
                if strip.k_stride == 1 {
                    let from = &strip.data[lane * strip.lane_stride + 2 * stretch..][..2 * steps];
                    to.zip(from.as_chunks::<2>().0).for_each(|(to, &[even, odd])| *to = words(even, odd));
                } else {
                    to.enumerate().for_each(|(step, to)| {
                        let k = 2 * (stretch + step);
                        *to = words(strip.at(lane, k), strip.at(lane, k + 1));
                    });
                }
            }
        }
        if strip.depth % 2 == 1 {
            for lane in 0..strip.lanes {
                to[whole * width + lane] = words(strip.at(lane, strip.depth - 1), 0);
            }
        }
    }
}

impl Pack<Bytes> for i8 {
    fn steps(depth: usize) -> usize {
        depth.div_ceil(4)
    }

    fn pack(_: Profile, strip: Strip<'_, Self>, width: usize, to: &mut [Bytes]) {
        let whole = strip.depth / 4;
        let bytes = |lane: usize, step: usize| {
            let at = |i: usize| if 4 * step + i < strip.depth { strip.at(lane, 4 * step + i) as u8 } else { 0 };
            u32::from_le_bytes([at(0), at(1), at(2), at(3)])
        };
        // Who lays out bytes has AVX-512, and so what the squares take.
        if strip.k_stride == 1 && strip.lanes >= 8 {
            let runs = |lane: usize, step: usize| strip.data[lane * strip.lane_stride + 4 * step..].as_ptr().cast();
            transpose::<WORDS>(strip.lanes, whole, runs, width, bytes_of(to), bytes);
        } else {
            for step in 0..whole {
                for lane in 0..strip.lanes {
                    to[step * width + lane] = Bytes(bytes(lane, step));
                }
            }
        }
        for step in whole..strip.depth.div_ceil(4) {
            for lane in 0..strip.lanes {
                to[step * width + lane] = Bytes(bytes(lane, step));
            }
        }
    }
}
