//! A model as users name it: a directory, or a hub id.

use checkpoint::{HubEnvironment, Source, resolve_model};

use crate::error::Result;

/// Opens a directory or a hub id.
///
/// # Errors
/// Every fault that headers, index and config show.
pub(crate) fn open_source(model: &str) -> Result<Source> {
    let resolved = resolve_model(model, None, &HubEnvironment::from_process())?;
    Ok(Source::open(resolved.dir)?)
}
