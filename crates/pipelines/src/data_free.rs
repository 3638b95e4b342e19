//! The pipeline without data: modules are changed where they are, those of one parent at a time.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use lifecycle::{CompressionLifecycle, Signal};
use models::Model;

use crate::{
    Committer, ModifierData, Times, Waves,
    error::{Error, Result},
    times::timed,
    waves::declared,
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
        for wave in &Waves::by_parent(&self.model, &written).waves {
            committer.check()?;
            if committer.concerns(wave) && committer.is_done(wave) {
                continue;
            }
            let mut data = Vec::new();
            let begin = Instant::now();
            for idx in 0..lifecycle.modifiers().len() {
                lifecycle.set_focus(Some(idx));
                let said = lifecycle.signal(Signal::SequentialEpochEnd { modules: wave.modules.clone() });
                lifecycle.set_focus(None);
                let type_name = lifecycle.modifiers()[idx].modifier().type_name().to_owned();
                let named = |data| ModifierData { type_name: type_name.clone(), data };
                data.extend(said.map_err(Error::from)?.into_iter().map(named));
            }
            times.change += begin.elapsed();
            timed(&mut times.commit, || committer.commit(wave, lifecycle, data))?;
            committer.release(wave, lifecycle)?;
        }
        lifecycle.signal(Signal::CalibrationEnd).map_err(Error::from)?;
        Ok(times)
    }
}
