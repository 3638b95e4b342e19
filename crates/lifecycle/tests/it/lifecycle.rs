//! `lifecycle_order`, `lifecycle_preconditions`, `lifecycle_traces`.

use std::sync::Arc;

use lifecycle::{
    CompressionLifecycle, CompressionSession, EventPayload, EventType, InitializeArgs, Modifier, RecipeInput, Result,
    Signal, State, StateUpdate, error::ErrorKind,
};
use serde_json::{Value, json};

use crate::toys::{NamedModel, Toy, cases, flags, kind, letter, outcome};

fn loss() -> EventPayload {
    EventPayload { loss: Some(1.0), modules: Some(Vec::new()), ..EventPayload::default() }
}

fn fresh(initialize: bool, finalize: bool) -> CompressionLifecycle {
    let mut lifecycle = CompressionLifecycle::default();
    if initialize {
        lifecycle.initialize(InitializeArgs::default()).unwrap();
    }
    if finalize {
        lifecycle.finalize().unwrap();
    }
    lifecycle
}

#[test]
fn event_orders_are_accepted_and_rejected_as_by_the_reference() {
    for case in cases("lifecycle_order.json", 1080) {
        let mut lifecycle = fresh(true, false);
        let sequence = case[0].as_str().unwrap();
        let mut accepted = String::new();
        for at in 0..sequence.len() {
            let result = lifecycle.event(letter(&sequence[at..=at]), Some(0), loss());
            accepted.push(if result.is_ok() { '1' } else { '0' });
            if let Err(error) = result {
                assert!(matches!(error.kind(), ErrorKind::EventOrder { .. }), "{error}");
                assert_eq!(kind(&error), "ValueError");
            }
        }
        assert_eq!(accepted, case[1].as_str().unwrap(), "{case}");
        assert_eq!(lifecycle.last_event_type(), letter(case[2].as_str().unwrap()), "{case}");
    }
}

fn data(result: Result<Vec<Value>>) -> Result<Value> {
    result.map(Value::from)
}

fn event(lifecycle: &mut CompressionLifecycle, event_type: EventType, global_step: Option<i64>) -> Result<Value> {
    data(lifecycle.event(event_type, global_step, EventPayload::default()))
}

/// The outcome of a named precondition, or `None` where Rust has no such thing to test.
fn precondition(name: &str) -> Option<Result<Value>> {
    use EventType as T;
    Some(match name {
        "event before initialize" => event(&mut fresh(false, false), T::BatchStart, Some(0)),
        "event after finalize" => event(&mut fresh(true, true), T::BatchStart, Some(0)),
        "event INITIALIZE" => event(&mut fresh(true, false), T::Initialize, Some(0)),
        "event FINALIZE" => event(&mut fresh(true, false), T::Finalize, Some(0)),
        // A payload without a loss is the same thing here.
        "event loss without loss kwarg" | "event loss with loss None" => {
            event(&mut fresh(true, false), T::LossCalculated, Some(0))
        }
        "order state after rejected loss event (start, then loss without value)" => {
            let mut lifecycle = fresh(true, false);
            event(&mut lifecycle, T::BatchStart, Some(0)).unwrap();
            event(&mut lifecycle, T::LossCalculated, Some(0)).unwrap_err();
            let last = ["S", "L"].into_iter().find(|it| letter(it) == lifecycle.last_event_type());
            Ok(json!(last))
        }
        "finalize before initialize" => data(fresh(false, false).finalize()),
        "finalize twice" => data(fresh(true, true).finalize()),
        "initialize twice returns null" => {
            let mut lifecycle = fresh(false, false);
            let mut call = || lifecycle.initialize(InitializeArgs::default()).unwrap();
            Ok(json!([call(), call()]))
        }
        "event returns list" => event(&mut fresh(true, false), T::BatchStart, Some(0)),
        "global_step default" => {
            let mut lifecycle = fresh(true, false);
            event(&mut lifecycle, T::BatchStart, Some(7)).unwrap();
            Ok(json!(lifecycle.global_step()))
        }
        // The default of the reference's argument, 0, is written out here.
        "global_step reset to 0 when omitted" | "global_step None keeps old" => {
            let mut lifecycle = fresh(true, false);
            event(&mut lifecycle, T::BatchStart, Some(7)).unwrap();
            let omitted = if name.contains("omitted") { Some(0) } else { None };
            event(&mut lifecycle, T::BatchEnd, omitted).unwrap();
            Ok(json!(lifecycle.global_step()))
        }
        "reset after finalize allows initialize" => {
            let mut lifecycle = fresh(true, true);
            lifecycle.reset();
            let data = lifecycle.initialize(InitializeArgs::default()).unwrap();
            Ok(json!([data, lifecycle.initialized(), lifecycle.finalized()]))
        }
        "session.reset_stage keeps the model" => {
            let mut session = CompressionSession::default();
            let state = StateUpdate { model: Some(NamedModel::boxed("m")), ..StateUpdate::default() };
            session.initialize(InitializeArgs { state, ..InitializeArgs::default() }).unwrap();
            session.finalize().unwrap();
            session.reset_stage();
            let name = session.state_mut().model_mut().unwrap().as_engine::<NamedModel>().unwrap().0;
            Ok(json!([session.lifecycle.initialized(), session.lifecycle.finalized(), name]))
        }
        "callbacks.event INITIALIZE" => {
            let mut session = CompressionSession::default();
            session.initialize(InitializeArgs::default()).unwrap();
            let mut callbacks = session.callbacks();
            callbacks.event(T::Initialize, EventPayload::default()).map(|_| Value::Null)
        }
        "callbacks.batch_start before initialize" => {
            CompressionSession::default().callbacks().batch_start(None).map(|_| Value::Null)
        }
        "initialized count of empty recipe" => Ok(json!(fresh(true, false).modifiers().len())),
        "state.update" => Ok(state_update()),
        // Sessions are values, and data is shared, never copied.
        "nested create_session"
        | "create_session restores on exception"
        | "another thread sees the global session, not the active one"
        | "state.update copy_data" => return None,
        other => panic!("no test for `{other}`"),
    })
}

fn state_update() -> Value {
    let mut state = State::default();
    let rest = json!({"device": "cuda:0", "foo": 5});
    let left_over = state.update(StateUpdate {
        model: Some(NamedModel::boxed("1")),
        optimizer: Some(Arc::new(2)),
        train_data: Some(Arc::new(vec![1])),
        calib_data: Some(Arc::new(vec![2])),
        start: Some(1.0),
        steps_per_epoch: Some(3),
        rest: rest.as_object().unwrap().clone(),
        ..StateUpdate::default()
    });
    let list = |it: &Option<lifecycle::Attachment>| it.as_ref().unwrap().downcast_ref::<Vec<i32>>().unwrap().clone();
    json!({
        "model": state.model_mut().unwrap().as_engine::<NamedModel>().unwrap().0.parse::<i64>().unwrap(),
        "optimizer": state.optimizer.as_ref().unwrap().downcast_ref::<i32>(),
        "optim_wrapped": state.optim_wrapped,
        "train": list(&state.data.train),
        "calib": list(&state.data.calib),
        "device": state.hardware.device,
        "left_over_kwargs": left_over,
        "ready": state.compression_ready(),
    })
}

#[test]
fn misuse_is_refused_with_the_references_kind() {
    let mut inapplicable = 0;
    for case in cases("lifecycle_preconditions.json", 24) {
        let Some(result) = precondition(case["name"].as_str().unwrap()) else {
            inapplicable += 1;
            continue;
        };
        let mut expected = case.clone();
        expected.as_object_mut().unwrap().remove("name");
        assert_eq!(outcome(result), expected, "{case}");
    }
    assert_eq!(inapplicable, 4);
}

#[test]
fn data_of_the_state_is_shared_and_an_update_keeps_what_it_does_not_name() {
    let data: lifecycle::Attachment = Arc::new(vec![1, 2]);
    let mut state = State::default();
    state.update(StateUpdate { calib_data: Some(Arc::clone(&data)), ..StateUpdate::default() });
    state.update(StateUpdate { optimizer: Some(Arc::new(())), ..StateUpdate::default() });
    assert!(Arc::ptr_eq(state.data.calib.as_ref().unwrap(), &data));
    assert!(!state.compression_ready());
    state.update(StateUpdate {
        model: Some(NamedModel::boxed("m")),
        attach_optim_callbacks: Some(false),
        ..StateUpdate::default()
    });
    assert!(state.compression_ready());
    // The flag belongs to the update that brings the optimizer.
    assert_eq!(state.optim_wrapped, Some(true));
    assert_eq!(kind(&State::default().model_mut().map(|_| ()).unwrap_err()), "AttributeError");
}

/// A golden trace, driven with the steps that `step` gives for the golden's.
fn trace(case: &Value, step: impl Fn(i64) -> i64, mut check: impl FnMut(&Value, Value)) {
    let toy = Toy::new(case["start"].as_f64(), case["end"].as_f64());
    let calls = toy.calls.clone();
    let mut toy: Option<Box<dyn Modifier>> = Some(Box::new(toy));
    let mut lifecycle = CompressionLifecycle::default();
    for row in case["trace"].as_array().unwrap() {
        calls.lock().unwrap().clear();
        let result = match row[0].as_str() {
            Some("init") => {
                let recipe = toy.take().map(RecipeInput::from);
                lifecycle.initialize(InitializeArgs { recipe, ..InitializeArgs::default() }).map(|it| json!(it))
            }
            Some("fin") => data(lifecycle.finalize()),
            Some(other) => data(lifecycle.event(letter(other), Some(step(0)), loss())),
            None => {
                let global_step = step(row[0][1].as_i64().unwrap());
                data(lifecycle.event(letter(row[0][0].as_str().unwrap()), Some(global_step), loss()))
            }
        };
        let error = result.as_ref().err().map(kind);
        let calls = calls.lock().unwrap().clone();
        check(row, json!([row[0], calls, flags(&lifecycle.modifiers()[0]), error, result.unwrap_or_default()]));
    }
}

#[test]
fn a_lifecycle_whose_step_stays_zero_calls_back_as_the_reference() {
    // The reference's lifecycle never tells modifiers the step, which is the same as telling them 0.
    for case in cases("lifecycle_traces.json", 13) {
        trace(&case, |_| 0, |row, found| assert_eq!(found, *row, "{case}"));
    }
}

#[test]
fn a_lifecycle_that_counts_steps_starts_and_ends_modifiers_in_time() {
    let mut starts_later = 0;
    for case in cases("lifecycle_traces.json", 13) {
        let (start, end) = (case["start"].as_f64(), case["end"].as_f64());
        let runs = |step: f64| start.is_some_and(|it| it <= step) && end.is_none_or(|it| step < it);
        let first_start = [0.0, 1.0, 2.0].into_iter().find(|it| runs(*it));
        let first_end = end.and_then(|end| [0.0, 1.0, 2.0].into_iter().find(|it| *it >= end));
        trace(
            &case,
            |it| it,
            |row, found| {
                let Some(step) = row[0][1].as_f64() else { return };
                let calls = found[1].as_array().unwrap();
                let event = row[0][0].as_str().unwrap();
                let starts = calls.contains(&json!("start"));
                assert_eq!(starts, event == "S" && step > 0.0 && first_start == Some(step), "{found} {case}");
                assert_eq!(calls.contains(&json!("end")), event == "E" && first_end == Some(step), "{found} {case}");
                starts_later += usize::from(starts);
            },
        );
    }
    // Cases (1, 3), (0.5, 1.5) start at step 1, (2, 2) and (3, 1) never, (10, 20) and (2.5, -) too late.
    assert_eq!(starts_later, 2);
}

#[test]
fn callbacks_count_steps_and_batches() {
    let mut session = CompressionSession::default();
    let toy = Toy::new(Some(2.0), Some(3.0));
    let calls = toy.calls.clone();
    let toy: Box<dyn Modifier> = Box::new(toy);
    session.initialize(InitializeArgs { recipe: Some(toy.into()), ..InitializeArgs::default() }).unwrap();
    let mut seen = Vec::new();
    for batch in 0..8 {
        let mut callbacks = session.callbacks();
        callbacks.batch_start(None).unwrap();
        let state = callbacks.loss_calculated(0.5).unwrap();
        assert_eq!(state.loss, Some(0.5));
        // Two batches make a step.
        if batch % 2 == 1 {
            callbacks.optim_pre_step().unwrap();
            callbacks.optim_post_step().unwrap();
        }
        callbacks.batch_end().unwrap();
        seen.push(session.lifecycle.global_step());
    }
    assert_eq!(seen, [0, 0, 1, 1, 2, 2, 3, 3]);
    let calls = calls.lock().unwrap();
    assert_eq!(calls.iter().filter(|it| **it == "start").count(), 1);
    assert_eq!(calls.iter().filter(|it| **it == "end").count(), 1);
}

#[test]
fn schedules_count_epochs_where_their_length_is_known_and_go_on_from_the_start() {
    let run = |state: StateUpdate| {
        let toy = Toy::new(Some(1.5), None);
        let calls = toy.calls.clone();
        let toy: Box<dyn Modifier> = Box::new(toy);
        let mut session = CompressionSession::default();
        session.initialize(InitializeArgs { recipe: Some(toy.into()), state, ..InitializeArgs::default() }).unwrap();
        for _ in 0..8 {
            let mut callbacks = session.callbacks();
            callbacks.batch_start(None).unwrap();
            callbacks.optim_post_step().unwrap();
            callbacks.batch_end().unwrap();
            if calls.lock().unwrap().contains(&"start") {
                break;
            }
        }
        session.lifecycle.global_step()
    };
    let epochs = |start| StateUpdate { steps_per_epoch: Some(4), start, ..StateUpdate::default() };
    assert_eq!(run(epochs(None)), 6);
    assert_eq!(run(epochs(Some(1.25))), 6);
    assert_eq!(run(epochs(Some(2.0))), 8);
    assert_eq!(run(StateUpdate::default()), 2);
}

#[test]
fn the_modules_of_a_finished_subgraph_reach_the_modifier_and_must_be_given() {
    let mut lifecycle = fresh(false, false);
    let toy: Box<dyn Modifier> = Box::new(Toy::new(None, None));
    lifecycle.initialize(InitializeArgs { recipe: Some(toy.into()), ..InitializeArgs::default() }).unwrap();
    let error = lifecycle.event(EventType::SequentialEpochEnd, None, EventPayload::default()).unwrap_err();
    assert_eq!(kind(&error), "TypeError");
    assert_eq!(error.to_string(), "modifier 0 (ToyModifier): the SEQUENTIAL_EPOCH_END event needs `modules`");
    lifecycle.signal(Signal::SequentialEpochEnd { modules: vec!["a".into()] }).unwrap();
}
