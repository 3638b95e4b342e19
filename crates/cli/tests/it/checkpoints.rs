//! Small checkpoints that tests make, and what they read back from those that the command writes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

/// Name, dtype, shape and bytes of one tensor.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) dtype: &'static str,
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<u8>,
}

impl Tensor {
    pub(crate) fn new(name: &str, dtype: &'static str, shape: &[usize], data: Vec<u8>) -> Self {
        Self { name: name.to_owned(), dtype, shape: shape.to_vec(), data }
    }

    /// Values between -0.1 and 0.1 that depend on the name.
    pub(crate) fn bf16(name: &str, shape: &[usize]) -> Self {
        let values = random(name, shape.iter().product());
        Self::new(name, "BF16", shape, values.iter().flat_map(|it| bf16_bytes(*it)).collect())
    }

    /// A bf16 tensor times a power of two.
    fn scaled(self, factor: f32) -> Self {
        let values: Vec<f32> = bf16_values(&self.data).iter().map(|it| it * factor).collect();
        Self::bf16_of(&self.name, &self.shape, &values)
    }

    pub(crate) fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "F32", shape, values.iter().flat_map(|it| it.to_le_bytes()).collect())
    }

    pub(crate) fn bf16_of(name: &str, shape: &[usize], values: &[f32]) -> Self {
        Self::new(name, "BF16", shape, values.iter().flat_map(|it| bf16_bytes(*it)).collect())
    }
}

/// A dense bf16 from an f32 that has at most 8 significant bits; others are cut.
pub(crate) fn bf16_bytes(value: f32) -> [u8; 2] {
    let [_, _, a, b] = value.to_le_bytes();
    [a, b]
}

pub(crate) fn bf16_values(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(2).map(|it| f32::from_bits(u32::from(u16::from_le_bytes([it[0], it[1]])) << 16)).collect()
}

/// A fixed stream of values in -0.1 to 0.1 for each name.
pub(crate) fn random(name: &str, n: usize) -> Vec<f32> {
    let seed =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, it| (hash ^ u64::from(it)).wrapping_mul(0x100_0000_01b3));
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 * 0.2 - 0.1
    };
    (0..n).map(|_| next()).collect()
}

/// A checkpoint to be written.
#[derive(Clone, Debug)]
pub(crate) struct Checkpoint {
    pub(crate) config: Value,
    pub(crate) shards: Vec<Vec<Tensor>>,
}

impl Checkpoint {
    pub(crate) fn single(config: Value, tensors: Vec<Tensor>) -> Self {
        Self { config, shards: vec![tensors] }
    }

    /// Writes shards, an index where there are several, the config and a tokenizer.
    pub(crate) fn write(&self, dir: &Path) -> PathBuf {
        fs::create_dir_all(dir).unwrap();
        let mut map = Map::new();
        for (idx, shard) in self.shards.iter().enumerate() {
            let name = self.shard_name(idx);
            fs::write(dir.join(&name), safetensors(shard)).unwrap();
            map.extend(shard.iter().map(|it| (it.name.clone(), json!(name))));
        }
        if self.shards.len() > 1 {
            let index = json!({"metadata": {}, "weight_map": map});
            fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        fs::write(dir.join("tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
        dir.to_owned()
    }

    pub(crate) fn shard_name(&self, idx: usize) -> String {
        match self.shards.len() {
            1 => "model.safetensors".to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", idx + 1),
        }
    }

    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.shards.iter_mut().flatten().find(|it| it.name == name).unwrap()
    }
}

/// The bytes of a safetensors file.
pub(crate) fn safetensors(tensors: &[Tensor]) -> Vec<u8> {
    let mut header = Map::new();
    let mut at = 0;
    for it in tensors {
        let end = at + it.data.len();
        header.insert(it.name.clone(), json!({"dtype": it.dtype, "shape": it.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let data = tensors.iter().flat_map(|it| it.data.iter().copied());
    with_header(&Value::Object(header).to_string(), data)
}

/// A file with that header, right or wrong.
pub(crate) fn with_header(header: &str, data: impl IntoIterator<Item = u8>) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data);
    file
}

/// A Llama of one layer, 128 wide: every preset's groups divide its columns, and weights that engines fuse differ
/// in their range.
pub(crate) fn llama() -> Checkpoint {
    llama_sized(1, 128, 256)
}

pub(crate) fn llama_sized(layers: usize, hidden: usize, intermediate: usize) -> Checkpoint {
    let mut tensors = vec![Tensor::bf16("model.embed_tokens.weight", &[64, hidden])];
    for layer in 0..layers {
        let name = |it: &str| format!("model.layers.{layer}.{it}.weight");
        tensors.push(Tensor::bf16(&name("input_layernorm"), &[hidden]));
        tensors.push(Tensor::bf16(&name("self_attn.q_proj"), &[hidden, hidden]));
        tensors.push(Tensor::bf16(&name("self_attn.k_proj"), &[hidden / 2, hidden]).scaled(0.25));
        tensors.push(Tensor::bf16(&name("self_attn.v_proj"), &[hidden / 2, hidden]));
        tensors.push(Tensor::bf16(&name("self_attn.o_proj"), &[hidden, hidden]));
        tensors.push(Tensor::bf16(&name("post_attention_layernorm"), &[hidden]));
        tensors.push(Tensor::bf16(&name("mlp.gate_proj"), &[intermediate, hidden]));
        tensors.push(Tensor::bf16(&name("mlp.up_proj"), &[intermediate, hidden]).scaled(4.0));
        tensors.push(Tensor::bf16(&name("mlp.down_proj"), &[hidden, intermediate]));
    }
    tensors.push(Tensor::bf16("model.norm.weight", &[hidden]));
    tensors.push(Tensor::bf16("lm_head.weight", &[64, hidden]));
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "bfloat16", "hidden_size": hidden,
        "intermediate_size": intermediate, "num_hidden_layers": layers, "tie_word_embeddings": false,
    });
    Checkpoint::single(config, tensors)
}

/// The tensors of a written checkpoint by name: dtype, shape, bytes.
pub(crate) fn read_tensors(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let mut tensors = BTreeMap::new();
    for path in files(dir).filter(|it| it.extension().is_some_and(|it| it == "safetensors")) {
        let bytes = fs::read(path).unwrap();
        let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
        for (name, it) in header.into_iter().filter(|it| it.0 != "__metadata__") {
            let numbers = |key: &str| -> Vec<usize> {
                it[key].as_array().unwrap().iter().map(|it| it.as_u64().unwrap() as usize).collect()
            };
            let offsets = numbers("data_offsets");
            let data = bytes[8 + n + offsets[0]..8 + n + offsets[1]].to_vec();
            tensors.insert(name, (it["dtype"].as_str().unwrap().to_owned(), numbers("shape"), data));
        }
    }
    tensors
}

/// Rewrites the file of a checkpoint of one shard after `change`.
pub(crate) fn change_tensors(dir: &Path, change: impl FnOnce(&mut BTreeMap<String, (String, Vec<usize>, Vec<u8>)>)) {
    let mut tensors = read_tensors(dir);
    change(&mut tensors);
    let dtypes = ["BF16", "F16", "F32", "F8_E4M3", "I32", "I64", "U8", "I8", "F8_E8M0", "BOOL"];
    let dtype = |it: &str| dtypes.into_iter().find(|dtype| *dtype == it).unwrap();
    let list: Vec<Tensor> =
        tensors.into_iter().map(|(name, (d, shape, data))| Tensor::new(&name, dtype(&d), &shape, data)).collect();
    fs::write(dir.join("model.safetensors"), safetensors(&list)).unwrap();
    let map: Map<String, Value> = list.iter().map(|it| (it.name.clone(), json!("model.safetensors"))).collect();
    let total: usize = list.iter().map(|it| it.data.len()).sum();
    let index = json!({"metadata": {"total_size": total}, "weight_map": map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

pub(crate) fn config_of(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// Every file of a finished output but its report and its page.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let name = |it: &Path| it.file_name().unwrap().to_str().unwrap().to_owned();
    let kept = files(dir).filter(|it| !["report.json", "report.html"].contains(&name(it).as_str()));
    kept.map(|it| (name(&it), fs::read(&it).unwrap())).collect()
}

/// Fails with the names of files that differ, and not with their bytes.
#[track_caller]
pub(crate) fn assert_same_contents(a: &Path, b: &Path) {
    let (a, b) = (contents(a), contents(b));
    let names: Vec<_> = a.keys().chain(b.keys()).filter(|it| a.get(*it) != b.get(*it)).collect();
    assert!(names.is_empty(), "these differ: {names:?}");
}

fn files(dir: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(dir).unwrap().map(|it| it.unwrap().path()).filter(|it| it.is_file())
}
