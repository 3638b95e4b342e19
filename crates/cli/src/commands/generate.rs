//! `generate`: what a model goes on with.

use std::path::PathBuf;

use clap::Args;
use llmcompressor::{
    ExitCode, Interrupt,
    generate::{Caching, GenerateOptions, Prompt, Sampling, generate},
};

use crate::{
    args::{Dtype, Format, Global, ProductOf},
    printer,
    progress::Terminal,
    signals,
};

/// Let a dense or compressed model go on from a prompt
///
/// Text is printed as it comes. Compressed weights are made dense when read, activations are quantized as the config says,
/// and so are the keys and values that are kept, where there is a kv_cache_scheme.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("start").required(true).args(["prompt", "token_ids"])))]
#[command(after_help = "Examples:
  llmcompressor generate ./SmolLM2-W4A16 --prompt 'The capital of France is'
  llmcompressor generate ./SmolLM2-Instruct --chat --prompt 'Name three rivers.' --temperature 0.7 --top-p 0.9 --seed 1")]
pub(crate) struct Options {
    /// A directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Text to go on from
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// Put the prompt into the model's chat template, as said by a user
    #[arg(long, requires = "prompt")]
    chat: bool,
    /// Token ids to go on from: a JSON list
    #[arg(long, value_name = "FILE")]
    token_ids: Option<PathBuf>,
    /// Most tokens to add
    #[arg(long, value_name = "N", default_value_t = 64)]
    max_new_tokens: usize,
    /// Divisor of the scores before a token is drawn; 0 takes the likeliest
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the N likeliest tokens only
    #[arg(long, value_name = "N")]
    top_k: Option<usize>,
    /// Draw from the likeliest tokens that together have this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Type to compute in
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// What linear layers multiply
    #[arg(long, value_enum, default_value_t = ProductOf::Numbers)]
    product: ProductOf,
    /// Compute every token from all tokens before it, as if nothing were kept
    #[arg(long)]
    no_cache: bool,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let interrupt = Interrupt::default();
    signals::connect(&interrupt)?;
    let prompt = match (options.token_ids, options.prompt.unwrap_or_default()) {
        (Some(path), _) => Prompt::TokenIds(path),
        (None, text) if options.chat => Prompt::Chat(text),
        (None, text) => Prompt::Text(text),
    };
    let Options { temperature, top_k, top_p, seed, .. } = options;
    let job = GenerateOptions {
        max_new_tokens: options.max_new_tokens,
        sampling: Sampling { temperature, top_k, top_p, seed },
        compute: options.dtype.into(),
        product: options.product.into(),
        threads: options.threads,
        cache: if options.no_cache { Caching::Recomputed } else { Caching::Kept },
        interrupt,
        ..GenerateOptions::new(options.model, prompt)
    };
    let terminal = Terminal::new(global.verbosity());
    let is_json = matches!(global.format, Format::Json);
    let mut said = |text: &str| if is_json { Ok(()) } else { printer::part(text) };
    let generation = generate(&job, &terminal, &mut said)?;
    match global.format {
        Format::Json => printer::json(&generation)?,
        // Ids are all there is to show of a model without a tokenizer.
        Format::Human if generation.text.is_empty() => {
            let ids: Vec<String> = generation.token_ids.iter().map(ToString::to_string).collect();
            printer::line(&ids.join(" "))?;
        }
        Format::Human => printer::line("")?,
    }
    terminal.tell(&generation.summary());
    Ok(ExitCode::Done)
}
