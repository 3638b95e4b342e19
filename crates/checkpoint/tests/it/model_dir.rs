//! Model directories for tests, good and damaged.

use std::{
    fs,
    path::{Path, PathBuf},
};

use checkpoint::{Class, Error, Source};
use serde_json::{Map, Value, json};

/// A safetensors file from a header and its data; the header is padded as writers do.
pub(crate) fn safetensors(header: &Value, data: &[u8]) -> Vec<u8> {
    let mut text = header.to_string();
    while !text.len().is_multiple_of(8) {
        text.push(' ');
    }
    raw(text.as_bytes(), data)
}

/// A safetensors file from header bytes as they are.
pub(crate) fn raw(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header);
    out.extend(data);
    out
}

/// A file with U8 tensors of the given lengths, each filled with its position.
pub(crate) fn bytes_file(tensors: &[(&str, usize)]) -> Vec<u8> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for (idx, (name, len)) in tensors.iter().enumerate() {
        let offsets = [data.len(), data.len() + len];
        header.insert((*name).to_owned(), json!({"dtype": "U8", "shape": [len], "data_offsets": offsets}));
        data.extend(std::iter::repeat_n(idx as u8 + 1, *len));
    }
    safetensors(&Value::Object(header), &data)
}

/// A temporary model directory.
pub(crate) struct ModelDir(pub(crate) tempfile::TempDir);

impl ModelDir {
    /// A directory with a config and nothing else.
    pub(crate) fn empty() -> Self {
        let dir = Self(tempfile::tempdir().unwrap());
        dir.put("config.json", br#"{"model_type": "llama"}"#);
        dir
    }

    /// A directory with one shard of these bytes.
    pub(crate) fn single(shard: &[u8]) -> Self {
        let dir = Self::empty();
        dir.put("model.safetensors", shard);
        dir
    }

    /// Two shards and their index.
    pub(crate) fn sharded() -> Self {
        let dir = Self::empty();
        dir.put("model-00001-of-00002.safetensors", &bytes_file(&[("a", 4), ("b", 2)]));
        dir.put("model-00002-of-00002.safetensors", &bytes_file(&[("c", 3)]));
        dir.index(json!({"a": S1, "b": S1, "c": S2}));
        dir
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn put(&self, name: &str, bytes: &[u8]) {
        let path = self.file(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(crate) fn index(&self, weight_map: Value) {
        let text = json!({"metadata": {"total_size": 9}, "weight_map": weight_map}).to_string();
        self.put("model.safetensors.index.json", text.as_bytes());
    }

    /// Opens the directory, which must fail.
    pub(crate) fn fault(&self) -> Error {
        Source::open(self.path()).map(|_| ()).expect_err("the directory is malformed")
    }

    /// Opens the directory, which must fail with bad input at this file.
    pub(crate) fn bad_input_at(&self, file: &str) -> Error {
        let error = self.fault();
        assert_eq!(error.class(), Class::BadInput, "{error}");
        assert_at(&error, file);
        error
    }
}

/// Checks the file name that an error is placed at.
pub(crate) fn assert_at(error: &Error, file: &str) {
    let path = error.place().path.as_ref().unwrap_or_else(|| panic!("no path in `{error}`"));
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), file, "{error}");
}

pub(crate) const S1: &str = "model-00001-of-00002.safetensors";
pub(crate) const S2: &str = "model-00002-of-00002.safetensors";
