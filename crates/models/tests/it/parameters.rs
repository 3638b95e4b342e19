//! Parameters: read when needed, dropped after, replaced where somebody changed them.

use models::ErrorKind;
use tensor::DType;

use crate::golden::open;

#[test]
fn nothing_is_kept_but_what_is_held() {
    let golden = open("llama");
    let store = golden.model.store();
    golden.logits(&golden.ids);
    assert_eq!(store.resident_bytes(), 0);
    let head = store.find("lm_head.weight").unwrap();
    let (outer, inner) = (store.hold([head]), store.hold([head]));
    golden.logits(&golden.ids);
    // In the order in which it is multiplied, and as narrow as on disk.
    let width = store.stored_dtype(head).unwrap().bits() as u64 / 8;
    assert_eq!(store.resident_bytes(), 128 * 32 * width);
    drop(inner);
    let [first, second] = [0, 1].map(|_| store.get(&golden.engine, head).unwrap());
    assert!(first.is_same(&second));
    drop(outer);
    assert_eq!(store.resident_bytes(), 0);
}

#[test]
fn a_changed_weight_is_used_until_it_is_reset_and_the_disk_keeps_its_own() {
    let golden = open("llama");
    let store = golden.model.store();
    let id = store.find("model.layers.1.mlp.down_proj.weight").unwrap();
    let plain = golden.logits(&golden.ids);
    let before = store.original(&golden.engine, id).unwrap().to_f32().unwrap().into_owned();
    let zeros = golden.engine.budget.tensor(vec![tensor_bf16(0.0); 32 * 64], &[32, 64]).unwrap();
    store.set(&golden.engine, id, zeros).unwrap();
    assert!(store.is_changed(id));
    assert_eq!(store.get(&golden.engine, id).unwrap().dtype(), DType::F32);
    assert_ne!(golden.logits(&golden.ids), plain);
    assert_eq!(store.original(&golden.engine, id).unwrap().to_f32().unwrap().as_ref(), before);
    store.reset(id);
    assert_eq!(golden.logits(&golden.ids), plain);
}

fn tensor_bf16(x: f32) -> half::bf16 {
    half::bf16::from_f32(x)
}

#[test]
fn a_weight_of_another_shape_is_refused_by_name() {
    let golden = open("llama");
    let store = golden.model.store();
    let id = store.find("lm_head.weight").unwrap();
    let wrong = golden.engine.budget.tensor(vec![0.0f32; 6], &[2, 3]).unwrap();
    let error = store.set(&golden.engine, id, wrong).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Shape { found, .. } if found == &[2, 3]));
    assert_eq!(error.place(), Some("lm_head.weight"));
}

#[test]
fn a_pattern_that_matches_nothing_is_refused_with_what_is_near() {
    let golden = open("llama");
    let error = golden.model.match_targets(&["Linear", "model.layers.0.self_attn.q_prj"]).unwrap_err();
    let ErrorKind::NoMatch { pattern, nearest } = error.kind() else { panic!("{error}") };
    assert_eq!(pattern, "model.layers.0.self_attn.q_prj");
    assert!(nearest.iter().any(|name| name == "model.layers.0.self_attn.q_proj"), "{nearest:?}");
    let error = golden.model.match_targets(&["nonsense"]).unwrap_err();
    assert_eq!(error.to_string(), "target `nonsense` matches no module");
}

#[test]
fn an_embedding_is_read_by_row_and_gives_the_bits_of_the_whole_table() {
    let golden = open("llama");
    let store = golden.model.store();
    let table = store.find("model.embed_tokens.weight").unwrap();
    let held = store.hold([table]);
    let by_row = golden.logits(&golden.ids);
    assert_eq!(store.resident_bytes(), 0);
    let whole = store.get(&golden.engine, table).unwrap();
    assert_eq!(golden.logits(&golden.ids), by_row);
    let rows = store.rows(&golden.engine, table, 5, 3).unwrap().to_f32().unwrap().into_owned();
    drop(held);
    assert_eq!(store.resident_bytes(), 0);
    let from_disk = store.rows(&golden.engine, table, 5, 3).unwrap();
    assert_eq!(from_disk.to_f32().unwrap().as_ref(), rows);
    assert_eq!(whole.slice(0, 5, 3).unwrap().to_f32().unwrap().as_ref(), rows);
    assert_eq!(store.rows(&golden.engine, table, 127, 2).unwrap_err().place(), Some("model.embed_tokens.weight"));
}
