//! Runs the units: batches through the pool, commits behind their back, finishes with the config.

use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{Mutex, PoisonError, mpsc},
    thread,
    time::Instant,
};

use checkpoint::{Existing, Finish, Opened, OutputPlan, Source, TensorSpec, UnitCommit, Writer};
use indexmap::IndexMap;
use rayon::prelude::*;
use serde_json::Value;

use super::{Unit, Worker, shards::plan_shards};
use crate::{
    Counted, ExitCode, Interrupt, Progress,
    error::{Error, ErrorKind, Result},
    slabs::{Budget, Slabs, Spare},
};

/// Input bytes between two commits: small enough to lose little, large enough that syncing is rare.
const BATCH_BYTES: u64 = 256 << 20;

/// How a rewrite runs.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// What the progress says is done.
    pub(crate) activity: &'static str,
    /// Output directory.
    pub(crate) output: PathBuf,
    /// Worker threads; 0 means one per core.
    pub(crate) threads: usize,
    /// Ceiling for buffers.
    pub(crate) max_memory_bytes: u64,
    /// Size to cut shards at; `None` mirrors the source's.
    pub(crate) max_shard_bytes: Option<u64>,
    /// What to do with an output that exists.
    pub(crate) existing: Existing,
    /// Hashes of what decides the bytes, beside the source and the layout.
    pub(crate) fingerprints: IndexMap<String, String>,
    /// A request to stop.
    pub(crate) interrupt: Interrupt,
}

/// A planned rewrite.
pub(crate) struct Rewrite<'a> {
    /// Where it reads.
    pub(crate) source: &'a Source,
    /// What it does, in the order of the outputs.
    pub(crate) units: Vec<Box<dyn Unit>>,
    /// How.
    pub(crate) settings: Settings,
}

/// What a rewrite did.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Units that an earlier run had finished.
    pub(crate) n_resumed: usize,
    /// Bytes of all tensors of the output.
    pub(crate) output_bytes: u64,
    /// Seconds from the first unit to the last commit.
    pub(crate) seconds: f64,
    /// Worker threads used.
    pub(crate) threads: usize,
    /// What a finished output's `report.json` must hold under `fingerprints`.
    pub(crate) fingerprints: Value,
}

/// How a rewrite ended.
#[derive(Debug)]
pub(crate) enum Rewritten {
    /// It was done.
    Done,
    /// The same rewrite was finished before.
    AlreadyDone,
}

impl Rewrite<'_> {
    /// Runs every unit that is not finished yet, then writes what `finish` names; the config comes last.
    ///
    /// # Errors
    /// `Memory` where the ceiling is too low, `Interrupted` on request; faults of the input leave no output behind,
    /// all others leave a state that the same call resumes.
    pub(crate) fn run(
        self,
        finish: impl FnOnce(&Facts) -> Result<Finish>,
        progress: &dyn Progress,
    ) -> Result<Rewritten> {
        let needs = self.units.iter().map(|it| (it.name(), it.least_bytes()));
        let budget = Budget::divide(needs, self.settings.threads, self.settings.max_memory_bytes)?;
        let shards = plan_shards(self.source, &self.units, self.settings.max_shard_bytes);
        let output_bytes = shards.iter().flat_map(|it| &it.tensors).filter_map(TensorSpec::n_bytes).sum();
        let mut fingerprints = self.settings.fingerprints.clone();
        fingerprints.insert("source".to_owned(), self.source.fingerprint().to_owned());
        let opened = Writer::open_or_resume(&OutputPlan {
            dir: self.settings.output.clone(),
            shards,
            fingerprints,
            inputs: self.source.paths(),
            existing: self.settings.existing,
            extra_bytes: 0,
        })?;
        let Opened::Work(writer) = opened else { return Ok(Rewritten::AlreadyDone) };
        let done: HashSet<String> = writer.resumed().done.iter().map(|it| it.name.clone()).collect();
        for unit in &writer.resumed().damaged {
            progress.warn(&format!("`{unit}` was damaged since it was written; it is done again"));
        }
        let pending: Vec<&dyn Unit> =
            self.units.iter().map(AsRef::as_ref).filter(|it| !done.contains(it.name())).collect();
        let begin = Instant::now();
        progress.begin(self.settings.activity, pending.iter().map(|it| it.input_bytes()).sum(), Counted::Bytes);
        let outcome = self.process(&pending, &budget, &writer, progress);
        progress.end();
        if let Err(error) = outcome {
            return Err(give_up(error, *writer));
        }
        self.source.check_unchanged()?;
        let facts = Facts {
            n_resumed: done.len(),
            output_bytes,
            seconds: begin.elapsed().as_secs_f64(),
            threads: budget.threads,
            fingerprints: writer.fingerprint_record(),
        };
        let files = finish(&facts)?;
        writer.finish(&files)?;
        Ok(Rewritten::Done)
    }

    /// Runs `pending` in batches; while one is computed the one before it is brought to the disk.
    fn process(&self, pending: &[&dyn Unit], budget: &Budget, writer: &Writer, progress: &dyn Progress) -> Result<()> {
        let pool = budget.thread_pool()?;
        let largest = self.units.iter().map(|it| it.least_bytes()).max().unwrap_or(0);
        let spare = Spare::of(budget.spare_bytes(largest, self.settings.max_memory_bytes));
        let slabs = Slabs { spare, ..Slabs::new(budget, progress, &self.settings.interrupt) };
        let worker = Worker { source: self.source, writer, slabs };
        thread::scope(|scope| {
            let (sender, receiver) = mpsc::sync_channel::<Vec<UnitCommit>>(1);
            let committer = scope.spawn(move || -> Result<()> {
                for units in receiver {
                    writer.commit(&units)?;
                }
                Ok(())
            });
            let computed = batches(pending).try_for_each(|batch| {
                let finished = Mutex::new(Vec::new());
                let outcome = pool.install(|| {
                    batch.par_iter().with_max_len(1).try_for_each(|unit| {
                        unit.run(&worker)?;
                        finished.lock().unwrap_or_else(PoisonError::into_inner).push(commit_of(*unit));
                        Ok(())
                    })
                });
                // What a failed or interrupted batch did finish is kept. A committer that is gone has its own error.
                let finished = finished.into_inner().unwrap_or_else(PoisonError::into_inner);
                let sent = finished.is_empty() || sender.send(finished).is_ok();
                outcome.and(if sent { Ok(()) } else { Err(ErrorKind::CommitStopped.into()) })
            });
            drop(sender);
            let committed = committer.join().unwrap_or_else(|_| Err(ErrorKind::CommitStopped.into()));
            committed.and(computed)
        })
    }
}

/// Faults of the input leave nothing behind; after anything else the run can go on.
fn give_up(error: Error, writer: Writer) -> Error {
    if error.exit_code() == ExitCode::BadInput {
        // The fault that ended the run is what the user needs to hear, whatever clearing says.
        let _ = writer.abandon();
    }
    error
}

fn commit_of(unit: &dyn Unit) -> UnitCommit {
    UnitCommit {
        name: unit.name().to_owned(),
        tensors: unit.outputs().iter().map(|it| it.spec.name.clone()).collect(),
        files: Vec::new(),
        snapshot: None,
    }
}

/// Runs of units of at least [`BATCH_BYTES`].
fn batches<'u, 'b>(units: &'u [&'b dyn Unit]) -> impl Iterator<Item = &'u [&'b dyn Unit]> {
    let mut rest = units;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let end = rest.iter().position(|it| {
            bytes += it.input_bytes();
            bytes >= BATCH_BYTES
        });
        let (batch, after) = rest.split_at(end.map_or(rest.len(), |it| it + 1));
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}
