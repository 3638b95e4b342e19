//! `modifier_traces`.

use lifecycle::{CalibrationEvents, Event, Hooks, ModifierDriver, State};
use serde_json::{Value, json};

use crate::toys::{Toy, cases, flags, kind, letter};

#[test]
fn callbacks_flags_and_errors_are_the_references() {
    for case in cases("modifier_traces.json", 120) {
        let mut toy = Toy::new(case["start"].as_f64(), case["end"].as_f64());
        toy.settings.update = case["update"].as_f64();
        let events = case["events"].as_str().unwrap();
        toy.init_result = !events.contains("init returns False");
        toy.final_result = !events.contains("fin returns False");
        let calls = toy.calls.clone();
        let contract = match case["version"].as_str().unwrap() {
            "0.14" => CalibrationEvents::Callbacks,
            "0.9" => CalibrationEvents::OnEventOnly,
            other => panic!("{other}"),
        };
        let mut driver = ModifierDriver::new(0, Box::new(toy)).with_calibration_events(contract);
        let (mut state, hooks) = (State::default(), Hooks::default());
        for row in case["trace"].as_array().unwrap() {
            calls.lock().unwrap().clear();
            let result = match row[0].as_str() {
                Some("init") => driver.initialize(&mut state),
                Some("fin") => driver.finalize(&mut state),
                Some(other) => panic!("{other}"),
                None => {
                    let type_ = letter(row[0][0].as_str().unwrap());
                    let event = Event {
                        global_step: row[0][1].as_i64().unwrap(),
                        steps_per_epoch: row[0][2].as_i64(),
                        ..Event::of(type_)
                    };
                    driver.update_event(&mut state, &hooks, &event, Some(&[]))
                }
            };
            let error = result.err().map(|it| kind(&it));
            let found = json!([row[0], *calls.lock().unwrap(), flags(&driver), error]);
            assert_eq!(found, Value::from(row.as_array().unwrap()[..4].to_vec()), "{} of {case}", row[0]);
        }
    }
}
