//! Checkpoints that are large in length and small on the disk: holes between a few blocks of values.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use crate::checkpoints::{bf16_bytes, random, with_header};

/// Values of one block.
const BLOCK: usize = 2048;

/// A bf16 tensor that is zero but for some blocks.
#[derive(Clone, Debug)]
pub(crate) struct Sparse {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

impl Sparse {
    pub(crate) fn new(name: &str, shape: &[usize]) -> Self {
        Self { name: name.to_owned(), shape: shape.to_vec() }
    }

    fn n_values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Writes shards, their index and `config`.
pub(crate) fn write(dir: &Path, config: &Value, shards: &[Vec<Sparse>]) -> PathBuf {
    fs::create_dir_all(dir).unwrap();
    let mut map = Map::new();
    for (idx, tensors) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", idx + 1, shards.len());
        write_shard(&dir.join(&name), tensors);
        map.extend(tensors.iter().map(|it| (it.name.clone(), json!(name))));
    }
    let index = json!({"metadata": {}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    dir.to_owned()
}

fn write_shard(path: &Path, tensors: &[Sparse]) {
    let mut header = Map::new();
    let mut at = 0;
    for it in tensors {
        let end = at + 2 * it.n_values();
        header.insert(it.name.clone(), json!({"dtype": "BF16", "shape": it.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let head = with_header(&Value::Object(header).to_string(), []);
    let mut file = File::create(path).unwrap();
    file.write_all(&head).unwrap();
    file.set_len((head.len() + at) as u64).unwrap();
    let mut begin = head.len();
    for it in tensors {
        let values: Vec<u8> = random(&it.name, BLOCK).into_iter().flat_map(bf16_bytes).collect();
        // The first values, the last, and some in between.
        let last = it.n_values().saturating_sub(BLOCK);
        for part in 0..8 {
            let n = BLOCK.min(it.n_values());
            file.write_all_at(&values[..2 * n], (begin + 2 * (last * part / 7)) as u64).unwrap();
        }
        begin += 2 * it.n_values();
    }
}
