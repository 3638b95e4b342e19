//! The inner tile over codes: `vpdpwssd` over a run, then one multiplication for each sum.

use super::Codes;
use crate::gemm::tile::Tile;
use crate::{Isa, Profile};

/// The kernel of the one profile that has it.
pub(crate) fn tile(profile: Profile) -> Option<Tile<Codes, f32>> {
    match profile.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Vnni => Some(x86::WORDS),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Codes, Tile};
    use crate::gemm::tile::{Lines, Write, by_rows};

    /// Elements of a vector.
    const LANES: usize = 16;

    /// Fourteen rows by two vectors.
    pub(super) const WORDS: Tile<Codes, f32> = Tile { max_rows: 14, width: 2 * LANES, run };

    /// Steps are those of one run.
    ///
    /// # Safety
    ///
    /// As [`Tile::run`].
    unsafe fn run(
        steps: usize,
        a: Lines<*const Codes>,
        b: *const Codes,
        c: Lines<*mut f32>,
        rows: usize,
        write: Write,
    ) {
        // SAFETY: the caller states that the processor has the instructions and that the pointers cover the tile.
        unsafe { by_rows!(rows, tile, (steps, a, b, c, write), 14: 1 2 3 4 5 6 7 8 9 10 11 12 13) }
    }

    #[expect(clippy::needless_range_loop, reason = "registers are chosen by rows that are known when this is compiled")]
    #[target_feature(enable = "avx512f,avx512vnni")]
    unsafe fn tile<const ROWS: usize>(
        steps: usize,
        a: Lines<*const Codes>,
        mut b: *const Codes,
        c: Lines<*mut f32>,
        write: Write,
    ) {
        let Lines { start: mut a, stride: a_stride } = a;
        let Lines { start: c, stride: c_stride } = c;
        let mut sums = [[_mm512_setzero_si512(); 2]; ROWS];
        // SAFETY: `a` holds ROWS elements a step, `b` steps * width, and each of the ROWS rows of `c` one width.
        unsafe {
            for row in 0..ROWS {
                let c = c.wrapping_add(row * c_stride);
                _mm_prefetch::<_MM_HINT_T0>(c.cast());
                _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(LANES).cast());
            }
            for _ in 1..steps {
                let columns = [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.wrapping_add(LANES).cast())];
                for row in 0..ROWS {
                    let x = _mm512_set1_epi32((*a.wrapping_add(row)).0 as i32);
                    sums[row][0] = _mm512_dpwssd_epi32(sums[row][0], x, columns[0]);
                    sums[row][1] = _mm512_dpwssd_epi32(sums[row][1], x, columns[1]);
                }
                a = a.wrapping_add(a_stride);
                b = b.wrapping_add(2 * LANES);
            }
            let of_b = [_mm512_loadu_ps(b.cast()), _mm512_loadu_ps(b.wrapping_add(LANES).cast())];
            for row in 0..ROWS {
                let of_a = _mm512_set1_ps(f32::from_bits((*a.wrapping_add(row)).0));
                for half in 0..2 {
                    let c = c.wrapping_add(row * c_stride + half * LANES);
                    let sum = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[row][half]), of_b[half]);
                    let before = if write == Write::Store { _mm512_setzero_ps() } else { _mm512_loadu_ps(c) };
                    _mm512_storeu_ps(c, _mm512_fmadd_ps(sum, of_a, before));
                }
            }
        }
    }
}
