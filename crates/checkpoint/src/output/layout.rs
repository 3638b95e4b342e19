//! Where every tensor of an output lies: headers and offsets from names, dtypes and shapes alone.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use compressed_tensors::DType;
use indexmap::IndexMap;
use serde_json::{Map, Value, json};

use crate::{
    error::{Error, ErrorKind, Result},
    header::{MAX_HEADER_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS, PREFIX_BYTES},
    source::check_file_name,
};

/// Name, dtype and shape of a tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes that the tensor takes; `None` where they overflow or are no whole number.
    pub fn n_bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1_usize, |n, dim| n.checked_mul(*dim))?;
        self.dtype.byte_len(elements).map(|it| it as u64)
    }
}

/// One shard of an output.
///
/// The order of the tensors does not matter: as in the reference's files, wider dtypes come first and equal ones
/// are sorted by name, which keeps every tensor aligned to its element.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardPlan {
    /// Its name in the output directory.
    pub file_name: String,
    /// Its tensors.
    pub tensors: Vec<TensorSpec>,
    /// Its `__metadata__` strings.
    pub metadata: IndexMap<String, String>,
}

/// A shard whose bytes are all placed.
#[derive(Debug)]
pub(super) struct LaidShard {
    pub(super) file_name: String,
    /// Length field and header: the bytes before the data.
    pub(super) head: Vec<u8>,
    pub(super) file_bytes: u64,
}

/// A tensor's place in the output.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) name: String,
    pub(super) shard_idx: usize,
    /// Its bytes, from the start of the file.
    pub(super) range: Range<u64>,
}

impl Slot {
    pub(super) fn n_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// All shards of an output.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) shards: Vec<LaidShard>,
    pub(super) slots: Vec<Slot>,
    pub(super) by_name: HashMap<String, usize>,
}

impl Layout {
    pub(super) fn of(plans: &[ShardPlan]) -> Result<Self> {
        let mut layout = Self { shards: Vec::new(), slots: Vec::new(), by_name: HashMap::new() };
        let mut file_names = HashSet::new();
        for plan in plans {
            if !file_names.insert(plan.file_name.as_str()) {
                return Err(contract(format!("the shard {} is planned twice", plan.file_name)));
            }
            let (shard, slots) = place(plan, layout.shards.len())?;
            for slot in slots {
                if layout.by_name.insert(slot.name.clone(), layout.slots.len()).is_some() {
                    return Err(contract("the tensor is planned twice".to_owned()).tensor(slot.name));
                }
                layout.slots.push(slot);
            }
            layout.shards.push(shard);
        }
        Ok(layout)
    }

    /// Hash over file names and heads: equal layouts have equal hashes.
    pub(super) fn fingerprint(&self) -> String {
        let mut digest = blake3::Hasher::new();
        for shard in &self.shards {
            digest.update(shard.file_name.as_bytes()).update(b"\0").update(&shard.head);
        }
        digest.finalize().to_hex().to_string()
    }
}

/// Places the tensors of one shard.
pub(super) fn place(plan: &ShardPlan, shard_idx: usize) -> Result<(LaidShard, Vec<Slot>)> {
    check_file_name(&plan.file_name)?;
    if !plan.file_name.ends_with(".safetensors") {
        return Err(contract(format!("the shard {} does not end in .safetensors", plan.file_name)));
    }
    if plan.tensors.len() > MAX_TENSORS {
        return Err(contract(format!("the shard has {} tensors, at most {MAX_TENSORS} fit", plan.tensors.len())));
    }
    let mut order: Vec<&TensorSpec> = plan.tensors.iter().collect();
    order.sort_by(|a, b| b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name)));

    let mut header = Map::new();
    if !plan.metadata.is_empty() {
        header.insert("__metadata__".to_owned(), json!(plan.metadata));
    }
    let mut at = 0_u64;
    let mut ranges = Vec::with_capacity(order.len());
    for spec in &order {
        let end = checked_end(spec, at)?;
        let entry = json!({
            "dtype": spec.dtype.safetensors_name(), "shape": spec.shape, "data_offsets": [at, end],
        });
        if header.insert(spec.name.clone(), entry).is_some() {
            return Err(contract("the tensor is planned twice".to_owned()).tensor(&spec.name));
        }
        ranges.push(at..end);
        at = end;
    }
    let head = head_of(&Value::Object(header))?;
    let start = head.len() as u64;
    let file_bytes = start.checked_add(at).ok_or_else(|| contract("the shard's size overflows".to_owned()))?;
    let slots = order
        .iter()
        .zip(ranges)
        .map(|(spec, it)| Slot { name: spec.name.clone(), shard_idx, range: start + it.start..start + it.end })
        .collect();
    Ok((LaidShard { file_name: plan.file_name.clone(), head, file_bytes }, slots))
}

fn checked_end(spec: &TensorSpec, start: u64) -> Result<u64> {
    if spec.name.len() > MAX_NAME_BYTES || spec.name == "__metadata__" {
        return Err(contract("the name is longer than 1 KiB or reserved".to_owned()).tensor(&spec.name));
    }
    if spec.shape.len() > MAX_RANK {
        return Err(contract(format!("the rank is {}, at most {MAX_RANK} fit", spec.shape.len())).tensor(&spec.name));
    }
    spec.n_bytes().and_then(|it| start.checked_add(it)).filter(|it| *it <= i64::MAX as u64).ok_or_else(|| {
        let reason = format!("shape {:?} of {} has no size in whole bytes", spec.shape, spec.dtype);
        contract(reason).tensor(&spec.name)
    })
}

/// Length field and header text, padded with spaces so that the data begins at a multiple of 8.
fn head_of(header: &Value) -> Result<Vec<u8>> {
    let mut text = header.to_string().into_bytes();
    text.resize(text.len().next_multiple_of(PREFIX_BYTES as usize), b' ');
    if text.len() as u64 > MAX_HEADER_BYTES {
        return Err(contract(format!("the header has {} bytes, at most {MAX_HEADER_BYTES} fit", text.len())));
    }
    let mut head = (text.len() as u64).to_le_bytes().to_vec();
    head.extend(text);
    Ok(head)
}

pub(super) fn contract(reason: String) -> Error {
    ErrorKind::Contract { reason }.into()
}
