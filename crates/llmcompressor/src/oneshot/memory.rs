//! How a memory ceiling is divided: weights and one batch, modifiers, and activations between waves, of which the rest is on disk.

use checkpoint::Writer;
use pipelines::{Needs, Spill};
use tensor::Budget;

use super::OneshotOptions;
use crate::error::{ErrorKind, Result};

/// What the program holds beside everything that is planned: code, headers, tokenizer, token ids.
const BASE_BYTES: u64 = 80 << 20;

/// The engine's budget.
///
/// It refuses nothing that was not refused up front, for a ceiling that holds the least need holds the run: the plan's numbers
/// decide what stays in memory, and the budget stops what was not planned.
pub(super) fn budget(options: &OneshotOptions) -> Budget {
    options.max_memory_bytes.map_or_else(Budget::unlimited, Budget::limited)
}

/// Refuses a ceiling below the least need.
///
/// # Errors
/// `Memory`, with the number.
pub(super) fn check(options: &OneshotOptions, needs: &Needs) -> Result<()> {
    let Some(allowed_bytes) = options.max_memory_bytes else { return Ok(()) };
    let needed_bytes = least(needs);
    if needed_bytes <= allowed_bytes {
        return Ok(());
    }
    Err(ErrorKind::Memory { module: needs.largest().module, needed_bytes, allowed_bytes }.into())
}

/// Where activations go between waves.
///
/// # Errors
/// A folder that cannot be made.
pub(super) fn spill(options: &OneshotOptions, needs: &Needs, writer: &Writer) -> Result<Option<Spill>> {
    let Some(allowed_bytes) = options.max_memory_bytes else { return Ok(None) };
    Ok(Some(Spill { limit_bytes: allowed_bytes.saturating_sub(least(needs)), folder: writer.scratch_dir()? }))
}

fn least(needs: &Needs) -> u64 {
    BASE_BYTES + needs.engine_bytes() + needs.modifier_bytes()
}
