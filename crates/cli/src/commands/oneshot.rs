//! `oneshot`: compress a model by a recipe, with calibration data.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use llmcompressor::{
    ExitCode, Interrupt, Isa,
    model_free::{Existing, Tolerance},
    oneshot::{ExpertCalibration, FinalCheck, OneshotOptions, Partition, RecipeSource, Scope, oneshot},
};

use crate::{
    args::{Dtype, Format, Global, byte_count},
    printer,
    progress::Terminal,
    signals,
};

/// Compress a model by a recipe, with calibration data
///
/// Data runs through the model wave by wave; each module is written when no modifier will change it any more.
/// A stopped run goes on where it was when the same command is given again.
/// The output is verified in the end; exits with 3 when a fault is found.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  llmcompressor oneshot ./Llama-3.2-1B --recipe gptq.yaml --data calib.jsonl --seq-len 2048 --out ./Llama-3.2-1B-W4A16
  llmcompressor oneshot ./SmolLM2 --scheme FP8_DYNAMIC --out ./SmolLM2-FP8
  llmcompressor oneshot ./SmolLM2 --scheme W4A16 --data calib.jsonl --out ./SmolLM2-W4A16
  llmcompressor eval ./Llama-3.2-1B-W4A16 --data eval.jsonl --seq-len 2048")]
pub(crate) struct Options {
    /// Source: a directory, or a hub id
    #[arg(value_name = "MODEL")]
    model: String,
    /// Recipe: a YAML or JSON file
    #[arg(long, value_name = "FILE", required_unless_present = "scheme", conflicts_with = "scheme")]
    recipe: Option<PathBuf>,
    /// Compress all linears but the output head to a preset scheme, by a method of ours for it (`llmcompressor list schemes`)
    #[arg(long, value_name = "NAME")]
    scheme: Option<String>,
    /// Take up only modules that match, or lie in one that does; all others stay as they are. May be repeated
    ///
    /// A name, a class, or `re:` with a regular expression, as targets of recipes are.
    #[arg(long, value_name = "PATTERN")]
    only_layers: Vec<String>,
    /// Do only modules again that match, or lie in one that does; all others are taken over from --from. May be repeated
    #[arg(long, value_name = "PATTERN", requires = "from", conflicts_with = "only_layers")]
    redo: Vec<String>,
    /// A finished output of the same MODEL, for --redo
    #[arg(long, value_name = "FINISHED", requires = "redo")]
    from: Option<PathBuf>,
    /// Calibration data: a file, a folder, or the name of a data set
    #[arg(long, value_name = "DATA")]
    data: Option<String>,
    /// Output directory
    #[arg(long, value_name = "OUT")]
    out: PathBuf,
    /// Column that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    text_column: String,
    /// Tokens that a sample is cut at [default: the tokenizer's limit]
    #[arg(long, value_name = "N", visible_alias = "max-seq-length")]
    seq_len: Option<usize>,
    /// Samples to calibrate on
    #[arg(long, value_name = "N", default_value_t = 512, visible_alias = "num-calibration-samples")]
    num_samples: usize,
    /// Samples of a batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_size: usize,
    /// Batches of equal shape that run together; the result does not depend on it
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch_window: usize,
    /// Take the longest samples instead of random ones
    #[arg(long)]
    no_shuffle: bool,
    /// Seed of the shuffle
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Let AWQ count only tokens whose `loss_mask` is 1: a column of the data, or what a chat template marks as generated
    #[arg(long)]
    use_loss_mask: bool,
    /// Where waves begin
    #[arg(long, value_enum, default_value_t = PartitionName::BeforeTargets)]
    partition: PartitionName,
    /// Pipeline: basic, sequential, datafree, independent or layer_sequential [default: what the modifiers need]
    #[arg(long, value_name = "NAME")]
    pipeline: Option<String>,
    /// Type to compute in
    #[arg(long, value_enum, default_value_t = Dtype::Auto)]
    dtype: Dtype,
    /// Instruction set to compute with, which the bytes depend on: portable, the same everywhere, avx2, avx512 (the same as avx2),
    /// avx512-bf16 or avx512-vnni [default: the fastest of this processor]
    #[arg(long, value_name = "NAME")]
    profile: Option<Isa>,
    /// On which tokens experts are calibrated
    #[arg(long, value_enum, default_value_t = Experts::All)]
    experts: Experts,
    /// Tokens below which `--experts routed_then_fallback` rounds an expert to nearest
    #[arg(long, value_name = "N", default_value_t = ExpertCalibration::DEFAULT_MIN_TOKENS)]
    min_expert_tokens: u64,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    threads: usize,
    /// Ceiling for weights, statistics and activations, e.g. 2GiB [default: none]
    #[arg(long, value_name = "BYTES", value_parser = byte_count)]
    max_memory: Option<u64>,
    /// Cut output shards at this size
    #[arg(long, value_name = "BYTES", value_parser = byte_count, default_value = "5GB")]
    max_shard_size: u64,
    /// Log time, tokens, loss and error of every wave and module to files in this folder: JSON lines, CSV, TensorBoard
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Replace an output that exists
    #[arg(long)]
    overwrite: bool,
    /// Do not verify the output in the end
    #[arg(long)]
    no_verify: bool,
    /// Leave the source's .py files out
    #[arg(long)]
    no_remote_code: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum PartitionName {
    /// Before targets that are equally deep: each runs once, already changed
    BeforeTargets,
    /// Before decoder layers, as llm-compressor in Python
    Compat,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Experts {
    /// All tokens, whatever the router chose
    All,
    /// Those that the router chose
    Routed,
    /// Those that the router chose, and no statistics where they are too few
    RoutedThenFallback,
}

pub(crate) fn run(options: Options, global: &Global) -> anyhow::Result<ExitCode> {
    let is_chosen = options.recipe.is_none();
    let recipe = match (options.recipe, options.scheme) {
        (Some(file), _) => RecipeSource::File(file),
        (None, Some(name)) => RecipeSource::Scheme(name),
        (None, None) => anyhow::bail!("one of --recipe and --scheme is required"),
    };
    let interrupt = Interrupt::default();
    signals::connect(&interrupt)?;
    let mut job = OneshotOptions::new(options.model, options.out, recipe);
    job.scope = match options.from {
        Some(from) => Scope::Redo { patterns: options.redo, from },
        None if options.only_layers.is_empty() => Scope::All,
        None => Scope::Only { patterns: options.only_layers },
    };
    job.data.dataset = options.data;
    job.data.text_column = options.text_column;
    job.data.max_seq_length = options.seq_len;
    job.data.num_calibration_samples = Some(options.num_samples);
    job.data.batch_size = options.batch_size;
    job.data.shuffle_calibration_samples = !options.no_shuffle;
    job.data.seed = options.seed;
    job.data.use_loss_mask = options.use_loss_mask;
    job.experts = match options.experts {
        Experts::All => ExpertCalibration::All,
        Experts::Routed => ExpertCalibration::Routed,
        Experts::RoutedThenFallback => ExpertCalibration::RoutedThenFallback { min_tokens: options.min_expert_tokens },
    };
    job.partition = match options.partition {
        PartitionName::BeforeTargets => Partition::BeforeTargets,
        PartitionName::Compat => Partition::Compat,
    };
    job.compute = options.dtype.into();
    job.profile = options.profile;
    job.batch_window = options.batch_window;
    job.pipeline = options.pipeline;
    job.threads = options.threads;
    job.max_memory_bytes = options.max_memory;
    job.max_shard_bytes = options.max_shard_size;
    job.log_dir = options.log_dir;
    job.existing = if options.overwrite { Existing::Overwrite } else { Existing::Resume };
    job.remote_code = if options.no_remote_code { Tolerance::Refuse } else { Tolerance::Allow };
    job.final_check = if options.no_verify { FinalCheck::Skip } else { FinalCheck::Verify };
    job.interrupt = interrupt;
    let report = oneshot(&job, &Terminal::new(global.verbosity()))?;
    match global.format {
        Format::Json => printer::json(&report)?,
        Format::Human => {
            printer::line(&report.summary())?;
            if is_chosen {
                printer::line(&format!(
                    "  recipe   {}\n\n{}",
                    report.output.join("recipe.yaml").display(),
                    report.inputs.recipe.trim_end()
                ))?;
            }
        }
    }
    Ok(if report.is_faulty() { ExitCode::VerificationFailed } else { ExitCode::Done })
}
