//! The event state machines of releases 0.1 to 0.4: which events one external call stands for.

use crate::{
    Result,
    error::ErrorKind,
    event::{Event, EventType},
};

/// Turns the calls of a training loop into events that carry step and batch counters.
///
/// Which of the two machines runs is decided by the first call, see [`EventLifecycle::for_first`].
#[derive(Clone, Debug)]
pub struct EventLifecycle {
    counters: Event,
    style: Style,
    type_first: EventType,
    last_type: Option<EventType>,
    skip_post_step: bool,
}

/// Which calls a training loop makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// The loop reports every batch.
    Callbacks,
    /// Only the optimizer, and perhaps the loss, is wrapped.
    Optimizer,
}

impl EventLifecycle {
    /// A machine of a given style; `start` gives the counters to begin with.
    pub fn new(style: Style, type_first: EventType, start: &Event) -> Self {
        let counters = Event { type_: None, ..start.clone() };
        Self { counters, style, type_first, last_type: None, skip_post_step: false }
    }

    /// The machine that the first call of a loop asks for.
    ///
    /// # Errors
    /// A first call that is no start of a batch, loss, or optimizer step.
    pub fn for_first(type_first: EventType, start: &Event) -> Result<Self> {
        let style = match type_first {
            EventType::BatchStart => Style::Callbacks,
            EventType::LossCalculated | EventType::OptimPreStep => Style::Optimizer,
            event_type => return Err(ErrorKind::EventSequence { event_type, last: None }.into()),
        };
        Ok(Self::new(style, type_first, start))
    }

    /// The call before this one.
    pub fn last_type(&self) -> Option<EventType> {
        self.last_type
    }

    /// The events that a call stands for; none where the optimizer step is one of several invocations.
    ///
    /// # Errors
    /// A call that cannot follow the last one; the machine is unchanged then.
    pub fn events_from_type(&mut self, event_type: EventType) -> Result<Vec<Event>> {
        let events = match self.style {
            Style::Callbacks => self.callback_events(event_type),
            Style::Optimizer => self.optimizer_events(event_type),
        };
        let events = events.ok_or(ErrorKind::EventSequence { event_type, last: self.last_type })?;
        self.last_type = Some(event_type);
        Ok(events)
    }

    fn callback_events(&mut self, event_type: EventType) -> Option<Vec<Event>> {
        use EventType as T;
        Some(match (event_type, self.last_type) {
            (T::BatchStart, None | Some(T::BatchEnd | T::OptimPostStep)) if self.type_first == T::BatchStart => {
                self.count_batch();
                vec![self.event(T::BatchStart)]
            }
            (T::LossCalculated, Some(T::BatchStart)) => vec![self.event(T::LossCalculated)],
            (T::OptimPreStep, Some(T::LossCalculated)) => {
                self.skip_post_step = !self.at_invocation();
                self.counters.global_step = self.counters.global_step.saturating_add(1);
                self.unless_skipped(T::OptimPreStep)
            }
            (T::OptimPostStep, Some(T::OptimPreStep)) => self.unless_skipped(T::OptimPostStep),
            (T::BatchEnd, Some(T::OptimPostStep | T::LossCalculated)) => vec![self.event(T::BatchEnd)],
            _ => return None,
        })
    }

    fn optimizer_events(&mut self, event_type: EventType) -> Option<Vec<Event>> {
        use EventType as T;
        let with_loss = self.type_first == T::LossCalculated;
        Some(match (event_type, self.last_type) {
            (T::LossCalculated, None | Some(T::LossCalculated | T::OptimPostStep)) if with_loss => {
                let at_step = self.count_batch();
                let mut events = vec![self.event(T::BatchStart), self.event(T::LossCalculated)];
                if !at_step {
                    events.push(self.event(T::BatchEnd));
                }
                events
            }
            (T::OptimPreStep, Some(T::LossCalculated)) if with_loss => {
                self.skip_post_step = !self.at_invocation();
                self.unless_skipped(T::OptimPreStep)
            }
            (T::OptimPreStep, None | Some(T::OptimPostStep)) if !with_loss => {
                let mut events = vec![self.event(T::BatchStart)];
                while !self.count_batch() {
                    events.push(self.event(T::BatchEnd));
                    events.push(self.event(T::BatchStart));
                }
                self.skip_post_step = !self.at_invocation();
                events.extend(self.unless_skipped(T::OptimPreStep));
                events
            }
            (T::OptimPostStep, Some(T::OptimPreStep)) => {
                let mut events = self.unless_skipped(T::OptimPostStep);
                events.push(self.event(T::BatchEnd));
                events
            }
            _ => return None,
        })
    }

    fn event(&self, type_: EventType) -> Event {
        Event { type_: Some(type_), ..self.counters.clone() }
    }

    fn unless_skipped(&self, type_: EventType) -> Vec<Event> {
        if self.skip_post_step { Vec::new() } else { vec![self.event(type_)] }
    }

    /// Counts a batch and says whether it completes an optimizer step.
    fn count_batch(&mut self) -> bool {
        self.counters.global_batch = self.counters.global_batch.saturating_add(1);
        completes(self.counters.global_batch, self.counters.batches_per_step)
    }

    /// Whether the next step completes an invocation.
    fn at_invocation(&self) -> bool {
        completes(self.counters.global_step.saturating_add(1), Some(self.counters.invocations_per_step))
    }
}

/// Whether a count is a whole number of groups.
fn completes(count: i64, group: Option<i64>) -> bool {
    // The last countable batch completes its step, so that counting always ends.
    count == i64::MAX || group.is_none_or(|group| group < 2 || count % group == 0)
}
