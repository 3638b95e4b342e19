//! Tokens a second of a whole model, a Llama of 100 million random weights, beside the peak that this machine reaches in the
//! same run.
//!
//! `cargo bench -p llmcompressor-models --bench forward -- [f32] [bf16]`

#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a program that prints rates; a failure ends it")]

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;

use models::{BoxedError, Hooks, KvCache, Model, ModelOptions, Run, Weights};
use serde_json::json;
use tensor::{Budget, DType, Engine, Profile};

/// The allocator of the program that is released.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[path = "../../kernels/benches/peak/mod.rs"]
mod peak;

use peak::clock::Clock;

const WIDTH: usize = 1024;
const INTERMEDIATE: usize = 2816;
const LAYERS: usize = 8;
const HEADS: usize = 16;
const KV_HEADS: usize = 4;
const HEAD_DIM: usize = 64;
const VOCABULARY: usize = 2048;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let peaks = peak::measure(Profile::detect());
    let threads = rayon::current_num_threads();
    println!(
        "{threads} threads, peak: f32 {:.0} GFLOP/s, bf16 {:.0} GFLOP/s, int8 {:.0} GOP/s, copy {:.1} GB/s",
        peaks.f32, peaks.bf16, peaks.int8, peaks.copy
    );
    println!("{:<28} {:>9} {:>10} {:>9}", "", "tokens/s", "rate", "of peak");
    for (name, dtype, peak) in [("f32", DType::F32, peaks.f32), ("bf16", DType::BF16, peaks.bf16)] {
        if !words.is_empty() && !words.iter().any(|word| word == name) {
            continue;
        }
        let model = model(dtype);
        let store = model.store();
        let _held = store.hold_for_runs(store.parameters().map(|it| it.0));
        let engine = Engine::new(Budget::unlimited());
        for tokens in [512, 2048] {
            let seconds = forward(&model, &engine, tokens);
            let rate = flop(tokens) / seconds * 1e-9;
            let line = format!("{name} row of {tokens}");
            println!("{line:<28} {:>9.0} {rate:>6.0} GF/s {:>8.0}%", tokens as f64 / seconds, 100.0 * rate / peak);
        }
        let seconds = steps(&model, &engine, 512, 32);
        // Every step reads all weights but the embedding's; a copy reads half of the bytes it moves.
        let bytes = linears() * dtype.bits() as f64 / 8.0;
        let rate = bytes / seconds * 1e-9;
        let line = format!("{name} steps after 512");
        println!("{line:<28} {:>9.1} {rate:>6.1} GB/s {:>8.0}%", 1.0 / seconds, 100.0 * rate / (peaks.copy / 2.0));
    }
}

/// Seconds of the fastest run of a row, logits of its last token included.
fn forward(model: &Model, engine: &Engine, tokens: usize) -> f64 {
    let run = Run { engine, hooks: None };
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % VOCABULARY) as u32).collect();
    let once = || {
        let start = Clock::start();
        black_box(model.next_logits(run, None, &ids).unwrap());
        start.seconds()
    };
    once();
    (0..5).map(|_| once()).fold(f64::INFINITY, f64::min)
}

/// Mean seconds of `n` tokens over the keys and values of `tokens` before them.
fn steps(model: &Model, engine: &Engine, tokens: usize, n: usize) -> f64 {
    let hooks = Hooks::new();
    let cache = KvCache::open(model, &hooks, &engine.budget, tokens + n + 1).unwrap().unwrap();
    let run = Run { engine, hooks: Some(&hooks) };
    let ids: Vec<u32> = (0..tokens).map(|i| (i * 37 % VOCABULARY) as u32).collect();
    model.next_logits(run, Some(&cache), &ids).unwrap();
    model.next_logits(run, Some(&cache), &[1]).unwrap();
    let start = Clock::start();
    for id in 0..n as u32 {
        black_box(model.next_logits(run, Some(&cache), &[id]).unwrap());
    }
    start.seconds() / n as f64
}

/// Weights of all linear layers.
fn linears() -> f64 {
    let heads = 2 * (HEADS + KV_HEADS) * HEAD_DIM;
    (LAYERS * WIDTH * (heads + 3 * INTERMEDIATE) + WIDTH * VOCABULARY) as f64
}

/// Operations of a row: linear layers, and causal attention; the head sees the last token alone.
fn flop(tokens: usize) -> f64 {
    let layers = linears() - (WIDTH * VOCABULARY) as f64;
    let pairs = (tokens * (tokens + 1) / 2) as f64;
    2.0 * layers * tokens as f64 + LAYERS as f64 * 4.0 * (HEADS * HEAD_DIM) as f64 * pairs
}

fn model(dtype: DType) -> Model {
    let config = json!({
        "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM, "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false, "max_position_embeddings": 4096,
    });
    Model::build(&config, Arc::new(Random::new()), ModelOptions { dtype: Some(dtype), ..ModelOptions::default() })
        .unwrap()
}

/// Small random weights in bf16, without a file.
struct Random(HashMap<String, Vec<usize>>);

impl Random {
    fn new() -> Self {
        let mut shapes = HashMap::new();
        shapes.insert("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, WIDTH]);
        shapes.insert("lm_head.weight".to_owned(), vec![VOCABULARY, WIDTH]);
        shapes.insert("model.norm.weight".to_owned(), vec![WIDTH]);
        for layer in 0..LAYERS {
            let (q, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
            for (name, shape) in [
                ("self_attn.q_proj", vec![q, WIDTH]),
                ("self_attn.k_proj", vec![kv, WIDTH]),
                ("self_attn.v_proj", vec![kv, WIDTH]),
                ("self_attn.o_proj", vec![WIDTH, q]),
                ("mlp.gate_proj", vec![INTERMEDIATE, WIDTH]),
                ("mlp.up_proj", vec![INTERMEDIATE, WIDTH]),
                ("mlp.down_proj", vec![WIDTH, INTERMEDIATE]),
                ("input_layernorm", vec![WIDTH]),
                ("post_attention_layernorm", vec![WIDTH]),
            ] {
                shapes.insert(format!("model.layers.{layer}.{name}.weight"), shape);
            }
        }
        Self(shapes)
    }
}

impl Weights for Random {
    fn spec(&self, name: &str) -> Option<(DType, Vec<usize>)> {
        self.0.get(name).map(|shape| (DType::BF16, shape.clone()))
    }

    fn read_into(&self, name: &str, offset_bytes: u64, out: &mut [u8]) -> Result<(), BoxedError> {
        let mut state =
            name.bytes().fold(offset_bytes | 1, |hash, it| hash.wrapping_mul(31).wrapping_add(it.into())) | 1;
        for pair in out.chunks_exact_mut(2) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let value = (state >> 40) as f32 / (1 << 24) as f32 * 0.06 - 0.03;
            pair.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
        }
        Ok(())
    }
}
