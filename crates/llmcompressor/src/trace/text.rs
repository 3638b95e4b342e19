//! Subgraphs as lines for a person.

use std::fmt::Write as _;

use bytesize::ByteSize;

use super::{Trace, TracedSubgraph, TracedValue};
use crate::names::fold_names;

pub(super) fn text(trace: &Trace) -> String {
    let mut text = heading(trace);
    for subgraph in &trace.subgraphs {
        text.push('\n');
        block(&mut text, subgraph);
    }
    let totals = &trace.totals;
    let _ = write!(
        text,
        "\ntotal  {} parameters, {}; {} FLOP per token; at most {} in one subgraph and {} kept per token",
        totals.n_parameters,
        ByteSize(totals.parameter_bytes),
        short(totals.flop_per_token),
        ByteSize(totals.largest_parameter_bytes),
        ByteSize(totals.largest_kept_bytes_per_token),
    );
    text
}

/// What was cut, and how.
pub(super) fn heading(trace: &Trace) -> String {
    let n = trace.subgraphs.len();
    let share = match trace.targets_per_subgraph {
        Some(n) if n > 1 => format!(", {n} of them in a subgraph"),
        _ => String::new(),
    };
    format!(
        "{}: {}, {}, {n} {} ({}, {} of {}{share}), costs in a row of {} tokens",
        trace.model,
        trace.model_type,
        trace.dtype,
        if n == 1 { "subgraph" } else { "subgraphs" },
        trace.partition,
        if trace.n_targets == 1 { "1 target".to_owned() } else { format!("{} targets", trace.n_targets) },
        trace.targets.join(" "),
        trace.seq_len,
    )
}

/// A number with three digits and a prefix.
pub(super) fn short(n: u64) -> String {
    let prefixes = [(1_000_000_000_000u64, " T"), (1_000_000_000, " G"), (1_000_000, " M"), (1_000, " k")];
    match prefixes.iter().find(|(unit, _)| n >= *unit) {
        Some((unit, prefix)) => format!("{:.1}{prefix}", n as f64 / *unit as f64),
        None => n.to_string(),
    }
}

/// What a subgraph calls, layers and experts folded.
pub(super) fn calls(subgraph: &TracedSubgraph) -> Vec<String> {
    if subgraph.calls.is_empty() {
        return vec!["operations alone".to_owned()];
    }
    under_parents(&fold_names(subgraph.calls.iter().map(String::as_str)))
}

/// Names of which neighbours share two segments or more become `model.layers.0.{q_proj, k_proj}`.
fn under_parents(names: &[String]) -> Vec<String> {
    let mut out = Vec::new();
    let mut rest = names;
    while let Some(first) = rest.first() {
        let mut parent = first.rsplit_once('.').map_or("", |it| it.0);
        let mut n = 1;
        while let Some(name) = rest.get(n) {
            let shared = shared_parent(parent, name);
            if shared.split('.').count() < 2 {
                break;
            }
            (parent, n) = (shared, n + 1);
        }
        let children: Vec<&str> = rest[..n].iter().map(|it| &it[(parent.len() + 1).min(it.len())..]).collect();
        out.push(if n == 1 { first.clone() } else { format!("{parent}.{{{}}}", children.join(", ")) });
        rest = &rest[n..];
    }
    out
}

/// The longest run of segments that a name of a module and another name begin with.
fn shared_parent<'n>(parent: &'n str, name: &str) -> &'n str {
    let mut end = 0;
    for (ours, theirs) in parent.split('.').zip(name.split('.')) {
        if ours != theirs {
            break;
        }
        end += ours.len() + 1;
    }
    &parent[..end.saturating_sub(1)]
}

fn block(text: &mut String, it: &TracedSubgraph) {
    let _ = writeln!(text, "{:>3}  {}", it.index, calls(it).join(", "));
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            let _ = writeln!(text, "     {name:<6} {value}");
        }
    };
    line("takes", values(&it.inputs));
    line("gives", values(&it.outputs));
    line("drops", it.consumed.join(", "));
    line("runs", modules(it));
    let fixed = if it.kept_fixed_bytes > 0 { format!(" and {}", ByteSize(it.kept_fixed_bytes)) } else { String::new() };
    let kept = format!("{} per token{fixed} kept after it", ByteSize(it.kept_bytes_per_token));
    let parameters = format!("{} parameters, {}", it.n_parameters, ByteSize(it.parameter_bytes));
    line("costs", format!("{parameters}; {} FLOP per token; {kept}", short(it.flop_per_token)));
}

fn modules(it: &TracedSubgraph) -> String {
    let count = |n: usize, name: &str| match n {
        0 => None,
        1 => Some(format!("1 {name}")),
        n => Some(format!("{n} {name}s")),
    };
    let parts = [
        count(it.submodules.len(), "module"),
        count(it.targets.len(), "target").map(|it| format!("{it} among them")),
        count(it.functions.len(), "operation").map(|it| format!("{it} between")),
    ];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn values(values: &[TracedValue]) -> String {
    values.iter().map(TracedValue::text).collect::<Vec<_>>().join(", ")
}

impl TracedValue {
    /// `name BF16[B, T, 576]`.
    pub(super) fn text(&self) -> String {
        format!("{} {}[{}]", self.name, self.dtype, self.shape.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_under_one_parent_are_listed_in_its_braces() {
        let names = ["m.layers.0.norm", "m.layers.0.attn.q", "m.layers.0.attn.k", "m.norm", "head"].map(str::to_owned);
        assert_eq!(under_parents(&names), ["m.layers.0.{norm, attn.q, attn.k}", "m.norm", "head"]);
        let deep = ["m.l.1.a.q".to_owned(), "m.l.10.a.q".to_owned()];
        assert_eq!(under_parents(&deep), ["m.l.{1.a.q, 10.a.q}"]);
        assert_eq!(under_parents(&["m.l.1".to_owned(), "m.l.1.x".to_owned()]), ["m.l.{1, 1.x}"]);
    }

    #[test]
    fn numbers_are_shortened_with_a_prefix() {
        assert_eq!([0, 999, 1_000, 1_450_000, 2_000_000_000].map(short), ["0", "999", "1.0 k", "1.4 M", "2.0 G"]);
    }
}
