//! How well a model predicts a text: perplexity, for dense and compressed checkpoints.

mod comparison;
mod logits;
mod memory;
mod rows;
mod subject;
mod weights;

use std::{path::PathBuf, time::Instant};

use calibration::{check_context, check_vocabulary};
use models::Held;
use pipelines::Lanes;
use serde::Serialize;
use tensor::{DType, Tensor};

pub use crate::activations::Product;
use crate::{
    Counted, Interrupt, Progress, ceiling,
    error::{Error, ErrorKind, Result},
    slabs::Budget,
};
use comparison::Comparer;
pub use comparison::{Comparison, KlDivergence, LayerNoise};
use rows::Window;
pub(crate) use subject::Subject;
pub(crate) use weights::DenseWeights;

/// The type that a model computes in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compute {
    /// What the config says.
    #[default]
    Auto,
    /// f32.
    F32,
    /// bf16, products accumulated in f32.
    Bf16,
    /// f16, products accumulated in f32.
    F16,
}

impl Compute {
    pub(crate) fn dtype(self) -> Option<DType> {
        match self {
            Self::Auto => None,
            Self::F32 => Some(DType::F32),
            Self::Bf16 => Some(DType::BF16),
            Self::F16 => Some(DType::F16),
        }
    }
}

/// What a model is judged by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judge {
    /// A column of a data file: JSON lines, JSON, CSV or text.
    Text {
        /// The file.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// A JSON file that is a list of rows of token ids.
    TokenIds(PathBuf),
}

impl Judge {
    fn path(&self) -> &PathBuf {
        match self {
            Self::Text { path, .. } | Self::TokenIds(path) => path,
        }
    }
}

/// How rows become the windows that a model sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Windows {
    /// The front of each row.
    #[default]
    Cut,
    /// All of each row: windows that begin this many tokens apart; each token is judged once, with all that fits before it.
    Stride(usize),
    /// All rows joined, window after window.
    Concat,
}

/// What `eval` is asked to do.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// The model: a directory or a hub id.
    pub model: String,
    /// What it is judged by.
    pub data: Judge,
    /// Most tokens of a window.
    pub seq_len: usize,
    /// How rows become windows.
    pub windows: Windows,
    /// Rows to use, from the front; `None` means all.
    pub max_samples: Option<usize>,
    /// A model to compare with: a directory or a hub id.
    pub reference: Option<String>,
    /// A safetensors file for the logits (B, T, V) of all rows, which must be equally long.
    pub save_logits: Option<PathBuf>,
    /// The type to compute in.
    pub compute: Compute,
    /// What linear layers multiply, in the model and not in the reference.
    pub product: Product,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Ceiling for everything that is held; weights that do not fit are read again whenever they are used. `None` sets none.
    pub max_memory_bytes: Option<u64>,
    /// A request to stop.
    pub interrupt: Interrupt,
}

impl EvalOptions {
    /// Options that judge `model` by `data`, everything else by default.
    pub fn new(model: impl Into<String>, data: Judge) -> Self {
        Self {
            model: model.into(),
            data,
            seq_len: 2048,
            windows: Windows::Cut,
            max_samples: None,
            reference: None,
            save_logits: None,
            compute: Compute::Auto,
            product: Product::Numbers,
            threads: 0,
            max_memory_bytes: None,
            interrupt: Interrupt::default(),
        }
    }
}

/// What `eval` found.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The model as given.
    pub model: String,
    /// The data file.
    pub data: PathBuf,
    /// `exp(nll)`.
    pub perplexity: f64,
    /// Mean negative log-likelihood of a predicted token, in nats.
    pub nll: f64,
    /// Predicted tokens.
    pub tokens: usize,
    /// Windows of the data.
    pub rows: usize,
    /// Most tokens of a window.
    pub seq_len: usize,
    /// The type computed in.
    pub dtype: &'static str,
    /// Linear layers that multiplied codes of 8 bits.
    pub int8_linears: usize,
    /// Tokens read a second.
    pub tokens_per_second: f64,
    /// Seconds of computing.
    pub seconds: f64,
    /// How it differs from the reference, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comparison: Option<Comparison>,
}

impl Evaluation {
    /// A line for a person, and more where it was compared.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "{}: perplexity {:.4} ({} tokens of {} rows cut at {}, {}, {:.0} tokens/s)",
            self.model, self.perplexity, self.tokens, self.rows, self.seq_len, self.dtype, self.tokens_per_second
        );
        if let Some(comparison) = &self.comparison {
            text.push('\n');
            text.push_str(&comparison.summary());
        }
        text
    }
}

/// Perplexity of `options.model` on `options.data`, with special tokens as the tokenizer adds them, the mean over predicted
/// tokens; and its distance from `options.reference`.
///
/// Compressed weights are made dense when they are read; activations are quantized as the config says, and so are keys, after
/// rotation, and values where there is a `kv_cache_scheme` or a scheme of attention, which quantizes queries too.
///
/// # Errors
/// Faults of the checkpoint, of the data, of the tokenizer; an architecture that is not supported; windows longer than the
/// model's context; `Memory` with the number for a ceiling that is too low; `NotANumber` with the module where a row has no
/// finite likelihood; `Option` for a reference of another vocabulary or depth, and for logits of rows that differ in length.
pub fn eval(options: &EvalOptions, progress: &dyn Progress) -> Result<Evaluation> {
    let budget = ceiling::budget(options.max_memory_bytes);
    let subject = Subject::open(&options.model, options.compute, options.product, &budget)?;
    let windows = rows::windows(options, subject.dir())?;
    if let Some(vocabulary) = subject.vocabulary() {
        let ids: Vec<Vec<u32>> = windows.iter().map(|it| it.ids.clone()).collect();
        check_vocabulary(&ids, vocabulary, None)?;
        if let Some(limit) = subject.model().max_positions() {
            check_context(&ids, limit)?;
        }
    }
    let open = |it: &String| Subject::open(it, options.compute, Product::Numbers, &budget);
    let reference = options.reference.as_ref().map(open).transpose()?;
    let subjects: Vec<&Subject> = std::iter::once(&subject).chain(&reference).collect();
    let longest = windows.iter().map(|it| it.ids.len()).max().unwrap_or(0);
    let holds_all = memory::holds_all(options, &subjects, longest)?;
    let _held: Vec<Held<'_>> = subjects.iter().filter(|_| holds_all).map(|it| it.hold()).collect();
    let mut comparer = reference.as_ref().map(|it| Comparer::new(&subject, it)).transpose()?;
    let mut saved = options.save_logits.as_ref().map(|it| logits::File::create(it, &windows, &subject)).transpose()?;
    let n_read: usize = windows.iter().map(|it| it.ids.len()).sum();
    let started = Instant::now();
    progress.begin("evaluating", n_read as u64, Counted::Tokens);
    let pool = Budget { threads: threads(options.threads), slab_bytes: 0 }.thread_pool()?;
    let (mut sum, mut tokens) = (0.0, 0);
    // Each thread takes windows of its own where memory has no ceiling and nobody compares layer by layer.
    let is_single = options.max_memory_bytes.is_some() || comparer.is_some();
    let lanes = if is_single { 1 } else { pool.current_num_threads() };
    let lanes = Lanes::new(lanes)?;
    let keeps_states = comparer.is_some() || saved.is_some();
    let begin = |idx: usize| match options.interrupt.signal() {
        Some(signal) => Err(Error::from(ErrorKind::Interrupted { signal })),
        None => Ok(&windows[idx]),
    };
    let judge = |window: &Window| -> Result<(Option<Tensor>, Vec<f64>)> {
        let hidden = subject.hidden(&window.ids)?;
        let judged = subject.nll(window, &hidden)?;
        Ok((keeps_states.then_some(hidden), judged))
    };
    let end = |row: usize, (hidden, judged): (Option<Tensor>, Vec<f64>)| {
        let window = &windows[row];
        if let Some(at) = judged.iter().position(|it| !it.is_finite()) {
            let module = subject.first_non_finite(&window.ids)?;
            return Err(ErrorKind::NotANumber { row, token: window.first_judged + at, module }.into());
        }
        if let Some(hidden) = hidden {
            if let Some(comparer) = &mut comparer {
                comparer.add(window, &hidden)?;
            }
            saved.as_mut().map_or(Ok(()), |it| it.add(&subject, &hidden))?;
        }
        sum += judged.iter().sum::<f64>();
        tokens += judged.len();
        progress.advance(window.ids.len() as u64);
        Ok(())
    };
    pool.install(|| lanes.stream(windows.len(), begin, judge, end))?;
    progress.end();
    if let Some(saved) = saved {
        saved.finish()?;
    }
    let seconds = started.elapsed().as_secs_f64();
    let nll = sum / tokens.max(1) as f64;
    Ok(Evaluation {
        model: options.model.clone(),
        data: options.data.path().clone(),
        perplexity: nll.exp(),
        nll,
        tokens,
        rows: windows.len(),
        seq_len: options.seq_len,
        dtype: subject.model().store().dtype().torch_name().unwrap_or("unknown"),
        int8_linears: subject.n_coded(),
        tokens_per_second: n_read as f64 / seconds.max(1e-9),
        seconds,
        comparison: comparer.zip(options.reference.clone()).map(|(it, name)| it.finish(name)),
    })
}

pub(crate) fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}
