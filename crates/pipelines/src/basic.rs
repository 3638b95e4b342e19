//! The basic pipeline: all modifiers hear the whole model as it was, then change it.

use std::{collections::HashMap, time::Instant};

use lifecycle::{CompressionLifecycle, Signal};

use crate::{
    CalibrationBatch, Committer, ModelStore, Needs, Sequential, Times, WaveNeeds,
    course::Course,
    error::{Error, Result},
    log::{log_modules, log_wave},
    promise::{Given, change_as_promised},
    times::timed,
    waves::hearing,
};

/// A run in which the whole model is one wave for modifiers.
///
/// The model still runs piece by piece, so that its weights need not be in memory together: while modifiers hear, nothing
/// changes, and what flows on is the same. What they gathered stays in memory until the last batch has reached the end.
#[derive(Clone)]
pub struct Basic {
    /// How the model runs.
    pub sequential: Sequential,
}

impl Basic {
    /// Runs batches through the model, lets modifiers change all of it, and commits it.
    ///
    /// # Errors
    /// What the model, the modifiers and the committer refuse.
    pub fn run<C: Committer>(
        &self,
        lifecycle: &mut CompressionLifecycle,
        batches: Vec<CalibrationBatch>,
        committer: &mut C,
    ) -> Result<Times, C::Error> {
        let model = &self.sequential.model;
        let mut course = self.sequential.begin(lifecycle, batches, committer)?;
        let waves = std::mem::take(&mut course.waves);
        let last = course.last.map_or(0, |it| it + 1);
        let everyone = hearing(course.lifecycle);
        let run = (&**model, &self.sequential.engine);
        let mut given = HashMap::new();
        for wave in &waves[..last] {
            let Some(subgraph) = &wave.subgraph else { continue };
            let before = course.times;
            let _held = model.hold(subgraph).map_err(Error::from)?;
            // What is committed needs no statistics any more.
            if wave.index >= course.resume_at {
                self.sequential.listen(wave, subgraph, &mut course, &everyone, committer)?;
                let found = Given::of(&course, (wave, subgraph), &run.1.budget)?;
                given.extend(found.map(|it| (wave.index, it)));
            }
            if wave.index + 1 < last {
                self.sequential.propagate(subgraph, &mut course, committer)?;
            }
            log_wave(course.lifecycle, wave, course.times.since(&before), course.n_tokens())?;
        }
        let mut snapshot = None;
        for wave in &waves[..last] {
            committer.check()?;
            if wave.index < course.resume_at {
                let found = timed(&mut course.times.commit, || committer.replay(wave, course.lifecycle))?;
                snapshot = found.or(snapshot);
            } else {
                if let Some(snapshot) = snapshot.take() {
                    course.lifecycle.restore(&snapshot).map_err(Error::from)?;
                }
                let held = wave.subgraph.as_ref().map(|it| model.hold(it)).transpose().map_err(Error::from)?;
                let (begin, mut data) = (Instant::now(), Vec::new());
                let (whole, given) = ((wave, wave.subgraph.as_ref()), given.remove(&wave.index));
                for &idx in &everyone {
                    data.extend(change_as_promised(run, whole, &mut course, idx, given.as_ref())?);
                }
                course.times.change += begin.elapsed();
                log_modules(course.lifecycle, wave, &data)?;
                timed(&mut course.times.commit, || committer.commit(wave, course.lifecycle, data))?;
                drop(held);
            }
            committer.release(wave, course.lifecycle)?;
        }
        let Course { lifecycle, times, .. } = course;
        if let Some(snapshot) = snapshot.take() {
            lifecycle.restore(&snapshot).map_err(Error::from)?;
        }
        let store = lifecycle.state.model_mut().map_err(Error::from)?;
        store.as_engine::<ModelStore>().map_err(Error::from)?.forget_kept();
        lifecycle.signal(Signal::CalibrationEnd).map_err(Error::from)?;
        Ok(times)
    }

    /// What a run takes: the parameters of one piece, and what modifiers hold of all.
    ///
    /// # Errors
    /// As [`Sequential::needs`].
    pub fn needs(&self, lifecycle: &CompressionLifecycle, batch_tokens: u64, all_tokens: u64) -> Result<Needs> {
        let of = |all_tokens| self.sequential.needs(lifecycle, batch_tokens, all_tokens);
        let (kept, pieces) = (of(all_tokens)?, of(0)?);
        let sum = |of: fn(&WaveNeeds) -> u64, needs: &Needs| needs.waves.iter().map(of).sum::<u64>();
        let kept_bytes = sum(|it| it.engine_bytes, &kept) - sum(|it| it.engine_bytes, &pieces);
        let whole = WaveNeeds {
            module: pieces.largest().module,
            engine_bytes: pieces.engine_bytes() + kept_bytes,
            modifier_bytes: sum(|it| it.modifier_bytes, &pieces),
        };
        Ok(Needs { waves: vec![whole] })
    }
}
