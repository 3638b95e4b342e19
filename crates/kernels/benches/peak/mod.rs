//! What the machine can do at best: independent multiply-adds from registers on all threads, and a copy of memory.

use std::hint::black_box;

use kernels::{Isa, Profile};

pub(crate) mod clock;

use clock::Clock;

/// Rates in GFLOP/s and GB/s (bytes read plus bytes written).
pub(crate) struct Peaks {
    /// f32 multiply-add.
    pub(crate) f32: f64,
    /// What multiplies bf16 under the profile: `vdpbf16ps`, `vpdpwssd`, or f32.
    pub(crate) bf16: f64,
    /// Integer multiply-add by `vpdpbusd`, or by `vpmaddwd` where the processor lacks it.
    pub(crate) int8: f64,
    /// Copy of 256 MiB.
    pub(crate) copy: f64,
}

/// Measures the peaks: the best of several runs, since what disturbs a run only slows it.
pub(crate) fn measure(profile: Profile) -> Peaks {
    let f32 = rate(f32_loop);
    let bf16 = match profile.isa() {
        Isa::Avx512Bf16 => rate(bf16_loop),
        Isa::Avx512Vnni => rate(codes_loop),
        _ => f32,
    };
    Peaks { f32, bf16, int8: rate(int8_loop), copy: copy() }
}

fn rate(work: fn(u64) -> f64) -> f64 {
    let run = || {
        let start = Clock::start();
        let flops: f64 = rayon::broadcast(|_| work(3_000_000)).into_iter().sum();
        flops / start.seconds() * 1e-9
    };
    (0..15).map(|_| run()).fold(0.0, f64::max)
}

fn copy() -> f64 {
    use rayon::prelude::*;
    let from = vec![1u8; 256 << 20];
    let mut to = vec![0u8; from.len()];
    let mut best = 0.0f64;
    for _ in 0..7 {
        let start = Clock::start();
        let chunks = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
        chunks.for_each(|(to, from)| to.copy_from_slice(from));
        best = best.max(2.0 * from.len() as f64 / start.seconds() * 1e-9);
    }
    black_box(&to);
    best
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;
    use std::hint::black_box;

    macro_rules! chains {
        ($name:ident, $features:literal, $splat:path, $given:literal, |$x:ident, $sum:ident| $step:expr) => {
            #[target_feature(enable = $features)]
            pub(super) unsafe fn $name(rounds: u64) {
                let $x = $splat(black_box($given));
                let mut sums = [$splat(black_box($given)); 24];
                for _ in 0..rounds {
                    for $sum in &mut sums {
                        *$sum = $step;
                    }
                }
                black_box(sums);
            }
        };
    }

    chains!(avx512, "avx512f", _mm512_set1_ps, 0.5, |x, sum| _mm512_fmadd_ps(x, *sum, x));
    chains!(pairs, "avx512f,avx512bf16", _mm512_set1_ps, 0.5, |x, sum| {
        // SAFETY: both types are 64 bytes without invalid values.
        let x = unsafe { std::mem::transmute::<__m512, __m512bh>(x) };
        _mm512_dpbf16_ps(*sum, x, x)
    });

    chains!(codes, "avx512f,avx512vnni", _mm512_set1_epi32, 3, |x, sum| _mm512_dpwssd_epi32(*sum, x, x));

    chains!(dots, "avx512f,avx512vnni", _mm512_set1_epi32, 3, |x, sum| _mm512_dpbusd_epi32(*sum, x, x));

    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn words(rounds: u64) {
        let x = _mm256_set1_epi16(black_box(3));
        let mut sums = [_mm256_set1_epi32(black_box(1)); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                // The multiplication depends on the sum, so that it stays in the loop.
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, *sum));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(rounds: u64) {
        let x = _mm256_set1_ps(black_box(0.5));
        let mut sums = [_mm256_set1_ps(black_box(1.0)); 12];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(x, *sum, x);
            }
        }
        black_box(sums);
    }
}

#[cfg(target_arch = "x86_64")]
fn f32_loop(rounds: u64) -> f64 {
    match Profile::detect().isa() {
        Isa::Portable => plain(rounds),
        // SAFETY: the profile exists only where the processor has its instructions.
        Isa::Avx2 => unsafe {
            x86::avx2(rounds);
            rounds as f64 * 12.0 * 16.0
        },
        // SAFETY: as above.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx512Vnni => unsafe {
            x86::avx512(rounds);
            rounds as f64 * 24.0 * 32.0
        },
    }
}

#[cfg(target_arch = "x86_64")]
fn bf16_loop(rounds: u64) -> f64 {
    // SAFETY: called where the profile with this instruction was found.
    unsafe { x86::pairs(rounds) };
    rounds as f64 * 24.0 * 64.0
}

#[cfg(target_arch = "x86_64")]
fn codes_loop(rounds: u64) -> f64 {
    // SAFETY: called where the profile with this instruction was found.
    unsafe { x86::codes(rounds) };
    rounds as f64 * 24.0 * 64.0
}

#[cfg(target_arch = "x86_64")]
fn int8_loop(rounds: u64) -> f64 {
    match Profile::detect().isa() {
        Isa::Portable => plain(rounds),
        // SAFETY: the profile has AVX-512, and the processor was just asked for the rest.
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx512Vnni if is_x86_feature_detected!("avx512vnni") => unsafe {
            x86::dots(rounds);
            rounds as f64 * 24.0 * 128.0
        },
        // SAFETY: every other profile has AVX2.
        _ => unsafe {
            x86::words(rounds);
            rounds as f64 * 12.0 * 32.0
        },
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn f32_loop(rounds: u64) -> f64 {
    plain(rounds)
}

#[cfg(not(target_arch = "x86_64"))]
fn bf16_loop(rounds: u64) -> f64 {
    plain(rounds)
}

#[cfg(not(target_arch = "x86_64"))]
fn codes_loop(rounds: u64) -> f64 {
    plain(rounds)
}

#[cfg(not(target_arch = "x86_64"))]
fn int8_loop(rounds: u64) -> f64 {
    plain(rounds)
}

fn plain(rounds: u64) -> f64 {
    let x = black_box(0.5f32);
    let mut sums = [black_box(1.0f32); 32];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = *sum * x + x;
        }
    }
    black_box(sums);
    rounds as f64 * 64.0
}
