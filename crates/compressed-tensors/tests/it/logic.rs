//! Everything in `goldens/formats/logic.json`: validation, presets, inference, matching, naming.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use compressed_tensors::{
    ErrorKind,
    args::QuantizationArgs,
    presets::{PRESETS, preset},
};
use serde_json::Value;
use testkit::Goldens;

fn logic(key: &str) -> Value {
    Goldens::open("formats").json("logic.json")[key].take()
}

fn cases(key: &str, expected_len: usize) -> Vec<Value> {
    let list = logic(key).as_array().unwrap().clone();
    assert_eq!(list.len(), expected_len, "cases of `{key}`");
    list
}

/// The reference's exception class for our error kind.
fn python_class(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unsupported { .. } => "NotImplementedError",
        _ => "ValidationError",
    }
}

#[test]
fn args_are_coerced_refused_and_written_as_in_the_reference() {
    for case in cases("args", 54) {
        let input = &case["in"];
        match QuantizationArgs::from_json(input) {
            Ok(args) => {
                assert_eq!(case["ok"], true, "{input} was accepted");
                let written = args.to_json();
                assert_eq!(written.to_string(), case["out"].to_string(), "{input}");
                let zp = format!("torch.{}", args.zp_dtype.unwrap().torch_name().unwrap());
                assert_eq!(zp, case["internal_zp_dtype"].as_str().unwrap(), "{input}");
            }
            Err(error) => assert_eq!(case["error_type"], python_class(error.kind()), "{input}: {error}"),
        }
    }
}

#[test]
fn every_preset_is_as_in_the_reference() {
    let golden = logic("presets");
    assert_eq!(golden.as_object().unwrap().len(), 30);
    assert_eq!(PRESETS.len(), 30);
    for (name, case) in golden.as_object().unwrap() {
        let scheme = preset(&name.to_lowercase(), vec!["Linear".to_owned()]).unwrap();
        assert_eq!(scheme.to_json().to_string(), case["scheme"].to_string(), "{name}");
    }
}
