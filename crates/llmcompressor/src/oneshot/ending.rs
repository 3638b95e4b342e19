//! What follows a written output: it is verified, and its report and page say what was found.

use std::{
    path::{Path, PathBuf},
    time::Instant,
};

use checkpoint::{Generated, replace_generated};

use super::{FinalCheck, OneshotOptions, OneshotReport, page};
use crate::{
    Progress,
    error::Result,
    verify::{VerifyOptions, verify},
};

/// Ceiling for the buffers of the final check where the run has none, or a larger one.
const VERIFY_BYTES: u64 = 256 << 20;

/// Verifies the output against its source, unless that was done or is not wanted, and writes report and page anew.
///
/// # Errors
/// Files that cannot be read or written; faults of the output are part of the report.
pub(super) fn verify_once(report: &mut OneshotReport, options: &OneshotOptions, progress: &dyn Progress) -> Result<()> {
    if options.final_check == FinalCheck::Skip || report.verification.is_some() {
        return Ok(());
    }
    let begin = Instant::now();
    let verdict = verify(
        &VerifyOptions {
            output: options.output.clone(),
            source: Some(options.model.clone()),
            threads: options.threads,
            max_memory_bytes: options.max_memory_bytes.unwrap_or(VERIFY_BYTES).min(VERIFY_BYTES),
            interrupt: options.interrupt.clone(),
        },
        progress,
    )?;
    report.verification = Some(verdict.into());
    let seconds = begin.elapsed().as_secs_f64();
    report.phases.insert("verify".to_owned(), seconds);
    report.seconds += seconds;
    let files = [("report.json", report.json()), ("report.html", page::render(report)?.into_bytes())];
    let files = files.map(|(name, bytes)| Generated { name: name.to_owned(), bytes });
    Ok(replace_generated(&options.output, &files)?)
}

/// Writes `report.html` of an output anew from its `report.json`, and gives its path.
///
/// # Errors
/// A report that is absent or of another command, a write that fails.
pub fn write_page(output: &Path) -> Result<PathBuf> {
    let report = OneshotReport::of(output)?;
    let name = "report.html".to_owned();
    let bytes = page::render(&report)?.into_bytes();
    replace_generated(output, &[Generated { name: name.clone(), bytes }])?;
    Ok(output.join(name))
}
