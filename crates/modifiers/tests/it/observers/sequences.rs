//! Activations and attention states in batches.

use compressed_tensors::{args::QuantizationStrategy, numbers::Float};
use modifiers::observers::{Observed, Observer, Partial, Role, TensorObserver, find_observer};
use serde_json::json;

use super::cases::{Case, Cases, assert_close, assert_same};

fn observer(case: &Case<'_>) -> TensorObserver {
    let role = if case.text("base_name") == "k" { Role::Key } else { Role::Input };
    TensorObserver::new(find_observer(case.text("observer")).unwrap(), role, &case.args()).unwrap()
}

fn batches(case: &Case<'_>) -> Vec<(Vec<f32>, Vec<usize>)> {
    if case.text("base_name") == "k" {
        let (values, shape) = case.input("K");
        let half = values.iter().map(|it| it * 0.5).collect();
        return vec![(values, shape.clone()), (half, shape)];
    }
    (0..5).map(|i| case.input(&format!("x{i}"))).collect()
}

#[test]
fn running_ranges_and_scales_are_the_references() {
    let all = Cases::open();
    let cases = all.of_kind("observers", "observer_sequence");
    for case in &cases {
        let mut observer = observer(case);
        let (mut mins, mut maxs) = (Vec::new(), Vec::new());
        for (values, shape) in batches(case) {
            observer.observe(&Observed { values: &values, float: Float::F32, shape: &shape }).unwrap();
            mins.extend(observer.ranges().iter().map(|it| it.0));
            maxs.extend(observer.ranges().iter().map(|it| it.1));
        }
        let tolerance = case.json["tol"]["rtol"].as_f64().unwrap_or(0.0) as f32;
        let qparams = observer.qparams(None).unwrap();
        if let Some(global) = case.output("global_scale") {
            assert_same(&[qparams.global_scale.unwrap()], &global, case.id());
            continue;
        }
        if let Some(expected) = case.output("min_after_step") {
            assert_close(&mins, &expected, tolerance, case.id());
            assert_close(&maxs, &case.expected("max_after_step"), tolerance, case.id());
        }
        assert_close(&qparams.scales, &case.expected("scale"), tolerance, case.id());
        assert_same(&qparams.zero_points.unwrap(), &case.expected("zero_point"), case.id());
        assert_eq!(observer.scale_shape(), case.output_shape("scale"), "{}", case.id());
    }
    assert_eq!(cases.len(), 25);
}

#[test]
fn a_restored_observer_goes_on_as_if_nothing_had_happened() {
    let all = Cases::open();
    for case in all.of_kind("observers", "observer_sequence") {
        let batches = batches(&case);
        let (mut straight, mut stopped) = (observer(&case), observer(&case));
        for (i, (values, shape)) in batches.iter().enumerate() {
            let observed = Observed { values, float: Float::F32, shape };
            straight.observe(&observed).unwrap();
            if i == 1 {
                let text = stopped.snapshot().to_string();
                stopped = observer(&case);
                stopped.restore(&serde_json::from_str(&text).unwrap()).unwrap();
            }
            stopped.observe(&observed).unwrap();
        }
        assert_eq!(stopped.ranges(), straight.ranges(), "{}", case.id());
    }
    let mut other = TensorObserver::new(find_observer("mse").unwrap(), Role::Input, &Default::default()).unwrap();
    for (snapshot, field) in [
        (json!({"observer": "minmax"}), "observer"),
        (
            json!({"observer": "mse", "seen": {"dtype": "F32", "scale_shape": [2], "min_vals": [0], "max_vals": [0]}}),
            "seen",
        ),
        (json!({"observer": "mse", "importance": {"sum": [-1], "count": 1}}), "importance"),
        (json!([]), "observer"),
    ] {
        let error = other.restore(&snapshot).unwrap_err();
        let is_field =
            matches!(error.kind(), compressed_tensors::ErrorKind::InvalidField { field: it, .. } if it == field);
        assert!(is_field, "{error}");
    }
}

#[test]
fn ranks_join_as_their_observer_says() {
    let joined = |name: &str| {
        let ranks: Vec<TensorObserver> = [[-1.0, 2.0], [-3.0, 1.0]]
            .iter()
            .map(|values| {
                let entry = find_observer(name).unwrap();
                let mut rank = TensorObserver::new(entry, Role::Input, &Default::default()).unwrap();
                rank.observe(&Observed { values, float: Float::F32, shape: &[1, 2] }).unwrap();
                rank
            })
            .collect();
        let partials: Vec<Vec<Partial>> = ranks.iter().map(Observer::partials).collect();
        let reduced: Vec<Partial> = (0..partials[0].len())
            .map(|i| Partial::reduce(&partials.iter().map(|it| it[i].clone()).collect::<Vec<_>>()).unwrap())
            .collect();
        let mut first = ranks[0].clone();
        first.set_partials(&reduced).unwrap();
        first.ranges().to_vec()
    };
    assert_eq!(joined("static_minmax"), [(-3.0, 2.0)]);
    assert_eq!(joined("minmax"), [(-2.0, 1.5)]);
    assert_eq!(joined("memoryless_minmax"), [(-1.0, 2.0)]);
}

#[test]
fn empty_batches_are_passed_over_and_absent_statistics_refused() {
    let entry = find_observer("minmax").unwrap();
    let mut observer = TensorObserver::new(entry, Role::Input, &Default::default()).unwrap();
    observer.observe(&Observed { values: &[], float: Float::F32, shape: &[0, 4] }).unwrap();
    let error = observer.qparams(None).unwrap_err();
    assert!(matches!(error.kind(), compressed_tensors::ErrorKind::MissingTensor { .. }), "{error}");
    let wrong = Observed { values: &[1.0; 3], float: Float::F32, shape: &[2, 2] };
    assert!(matches!(observer.observe(&wrong).unwrap_err().kind(), compressed_tensors::ErrorKind::Shape { .. }));
    let args = super::cases::args(&json!({"num_bits": 8, "strategy": "channel"}));
    assert_eq!(args.strategy, QuantizationStrategy::Channel);
    let mut observer = TensorObserver::new(entry, Role::Input, &args).unwrap();
    let fine = Observed { values: &[1.0; 4], float: Float::F32, shape: &[2, 2] };
    assert!(matches!(observer.observe(&fine).unwrap_err().kind(), compressed_tensors::ErrorKind::Unsupported { .. }));
}
