//! Rates of the kernels, beside the reference loop and beside the peak that this machine reaches in the same run.
//!
//! `cargo bench -p llmcompressor-kernels -- [words of the lines wanted]`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints rates; a failure ends it")]

use std::hint::black_box;

use kernels::activation::{self, Activation};
use kernels::attention::{self, Attention, Mask};
use kernels::descent::{self, Grid};
use kernels::gemm::int8::{self, Scales};
use kernels::gemm::{self, reference};
use kernels::gptq_sweep::{self, Rounding, ScaleType, Sweep};
use kernels::rms_norm::{self, RmsNorm, Rounded};
use kernels::{Element, Mat, MatMut, Profile, bf16, cast, cholesky, softmax, syrk};

/// The allocator of the program that is released: the system's would spend the time on page faults.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod peak;

use peak::clock::Clock;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    // LLMC_PROFILE names a profile other than the one that the processor gets by itself.
    let named = std::env::var("LLMC_PROFILE").ok().map(|name| Profile::new(name.parse().unwrap()).unwrap());
    let profile = named.unwrap_or(Profile::detect());
    let bench = Bench { words, profile, peaks: peak::measure(profile) };
    let threads = rayon::current_num_threads();
    println!("profile {}, {threads} threads", bench.profile.isa());
    println!(
        "peak: f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, int8 {:.0} GOP/s, copy {:.1} GB/s",
        bench.peaks.f32, bench.peaks.bf16, bench.peaks.int8, bench.peaks.copy
    );
    println!("{:<44} {:>10} {:>10} {:>10} {:>8}", "", "ms", "rate", "of peak", "x ref");
    bench.gemm::<f32>();
    bench.gemm::<bf16>();
    bench.gemm_int8();
    bench.syrk::<f32>();
    bench.syrk::<bf16>();
    bench.cholesky();
    bench.sweep();
    bench.descent();
    bench.attention::<f32>();
    bench.attention::<bf16>();
    bench.rows::<f32>();
    bench.rows::<bf16>();
}

struct Bench {
    words: Vec<String>,
    profile: Profile,
    peaks: peak::Peaks,
}

/// Rows, K and columns of products; the last is a step of decoding.
const GEMM_SHAPES: [(usize, usize, usize); 4] =
    [(2048, 4096, 4096), (512, 1024, 4096), (4096, 256, 1024), (1, 4096, 4096)];

/// What a line's rate counts, and so which peak it is held against.
#[derive(Clone, Copy)]
enum Work {
    F32(f64),
    Bf16(f64),
    Int8(f64),
    Bytes(f64),
}

impl Bench {
    fn wanted(&self, name: &str) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| name.contains(word.as_str()))
    }

    /// Runs `fast` for its best time, and `plain` once over `plain_share` of the work.
    fn line(&self, name: &str, work: Work, plain_share: f64, mut fast: impl FnMut(), plain: impl FnOnce()) {
        if !self.wanted(name) {
            return;
        }
        let time = best(&mut fast);
        let start = Clock::start();
        plain();
        let plain_time = start.seconds() / plain_share;
        let (amount, peak, unit) = match work {
            Work::F32(amount) => (amount, self.peaks.f32, "GF/s"),
            Work::Bf16(amount) => (amount, self.peaks.bf16, "GF/s"),
            Work::Int8(amount) => (amount, self.peaks.int8, "GO/s"),
            Work::Bytes(amount) => (amount, self.peaks.copy, "GB/s"),
        };
        let rate = amount / time * 1e-9;
        let share = 100.0 * rate / peak;
        println!("{name:<44} {:>10.3} {rate:>6.0} {unit} {share:>8.0} % {:>8.1}", time * 1e3, plain_time / time);
    }

    fn work<T: Element>(&self, flops: f64) -> Work {
        if size_of::<T>() == 2 { Work::Bf16(flops) } else { Work::F32(flops) }
    }

    fn gemm<T: Element>(&self) {
        for (rows, depth, cols) in GEMM_SHAPES {
            let name = format!("gemm {} ({rows}, {depth}, {cols})", type_name::<T>());
            let (x, w) = (numbers::<T>(rows * depth), numbers::<T>(cols * depth));
            let (x, w) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
            let mut y = vec![0.0f32; rows * cols];
            let mut few = [0.0f32; 16];
            let (some_x, some_w) = (numbers::<T>(4 * depth), numbers::<T>(4 * depth));
            let flops = 2.0 * (rows * depth * cols) as f64;
            self.line(
                &name,
                self.work::<T>(flops),
                32.0 * depth as f64 / flops,
                || gemm::linear(self.profile, x, w, None, MatMut::new(&mut y, rows, cols).unwrap()).unwrap(),
                || {
                    let (x, w) = (Mat::new(&some_x, 4, depth).unwrap(), Mat::new(&some_w, 4, depth).unwrap());
                    reference::matmul(
                        self.profile,
                        x,
                        w.transposed(),
                        None,
                        MatMut::new(black_box(&mut few), 4, 4).unwrap(),
                    );
                },
            );
        }
    }

    fn gemm_int8(&self) {
        let codes = |len: usize| numbers::<f32>(len).iter().map(|it| (it * 127.0) as i8).collect::<Vec<i8>>();
        for (rows, depth, cols) in GEMM_SHAPES {
            let (x, w) = (codes(rows * depth), codes(cols * depth));
            let (x, w) = (Mat::new(&x, rows, depth).unwrap(), Mat::new(&w, cols, depth).unwrap());
            let (of_x, of_w) = (vec![0.01; rows], vec![0.01; cols]);
            let scales = Scales { x: &of_x, w: &of_w, zero_points: None };
            let mut y = vec![0.0f32; rows * cols];
            let (some_x, some_w) = (codes(4 * depth), codes(4 * depth));
            let few_scales = Scales { x: &of_x[..1], w: &of_w[..1], zero_points: None };
            let mut few = [0.0f32; 16];
            let amount = 2.0 * (rows * depth * cols) as f64;
            self.line(
                &format!("gemm int8 ({rows}, {depth}, {cols})"),
                Work::Int8(amount),
                32.0 * depth as f64 / amount,
                || {
                    let y = MatMut::new(&mut y, rows, cols).unwrap();
                    int8::linear(self.profile, x, w, &scales, None, y).unwrap();
                },
                || {
                    let (x, w) = (Mat::new(&some_x, 4, depth).unwrap(), Mat::new(&some_w, 4, depth).unwrap());
                    let y = MatMut::new(black_box(&mut few), 4, 4).unwrap();
                    int8::reference::linear(x, w, &few_scales, None, y);
                },
            );
        }
    }

    fn syrk<T: Element>(&self) {
        for (tokens, cols) in [(8192, 4096), (512, 1024), (512, 2816), (2048, 2816)] {
            let name = format!("syrk {} ({tokens}, {cols})", type_name::<T>());
            let x = numbers::<T>(tokens * cols);
            let mut h = vec![0.0f32; cols * cols];
            let few = numbers::<T>(tokens * 4);
            let flops = (tokens * cols * (cols + 1)) as f64;
            self.line(
                &name,
                self.work::<T>(flops),
                (tokens * 4 * 5) as f64 / flops,
                || syrk::accumulate(self.profile, Mat::new(&x, tokens, cols).unwrap(), &mut h).unwrap(),
                || {
                    syrk::reference::accumulate(
                        self.profile,
                        Mat::new(&few, tokens, 4).unwrap(),
                        black_box(&mut [0.0; 16]),
                    )
                },
            );
        }
    }

    fn cholesky(&self) {
        for n in [1024, 2816] {
            let mut h = vec![0.0f32; n * n];
            let x = numbers::<f32>(n * n);
            syrk::accumulate(self.profile, Mat::new(&x, n, n).unwrap(), &mut h).unwrap();
            (0..n).for_each(|i| h[i * n + i] += n as f32 * 0.1);
            let (cubed, mut scratch) = ((n as f64).powi(3), h.clone());
            let small = 256.min(n);
            let mut plain: Vec<f32> =
                (0..small * small).map(|i| if i % (small + 1) == 0 { 1.0 } else { 1e-4 }).collect();
            let share = (small as f64).powi(3) / cubed;
            // Each line copies the matrix first, which is part of its time.
            self.line(
                &format!("inverse factor f32 ({n})"),
                Work::F32(cubed * 2.0 / 3.0),
                share,
                || {
                    scratch.copy_from_slice(&h);
                    cholesky::inverse_factor_f32(self.profile, &mut scratch, n).unwrap();
                },
                || {
                    cholesky::reference::factor_f32(self.profile, black_box(&mut plain), small).unwrap();
                    cholesky::reference::invert_lower_f32(self.profile, black_box(&mut plain), small);
                },
            );
            let mut lower = h.clone();
            lower.reverse();
            self.line(
                &format!("cholesky f32 ({n})"),
                Work::F32(cubed / 3.0),
                share,
                || {
                    scratch.copy_from_slice(&lower);
                    cholesky::factor_f32(self.profile, &mut scratch, n).unwrap();
                },
                || cholesky::reference::factor_f32(self.profile, black_box(&mut plain), small).unwrap(),
            );
        }
    }
}

/// The sweep, attention and row-wise kernels.
impl Bench {
    fn sweep(&self) {
        for (rows, cols) in [(1024, 1024), (1024, 2816), (2816, 1024)] {
            let (groups, weight) = (cols / 128, numbers::<f32>(rows * cols));
            let mut factor = numbers::<f32>(cols * cols);
            (0..cols).for_each(|i| factor[i * cols + i] = 40.0);
            let scales = vec![0.1f32; rows * groups];
            let group_of_col: Vec<u32> = (0..cols as u32).map(|i| i * 37 % groups as u32).collect();
            let plan = |rows| Sweep {
                rows,
                cols,
                factor: &factor,
                rounding: Rounding::int(4),
                scale_type: ScaleType::Bf16,
                scales: &scales[..rows * groups],
                zero_points: None,
                groups,
                group_of_col: &group_of_col,
                rows_per_scale: 1,
            };
            let (mut w, mut loss) = (weight.clone(), vec![0.0; rows]);
            // The weight is copied first, which is part of the time.
            self.line(
                &format!("gptq sweep int4, ordered ({rows}, {cols})"),
                Work::F32((rows * cols * cols) as f64),
                8.0 / rows as f64,
                || {
                    w.copy_from_slice(&weight);
                    gptq_sweep::sweep(self.profile, &plan(rows), &mut w, &mut loss).unwrap();
                },
                || {
                    let mut w = weight[..8 * cols].to_vec();
                    gptq_sweep::reference::sweep(self.profile, &plan(8), black_box(&mut w), black_box(&mut [0.0; 8]));
                },
            );
        }
    }

    /// Moments of correlated inputs, and a weight that is rounded to nearest under the scales of its groups.
    fn descent(&self) {
        let (rows, cols, width, rounds) = (1024, 1024, 128, 8);
        let inputs = numbers::<f32>(2 * cols * cols);
        let mut moments = vec![0.0f32; cols * cols];
        syrk::accumulate(self.profile, Mat::new(&inputs, 2 * cols, cols).unwrap(), &mut moments).unwrap();
        for i in 0..cols {
            (0..i).for_each(|j| moments[i * cols + j] = moments[j * cols + i]);
            moments[i * cols + i] *= 1.01;
        }
        let (weight, groups) = (numbers::<f32>(rows * cols), rows * cols / width);
        let largest = |it: &[f32]| it.iter().fold(0.0f32, |most, it| most.max(it.abs()));
        let begin: Vec<f32> = weight.chunks(width).map(|it| round(largest(it) / 7.5)).collect();
        let nearest = |(w, scale): (&f32, f32)| round((w / scale).round_ties_even().clamp(-8.0, 7.0) * scale);
        let nearest: Vec<f32> = weight.iter().zip((0..).map(|i| begin[i / width])).map(nearest).collect();
        let (scale_type, weight_type) = (ScaleType::Bf16, ScaleType::Bf16);
        let grid = Grid { cols, width, bits: 4, scale_type, weight_type, zero_points: None };
        let (mut rounded, mut scales) = (nearest.clone(), begin.clone());
        self.line(
            &format!("descent int4, {rounds} rounds ({rows}, {cols})"),
            Work::Bytes((rows * cols * 4) as f64),
            8.0 / rows as f64,
            || {
                rounded.copy_from_slice(&nearest);
                scales.copy_from_slice(&begin);
                descent::descend(self.profile, &grid, &moments, rounds, &weight, &mut rounded, &mut scales).unwrap();
            },
            || {
                let (mut rounded, mut scales) = (nearest[..8 * cols].to_vec(), begin[..8 * cols / width].to_vec());
                let weight = &weight[..8 * cols];
                descent::reference::descend(self.profile, &grid, &moments, rounds, weight, &mut rounded, &mut scales);
                black_box((rounded, scales));
            },
        );
        let (costs, mut sums) = (vec![1.0; cols], vec![0.0; groups]);
        self.line(
            &format!("costs of rounding, int4 ({rows}, {cols})"),
            Work::Bytes((rows * cols * 4) as f64),
            1.0,
            || descent::rounding_costs(self.profile, &grid, &costs, &weight, &begin, &mut sums).unwrap(),
            || descent::reference::rounding_costs(&grid, &costs, &weight, &begin, black_box(&mut vec![0.0; groups])),
        );
    }

    fn attention<T: Element>(&self) {
        for (batch, tokens, heads, kv_heads, dim) in [(4, 512, 16, 4, 64), (1, 2048, 32, 8, 128)] {
            let plan = |tokens| Attention {
                batch,
                queries: tokens,
                keys: tokens,
                heads,
                kv_heads,
                head_dim: dim,
                value_dim: dim,
                scale: 0.1,
                mask: Mask::Causal,
                softcap: None,
                bias: None,
                sinks: None,
            };
            let q = numbers::<T>(batch * tokens * heads * dim);
            let [k, v] = [(); 2].map(|()| numbers::<T>(batch * tokens * kv_heads * dim));
            let mut out = vec![T::default(); q.len()];
            let few = 32;
            let flops = |tokens: usize| 2.0 * (batch * heads * dim * tokens * (tokens + 1)) as f64;
            self.line(
                &format!("attention {} causal ({batch}, {tokens}, {heads}, {dim})", type_name::<T>()),
                Work::F32(flops(tokens)),
                flops(few) / flops(tokens),
                || attention::attention(self.profile, &plan(tokens), [&q, &k, &v], &mut out).unwrap(),
                || {
                    let (queries, keys) = (batch * few * heads * dim, batch * few * kv_heads * dim);
                    let some = [&q[..queries], &k[..keys], &v[..keys]];
                    attention::reference::attention(
                        self.profile,
                        &plan(few),
                        some,
                        black_box(&mut vec![T::default(); queries]),
                    );
                },
            );
        }
    }

    fn rows<T: Element>(&self) {
        let (rows, width) = (2048, 4096);
        let (x, up) = (numbers::<T>(rows * width), numbers::<T>(rows * width));
        let (mut y, mut plain) = (vec![T::default(); x.len()], vec![T::default(); x.len()]);
        let weight = numbers::<f32>(width);
        let bytes = |passes: usize| Work::Bytes((passes * size_of_val(&x[..])) as f64);
        let (profile, name) = (self.profile, type_name::<T>());
        let norm = RmsNorm { weight: Some(&weight), weight_offset: 0.0, eps: 1e-5, rounded: Rounded::BeforeWeight };
        self.line(
            &format!("rms_norm {name} ({rows}, {width})"),
            bytes(2),
            1.0,
            || rms_norm::rms_norm(profile, &norm, width, &x, &mut y).unwrap(),
            || rms_norm::reference::rms_norm(&norm, width, &x, black_box(&mut plain)),
        );
        self.line(
            &format!("softmax {name} ({rows}, {width})"),
            bytes(2),
            1.0,
            || softmax::softmax(profile, width, &x, &mut y).unwrap(),
            || softmax::reference::softmax(width, &x, black_box(&mut plain)),
        );
        self.line(
            &format!("silu gated {name} ({rows}, {width})"),
            bytes(3),
            1.0,
            || activation::gated(profile, Activation::Silu, &x, &up, &mut y).unwrap(),
            || activation::reference::gated(Activation::Silu, &x, &up, black_box(&mut plain)),
        );
        let mut wide = vec![0.0f32; x.len()];
        let both = Work::Bytes((rows * width * (size_of::<T>() + 4)) as f64);
        let (mut plain_wide, mut back) = (wide.clone(), vec![T::default(); x.len()]);
        self.line(
            &format!("cast {name} to f32 ({rows}, {width})"),
            both,
            1.0,
            || cast::cast(profile, &x, &mut wide).unwrap(),
            || cast::reference::cast(&x, black_box(&mut plain_wide)),
        );
        self.line(
            &format!("cast f32 to {name} ({rows}, {width})"),
            both,
            1.0,
            || cast::cast(profile, &wide, &mut back).unwrap(),
            || cast::reference::cast(&wide, black_box(&mut plain)),
        );
    }
}

/// Best of at least seven runs and a third of a second: what disturbs a run only slows it.
fn best(run: &mut impl FnMut()) -> f64 {
    run();
    let (mut best, mut total, mut runs) = (f64::INFINITY, 0.0, 0);
    while runs < 7 || (total < 0.3 && runs < 2000) {
        let start = Clock::start();
        run();
        black_box(());
        let time = start.seconds();
        (best, total, runs) = (f64::min(best, time), total + time, runs + 1);
    }
    best
}

fn type_name<T: Element>() -> &'static str {
    if size_of::<T>() == 4 { "f32" } else { "bf16" }
}

/// Numbers in [-1, 1), the same on every run.
fn numbers<T: Element>(len: usize) -> Vec<T> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        T::from_f32((state >> 40) as f32 / (1u32 << 23) as f32 - 1.0)
    };
    (0..len).map(next).collect()
}

/// The nearest bf16.
fn round(x: f32) -> f32 {
    bf16::from_f32(x).to_f32()
}
