//! Names, defaults and refusals.

use compressed_tensors::{ErrorKind, args::QuantizationArgs};
use modifiers::observers::{OBSERVERS, activation_observer, find_observer, weight_observer};
use serde_json::{Value, json};

fn observed(observer: Option<&str>, kwargs: Value) -> QuantizationArgs {
    QuantizationArgs {
        observer: observer.map(str::to_owned),
        observer_kwargs: kwargs.as_object().unwrap().clone(),
        ..QuantizationArgs::default()
    }
}

#[test]
fn names_are_found_in_any_spelling() {
    assert_eq!(OBSERVERS.len(), 9);
    for (given, name) in
        [("MinMax", "minmax"), ("memoryless-mse", "memoryless_mse"), ("STATIC minmax", "static_minmax")]
    {
        assert_eq!(find_observer(given).unwrap().name, name);
    }
    for entry in OBSERVERS {
        assert_eq!(find_observer(&entry.name.to_uppercase().replace('_', "-")).unwrap().name, entry.name);
        assert!((entry.construct)(entry, modifiers::observers::Role::Weight, &QuantizationArgs::default()).is_ok());
    }
    let error = find_observer("static_mse").unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::UnknownName { known, .. } if known.len() == 9), "{error}");
}

#[test]
fn weights_take_observers_without_memory() {
    for (given, chosen, warns) in [
        (None, "memoryless_minmax", false),
        (Some("minmax"), "memoryless_minmax", false),
        (Some("static_minmax"), "memoryless_minmax", false),
        (Some("mse"), "memoryless_mse", true),
        (Some("fouroversix"), "nvfp4_expanded_mse", true),
        (Some("imatrix_mse"), "imatrix_mse", false),
    ] {
        let choice = weight_observer(&observed(given, json!({}))).unwrap();
        assert_eq!((choice.entry.name, choice.warning.is_some()), (chosen, warns));
    }
    // The kwargs are those of the observer that was named.
    assert!(weight_observer(&observed(Some("mse"), json!({"averaging_constant": 0.1}))).is_ok());
    assert_eq!(activation_observer(&observed(None, json!({}))).unwrap().unwrap().entry.name, "minmax");
    let dynamic = QuantizationArgs { dynamic: compressed_tensors::args::Dynamic::Yes, ..Default::default() };
    assert!(activation_observer(&dynamic).unwrap().is_none());
}

#[test]
fn defaults_give_the_references_number_of_candidates() {
    for (name, n_steps) in [
        ("memoryless_mse", 20),
        ("nvfp4_expanded_mse", 111),
        ("fouroversix", 111),
        ("imatrix_mse", 20),
        ("nvfp4_expanded_imatrix", 112),
    ] {
        let choice = weight_observer(&observed(Some(name), json!({}))).unwrap();
        assert_eq!(choice.settings.search.unwrap().steps(), n_steps, "{name}");
    }
    let patience = |name: &str, value: u64| {
        weight_observer(&observed(Some(name), json!({"patience": value}))).unwrap().settings.search.unwrap().patience
    };
    assert_eq!((patience("imatrix_mse", 0), patience("memoryless_mse", 0)), (None, Some(1)));
}

#[test]
fn unknown_kwargs_and_values_outside_their_limits_are_refused() {
    for (name, kwargs, field) in [
        ("memoryless_mse", json!({"maxshrink": 1.5}), "maxshrink"),
        ("memoryless_mse", json!({"grid": 0}), "grid"),
        ("memoryless_mse", json!({"grid": 1e9}), "grid"),
        ("memoryless_mse", json!({"norm": "2"}), "norm"),
        ("memoryless_mse", json!({"norm": -1}), "norm"),
        ("memoryless_mse", json!({"patience": -1}), "patience"),
        ("memoryless_mse", json!({"patience": 1.5}), "patience"),
        ("memoryless_mse", json!({"expand": 0.5}), "expand"),
        ("memoryless_mse", json!({"triton_error_buffer": "x"}), "triton_error_buffer"),
        ("imatrix_mse", json!({"strict": 1}), "strict"),
        ("minmax", json!({"averaging_constant": 2}), "averaging_constant"),
    ] {
        let error = weight_observer(&observed(Some(name), kwargs)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::InvalidField { field: it, .. } if it == field), "{error}");
    }
    for (name, kwargs) in [
        ("memoryless_minmax", json!({"grid": 100})),
        ("memoryless_mse", json!({"averaging_constant": 0.1})),
        ("memoryless_mse", json!({"strict": true})),
        ("imatrix_mse", json!({"max_shrink": 0.1})),
    ] {
        let error = weight_observer(&observed(Some(name), kwargs)).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::UnknownField { .. }), "{error}");
    }
}
