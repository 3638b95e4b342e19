//! Bytes of weight compressed per second, beside memcpy and the plain loops.
//!
//! `cargo bench -p compressed-tensors`; an argument selects presets by substring, `ISA` the instruction set,
//! `ROWS` and `COLS` the shape.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a bench prints and may stop")]

use std::{hint::black_box, time::Instant};

use compressed_tensors::{
    DType,
    format::CompressionFormat as F,
    presets::preset,
    simd::Isa,
    weight_compressor::{FirstPass, MinMax, SlabOutputs, WeightCompressor},
};
use rayon::prelude::*;

const PRESETS: [(&str, F); 9] = [
    ("W4A16", F::PackQuantized),
    ("W4A16_ASYM", F::PackQuantized),
    ("W8A8", F::IntQuantized),
    ("FP8", F::FloatQuantized),
    ("FP8_DYNAMIC", F::FloatQuantized),
    ("FP8_BLOCK", F::FloatQuantized),
    ("NVFP4A16", F::Nvfp4PackQuantized),
    ("MXFP4A16", F::Mxfp4PackQuantized),
    ("MXFP8A16", F::Mxfp8Quantized),
];

/// Best of a few runs, in GB/s.
fn speed(bytes: usize, mut run: impl FnMut()) -> f64 {
    run();
    let best = (0..5)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min);
    bytes as f64 / best / 1e9
}

fn normal_weights(dtype: DType, n: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut uniform = move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let values = (0..n).map(|_| (0..4).map(|_| uniform() - 0.5).sum::<f32>() * 0.03);
    match dtype {
        DType::BF16 => values.flat_map(|v| half::bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.flat_map(|v| half::f16::from_f32(v).to_le_bytes()).collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    }
}

/// All slabs of a weight, with the first pass where one is needed.
fn compress(compressor: &WeightCompressor, weight: &[u8], slab: usize, row_bytes: usize, outs: &mut [SlabOutputs]) {
    let scan = |(idx, bytes): (usize, &[u8])| compressor.scan(idx * slab, bytes);
    let many = outs.len() > 1;
    let slab_bytes = slab * row_bytes;
    let whole = match compressor.first_pass() {
        FirstPass::None => None,
        FirstPass::WholeRange if many => {
            Some(weight.par_chunks(slab_bytes).enumerate().map(scan).reduce(|| MinMax::EMPTY, MinMax::merge))
        }
        FirstPass::WholeRange => {
            Some(weight.chunks(slab_bytes).enumerate().map(scan).fold(MinMax::EMPTY, MinMax::merge))
        }
    };
    let global = whole.and_then(|it| compressor.global_scale(&it));
    let per_thread = weight.len().div_ceil(slab_bytes).div_ceil(outs.len());
    let work = |(part, (out, weight)): (usize, (&mut SlabOutputs, &[u8]))| {
        for (idx, bytes) in weight.chunks(slab_bytes).enumerate() {
            let first = (part * per_thread + idx) * slab;
            black_box(compressor.compress_rows(first, bytes, whole.as_ref(), global, out).unwrap());
        }
    };
    let parts = outs.par_iter_mut().zip(weight.par_chunks(per_thread * slab_bytes)).enumerate();
    if many {
        parts.for_each(work);
    } else {
        outs.iter_mut().zip(weight.chunks(per_thread * slab_bytes)).enumerate().for_each(work);
    }
}

fn main() {
    let number = |name: &str, default| std::env::var(name).ok().and_then(|it| it.parse().ok()).unwrap_or(default);
    let (rows, cols): (usize, usize) = (number("ROWS", 4096), number("COLS", 14336));
    let filter = std::env::args().skip(1).find(|it| !it.starts_with('-')).unwrap_or_default();
    let isa_filter = std::env::var("ISA").unwrap_or_default();
    let threads = rayon::current_num_threads();
    println!("{rows} x {cols}, {threads} threads, {:?}; GB/s of weights read, and that over memcpy", Isa::detect());
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        let weight = normal_weights(dtype, rows * cols);
        let mut copy = vec![0u8; weight.len()];
        let memcpy = [
            speed(weight.len(), || black_box(&mut copy).copy_from_slice(&weight)),
            speed(weight.len(), || {
                let part = weight.len().div_ceil(threads);
                black_box(&mut copy)
                    .par_chunks_mut(part)
                    .zip(weight.par_chunks(part))
                    .for_each(|(to, from)| to.copy_from_slice(from));
            }),
        ];
        println!("{dtype} memcpy: {:.1} on one core, {:.1} on all", memcpy[0], memcpy[1]);
        for (name, format) in PRESETS.into_iter().filter(|it| it.0.contains(&filter)) {
            let scheme = preset(name, vec![]).unwrap();
            let compressor = WeightCompressor::new(&scheme, format, dtype, rows, cols).unwrap();
            let (slab, row_bytes) = (128, weight.len() / rows);
            print!("  {name:12}");
            for isa in [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|it| *it <= Isa::detect()) {
                if !format!("{isa:?}").contains(&isa_filter) {
                    continue;
                }
                let compressor = compressor.clone().with_isa(isa);
                let mut outs = [SlabOutputs::new()];
                let found = speed(weight.len(), || compress(&compressor, &weight, slab, row_bytes, &mut outs));
                print!("  {isa:?} {found:5.2} ({:3.0} %)", 100.0 * found / memcpy[0]);
            }
            let mut outs: Vec<SlabOutputs> = (0..threads).map(|_| SlabOutputs::new()).collect();
            let all = speed(weight.len(), || compress(&compressor, &weight, slab, row_bytes, &mut outs));
            println!("  all cores {all:5.2} ({:3.0} %)", 100.0 * all / memcpy[1]);
        }
    }
}
