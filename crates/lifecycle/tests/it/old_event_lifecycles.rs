//! `old_event_lifecycles`.

use lifecycle::{
    Event, EventType,
    event_lifecycle::{EventLifecycle, Style},
};
use serde_json::{Value, json};

use crate::toys::{cases, kind, letter};

fn letter_of(type_: EventType) -> &'static str {
    ["S", "L", "P", "Q", "E"].into_iter().find(|it| letter(it) == type_).unwrap()
}

#[test]
fn calls_stand_for_the_references_events() {
    for case in cases("old_event_lifecycles.json", 185) {
        let start: Event = serde_json::from_value(case["start"].clone()).unwrap();
        let style = match case["lifecycle"].as_str().unwrap() {
            "callbacks" => Style::Callbacks,
            "optimizer" => Style::Optimizer,
            other => panic!("{other}"),
        };
        let mut machine = EventLifecycle::new(style, letter(case["first"].as_str().unwrap()), &start);
        let sequence = case["seq"].as_str().unwrap();
        let found: Vec<Value> = (0..sequence.len())
            .map(|at| match machine.events_from_type(letter(&sequence[at..=at])) {
                Err(error) => json!(kind(&error)),
                Ok(events) => {
                    let row = |it: &Event| json!([letter_of(it.type_.unwrap()), it.global_step, it.global_batch]);
                    events.iter().map(row).collect()
                }
            })
            .collect();
        assert_eq!(Value::from(found), case["out"], "{case}");
    }
}

#[test]
fn the_first_call_chooses_the_machine() {
    let start = Event::default();
    for (type_, last) in [(EventType::BatchStart, true), (EventType::LossCalculated, true)] {
        let mut machine = EventLifecycle::for_first(type_, &start).unwrap();
        assert_eq!(machine.events_from_type(type_).is_ok(), last);
        assert_eq!(machine.last_type(), Some(type_));
    }
    assert_eq!(kind(&EventLifecycle::for_first(EventType::BatchEnd, &start).unwrap_err()), "ValueError");
}
