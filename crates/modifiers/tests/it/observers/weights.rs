//! Weight observers, importance and fused weights.

use compressed_tensors::{ErrorKind, args::QuantizationStrategy, numbers::Float, quantize::Qparams};
use modifiers::observers::{
    Observed, Observer, Role, TensorObserver, WeightSearch, find_observer, fused_groups, fused_qparams,
};
use serde_json::json;

use super::cases::{Case, Cases, args, assert_close, assert_matches, assert_same, bytes, rounded};

fn check(case: &Case<'_>, observer: &TensorObserver, qparams: &Qparams, rtol: Option<f32>) {
    let assert = |found: &[f32], name: &str| match rtol {
        None => assert_same(found, &case.expected(name), &format!("{} {name}", case.id())),
        Some(rtol) => assert_matches(found, &case.expected(name), rtol, &format!("{} {name}", case.id())),
    };
    let (mins, maxs): (Vec<f32>, Vec<f32>) = observer.ranges().iter().copied().unzip();
    assert(&mins, "min_vals");
    assert(&maxs, "max_vals");
    assert(&qparams.scales, "scale");
    assert(qparams.zero_points.as_ref().unwrap(), "zero_point");
    if let Some(global_scale) = qparams.global_scale {
        assert(&[global_scale], "global_scale");
    }
    assert_eq!(observer.scale_shape(), case.output_shape("scale"));
    let n_evaluated = case.params()["steps_evaluated"].as_u64().unwrap();
    assert_eq!(observer.n_evaluated() as u64, n_evaluated, "{}", case.id());
}

fn rtol(case: &Case<'_>) -> Option<f32> {
    case.json["tol"]["rtol"].as_f64().map(|it| it as f32)
}

#[test]
fn weights_get_the_references_ranges_and_scales_also_when_streamed() {
    let all = Cases::open();
    let cases = all.of_kind("observers", "weight_observer");
    for case in &cases {
        let (args, float) = (case.args(), case.float());
        let (values, shape) = case.input("W");
        let values = rounded(&values, float);
        let entry = find_observer(case.text("observer")).unwrap();
        let mut observer = TensorObserver::new(entry, Role::Weight, &args).unwrap();
        observer.observe(&Observed { values: &values, float, shape: &shape }).unwrap();
        // Weights keep their first statistics.
        observer.observe(&Observed { values: &vec![9.0; values.len()], float, shape: &shape }).unwrap();
        let qparams = observer.qparams(None).unwrap();
        check(case, &observer, &qparams, rtol(case));

        let shape = [shape[0], shape[1]];
        let search = WeightSearch::new(case.text("observer"), &case.kwargs(), &args, float.dtype(), shape).unwrap();
        let (min, max) = values.iter().fold((f32::MAX, f32::MIN), |(min, max), x| (min.min(*x), max.max(*x)));
        let search = search.with_range(&compressed_tensors::weight_compressor::MinMax {
            min,
            max,
            ..compressed_tensors::weight_compressor::MinMax::EMPTY
        });
        let found = search.resolve([search.scan_rows(0, &bytes(&values, float)).unwrap()]).unwrap();
        assert_eq!(found.ranges(), observer.ranges(), "{}", case.id());
        assert_eq!(found.n_evaluated(), observer.n_evaluated());
        assert_eq!(found.scale_shape(), observer.scale_shape());
        assert_eq!(Some(found.range().max), observer.amax());
        let found = found.qparams(qparams.global_scale);
        assert_eq!(found.scales, qparams.scales);
        assert_eq!(found.zero_points, qparams.zero_points.unwrap());
    }
    assert_eq!(cases.len(), 36);
}

#[test]
fn importance_weights_the_search_as_in_the_reference() {
    let all = Cases::open();
    let cases = all.of_kind("observers", "imatrix_observer");
    for case in &cases {
        let entry = find_observer(case.text("observer")).unwrap();
        let mut observer = TensorObserver::new(entry, Role::Weight, &case.args()).unwrap();
        let (inputs, shape) = case.input("X");
        for batch in inputs.chunks(shape[1] * shape[2]) {
            let shape = [1, shape[1], shape[2]];
            observer.observe_inputs(&Observed { values: batch, float: Float::F32, shape: &shape }).unwrap();
        }
        let importance = observer.importance().unwrap().clone();
        assert_close(&importance.sum, &case.expected("imatrix_sum"), 1e-6, case.id());
        assert_eq!(importance.count as f32, case.expected("imatrix_count")[0]);

        let (values, shape) = case.input("W");
        observer.observe(&Observed { values: &values, float: Float::F32, shape: &shape }).unwrap();
        let is_tensor = case.args().strategy == QuantizationStrategy::Tensor;
        assert_eq!(observer.warning().is_some(), is_tensor, "{:?}", observer.warning());
        check(case, &observer, &observer.qparams(None).unwrap(), rtol(case));
        if !is_tensor {
            let (kwargs, shape) = (case.kwargs(), [shape[0], shape[1]]);
            let search =
                WeightSearch::new(case.text("observer"), &kwargs, &case.args(), Float::F32.dtype(), shape).unwrap();
            let search = search.with_importance(Some(&importance)).unwrap();
            let found = search.resolve([search.scan_values(0, &values).unwrap()]).unwrap();
            assert_eq!(found.ranges(), observer.ranges());
        }
    }
    assert_eq!(cases.len(), 11);
}

#[test]
fn unusable_importance_is_a_warning_and_an_error_where_strict() {
    let observe = |kwargs: serde_json::Value, inputs: &[f32]| {
        let mut args = args(&json!({"num_bits": 4, "strategy": "group", "group_size": 4}));
        args.observer_kwargs = kwargs.as_object().unwrap().clone();
        let mut observer = TensorObserver::new(find_observer("imatrix_mse").unwrap(), Role::Weight, &args).unwrap();
        observer.observe_inputs(&Observed { values: inputs, float: Float::F32, shape: &[1, inputs.len()] }).unwrap();
        let weight = Observed { values: &[1.0, -2.0, 0.3, 0.7], float: Float::F32, shape: &[1, 4] };
        observer.observe(&weight).map(|()| observer.warning().map(str::to_owned))
    };
    assert_eq!(observe(json!({"strict": true}), &[1.0; 4]), Ok(None));
    for inputs in [&[][..], &[0.0; 4], &[f32::NAN, 1.0, 1.0, 1.0], &[1.0; 3]] {
        assert!(observe(json!({}), inputs).unwrap().is_some());
        let error = observe(json!({"strict": true}), inputs).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
    }
    let mut args = args(&json!({"num_bits": 4, "strategy": "group", "group_size": 4}));
    args.observer_kwargs = json!({"strict": true}).as_object().unwrap().clone();
    let search =
        |args| WeightSearch::new("imatrix_mse", &Default::default(), args, Float::F32.dtype(), [1, 4]).unwrap();
    assert!(search(&args).scan_values(0, &[1.0; 4]).is_ok(), "kwargs given to the call replace those of the args");
    let strict = WeightSearch::new("imatrix_mse", &args.observer_kwargs, &args, Float::F32.dtype(), [1, 4]).unwrap();
    assert!(matches!(strict.scan_values(0, &[1.0; 4]).unwrap_err().kind(), ErrorKind::Unsupported { .. }));
}

#[test]
fn fused_weights_share_the_global_scale_of_their_searched_ranges() {
    let all = Cases::open();
    let cases = all.of_kind("observers", "fused_global_scale");
    let nvfp4 = json!({"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
        "scale_dtype": "float8_e4m3fn", "zp_dtype": "float8_e4m3fn"});
    let names = ["q_proj", "k_proj", "v_proj"];
    for case in &cases {
        let entry = find_observer(case.text("observer")).unwrap();
        let weights = names.map(|name| case.input(name));
        let mut observers = weights.clone().map(|(values, shape)| {
            let mut observer = TensorObserver::new(entry, Role::Weight, &args(&nvfp4)).unwrap();
            observer.observe(&Observed { values: &values, float: Float::F32, shape: &shape }).unwrap();
            observer
        });
        // The streaming form: partners' ranges are merged before scales are computed.
        let searched = weights.map(|(values, shape)| {
            let shape = [shape[0], shape[1]];
            let search = WeightSearch::new(entry.name, &Default::default(), &args(&nvfp4), Float::F32.dtype(), shape);
            let search = search.unwrap();
            search.resolve([search.scan_values(0, &values).unwrap()]).unwrap()
        });
        let shared = searched.iter().map(|it| it.range()).reduce(|a, b| a.merge(b)).unwrap();
        let global = compressed_tensors::scales::global_scale(shared.max, Float::F32);

        let [q, k, v] = &mut observers;
        let found = fused_qparams(&mut [q, k, v]).unwrap();
        for ((name, qparams), searched) in names.iter().zip(&found).zip(searched) {
            assert_same(&[qparams.global_scale.unwrap()], &case.expected(&format!("{name}_global_scale")), case.id());
            assert_matches(&qparams.scales, &case.expected(&format!("{name}_scale")), 1e-6, case.id());
            assert_eq!(qparams.global_scale, Some(global));
            assert_eq!(searched.qparams(Some(global)).scales, qparams.scales);
        }
        assert!(observers.iter().all(|it| it.ranges().is_empty()), "statistics are forgotten");
    }
    assert_eq!(cases.len(), 2);
}

#[test]
fn all_linears_of_a_fused_group_take_part_or_none() {
    use QuantizationStrategy::{Group, TensorGroup};
    let all = [("q_proj", Some(TensorGroup)), ("k_proj", Some(TensorGroup)), ("v_proj", Some(TensorGroup))];
    assert_eq!(fused_groups(&all).unwrap(), [&["q_proj", "k_proj", "v_proj"][..]]);
    assert!(fused_groups(&all[..2]).unwrap().is_empty());
    assert!(fused_groups(&[("w1", Some(Group)), ("w3", None)]).unwrap().is_empty());
    let error = fused_groups(&[("w1", Some(TensorGroup)), ("w3", None)]).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Unsupported { .. }), "{error}");
}
