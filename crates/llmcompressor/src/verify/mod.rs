//! Whether a compressed checkpoint is sound, and how far it is from its source.

mod census;
mod compare;
mod scales;
mod verdict;

use std::path::PathBuf;

use checkpoint::Source;

pub use verdict::{Fault, FaultKind, ModuleCheck, Verdict};

use crate::{
    Interrupt, Progress,
    catalog::Catalog,
    error::Result,
    slabs::{Budget, Slabs},
    source::open_source,
};

/// What `verify` is asked to do.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// The compressed checkpoint.
    pub output: PathBuf,
    /// The checkpoint it was made from: a directory or a hub id.
    pub source: Option<String>,
    /// Worker threads; 0 means one per core.
    pub threads: usize,
    /// Ceiling for buffers.
    pub max_memory_bytes: u64,
    /// A request to stop.
    pub interrupt: Interrupt,
}

/// Checks `options.output`: every tensor accounted for, shapes and dtypes as the config says, scales finite and not
/// zero, one global scale in fused groups; with a source, every weight and every copied tensor compared with it.
///
/// # Errors
/// A checkpoint that cannot be opened at all; what is wrong inside it is a fault of the verdict.
pub fn verify(options: &VerifyOptions, progress: &dyn Progress) -> Result<Verdict> {
    let output = Source::open(&options.output)?;
    let catalog = Catalog::of(&output)?;
    let mut verdict = Verdict::new(options.output.clone(), options.source.clone(), output.tensors().len());
    verdict.warnings.extend(output.warnings().iter().cloned());
    census::check(&output, &catalog, &mut verdict)?;
    let needs = catalog.modules.iter().map(|it| (it.name.as_str(), 2 * it.matrix.least_bytes()));
    let budget = Budget::divide(needs, options.threads, options.max_memory_bytes)?;
    let slabs = Slabs::new(&budget, progress, &options.interrupt);
    budget.thread_pool()?.install(|| -> Result<()> {
        scales::check(&output, &catalog, &slabs, &mut verdict)?;
        let Some(model) = &options.source else { return Ok(()) };
        let source = open_source(model)?;
        compare::check(&source, &output, &catalog, &slabs, &mut verdict)
    })?;
    Ok(verdict)
}
