//! How a memory ceiling is divided: weights and one batch, modifiers, and activations between waves, of which the rest is on disk.

use checkpoint::Writer;
use pipelines::{Needs, Spill};

use super::OneshotOptions;
use crate::{
    ceiling::PROGRAM_BYTES,
    error::{ErrorKind, Result},
};

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
    PROGRAM_BYTES + needs.engine_bytes() + needs.modifier_bytes()
}
