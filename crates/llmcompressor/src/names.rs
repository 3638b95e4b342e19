//! Long lists of module names, folded: layers that differ in a number only become one entry with a range.

use indexmap::IndexMap;

/// Folds names that differ in one number into `model.layers.{0-29}.mlp.up_proj`, in order of first appearance.
///
/// Every name given is in the answer once; nothing is left out.
pub(crate) fn fold_names<'n>(names: impl IntoIterator<Item = &'n str>) -> Vec<String> {
    let mut folded: Vec<Vec<Part>> = names.into_iter().map(parts).collect();
    let deepest = folded.iter().map(|it| it.iter().filter(|part| matches!(part, Part::Numbers(_))).count()).max();
    // Inner numbers first, so that equal sets of experts let their layers fold too.
    for slot in (0..deepest.unwrap_or(0)).rev() {
        let mut groups: IndexMap<Vec<Part>, Vec<u64>> = IndexMap::new();
        for name in folded {
            let (key, numbers) = without_slot(name, slot);
            groups.entry(key).or_default().extend(numbers);
        }
        folded = groups.into_iter().map(|(key, numbers)| with_slot(key, slot, numbers)).collect();
    }
    folded.iter().map(|it| it.iter().map(Part::text).collect()).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    /// A segment that is a number, or all that stand there in names alike.
    Numbers(Vec<u64>),
}

impl Part {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Numbers(numbers) => match &numbers[..] {
                [one] => one.to_string(),
                many => format!("{{{}}}", ranges(many)),
            },
        }
    }
}

fn parts(name: &str) -> Vec<Part> {
    let mut parts = Vec::new();
    for (idx, segment) in name.split('.').enumerate() {
        if idx > 0 {
            parts.push(Part::Text(".".to_owned()));
        }
        parts.push(match segment.parse::<u64>() {
            // A number that does not print as it was written, such as 007, is text.
            Ok(number) if number.to_string() == segment => Part::Numbers(vec![number]),
            _ => Part::Text(segment.to_owned()),
        });
    }
    parts
}

fn slot_position(parts: &[Part], slot: usize) -> Option<usize> {
    parts.iter().enumerate().filter(|(_, it)| matches!(it, Part::Numbers(_))).nth(slot).map(|it| it.0)
}

fn without_slot(mut parts: Vec<Part>, slot: usize) -> (Vec<Part>, Vec<u64>) {
    let Some(at) = slot_position(&parts, slot) else { return (parts, Vec::new()) };
    match std::mem::replace(&mut parts[at], Part::Numbers(Vec::new())) {
        Part::Numbers(numbers) => (parts, numbers),
        Part::Text(_) => (parts, Vec::new()),
    }
}

fn with_slot(mut parts: Vec<Part>, slot: usize, mut numbers: Vec<u64>) -> Vec<Part> {
    if let Some(at) = slot_position(&parts, slot) {
        numbers.sort_unstable();
        parts[at] = Part::Numbers(numbers);
    }
    parts
}

fn ranges(sorted: &[u64]) -> String {
    let mut texts = Vec::new();
    for run in sorted.chunk_by(|a, b| a + 1 == *b) {
        match run {
            [one] => texts.push(one.to_string()),
            [first, .., last] => texts.push(format!("{first}-{last}")),
            [] => {}
        }
    }
    texts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(names: &[&str], expected: &[&str]) {
        assert_eq!(fold_names(names.iter().copied()), expected);
    }

    #[test]
    fn layers_become_ranges() {
        check(&["l.0.q", "l.0.k", "l.1.q", "l.1.k", "l.3.q", "head"], &["l.{0-1,3}.q", "l.{0-1}.k", "head"]);
    }

    #[test]
    fn experts_fold_within_layers_and_layers_around_equal_experts() {
        check(&["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w", "l.1.e.1.w"], &["l.{0-1}.e.{0-1}.w"]);
        check(&["l.0.e.0.w", "l.0.e.1.w", "l.1.e.0.w"], &["l.0.e.{0-1}.w", "l.1.e.0.w"]);
    }

    #[test]
    fn a_single_name_stays_as_it_is() {
        check(&["model.layers.7.mlp.gate"], &["model.layers.7.mlp.gate"]);
        check(&["a.007.b", "a.008.b"], &["a.007.b", "a.008.b"]);
    }
}
