//! Damaged directories: each fault is found before any tensor is read, with its kind and its place.

use checkpoint::ErrorKind;

use crate::model_dir::{ModelDir, bytes_file};

#[test]
fn a_cut_shard_is_found_wherever_it_is_cut() {
    let whole = bytes_file(&[("a", 40), ("b", 24)]);
    let header_end = whole.len() - 64;
    for len in [0, 1, 7, 8, 20, header_end - 1, header_end, header_end + 30, whole.len() - 1] {
        let dir = ModelDir::single(&whole[..len]);
        let error = dir.bad_input_at("model.safetensors");
        let &ErrorKind::Truncated { needed, actual } = error.kind() else { panic!("{len}: {error}") };
        assert_eq!(actual, len as u64);
        assert!(needed > actual, "{error}");
    }
}
