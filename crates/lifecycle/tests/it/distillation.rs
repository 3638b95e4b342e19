//! `distillation`: f32 results within four units in the last place of one.

use lifecycle::{
    Result,
    distillation::{Comparison, Dense, Outputs, Transform},
};
use serde_json::{Value, json};
use testkit::Goldens;

use crate::toys::{cases, kind};

/// Largest distance from the reference's f32 results, relative to values above 1. The reference sums in
/// f32, this in f64.
const TOLERANCE: f64 = 4.0 * f32::EPSILON as f64;

fn dense(value: &Value) -> Dense {
    fn walk(value: &Value, depth: usize, shape: &mut Vec<usize>, data: &mut Vec<f32>) {
        match value {
            Value::Array(items) => {
                if shape.len() == depth {
                    shape.push(items.len());
                }
                assert_eq!(shape[depth], items.len());
                items.iter().for_each(|it| walk(it, depth + 1, shape, data));
            }
            number => data.push(number.as_f64().unwrap() as f32),
        }
    }
    let (mut shape, mut data) = (Vec::new(), Vec::new());
    walk(value, 0, &mut shape, &mut data);
    Dense::new(shape, data).unwrap()
}

fn check(result: Result<Dense>, case: &Value) {
    let found = match (result, case["error"].as_str()) {
        (Ok(found), None) => found,
        (Err(error), Some(expected)) => return assert_eq!(kind(&error), expected, "{case}"),
        (result, _) => panic!("{case}: {result:?}"),
    };
    close(&found, &dense(&case["ok"]), case);
}

fn close(found: &Dense, expected: &Dense, case: &Value) {
    assert_eq!(found.shape(), expected.shape(), "{case}");
    for (found, expected) in found.data().iter().zip(expected.data()) {
        let (found, expected) = (f64::from(*found), f64::from(*expected));
        assert!((found - expected).abs() <= TOLERANCE * expected.abs().max(1.0), "{found} {expected} {case}");
    }
}

#[test]
fn transforms_and_comparisons_are_the_references() {
    let tensors = Goldens::open("core").json("distillation.json")["tensors"].clone();
    let (a, b) = (dense(&tensors["a"]), dense(&tensors["b"]));
    let softmax = |it: &Dense| Transform::create("softmax", &Default::default()).unwrap().apply(it).unwrap();
    let mut counts = [0; 4];
    for case in cases("distillation.json", 28) {
        let name = case["name"].as_str().unwrap();
        let args = case["args"].as_object().cloned().unwrap_or_default();
        match case["kind"].as_str().unwrap() {
            "transform" => {
                counts[0] += 1;
                check(Transform::create(name, &args).and_then(|it| it.apply(&a)), &case);
            }
            "comparison" => {
                counts[1] += 1;
                let (a, b) = match case["inputs"].as_str().unwrap() {
                    "a,b" => (a.clone(), b.clone()),
                    "a,softmax(b)" => (a.clone(), softmax(&b)),
                    "softmax(a),softmax(b)" => (softmax(&a), softmax(&b)),
                    other => panic!("{other}"),
                };
                check(Comparison::create(name, &args).and_then(|it| it.apply(&a, &b)), &case);
            }
            "recursive" => {
                counts[2] += 1;
                let l1 = Comparison::create("l1_distance", &args).unwrap();
                let one = |it: &Dense| Outputs::One(it.clone());
                let many = |it: [&Dense; 2]| Outputs::Many(it.into_iter().map(one).collect());
                if case["error"].is_null() {
                    let Outputs::Many(found) = l1.apply_nested(&many([&a, &b]), &many([&b, &a])).unwrap() else {
                        panic!("a list gives a list")
                    };
                    for (found, expected) in found.iter().zip(case["ok"].as_array().unwrap()) {
                        let Outputs::One(found) = found else { panic!("an array gives an array") };
                        close(found, &dense(expected), &case);
                    }
                } else {
                    let error = l1.apply_nested(&one(&a), &Outputs::Many(vec![one(&b)])).unwrap_err();
                    assert_eq!(kind(&error), case["error"].as_str().unwrap());
                }
            }
            // There are no projections, neither in the reference nor here.
            "projection" => counts[3] += 1,
            other => panic!("{other}"),
        }
    }
    assert_eq!(counts, [13, 12, 2, 1]);
}

#[test]
fn misuse_is_an_error() {
    let args = |value: Value| value.as_object().cloned().unwrap();
    assert!(Transform::create("softmax", &args(json!({"temprature": 2.0}))).is_err());
    assert!(Transform::create("softmax", &args(json!({"temperature": "hot"}))).is_err());
    assert!(Comparison::create("cross_entropy", &args(json!({"reduction": "median"}))).is_err());
    let vector = Dense::new(vec![2], vec![1.0, 2.0]).unwrap();
    let pair = Dense::new(vec![1, 2], vec![1.0, 2.0]).unwrap();
    let empty = Dense::new(vec![0], Vec::new()).unwrap();
    assert!(Dense::new(vec![3], vec![1.0]).is_err());
    for dim in [1, -2, i64::MIN, i64::MAX] {
        assert!(Comparison::L1Distance { dim }.apply(&vector, &vector).is_err());
    }
    assert!(Comparison::L1Distance { dim: 0 }.apply(&vector, &pair).is_err());
    assert!(Comparison::SquareHead.apply(&vector, &pair).is_err());
    assert!(Comparison::InnerProduct { dim: 0 }.apply(&empty, &empty).is_ok());
    assert!(Transform::Softmax { temperature: 1.0, dim: 0 }.apply(&empty).is_ok());
}
