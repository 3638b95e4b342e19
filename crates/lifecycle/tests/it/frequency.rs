//! `log_ready` and `frequency_manager`.

use lifecycle::{
    Result,
    metrics::{FrequencyManager, FrequencyOptions, LogStepType, Number, log_ready},
};
use serde_json::{Value, json};

use crate::toys::{cases, outcome, same};

#[test]
fn the_stateless_form_is_the_references() {
    for case in cases("log_ready.json", 2711) {
        let number = |at: usize| case[at].as_f64();
        let update = case[4].as_bool().unwrap().then(|| number(3));
        assert_eq!(log_ready(number(0), number(1), number(2), update), case[5].as_bool().unwrap(), "{case}");
    }
}

fn manager(options: &Value) -> Result<FrequencyManager> {
    let options = FrequencyOptions::parse(&options[0], options[1].as_str().unwrap(), options[2].as_str().unwrap())?;
    FrequencyManager::new(options)
}

fn step(step: LogStepType) -> Value {
    match step {
        None => Value::Null,
        Some(Number::Int(value)) => value.into(),
        Some(Number::Float(value)) => value.into(),
    }
}

fn state(manager: &FrequencyManager) -> [Value; 3] {
    [manager.log_frequency(), manager.last_log_step(), manager.last_model_update_step()].map(step)
}

fn snapshot(manager: &FrequencyManager) -> Value {
    let [log_frequency, last_log_step, last_model_update_step] = state(manager);
    json!({
        "log_frequency": log_frequency,
        "last_log_step": last_log_step,
        "last_model_update_step": last_model_update_step,
        "is_epoch": manager.is_epoch_frequency_manager(),
        "is_optim": manager.is_optim_frequency_manager(),
        "repr": manager.to_string(),
    })
}

fn operate(manager: &mut FrequencyManager, operation: &str, argument: &Value) -> Result<Value> {
    let parse = |value: &Value| lifecycle::metrics::step_from_json("step", value);
    // The reference does not look at the current step's type, where a truth value counts as a number.
    let current = match argument {
        Value::Bool(value) => Some(Number::Int(i64::from(*value))),
        other => parse(other).unwrap_or(None),
    };
    match operation {
        "log_ready" => Ok(manager.log_ready(current).into()),
        "log_ready_check" => Ok(manager.log_ready_if_updated(current).into()),
        "log_written" => parse(argument).and_then(|it| manager.log_written(it)).map(|()| Value::Null),
        "model_updated" => parse(argument).and_then(|it| manager.model_updated(it)).map(|()| Value::Null),
        "set_log_frequency" => parse(argument).and_then(|it| manager.set_log_frequency(it)).map(|()| Value::Null),
        other => panic!("{other}"),
    }
}

#[test]
fn the_manager_validates_and_counts_as_the_reference() {
    let mut kinds = [0; 3];
    for case in cases("frequency_manager.json", 457) {
        match case["kind"].as_str().unwrap() {
            "construct" => {
                kinds[0] += 1;
                let found = outcome(manager(&case["in"]).map(|it| snapshot(&it)));
                let expected = match case.get("ok") {
                    Some(ok) => json!({"ok": ok}),
                    None => json!({"error": case["error"]}),
                };
                assert!(same(&found, &expected), "{case}: {found}");
            }
            "defaults" => {
                kinds[1] += 1;
                let manager = FrequencyManager::new(FrequencyOptions::default()).unwrap();
                let mut found = snapshot(&manager);
                found["mode"] = manager.mode().to_string().into();
                found["frequency_type"] = manager.frequency_type().to_string().into();
                assert_eq!(found, case["ok"]);
            }
            _ => {
                kinds[2] += 1;
                let mut manager = manager(&case["in"]).unwrap();
                for row in case["ops"].as_array().unwrap() {
                    let found = outcome(operate(&mut manager, row[0].as_str().unwrap(), &row[1]));
                    assert_eq!(found, row[2], "{row} of {case}");
                    assert!(same(&json!(state(&manager)), &row[3]), "{row} of {case}");
                }
            }
        }
    }
    assert_eq!(kinds, [360, 1, 96]);
}
