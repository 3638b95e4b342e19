//! Linears that engines run as one, which therefore share a global scale, found by their names.

use std::{cmp::Ordering, collections::BTreeMap};

/// Names of linears that are fused; the first member is the primary, which the others follow.
#[derive(Clone, Copy, Debug)]
pub struct FusedPattern {
    /// Last segment of the enclosing module; empty where any module will do.
    pub containers: &'static [&'static str],
    /// Last segments of the linears.
    pub members: &'static [&'static str],
}

/// All patterns; they are the reference's and know dense blocks, not experts.
pub const FUSED_PATTERNS: &[FusedPattern] = &[
    FusedPattern {
        containers: &["attn", "attention", "self_attn", "self_attention"],
        members: &["q_proj", "k_proj", "v_proj"],
    },
    FusedPattern { containers: &["attn", "attention", "self_attn"], members: &["wq_a", "wkv_a_with_mqa"] },
    FusedPattern { containers: &["mlp", "feed_forward"], members: &["gate_proj", "up_proj"] },
    FusedPattern { containers: &[], members: &["w1", "w3"] },
];

/// The linears of one module that are fused, in the order of the pattern; `None` where one is absent.
pub type FusedSet = Vec<Option<String>>;

/// Weights that belong together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FusedSets {
    /// Sets of which every member is there.
    pub complete: Vec<Vec<String>>,
    /// Sets of which some member is missing.
    pub incomplete: Vec<FusedSet>,
}

/// The weights that share a global scale with `weight`, if that is the primary of its set, else none.
///
/// The primary's shard loads its partners, so that a set is always converted together.
pub fn fused_partners(weight: &str) -> Vec<String> {
    match find(weight) {
        Some((pattern, 0, module)) => {
            FUSED_PATTERNS[pattern].members[1..].iter().map(|member| format!("{module}.{member}.weight")).collect()
        }
        _ => Vec::new(),
    }
}

/// Sorts weights into fused sets; names that are in no set are left out.
///
/// Sets are ordered by pattern, then by the module's name with numbers compared as numbers. Members of
/// a set share their enclosing module; a set never takes a member from another layer.
pub fn fused_sets<'a>(weights: impl IntoIterator<Item = &'a str>) -> FusedSets {
    let mut by_module: BTreeMap<(usize, NaturalOrder<'a>), FusedSet> = BTreeMap::new();
    for weight in weights {
        let Some((pattern, member, module)) = find(weight) else { continue };
        let n_members = FUSED_PATTERNS[pattern].members.len();
        let set = by_module.entry((pattern, NaturalOrder(module))).or_insert_with(|| vec![None; n_members]);
        set[member] = Some(weight.to_owned());
    }
    let mut sets = FusedSets::default();
    for set in by_module.into_values() {
        match set.iter().cloned().collect::<Option<Vec<String>>>() {
            Some(complete) => sets.complete.push(complete),
            None => sets.incomplete.push(set),
        }
    }
    sets
}

/// The indices of pattern and member, and the enclosing module.
fn find(weight: &str) -> Option<(usize, usize, &str)> {
    let (module, linear) = weight.strip_suffix(".weight")?.rsplit_once('.')?;
    let fits = |pattern: &FusedPattern| match module.rsplit_once('.') {
        _ if pattern.containers.is_empty() => !module.is_empty(),
        Some((prefix, container)) => !prefix.is_empty() && pattern.containers.contains(&container),
        None => false,
    };
    FUSED_PATTERNS.iter().enumerate().find_map(|(idx, pattern)| {
        let member = pattern.members.iter().position(|it| *it == linear)?;
        fits(pattern).then_some((idx, member, module))
    })
}

/// Names by text, runs of digits by value.
#[derive(PartialEq, Eq)]
struct NaturalOrder<'a>(&'a str);

impl Ord for NaturalOrder<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut a, mut b) = (self.0, other.0);
        while !a.is_empty() && !b.is_empty() {
            let (run_a, rest_a) = first_run(a);
            let (run_b, rest_b) = first_run(b);
            let digits = |run: &str| run.starts_with(|c: char| c.is_ascii_digit());
            let order = if digits(run_a) && digits(run_b) {
                let (x, y) = (run_a.trim_start_matches('0'), run_b.trim_start_matches('0'));
                x.len().cmp(&y.len()).then(x.cmp(y))
            } else {
                run_a.cmp(run_b)
            };
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (rest_a, rest_b);
        }
        a.len().cmp(&b.len()).then_with(|| self.0.cmp(other.0))
    }
}

impl PartialOrd for NaturalOrder<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Splits off the leading digits, or all that comes before digits.
fn first_run(text: &str) -> (&str, &str) {
    let numeric = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != numeric).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_primary_names_its_partners() {
        assert_eq!(
            fused_partners("m.self_attn.q_proj.weight"),
            ["m.self_attn.k_proj.weight", "m.self_attn.v_proj.weight"]
        );
        assert_eq!(fused_partners("m.experts.3.w1.weight"), ["m.experts.3.w3.weight"]);
        for other in ["m.self_attn.k_proj.weight", "m.self_attn.q_proj.bias", "self_attn.q_proj.weight", "q_proj", ""] {
            assert!(fused_partners(other).is_empty(), "{other}");
        }
    }

    #[test]
    fn a_member_of_another_layer_does_not_complete_a_set() {
        let names = ["l.1.attn.q_proj.weight", "l.2.attn.k_proj.weight", "l.1.attn.v_proj.weight"];
        let sets = fused_sets(names);
        assert!(sets.complete.is_empty());
        assert_eq!(sets.incomplete.len(), 2);
    }

    #[test]
    fn numbers_in_names_are_compared_by_value() {
        let mut names = ["l.10.a", "l.2.a", "l.02.b", "l", "l.2"].map(NaturalOrder);
        names.sort();
        assert_eq!(names.map(|it| it.0), ["l", "l.2", "l.2.a", "l.02.b", "l.10.a"]);
    }
}
