//! `event_properties`, `event_setter`, `should_update`.

use lifecycle::{Event, EventOverrides, EventType};
use serde_json::{Value, json};
use testkit::Goldens;

use crate::toys::{cases, outcome, same};

fn event(fields: &Value) -> Event {
    let part = |name: &str| fields.get(name).and_then(Value::as_i64);
    Event {
        steps_per_epoch: part("steps_per_epoch"),
        batches_per_step: part("batches_per_step"),
        global_step: part("global_step").unwrap_or(0),
        global_batch: part("global_batch").unwrap_or(0),
        ..Event::default()
    }
}

#[test]
fn every_derived_property_is_the_references() {
    for case in cases("event_properties.json", 1036) {
        let event = event(&case["in"]);
        let found = json!({
            "epoch_based": {"ok": event.epoch_based()},
            "epoch": outcome(event.epoch().map(Value::from)),
            "epoch_full": outcome(event.epoch_full().map(Value::from)),
            "epoch_step": outcome(event.epoch_step().map(Value::from)),
            "epoch_batch": outcome(event.epoch_batch().map(Value::from)),
            "current_index": outcome(event.current_index().map(Value::from)),
        });
        assert!(same(&found, &case["out"]), "{case}: {found}");
    }
}

#[test]
fn event_types_have_the_names_and_values_of_all_releases() {
    let golden = Goldens::open("core").json("event_properties.json");
    assert_eq!(serde_json::to_value(Event::default()).unwrap(), golden["defaults"]);
    for (key, count) in [("event_types_new", 10), ("event_types_0_6_to_0_12", 10), ("event_types_0_4", 8)] {
        let types = golden[key].as_object().unwrap();
        assert_eq!(types.len(), count);
        for (name, value) in types {
            let value = value.as_str().unwrap();
            let by_name: EventType = name.parse().unwrap();
            assert_eq!(value.parse(), Ok(by_name));
            if key != "event_types_0_6_to_0_12" {
                assert_eq!((by_name.name(), by_name.value()), (name.as_str(), value));
            }
        }
    }
}

#[test]
fn the_index_setter_and_new_instance_are_the_references() {
    let mut instances = 0;
    for case in cases("event_setter.json", 141) {
        if let Some(instance) = case.get("new_instance") {
            instances += 1;
            let parse = |value: &Value| serde_json::from_value::<Event>(value.clone()).unwrap();
            let overrides: EventOverrides = serde_json::from_value(instance["kwargs"].clone()).unwrap();
            let original = parse(&instance["from"]);
            let made = original.new_instance(&overrides);
            assert_eq!(made, parse(&instance["result"]));
            assert_eq!(original.global_step, instance["original_after"]["global_step"].as_i64().unwrap());
            assert_eq!(original.type_.unwrap().value(), instance["original_after"]["type_"].as_str().unwrap());
            continue;
        }
        let mut event = Event { global_step: 99, global_batch: 77, ..event(&case["in"]) };
        event.set_current_index(case["in"]["set_current_index"].as_f64().unwrap());
        let found = json!({
            "global_step": event.global_step,
            "global_batch": event.global_batch,
            "current_index": outcome(event.current_index().map(Value::from)),
        });
        assert!(same(&found, &case["out"]), "{case}: {found}");
    }
    assert_eq!(instances, 1);
}

#[test]
fn should_update_is_the_references() {
    for case in cases("should_update.json", 4410) {
        let event =
            Event { steps_per_epoch: case[0].as_i64(), global_step: case[1].as_i64().unwrap(), ..Event::default() };
        let found = event.should_update(case[2].as_f64(), case[3].as_f64(), case[4].as_f64()).unwrap();
        assert_eq!(Some(found), case[5].as_bool(), "{case}");
    }
}
