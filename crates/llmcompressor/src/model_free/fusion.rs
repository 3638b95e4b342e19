//! Linears that engines fuse, and that therefore share one global scale.

use std::collections::HashMap;

/// Last parts of the names of linears that engines fuse, each set under one parent.
///
/// The first is the primary, which the others follow. Experts have parents of their own, so that their gate and up
/// projections share a scale as those of a dense block do.
pub const FUSED_LINEARS: &[&[&str]] = &[
    &["q_proj", "k_proj", "v_proj"],
    &["gate_proj", "up_proj"],
    &["w1", "w3"],
    &["q_a_proj", "kv_a_proj_with_mqa"],
    &["wq_a", "wkv_a_with_mqa"],
];

/// Groups indices of `names` that share a scale; each group, and the members of each, are in the order of `names`.
pub(crate) fn fused_groups(names: &[&str]) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut by_set: HashMap<(&str, usize), usize> = HashMap::new();
    for (idx, name) in names.iter().enumerate() {
        let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
        let set = FUSED_LINEARS.iter().position(|members| members.contains(&last));
        let known = set.and_then(|set| by_set.get(&(parent, set)).copied());
        match (known, set) {
            (Some(group), _) => groups[group].push(idx),
            (None, set) => {
                if let Some(set) = set {
                    by_set.insert((parent, set), groups.len());
                }
                groups.push(vec![idx]);
            }
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_across_what_lies_between_them() {
        let names =
            ["l.0.attn.k_proj", "l.0.mlp.w1", "l.0.attn.o_proj", "l.0.attn.q_proj", "l.1.attn.q_proj", "l.0.mlp.w3"];
        assert_eq!(fused_groups(&names), [vec![0, 3], vec![1, 5], vec![2], vec![4]]);
    }

    #[test]
    fn each_expert_has_its_own_scale() {
        let names = ["e.0.gate_proj", "e.1.gate_proj", "e.0.up_proj", "e.1.up_proj", "e.0.down_proj"];
        assert_eq!(fused_groups(&names), [vec![0, 2], vec![1, 3], vec![4]]);
    }
}
