//! The sequential pipeline: wave by wave, modules are heard, changed, committed, and run with what became of them.

use std::{
    cell::RefCell,
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use graph::{Extent, ModuleId, Subgraph};
use indexmap::{IndexMap, IndexSet};
use lifecycle::{CompressionLifecycle, Signal, TapPoint};
use models::{Hooks, Model, NonFiniteWatch, Run, TraceInputs, is_finite};
use tensor::{Engine, Routing, Tensor};

use crate::{
    Committer, ModelStore, ModifierData, Partition, Spill, Times, Wave, Waves,
    boundaries::Boundaries,
    course::Course,
    error::{Error, ErrorKind, Result},
    lanes::Lanes,
    listen::{Listener, hand_over},
    log::{log_modules, log_wave},
    promise::{Given, change_as_promised},
    times::timed,
    waves::{Declared, declared, extent_for, hearing},
    windows::{Along, Joints, gives_routed_rows, join, split, windows},
};

/// A batch of calibration data.
#[derive(Clone, Debug)]
pub struct CalibrationBatch {
    /// Token ids (B, T).
    pub ids: Tensor,
    /// 1 where there is a token, 0 for padding (B, T); given for all batches or for none.
    pub mask: Option<Tensor>,
}

/// A run over calibration data.
///
/// Modifiers that follow one another in a recipe are fused wave by wave. In waves of targets, only inputs are heard, which the
/// changes of targets cannot alter, so that one pass serves all; in waves of layers each modifier that taps values has a pass of
/// its own, over the layer as those before it have left it. In both, values that a modifier only divides may be heard before by
/// one that can divide its statistics, in the same pass; one that cannot has a pass of its own.
#[derive(Clone)]
pub struct Sequential {
    /// The model; the lifecycle's state holds a [`ModelStore`] over it.
    pub model: Arc<Model>,
    /// With what it runs.
    pub engine: Engine,
    /// Where waves begin.
    pub partition: Partition,
    /// Which rows experts see while modifiers hear.
    pub routing: Routing,
    /// Batches of equal shape that run together, at least 1; nothing that is written depends on it.
    pub window: usize,
    /// Where activations go that exceed a limit.
    pub spill: Option<Spill>,
    /// Which passes modifiers hear in waves of layers.
    pub passes: Passes,
}

/// Which passes modifiers hear in a wave of layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Passes {
    /// Each its own, over the layer as those before it have left it, or one with statistics that are made to be so.
    #[default]
    Own,
    /// One together, over the layer as it was before the first change: `layer_sequential`.
    Joint,
}

impl Sequential {
    /// The waves for the modifiers of an initialized lifecycle.
    ///
    /// # Errors
    /// Targets that match nothing, a model that cannot be traced.
    pub fn waves(&self, lifecycle: &CompressionLifecycle, inputs: TraceInputs) -> Result<Waves> {
        Waves::of(&self.model, &declared(lifecycle, &self.model)?, self.partition, inputs)
    }

    /// Runs batches through the model up to the last wave that concerns somebody, and commits wave by wave.
    ///
    /// # Errors
    /// What the model, the modifiers and the committer refuse.
    pub fn run<C: Committer>(
        &self,
        lifecycle: &mut CompressionLifecycle,
        batches: Vec<CalibrationBatch>,
        committer: &mut C,
    ) -> Result<Times, C::Error> {
        let mut course = self.begin(lifecycle, batches, committer)?;
        if course.declared.iter().any(|it| it.hears_unchanged) {
            course.unchanged = Some(course.boundaries.twin(&self.engine.budget)?);
        }
        let mut snapshot = None;
        for wave in std::mem::take(&mut course.waves) {
            let is_last = course.last.is_none_or(|it| wave.index >= it);
            if course.last.is_none_or(|it| wave.index > it) {
                break;
            }
            let Some(subgraph) = &wave.subgraph else { continue };
            let before = course.times;
            let held = self.model.hold(subgraph).map_err(Error::from)?;
            let sees_change = course.declared.iter().all(|it| it.propagates);
            if wave.index < course.resume_at {
                if !is_last {
                    self.propagate_unchanged(subgraph, &mut course, committer)?;
                }
                if !sees_change && !is_last {
                    self.propagate(subgraph, &mut course, committer)?;
                }
                let found = timed(&mut course.times.commit, || committer.replay(&wave, course.lifecycle))?;
                snapshot = found.or(snapshot);
            } else {
                if let Some(snapshot) = snapshot.take() {
                    course.lifecycle.restore(&snapshot).map_err(Error::from)?;
                }
                let data = self.calibrate(&wave, subgraph, &mut course, committer, sees_change || is_last)?;
                log_modules(course.lifecycle, &wave, &data)?;
                timed(&mut course.times.commit, || committer.commit(&wave, course.lifecycle, data))?;
            }
            // After the last wave nobody needs what comes out.
            if sees_change && !is_last {
                self.propagate(subgraph, &mut course, committer)?;
            }
            drop(held);
            committer.release(&wave, course.lifecycle)?;
            log_wave(course.lifecycle, &wave, course.times.since(&before), course.n_tokens())?;
        }
        let Course { lifecycle, times, .. } = course;
        if let Some(snapshot) = snapshot.take() {
            lifecycle.restore(&snapshot).map_err(Error::from)?;
        }
        lifecycle.signal(Signal::CalibrationEnd).map_err(Error::from)?;
        Ok(times)
    }

    /// Begins calibration: the waves, and batches before the first of them.
    pub(crate) fn begin<'a, C: Committer>(
        &self,
        lifecycle: &'a mut CompressionLifecycle,
        batches: Vec<CalibrationBatch>,
        committer: &C,
    ) -> Result<Course<'a>> {
        let is_masked = batches.iter().any(|it| it.mask.is_some());
        let inputs = if is_masked { TraceInputs::IdsAndMask } else { TraceInputs::Ids };
        lifecycle.signal(Signal::CalibrationStart)?;
        let declared = declared(lifecycle, &self.model)?;
        let waves = Waves::of(&self.model, &declared, self.partition, inputs)?;
        self.check_unchanged(lifecycle, &declared, &waves)?;
        let Waves { kind, waves, divisions } = waves;
        let is_tapped = |wave: &Wave| declared.iter().flat_map(|it| &it.taps).any(|it| wave.ids.contains(&it.0));
        let last = waves.iter().rposition(|it| committer.concerns(it) || is_tapped(it));
        let is_open = |wave: &&Wave| committer.concerns(wave) && !committer.is_done(wave);
        let resume_at = waves.iter().find(is_open).map_or(waves.len(), |it| it.index);
        let mut boundaries = Boundaries::new(batches.len(), self.spill.clone());
        let shapes = batches.iter().map(|it| it.ids.shape().to_vec()).collect();
        for (idx, batch) in batches.into_iter().enumerate() {
            let values = std::iter::once(batch.ids).chain(batch.mask);
            let named = inputs.names().iter().map(|it| (*it).to_owned()).zip(values).collect();
            boundaries.update(idx, &IndexSet::new(), named, &self.engine.budget)?;
        }
        // Windows run side by side only where memory has no ceiling that they would share.
        let is_single = self.engine.budget.limit_bytes().is_some();
        let lanes = Arc::new(Lanes::new(if is_single { 1 } else { rayon::current_num_threads() })?);
        lifecycle.state.model_mut()?.as_engine::<ModelStore>()?.set_lanes(Arc::clone(&lanes));
        let times = Times::default();
        Ok(Course {
            declared,
            kind,
            divisions,
            waves,
            last,
            resume_at,
            boundaries,
            unchanged: None,
            shapes,
            lanes,
            times,
            lifecycle,
        })
    }

    /// Refuses a modifier that is to hear a wave as it was in a pass behind the change of another.
    pub(crate) fn check_unchanged(
        &self,
        lifecycle: &CompressionLifecycle,
        declared: &[Declared],
        waves: &Waves,
    ) -> Result<()> {
        let passes = |wave| waves.divisions.passes(&self.model, (waves.kind, wave), declared, hearing(lifecycle));
        let late = |wave| passes(wave).into_iter().skip(1).flatten().find(|it| declared[*it].hears_unchanged);
        let is_own = self.passes == Passes::Own;
        let late = waves.waves.iter().filter(|_| is_own).find_map(late);
        let name = |idx: usize| lifecycle.modifiers()[idx].modifier().type_name().to_owned();
        late.map_or(Ok(()), |it| Err(ErrorKind::Unchanged { modifier: name(it) }.into()))
    }

    /// Lets modifiers hear a wave and change it; gives what they say of it.
    fn calibrate<C: Committer>(
        &self,
        wave: &Wave,
        subgraph: &Subgraph,
        course: &mut Course<'_>,
        committer: &C,
        sees_change: bool,
    ) -> Result<Vec<ModifierData>, C::Error> {
        let everyone = hearing(course.lifecycle);
        let passes = match self.passes {
            Passes::Own => course.divisions.passes(&self.model, (course.kind, wave), &course.declared, everyone),
            Passes::Joint => vec![everyone],
        };
        let given = Given::of(course, (wave, subgraph), &self.engine.budget)?;
        let mut data = Vec::new();
        let mut propagated = sees_change;
        let is_last = course.last.is_none_or(|it| wave.index >= it);
        for (pass, modifiers) in passes.into_iter().enumerate() {
            let begin = Instant::now();
            self.listen(wave, subgraph, course, &modifiers, committer)?;
            course.times.listen += begin.elapsed();
            if pass == 0 && !is_last {
                self.propagate_unchanged(subgraph, course, committer)?;
            }
            if !std::mem::replace(&mut propagated, true) {
                // Later waves see the wave as it was before the first change.
                self.propagate(subgraph, course, committer)?;
            }
            for (at, &idx) in modifiers.iter().enumerate() {
                let begin = Instant::now();
                let (run, whole) = ((&*self.model, &self.engine), (wave, Some(subgraph)));
                data.extend(change_as_promised(run, whole, course, idx, given.as_ref())?);
                if self.passes == Passes::Own {
                    // Those after it have heard what it divides.
                    let behind = &modifiers[at + 1..];
                    course.divisions.tell(&self.model, &course.declared, course.lifecycle, (idx, behind))?;
                }
                course.times.change += begin.elapsed();
            }
            let store = course.lifecycle.state.model_mut().map_err(Error::from)?;
            store.as_engine::<ModelStore>().map_err(Error::from)?.forget_kept();
        }
        Ok(data)
    }

    /// Runs a subgraph over all batches as far as these modifiers tap it.
    pub(crate) fn listen<C: Committer>(
        &self,
        wave: &Wave,
        subgraph: &Subgraph,
        course: &mut Course<'_>,
        modifiers: &[usize],
        committer: &C,
    ) -> Result<(), C::Error> {
        let chosen: Vec<&Declared> = modifiers.iter().map(|it| &course.declared[*it]).collect();
        let taps = chosen.iter().flat_map(|it| &it.taps).filter(|it| wave.ids.contains(&it.0));
        let taps: BTreeSet<(ModuleId, TapPoint)> = taps.copied().collect();
        if taps.is_empty() {
            return Ok(());
        }
        course.times.passes += 1;
        let reruns = chosen.iter().flat_map(|it| &it.reruns).filter(|it| wave.ids.contains(it));
        let reruns: BTreeSet<ModuleId> = reruns.copied().collect();
        let heard = taps.iter().copied().chain(reruns.iter().map(|it| (*it, TapPoint::Input))).collect();
        let extent = extent_for(&self.model, (course.kind, &course.divisions), subgraph, &heard);
        let is_rerun = !reruns.is_empty();
        let hears_unchanged = chosen.iter().any(|it| it.hears_unchanged);
        let listeners: Mutex<Vec<Listener>> = Mutex::default();
        let engine = self.engine.with_routing(self.routing);
        let names = |it| self.model.tree().path(it).to_owned();
        // Kept inputs belong to single batches.
        let joints = if is_rerun { None } else { Joints::of(subgraph) };
        let windows = self.windows(course, joints.as_ref());
        let lanes = Arc::clone(&course.lanes);
        let course = RefCell::new(course);
        let begin = |idx: usize| {
            committer.check()?;
            let course = course.borrow();
            let inputs = |it| self.inputs(subgraph, it, &windows[idx], joints.as_ref());
            let unchanged = course.unchanged.as_ref().filter(|_| hears_unchanged);
            Ok((inputs(&course.boundaries)?, unchanged.map(inputs).transpose()?))
        };
        let hear = |(values, unchanged): (HashMap<String, Tensor>, Option<HashMap<String, Tensor>>)| {
            let free = listeners.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let listener = free.unwrap_or_else(|| Listener::new(taps.clone(), reruns.clone()));
            let run = Run { engine: &engine, hooks: Some(&listener.hooks) };
            let hear = |mut values: HashMap<String, Tensor>| {
                self.model.run_subgraph(run, subgraph, |name| values.remove(name), &extent)?;
                listener.take(&self.engine.budget)
            };
            let heard = (hear(values)?, unchanged.map(hear).transpose()?);
            listeners.lock().unwrap_or_else(PoisonError::into_inner).push(listener);
            Ok::<_, Error>(heard)
        };
        let end = |idx: usize, (heard, unchanged)| {
            let (window, course) = (&windows[idx], &mut **course.borrow_mut());
            course.lifecycle.state.current_batch_idx = Some(window.start);
            let handed = hand_over((heard, unchanged), course.lifecycle, modifiers, &names, window.clone());
            match handed {
                Ok(()) => Ok(()),
                Err(error) => Err(self.named(error, &engine, subgraph, course, window, joints.as_ref())?.into()),
            }
        };
        lanes.stream(windows.len(), begin, hear, end)
    }

    /// Runs a subgraph over all batches, unheard, for the next.
    pub(crate) fn propagate<C: Committer>(
        &self,
        subgraph: &Subgraph,
        course: &mut Course<'_>,
        committer: &C,
    ) -> Result<(), C::Error> {
        self.flow(subgraph, course, committer, |it| Some(&mut it.boundaries))
    }

    /// Runs a subgraph as it was before any change over what flows where nothing has been changed.
    fn propagate_unchanged<C: Committer>(
        &self,
        subgraph: &Subgraph,
        course: &mut Course<'_>,
        committer: &C,
    ) -> Result<(), C::Error> {
        self.flow(subgraph, course, committer, |it| it.unchanged.as_mut())
    }

    /// Runs a subgraph over all batches of one stream, where there is one.
    fn flow<C: Committer>(
        &self,
        subgraph: &Subgraph,
        course: &mut Course<'_>,
        committer: &C,
        stream: for<'a> fn(&'a mut Course<'_>) -> Option<&'a mut Boundaries>,
    ) -> Result<(), C::Error> {
        if stream(course).is_none() {
            return Ok(());
        }
        let started = Instant::now();
        // Rows that experts have been handed and that the next wave hears are those that modifiers are to see.
        let routing = if gives_routed_rows(subgraph) { self.routing } else { Routing::Chosen };
        let engine = self.engine.with_routing(routing);
        let run = Run { engine: &engine, hooks: None };
        let joints = Joints::of(subgraph);
        let windows = self.windows(course, joints.as_ref());
        let lanes = Arc::clone(&course.lanes);
        {
            let course = RefCell::new(&mut *course);
            let begin = |idx: usize| {
                committer.check()?;
                let mut course = course.borrow_mut();
                let boundaries = stream(&mut course);
                let inputs = boundaries.map(|it| self.inputs(subgraph, it, &windows[idx], joints.as_ref()));
                Ok::<_, C::Error>((idx, inputs.transpose()?.unwrap_or_default()))
            };
            let run = |(idx, mut values): (usize, HashMap<String, Tensor>)| {
                let produced = self.model.run_subgraph(run, subgraph, |name| values.remove(name), &Extent::Whole)?;
                let mut carried = vec![IndexMap::new(); windows[idx].len()];
                for (name, value) in produced.carried {
                    if !is_finite(&value, &self.engine.budget)? {
                        return Ok(Err(name));
                    }
                    let along = joints.as_ref().map_or(Along::Nothing, |it| it.along(&name));
                    let parts = split(&value, along, carried.len(), &self.engine.budget)?;
                    carried.iter_mut().zip(parts).for_each(|(carried, part)| drop(carried.insert(name.clone(), part)));
                }
                Ok::<_, Error>(Ok(carried))
            };
            let end = |idx: usize, carried: Result<Vec<IndexMap<String, Tensor>>, String>| {
                let (window, course) = (&windows[idx], &mut **course.borrow_mut());
                let carried = match carried {
                    Ok(carried) => carried,
                    Err(module) => {
                        let error = ErrorKind::NotFinite { module, batch: window.start }.into();
                        return Err(self.named(error, &engine, subgraph, course, window, joints.as_ref())?.into());
                    }
                };
                for (batch, carried) in window.clone().zip(carried) {
                    if let Some(boundaries) = stream(course) {
                        boundaries.update(batch, &subgraph.consumed_names, carried, &self.engine.budget)?;
                    }
                }
                Ok(())
            };
            lanes.stream(windows.len(), begin, run, end)?;
        }
        course.times.propagate += started.elapsed();
        Ok(())
    }

    /// The error with the module that gives the first value that is not finite, which a further run of the window finds.
    fn named(
        &self,
        error: Error,
        engine: &Engine,
        subgraph: &Subgraph,
        course: &Course<'_>,
        window: &Range<usize>,
        joints: Option<&Joints>,
    ) -> Result<Error> {
        let ErrorKind::NotFinite { module, batch } = error.kind() else { return Ok(error) };
        let hooks = Hooks::new();
        let watch = NonFiniteWatch::new(&self.model, &hooks, &engine.budget);
        let run = Run { engine, hooks: Some(&hooks) };
        let mut values = self.inputs(subgraph, &course.boundaries, window, joints)?;
        self.model.run_subgraph(run, subgraph, |name| values.remove(name), &Extent::Whole)?;
        let module = watch.first().unwrap_or_else(|| module.clone());
        Ok(ErrorKind::NotFinite { module, batch: *batch }.into())
    }

    /// Which batches run together.
    fn windows(&self, course: &Course<'_>, joints: Option<&Joints>) -> Vec<Range<usize>> {
        windows(&course.shapes, if joints.is_some() { self.window } else { 1 })
    }

    /// What a subgraph takes, of the batches of a window.
    fn inputs(
        &self,
        subgraph: &Subgraph,
        boundaries: &Boundaries,
        window: &Range<usize>,
        joints: Option<&Joints>,
    ) -> Result<HashMap<String, Tensor>> {
        let budget = &self.engine.budget;
        let mut batches = Vec::with_capacity(window.len());
        for batch in window.clone() {
            batches.push(boundaries.fetch(batch, &subgraph.input_names, budget)?);
        }
        let mut values = HashMap::new();
        for name in &subgraph.input_names {
            let parts: Vec<Tensor> = batches.iter_mut().filter_map(|it| it.remove(name)).collect();
            let along = joints.map_or(Along::Nothing, |it| it.along(name));
            if let Some(value) = join(&parts, along, budget)? {
                values.insert(name.clone(), value);
            }
        }
        Ok(values)
    }
}
