//! How well a model predicts a text: perplexity, for dense and compressed checkpoints.

mod weights;

use std::{path::PathBuf, sync::Arc, time::Instant};

use calibration::{TokenRowOptions, Tokenizer, check_vocabulary, source as data, token_rows};
use models::{Model, ModelOptions, Run};
use serde::Serialize;
use tensor::{Budget as Memory, DType, Engine};

use crate::{
    Interrupt, Progress,
    catalog::Catalog,
    error::{ErrorKind, Result},
    slabs::Budget,
    source::open_source,
};
use weights::DenseWeights;

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

/// What `eval` is asked to do.
#[derive(Clone, Debug)]
pub struct EvalOptions {
    /// The model: a directory or a hub id.
    pub model: String,
    /// A data file: JSON lines, JSON, CSV or text.
    pub data: PathBuf,
    /// The column that holds the text.
    pub text_column: String,
    /// Rows are cut at this many tokens.
    pub seq_len: usize,
    /// Rows to use, from the front; `None` means all.
    pub max_samples: Option<usize>,
    /// The type to compute in.
    pub compute: Compute,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Ceiling for weights and activations; `None` sets none.
    pub max_memory_bytes: Option<u64>,
    /// A request to stop.
    pub interrupt: Interrupt,
}

impl EvalOptions {
    /// Options that judge `model` by `data`, everything else by default.
    pub fn new(model: impl Into<String>, data: impl Into<PathBuf>) -> Self {
        Self {
            model: model.into(),
            data: data.into(),
            text_column: "text".to_owned(),
            seq_len: 2048,
            max_samples: None,
            compute: Compute::Auto,
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
    /// Rows of the data.
    pub rows: usize,
    /// Most tokens of a row.
    pub seq_len: usize,
    /// The type computed in.
    pub dtype: &'static str,
    /// Tokens read a second.
    pub tokens_per_second: f64,
    /// Seconds of computing.
    pub seconds: f64,
}

impl Evaluation {
    /// One line for a person.
    pub fn summary(&self) -> String {
        format!(
            "{}: perplexity {:.4} ({} tokens of {} rows cut at {}, {}, {:.0} tokens/s)",
            self.model, self.perplexity, self.tokens, self.rows, self.seq_len, self.dtype, self.tokens_per_second
        )
    }
}

/// Perplexity of `options.model` on `options.data`: each row alone, special tokens as the tokenizer adds them, the mean
/// over predicted tokens.
///
/// Compressed weights are made dense when they are read; activations are computed as they are, whatever the config says
/// about quantizing them.
///
/// # Errors
/// Faults of the checkpoint, of the data, of the tokenizer; an architecture that is not supported; `NotANumber` where a
/// row has no finite likelihood.
pub fn eval(options: &EvalOptions, progress: &dyn Progress) -> Result<Evaluation> {
    let source = open_source(&options.model)?;
    let rows = rows(options, source.dir())?;
    let catalog = Catalog::of(&source)?;
    let config = source.config()?.clone();
    let weights = Arc::new(DenseWeights::new(source, catalog)?);
    let model = Model::build(&config, weights, ModelOptions { dtype: options.compute.dtype() })?;
    let memory = options.max_memory_bytes.map_or_else(Memory::unlimited, Memory::limited);
    let engine = Engine::new(memory);
    let vocabulary =
        model.causal().and_then(|it| model.linear(it.head)).map(|it| model.store().info(it.weight).shape[0]);
    if let Some(vocabulary) = vocabulary {
        check_vocabulary(&rows, vocabulary, None)?;
    }
    let _held = holds_all(&model, options).then(|| model.store().hold(model.store().parameters().map(|it| it.0)));
    let n_read: usize = rows.iter().map(Vec::len).sum();
    let begin = Instant::now();
    progress.begin("evaluating", n_read as u64);
    let pool = Budget { threads: threads(options.threads), slab_bytes: 0 }.thread_pool()?;
    let mut sum = 0.0;
    let mut tokens = 0;
    for (idx, row) in rows.iter().enumerate() {
        if let Some(signal) = options.interrupt.signal() {
            return Err(ErrorKind::Interrupted { signal }.into());
        }
        let ids = row.iter().map(|id| i64::from(*id)).collect();
        let ids = engine.budget.tensor::<i64>(ids, &[1, row.len()]).map_err(models::Error::from)?;
        let nll = pool.install(|| model.next_token_nll(Run { engine: &engine, hooks: None }, &ids, None))?;
        if let Some(at) = nll.iter().position(|it| !it.is_finite()) {
            return Err(ErrorKind::NotANumber { row: idx, token: at + 1 }.into());
        }
        sum += nll.iter().sum::<f64>();
        tokens += nll.len();
        progress.advance(row.len() as u64);
    }
    progress.end();
    let seconds = begin.elapsed().as_secs_f64();
    let nll = sum / tokens.max(1) as f64;
    Ok(Evaluation {
        model: options.model.clone(),
        data: options.data.clone(),
        perplexity: nll.exp(),
        nll,
        tokens,
        rows: rows.len(),
        seq_len: options.seq_len,
        dtype: model.store().dtype().torch_name().unwrap_or("unknown"),
        tokens_per_second: n_read as f64 / seconds.max(1e-9),
        seconds,
    })
}

fn rows(options: &EvalOptions, dir: &std::path::Path) -> Result<Vec<Vec<u32>>> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let mut source = data::open(&options.data)?;
    let wanted = TokenRowOptions {
        text_column: options.text_column.clone(),
        max_seq_length: Some(options.seq_len),
        num_samples: options.max_samples,
    };
    Ok(token_rows(&mut *source, &tokenizer, &wanted)?)
}

/// Whether all weights fit in half of the ceiling; else each is read again for every row.
fn holds_all(model: &Model, options: &EvalOptions) -> bool {
    let Some(ceiling) = options.max_memory_bytes else { return true };
    let width = model.store().dtype().bits() as u64 / 8;
    let n: u64 = model.store().parameters().map(|(_, it)| it.shape.iter().product::<usize>() as u64).sum();
    n * width <= ceiling / 2
}

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}
