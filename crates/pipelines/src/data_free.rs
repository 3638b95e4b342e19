//! The pipeline without data: modules are changed where they are, those of one parent at a time.

use std::{collections::BTreeSet, sync::Arc};

use lifecycle::{CompressionLifecycle, Signal};
use models::Model;

use crate::{
    Committer, Times, Waves,
    change::change,
    error::Error,
    log::{log_modules, log_wave},
    times::timed,
    waves::{declared, hearing},
};

/// A run without data.
///
/// The reference ends one epoch over all modules; here each parent has its own, so that weights need not be in memory together.
/// Modules that share a scale have one parent.
#[derive(Clone)]
pub struct DataFree {
    /// The model; the lifecycle's state holds a [`ModelStore`](crate::ModelStore) over it.
    pub model: Arc<Model>,
}

impl DataFree {
    /// Lets modifiers change what they write, and commits it.
    ///
    /// # Errors
    /// What the modifiers and the committer refuse.
    pub fn run<C: Committer>(
        &self,
        lifecycle: &mut CompressionLifecycle,
        committer: &mut C,
    ) -> Result<Times, C::Error> {
        let mut times = Times::default();
        lifecycle.signal(Signal::CalibrationStart).map_err(Error::from)?;
        let declared = declared(lifecycle, &self.model)?;
        let written: BTreeSet<_> = declared.into_iter().flat_map(|it| it.writes).collect();
        let hearing = hearing(lifecycle);
        let mut snapshot = None;
        for wave in &Waves::by_parent(&self.model, &written).waves {
            committer.check()?;
            let before = times;
            if committer.concerns(wave) && committer.is_done(wave) {
                let found = timed(&mut times.commit, || committer.replay(wave, lifecycle))?;
                snapshot = found.or(snapshot);
            } else {
                if let Some(snapshot) = snapshot.take() {
                    lifecycle.restore(&snapshot).map_err(Error::from)?;
                }
                let data = timed(&mut times.change, || change(lifecycle, &hearing, wave))?;
                log_modules(lifecycle, wave, &data)?;
                timed(&mut times.commit, || committer.commit(wave, lifecycle, data))?;
            }
            committer.release(wave, lifecycle)?;
            log_wave(lifecycle, wave, times.since(&before), 0)?;
        }
        if let Some(snapshot) = snapshot.take() {
            lifecycle.restore(&snapshot).map_err(Error::from)?;
        }
        lifecycle.signal(Signal::CalibrationEnd).map_err(Error::from)?;
        Ok(times)
    }
}
