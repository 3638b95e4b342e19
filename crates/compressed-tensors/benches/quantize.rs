//! Bytes of weight compressed per second, beside memcpy and the plain loops.
//!
//! `cargo bench -p compressed-tensors --bench quantize`; an argument selects presets by substring. `DTYPE` is the
//! weights' type, `ISA` the widest instruction set used, `ROWS` and `COLS` the shape, `ROUNDS` how often all is run.
//!
//! On one core every slab counts with its fastest round, so that other work on the machine shows little; a first
//! pass over the weight, where the scheme needs one, is in the time. memcpy reads the same bytes and writes as many.
#![allow(clippy::unwrap_used, reason = "a bench may stop")]

use std::{
    hint::black_box,
    io::{self, Write},
    time::Instant,
};

use compressed_tensors::{
    DType,
    format::{CompressionFormat, infer_module_format},
    numbers::{Float, read_f32},
    packing,
    presets::PRESETS,
    quantize::{Division, Qparams, ScaleMap, code_bytes, quantize},
    scales::Arithmetic,
    scheme::QuantizationScheme,
    simd::Isa,
    weight_compressor::{FirstPass, MinMax, SlabOutputs, WeightCompressor},
    weight_decompressor::{StoredRows, WeightDecompressor},
};
use rayon::prelude::*;

/// Rows of a slab.
const SLAB: usize = 128;

struct Bench {
    dtype: DType,
    isa: Isa,
    rows: usize,
    cols: usize,
    rounds: usize,
    weight: Vec<u8>,
}

impl Bench {
    fn slab_bytes(&self) -> usize {
        SLAB * self.cols * self.dtype.bits() / 8
    }

    /// GB/s of the sum of every slab's fastest round; `run` takes the slab's number.
    fn best_of_slabs(&self, mut run: impl FnMut(usize, &[u8])) -> f64 {
        let mut best = vec![f64::INFINITY; self.weight.len().div_ceil(self.slab_bytes())];
        for _ in 0..self.rounds {
            for ((idx, bytes), best) in self.weight.chunks(self.slab_bytes()).enumerate().zip(&mut best) {
                let start = Instant::now();
                run(idx, bytes);
                *best = best.min(start.elapsed().as_secs_f64());
            }
        }
        self.weight.len() as f64 / best.iter().sum::<f64>() / 1e9
    }

    /// GB/s of the fastest run over the whole weight.
    fn best_of_runs(&self, mut run: impl FnMut()) -> f64 {
        let times = (0..self.rounds).map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        });
        self.weight.len() as f64 / times.fold(f64::INFINITY, f64::min) / 1e9
    }

    fn memcpy(&self) -> [f64; 2] {
        let mut copy = vec![0u8; self.weight.len()];
        let slab = self.slab_bytes();
        let one = self.best_of_slabs(|idx, from| {
            black_box(&mut copy)[idx * slab..idx * slab + from.len()].copy_from_slice(from);
        });
        let all = self.best_of_runs(|| {
            let pairs = black_box(&mut copy).par_chunks_mut(slab).zip(self.weight.par_chunks(slab));
            pairs.for_each(|(to, from)| to.copy_from_slice(from));
        });
        [one, all]
    }

    /// Both passes where there are two.
    fn compress_on_one_core(&self, compressor: &WeightCompressor) -> f64 {
        let mut whole = MinMax::EMPTY;
        let scan = |idx: usize, bytes: &[u8]| whole = whole.merge(black_box(compressor.scan(idx * SLAB, bytes)));
        let first = (compressor.first_pass() == FirstPass::WholeRange).then(|| self.best_of_slabs(scan));
        let global = compressor.global_scale(&whole);
        let mut out = SlabOutputs::new();
        let second = self.best_of_slabs(|idx, bytes| {
            black_box(compressor.compress_rows(idx * SLAB, bytes, Some(&whole), global, &mut out).unwrap());
        });
        1.0 / (1.0 / second + first.map_or(0.0, |it| 1.0 / it))
    }

    fn compress_on_all_cores(&self, compressor: &WeightCompressor) -> f64 {
        let slabs = || self.weight.par_chunks(self.slab_bytes()).enumerate();
        self.best_of_runs(|| {
            let scan = |(idx, bytes): (usize, &[u8])| compressor.scan(idx * SLAB, bytes);
            let whole = (compressor.first_pass() == FirstPass::WholeRange)
                .then(|| slabs().map(scan).reduce(|| MinMax::EMPTY, MinMax::merge));
            let global = whole.and_then(|it| compressor.global_scale(&it));
            slabs().for_each_init(SlabOutputs::new, |out, (idx, bytes)| {
                black_box(compressor.compress_rows(idx * SLAB, bytes, whole.as_ref(), global, out).unwrap());
            });
        })
    }

    /// The codec's arithmetic without vectors, streaming or reuse of memory, on the first slab.
    fn plain(&self, scheme: &QuantizationScheme, format: CompressionFormat, global: Option<f32>) -> f64 {
        let args = scheme.weights.as_ref().unwrap();
        let float = Float::of(self.dtype, "weight").unwrap();
        let arithmetic = Arithmetic::of(args).unwrap();
        let shape = [SLAB.min(self.rows), self.cols];
        let bytes = &self.weight[..shape[0] * shape[1] * self.dtype.bits() / 8];
        let map = ScaleMap::weight(args, &shape).unwrap();
        let run = || {
            let mut values = vec![0.0; shape[0] * shape[1]];
            read_f32(self.dtype, bytes, &mut values).unwrap();
            let qparams = Qparams::from_ranges(&arithmetic, &map.ranges(&values), float, global).stored_as(float);
            let mut codes = vec![0.0; values.len()];
            quantize(&arithmetic, (&values, float), &map, &qparams, Division::Eager, &mut codes).unwrap();
            let mut out = vec![0; codes.len()];
            code_bytes(arithmetic.code, &codes, &mut out).unwrap();
            if format == CompressionFormat::PackQuantized {
                let codes: Vec<i8> = out.iter().map(|code| *code as i8).collect();
                let bits = args.num_bits as u32;
                black_box(packing::pack(&codes, shape[0], shape[1], bits, packing::PackedDim::Cols).unwrap());
            } else if matches!(args.num_bits, 4) {
                let mut packed = vec![0; out.len() / 2];
                packing::pack_nibbles(&out, &mut packed);
                black_box(packed);
            }
            black_box(out);
        };
        self.best_of_first_slab(bytes.len(), run)
    }

    fn best_of_first_slab(&self, bytes: usize, mut run: impl FnMut()) -> f64 {
        let times = (0..self.rounds.max(3)).map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        });
        bytes as f64 / times.fold(f64::INFINITY, f64::min) / 1e9
    }

    /// GB/s of dense weights written from the first slab.
    fn decompress(&self, compressor: &WeightCompressor, scheme: &QuantizationScheme, format: CompressionFormat) -> f64 {
        let rows = SLAB.min(self.rows);
        let whole = compressor.scan(0, &self.weight);
        let global = compressor.global_scale(&whole);
        let mut out = SlabOutputs::new();
        compressor.compress_rows(0, &self.weight[..self.slab_bytes()], Some(&whole), global, &mut out).unwrap();
        let rest = compressor.finish(Some(&whole), global).unwrap();
        let part = |names: &[&str]| {
            let idx = compressor.outputs().iter().position(|it| names.contains(&it.name.as_str()))?;
            Some(rest.iter().find(|it| it.0 == idx).map_or(out.bytes(idx), |it| &it.1))
        };
        let stored = StoredRows {
            codes: part(&["weight", "weight_packed"]).unwrap(),
            scale: part(&["weight_scale"]).unwrap(),
            zero_point: part(&["weight_zero_point"]),
            global_scale: global,
            g_idx: None,
        };
        let back = WeightDecompressor::new(scheme, format, compressor.outputs(), [self.rows, self.cols])
            .unwrap()
            .with_isa(self.isa);
        let mut dense = Vec::new();
        self.best_of_first_slab(rows * self.cols * self.dtype.bits() / 8, || {
            back.decompress_rows(0, rows, &stored, self.dtype, &mut dense).unwrap();
            black_box(&mut dense);
        })
    }

    fn table(&self, filter: &str, out: &mut impl Write) -> io::Result<()> {
        let threads = rayon::current_num_threads();
        let checks = if cfg!(debug_assertions) { "with" } else { "without" };
        writeln!(
            out,
            "{} x {} {} weights, {:?}, built {checks} debug assertions; GB/s of dense weights, best of {} rounds",
            self.rows, self.cols, self.dtype, self.isa, self.rounds
        )?;
        writeln!(
            out,
            "\n| preset | 1 core | of memcpy | {threads} cores | of memcpy | over plain loops | back, 1 core |"
        )?;
        writeln!(out, "|---|--:|--:|--:|--:|--:|--:|")?;
        let memcpy = self.memcpy();
        writeln!(out, "| memcpy | {:.2} | 100 % | {:.2} | 100 % | | |", memcpy[0], memcpy[1])?;
        let mut seen = Vec::new();
        for preset in PRESETS.iter().filter(|it| it.name.contains(filter)) {
            let scheme = preset.scheme(Vec::new());
            let format = infer_module_format("Linear", &scheme);
            let Ok(compressor) = WeightCompressor::new(&scheme, format, self.dtype, self.rows, self.cols) else {
                continue;
            };
            // Presets that differ in their inputs alone have the same weights.
            let key = (scheme.weights.clone(), format);
            if seen.contains(&key) {
                continue;
            }
            seen.push(key);
            let compressor = compressor.with_isa(self.isa);
            let global = compressor.global_scale(&compressor.scan(0, &self.weight));
            // Beside each preset, since the machine may have other work to do at times.
            let memcpy = self.memcpy();
            let one = self.compress_on_one_core(&compressor);
            let all = self.compress_on_all_cores(&compressor);
            let plain = self.plain(&scheme, format, global);
            let back = self.decompress(&compressor, &scheme, format);
            writeln!(
                out,
                "| {} | {one:.2} | {:.0} % | {all:.2} | {:.0} % | {:.0} x | {back:.2} |",
                preset.name,
                100.0 * one / memcpy[0],
                100.0 * all / memcpy[1],
                one / plain
            )?;
            out.flush()?;
        }
        Ok(())
    }
}

/// About normal weights, the same in every run.
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

fn main() -> io::Result<()> {
    let text = |name: &str| std::env::var(name).unwrap_or_default().to_lowercase();
    let number = |name: &str, default| text(name).parse().unwrap_or(default);
    let (rows, cols): (usize, usize) = (number("ROWS", 4096), number("COLS", 14336));
    let dtype = match text("DTYPE").as_str() {
        "f16" => DType::F16,
        "f32" => DType::F32,
        _ => DType::BF16,
    };
    let isa = match text("ISA").as_str() {
        "portable" => Isa::Portable,
        "avx2" => Isa::Avx2,
        _ => Isa::Avx512,
    };
    let filter = std::env::args().skip(1).find(|it| !it.starts_with('-')).unwrap_or_default();
    let weight = normal_weights(dtype, rows * cols);
    let bench = Bench { dtype, isa: isa.min(Isa::detect()), rows, cols, rounds: number("ROUNDS", 7), weight };
    match bench.table(&filter, &mut io::stdout().lock()) {
        // Who reads the table has seen enough of it.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
