//! Reads `goldens/<room>/...`: JSON cases and raw tensors of safetensors files.

use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    rc::Rc,
};

use serde_json::Value;

/// A tensor of a golden file, as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GoldenTensor {
    /// The safetensors dtype name.
    pub dtype: String,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// Little-endian bytes.
    pub data: Vec<u8>,
}

/// One room of the golden set, `goldens/<room>`; files are read once and kept.
pub struct Goldens {
    dir: PathBuf,
    files: RefCell<HashMap<String, Rc<HashMap<String, GoldenTensor>>>>,
}

/// The folder of a golden room.
pub fn goldens_dir(room: &str) -> PathBuf {
    repository().join("goldens").join(room)
}

/// A folder or file below `fixtures/`.
pub fn fixture(name: &str) -> PathBuf {
    repository().join("fixtures").join(name)
}

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

impl Goldens {
    /// Opens `goldens/<room>`, e.g. `"formats"` or `"models/llama"`.
    pub fn open(room: &str) -> Self {
        Self { dir: goldens_dir(room), files: RefCell::default() }
    }

    /// Parses a JSON file of the room.
    pub fn json(&self, file: &str) -> Value {
        let path = self.dir.join(file);
        let text = fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// All tensors of a safetensors file of the room, by name.
    pub fn tensors(&self, file: &str) -> Rc<HashMap<String, GoldenTensor>> {
        if let Some(found) = self.files.borrow().get(file) {
            return Rc::clone(found);
        }
        let read = Rc::new(read_safetensors(&self.dir.join(file)));
        self.files.borrow_mut().insert(file.to_owned(), Rc::clone(&read));
        read
    }

    /// The tensor that a manifest names as `{"file": ..., "name": ...}`.
    pub fn tensor(&self, reference: &Value) -> GoldenTensor {
        let part = |key: &str| reference[key].as_str().unwrap_or_else(|| panic!("no `{key}` in {reference}"));
        let (file, name) = (part("file"), part("name"));
        self.tensors(file).get(name).unwrap_or_else(|| panic!("no tensor `{name}` in {file}")).clone()
    }
}

fn read_safetensors(path: &Path) -> HashMap<String, GoldenTensor> {
    let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    let (header, data) = bytes[8..].split_at(header_len);
    let header: serde_json::Map<String, Value> = serde_json::from_slice(header).expect("a JSON header");
    let number = |v: &Value| v.as_u64().expect("a number") as usize;
    header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
        .map(|(name, entry)| {
            let [from, to] = [0, 1].map(|i| number(&entry["data_offsets"][i]));
            let tensor = GoldenTensor {
                dtype: entry["dtype"].as_str().expect("a dtype").to_owned(),
                shape: entry["shape"].as_array().expect("a shape").iter().map(number).collect(),
                data: data[from..to].to_vec(),
            };
            (name, tensor)
        })
        .collect()
}
