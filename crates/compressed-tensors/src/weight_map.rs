//! Which shard needs which tensors of which other shards: pure functions over a checkpoint's index.

use indexmap::{IndexMap, IndexSet};

use crate::{Error, ErrorKind, Result};

/// Tensor name to the shard that holds it, in index order.
pub type WeightMap = IndexMap<String, String>;

/// What one output shard is made of: source shard to the names read from it.
pub type ShardSources = IndexMap<String, Vec<String>>;

/// Shard to the tensors it holds, in index order.
pub fn tensors_by_shard(weight_map: &WeightMap) -> ShardSources {
    let mut shards = ShardSources::new();
    for (name, shard) in weight_map {
        shards.entry(shard.clone()).or_default().push(name.clone());
    }
    shards
}

/// For each output shard, the tensors to read and where they lie.
///
/// `dependencies(name)` names the tensors that must be at hand when `name` is converted. A tensor that
/// another one depends on moves to the shard of its dependent; a shard of which nothing is left has no
/// entry. A tensor that several shards depend on is listed in each of them.
///
/// # Errors
/// [`ErrorKind::MissingTensor`] at the dependent tensor where a companion is not in the index,
/// [`ErrorKind::UnexpectedTensor`] where a tensor depends on itself, directly or in a circle.
pub fn inverse_weight_maps(
    weight_map: &WeightMap,
    dependencies: impl Fn(&str) -> Vec<String>,
) -> Result<IndexMap<String, ShardSources>> {
    let mut direct: IndexMap<&str, Vec<String>> = IndexMap::new();
    let mut companions: IndexSet<&str> = IndexSet::new();
    for name in weight_map.keys() {
        direct.insert(name, dependencies(name));
    }
    for (name, needed) in &direct {
        for companion in needed {
            let Some((known, _)) = weight_map.get_key_value(companion) else {
                return Err(Error::from(ErrorKind::MissingTensor { tensor: companion.clone() }).at(name));
            };
            if known == name {
                return Err(circular(name));
            }
            companions.insert(known);
        }
    }

    let mut outputs: IndexMap<String, ShardSources> = IndexMap::new();
    let mut covered: IndexSet<&str> = IndexSet::new();
    for (owner, shard) in weight_map.iter().filter(|(name, _)| !companions.contains(name.as_str())) {
        let sources = outputs.entry(shard.clone()).or_default();
        let mut pending = vec![owner.as_str()];
        let mut seen: IndexSet<&str> = IndexSet::new();
        while let Some(name) = pending.pop() {
            if !seen.insert(name) {
                continue;
            }
            covered.insert(name);
            let names = sources.entry(weight_map[name].clone()).or_default();
            if !names.iter().any(|it| it == name) {
                names.push(name.to_owned());
            }
            pending.extend(direct[name].iter().map(String::as_str));
        }
    }
    match weight_map.keys().find(|name| !covered.contains(name.as_str())) {
        Some(orphan) => Err(circular(orphan)),
        None => Ok(outputs),
    }
}

fn circular(name: &str) -> Error {
    ErrorKind::UnexpectedTensor { tensor: name.to_owned(), reason: "it depends on itself".to_owned() }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> WeightMap {
        entries.iter().map(|(name, shard)| ((*name).to_owned(), (*shard).to_owned())).collect()
    }

    #[test]
    fn dependencies_of_dependencies_come_along() {
        let index = map(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let next = |name: &str| match name {
            "a" => vec!["b".to_owned()],
            "b" => vec!["c".to_owned()],
            _ => Vec::new(),
        };
        let outputs = inverse_weight_maps(&index, next).unwrap();
        assert_eq!(outputs.keys().collect::<Vec<_>>(), ["1"]);
        assert_eq!(outputs["1"].keys().collect::<Vec<_>>(), ["1", "2", "3"]);
    }

    #[test]
    fn a_tensor_that_depends_on_itself_is_refused() {
        let index = map(&[("a", "1"), ("b", "2")]);
        let own = inverse_weight_maps(&index, |name| vec![name.to_owned()]).unwrap_err();
        assert!(matches!(own.kind(), ErrorKind::UnexpectedTensor { tensor, .. } if tensor == "a"));
        let circle = |name: &str| vec![if name == "a" { "b" } else { "a" }.to_owned()];
        let error = inverse_weight_maps(&index, circle).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::UnexpectedTensor { .. }));
    }

    #[test]
    fn a_missing_companion_is_named_at_its_dependent() {
        let error = inverse_weight_maps(&map(&[("a", "1")]), |_| vec!["b".to_owned()]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::MissingTensor { tensor } if tensor == "b"));
        assert_eq!(error.place(), Some("a"));
    }

    #[test]
    fn a_companion_of_two_shards_is_listed_in_both() {
        let index = map(&[("a", "1"), ("b", "2"), ("c", "3")]);
        let on_c = |name: &str| if name == "c" { Vec::new() } else { vec!["c".to_owned()] };
        let outputs = inverse_weight_maps(&index, on_c).unwrap();
        assert_eq!(outputs["1"]["3"], ["c"]);
        assert_eq!(outputs["2"]["3"], ["c"]);
    }
}
