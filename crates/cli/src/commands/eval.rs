//! `eval`: perplexity of a model on a text.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llmcompressor::{
    Error, ErrorKind, ExitCode, Interrupt,
    eval::{EvalOptions, Judge, Windows, eval},
};

use crate::{
    args::{Dtype, Format, Global, ProductOf, byte_count},
    printer,
    progress::Terminal,
    signals,
};

/// Perplexity of a dense or compressed model on a text
///
/// Each row is judged alone, cut at --seq-len tokens, with special tokens as the tokenizer adds them; the mean is over
/// predicted tokens. Compressed weights are made dense when read, activations are quantized as the config says.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("judge").required(true).args(["data", "token_ids"])))]
pub(crate) struct Options {
    /// A directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text to judge by: JSON lines, JSON, CSV or plain text
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// Token ids to judge by: a JSON list of rows
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
    /// Column that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Tokens that a row is cut at
    #[arg(long, value_name = "N", default_value_t = 2048)]
    seq_len: usize,
    /// Judge all of each row, in windows that begin N tokens apart
    #[arg(long, value_name = "N", conflicts_with = "concat")]
    stride: Option<usize>,
    /// Join all rows, and cut them into windows
    #[arg(long)]
    concat: bool,
    /// What to find [default: ppl, and all others where there is a reference]
    #[arg(long, value_enum, value_name = "NAMES", value_delimiter = ',')]
    metric: Vec<Metric>,
    /// Compare with this model: KL divergence, first choices, noise of every layer
    #[arg(long, value_name = "MODEL")]
    reference: Option<String>,
    /// Write the logits of all rows as one f32 tensor `logits` (B, T, V)
    #[arg(long, value_name = "FILE")]
    save_logits: Option<PathBuf>,
    /// Rows to use, from the front [default: all]
    #[arg(long, value_name = "N")]
    max_samples: Option<usize>,
    /// Type to compute in
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// What linear layers multiply
    #[arg(long, value_enum, default_value_t = ProductOf::Numbers)]
    product: ProductOf,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Ceiling for weights and activations [default: none]
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    max_memory: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Metric {
    /// Perplexity
    Ppl,
    /// KL divergence from the reference
    Kl,
    /// Share of tokens for which both choose the same one first
    Top1,
    /// Noise of every layer's output against the reference
    Sqnr,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let compares = options.metric.iter().any(|it| *it != Metric::Ppl);
    if compares && options.reference.is_none() {
        let kind = ErrorKind::Option {
            option: "--metric",
            found: "given a metric that compares, without --reference".to_owned(),
            expected: "a model to compare with".to_owned(),
        };
        return Err(Error::from(kind).into());
    }
    let interrupt = Interrupt::default();
    signals::connect(&interrupt)?;
    let judge = match (options.token_ids, options.data) {
        (Some(path), _) => Judge::TokenIds(path),
        (None, path) => Judge::Text { path: path.unwrap_or_default(), column: options.text_column },
    };
    let job = EvalOptions {
        windows: match options.stride {
            Some(tokens) => Windows::Stride(tokens),
            None if options.concat => Windows::Concat,
            None => Windows::Cut,
        },
        reference: options.reference.filter(|_| compares || options.metric.is_empty()),
        save_logits: options.save_logits,
        seq_len: options.seq_len,
        max_samples: options.max_samples,
        compute: options.dtype.into(),
        product: options.product.into(),
        threads: options.threads,
        max_memory_bytes: options.max_memory,
        interrupt,
        ..EvalOptions::new(options.model, judge)
    };
    let evaluation = eval(&job, &Terminal::new(global.verbosity()))?;
    match global.format {
        Format::Json => printer::json(&evaluation)?,
        Format::Human => printer::line(&evaluation.summary())?,
    }
    Ok(ExitCode::Done)
}
