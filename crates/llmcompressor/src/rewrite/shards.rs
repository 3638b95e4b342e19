//! Which output shard each tensor goes to.

use checkpoint::{ShardPlan, Source};
use indexmap::IndexMap;

use super::Unit;

/// Lays the outputs of `units` out in shards: as the source's, or cut at `max_bytes`.
pub(super) fn plan_shards(source: &Source, units: &[Box<dyn Unit>], max_bytes: Option<u64>) -> Vec<ShardPlan> {
    let outputs = units.iter().flat_map(|it| it.outputs());
    let Some(max_bytes) = max_bytes else {
        let mut shards: Vec<_> =
            source.shards().iter().map(|it| shard(it.file_name.clone(), it.metadata.clone())).collect();
        for output in outputs {
            shards[output.shard_idx].tensors.push(output.spec.clone());
        }
        // A shard of which nothing is left would be an empty file.
        shards.retain(|it| !it.tensors.is_empty());
        return shards;
    };
    let mut cut: Vec<Vec<_>> = vec![Vec::new()];
    let mut filled = 0;
    for output in outputs {
        let bytes = output.spec.n_bytes().unwrap_or(0);
        if filled > 0 && filled + bytes > max_bytes {
            cut.push(Vec::new());
            filled = 0;
        }
        filled += bytes;
        if let Some(last) = cut.last_mut() {
            last.push(output.spec.clone());
        }
    }
    let n_shards = cut.len();
    let metadata = source.shards().first().map(|it| it.metadata.clone()).unwrap_or_default();
    let name = |idx: usize| match n_shards {
        1 => "model.safetensors".to_owned(),
        n => format!("model-{:05}-of-{n:05}.safetensors", idx + 1),
    };
    cut.into_iter()
        .enumerate()
        .map(|(idx, tensors)| ShardPlan { tensors, ..shard(name(idx), metadata.clone()) })
        .collect()
}

fn shard(file_name: String, metadata: IndexMap<String, String>) -> ShardPlan {
    ShardPlan { file_name, tensors: Vec::new(), metadata }
}
