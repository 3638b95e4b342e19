//! The course of a run: its waves, what flows between them, and how far it has come.

use std::sync::Arc;

use lifecycle::CompressionLifecycle;

use crate::{Times, Wave, WaveKind, boundaries::Boundaries, divisions::Divisions, lanes::Lanes, waves::Declared};

/// What a run carries from wave to wave.
pub(crate) struct Course<'a> {
    pub(crate) declared: Vec<Declared>,
    pub(crate) kind: WaveKind,
    pub(crate) divisions: Divisions,
    pub(crate) waves: Vec<Wave>,
    /// The last wave that concerns somebody.
    pub(crate) last: Option<usize>,
    /// The first wave that is not committed yet.
    pub(crate) resume_at: usize,
    pub(crate) boundaries: Boundaries,
    /// What flows where nothing has been changed, if somebody hears it.
    pub(crate) unchanged: Option<Boundaries>,
    pub(crate) shapes: Vec<Vec<usize>>,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) times: Times,
    pub(crate) lifecycle: &'a mut CompressionLifecycle,
}

impl Course<'_> {
    /// Tokens of all batches, padding included.
    pub(crate) fn n_tokens(&self) -> usize {
        self.shapes.iter().map(|it| it.iter().product::<usize>()).sum()
    }
}
