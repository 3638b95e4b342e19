//! A pass over all batches that only hears what modifiers tapped.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use graph::ModuleId;
use lifecycle::{Activation, CompressionLifecycle, HookView, Sample, Tap, TapPoint};
use models::{HookGuard, Hooks, is_finite};
use tensor::{Budget, Tensor};

use crate::{
    activation::TensorActivation,
    error::{ErrorKind, Result},
    store::ModelStore,
};

/// What is heard of one batch.
struct Heard {
    module: ModuleId,
    point: TapPoint,
    values: Vec<Tensor>,
}

/// A value as it is handed over.
pub(crate) struct Value {
    module: ModuleId,
    point: TapPoint,
    tapped: Option<Tapped>,
    /// What the module was given, if it will run again.
    kept: Option<Vec<Tensor>>,
}

/// A dense value, the number of its edge in the graph, and whether all of it is finite.
struct Tapped {
    value: Tensor,
    edge: usize,
    is_finite: bool,
}

/// Hooks that write down what they hear, until it is handed over.
pub(crate) struct Listener {
    pub(crate) hooks: Hooks,
    _guards: Vec<HookGuard>,
    log: Arc<Mutex<Vec<Heard>>>,
    taps: BTreeSet<(ModuleId, TapPoint)>,
    kept: BTreeSet<ModuleId>,
}

impl Listener {
    /// Hooks for these taps, and for the inputs of modules that will run again.
    pub(crate) fn new(taps: BTreeSet<(ModuleId, TapPoint)>, kept: BTreeSet<ModuleId>) -> Self {
        let hooks = Hooks::new();
        let log: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let inputs = kept.iter().map(|it| (*it, TapPoint::Input));
        let all: BTreeSet<_> = taps.iter().copied().chain(inputs).collect();
        let hook = |&(module, point): &(ModuleId, TapPoint)| {
            let log = Arc::clone(&log);
            let tap = match point {
                TapPoint::Input => models::Tap::Input,
                TapPoint::Output => models::Tap::Output,
                TapPoint::Query => models::Tap::Query,
                TapPoint::Key => models::Tap::Key,
                TapPoint::Value => models::Tap::Value,
            };
            hooks.add(module, tap, move |observation| {
                let values = observation.values.iter().flatten().cloned().collect();
                log.lock().unwrap_or_else(PoisonError::into_inner).push(Heard { module, point, values });
                Ok(None)
            })
        };
        let guards = all.iter().map(hook).collect();
        Self { hooks, _guards: guards, log, taps, kept }
    }

    /// Takes what was heard, and finds which values are the same and whether they are finite.
    ///
    /// # Errors
    /// A copy of a view that is not dense, where the budget does not allow it.
    pub(crate) fn take(&self, budget: &Budget) -> Result<Vec<Value>> {
        let heard = std::mem::take(&mut *self.log.lock().unwrap_or_else(PoisonError::into_inner));
        // The tensors of a window live together here, so that none takes another's place.
        let mut leaders: Vec<(Tensor, (ModuleId, TapPoint))> = Vec::new();
        let mut taken = Vec::with_capacity(heard.len());
        for Heard { module, point, values } in heard {
            let value = values.first().filter(|_| self.taps.contains(&(module, point)));
            let mut tapped = None;
            if let Some(value) = value {
                let known = leaders.iter().find(|it| it.0.is_same(value)).map(|it| it.1);
                let leader = known.unwrap_or((module, point));
                if known.is_none() {
                    leaders.push((value.clone(), leader));
                }
                let is_finite = known.is_some() || is_finite(value, budget)?;
                // Five points a module; the same in every batch.
                let edge = leader.0.index() * 5 + leader.1 as usize;
                tapped = Some(Tapped { value: value.dense(budget).map_err(models::Error::from)?, edge, is_finite });
            }
            let is_kept = point == TapPoint::Input && self.kept.contains(&module);
            taken.push(Value { module, point, tapped, kept: is_kept.then_some(values) });
        }
        Ok(taken)
    }
}

/// Hands over what was heard of a window of batches to these modifiers, batch by batch, beside what was heard of the same window where
/// nothing has been changed.
///
/// # Errors
/// `NotFinite` with the module that is tapped, and what the modifiers refuse.
pub(crate) fn hand_over(
    (heard, unchanged): (Vec<Value>, Option<Vec<Value>>),
    lifecycle: &mut CompressionLifecycle,
    modifiers: &[usize],
    names: &dyn Fn(ModuleId) -> String,
    window: Range<usize>,
) -> Result<()> {
    let mut calls: HashMap<(ModuleId, TapPoint), usize> = HashMap::new();
    let mut samples = Vec::with_capacity(heard.len());
    // The same graph is heard in the same order.
    let mut unchanged = unchanged.into_iter().flatten();
    for Value { module, point, tapped, kept } in heard {
        let beside = unchanged.next().and_then(|it| it.tapped);
        if let Some(values) = kept {
            let store = lifecycle.state.model_mut()?.as_engine::<ModelStore>()?;
            store.keep(module, window.start, values);
        }
        let Some(Tapped { value, edge, is_finite }) = tapped else { continue };
        if !is_finite || beside.as_ref().is_some_and(|it| !it.is_finite) {
            return Err(ErrorKind::NotFinite { module: names(module), batch: window.start }.into());
        }
        let call = calls.entry((module, point)).or_insert(0);
        // Experts may have been given other tokens.
        let beside = beside.map(|it| it.value).filter(|it| it.shape() == value.shape());
        samples.push((Tap::new(names(module), point), *call, edge, value, beside));
        *call += 1;
    }
    let n_batches = window.len();
    let outer = lifecycle.focus();
    for (idx, batch_idx) in window.enumerate() {
        let masks = lifecycle.state.loss_masks.as_ref();
        let mask = masks.and_then(|it| it.get(batch_idx)).and_then(Option::clone);
        for (tap, call_idx, edge, value, beside) in &samples {
            let rows = value.shape().first().copied().unwrap_or(0) / n_batches;
            let part = |it: &Tensor| if n_batches == 1 { Ok(it.clone()) } else { it.slice(0, idx * rows, rows) };
            let value = TensorActivation(part(value)?);
            let beside = beside.as_ref().map(part).transpose()?.map(TensorActivation);
            let unchanged = beside.as_ref().map(|it| it as &dyn Activation);
            let (call_idx, edge, mask) = (*call_idx, Some(*edge), mask.as_deref());
            let sample = Sample { batch_idx, call_idx, edge, value: &value, unchanged, mask };
            for &modifier in modifiers {
                lifecycle.set_focus(Some(modifier));
                let fed = lifecycle.running().1.feed(tap, &sample, &HookView::ALL);
                lifecycle.set_focus(outer);
                fed?;
            }
        }
    }
    Ok(())
}
