//! Names among names: common ancestors, free names, near misses.

use std::collections::HashSet;

use crate::{ErrorKind, Result};

/// The deepest module that holds all of the named ones; absent names do not count.
///
/// A single name is its own ancestor; without any, the model itself (`""`) is the answer.
pub fn lowest_common_ancestor<'a>(names: impl IntoIterator<Item = Option<&'a str>>) -> String {
    let mut common: Option<Vec<&str>> = None;
    for name in names.into_iter().flatten() {
        let parts: Vec<&str> = name.split('.').collect();
        common = Some(match common {
            None => parts,
            Some(so_far) => so_far.into_iter().zip(parts).take_while(|(a, b)| a == b).map(|(a, _)| a).collect(),
        });
    }
    common.unwrap_or_default().join(".")
}

/// `name` where it is free, else with the next free number after `_`.
///
/// A trailing number is where counting starts: `x_3` goes on to `x_4`, `a` to `a_1`.
pub fn find_unique_name(name: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let numbered = name.rsplit_once('_').and_then(|(stem, digits)| {
        let decimal = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<u64>().ok().filter(|_| decimal).map(|number| (stem, number))
    });
    let (stem, mut number) = numbered.unwrap_or((name, 0));
    let mut free = name.to_owned();
    while is_taken(&free) {
        number = number.saturating_add(1);
        free = format!("{stem}_{number}");
    }
    free
}

/// Replaces the two names for families of classes that old recipes use.
///
/// # Errors
/// `UnknownName` for `__ALL__`, which no longer exists.
pub fn expand_special_targets<S: AsRef<str>>(targets: &[S]) -> Result<Vec<String>> {
    let mut expanded = Vec::with_capacity(targets.len());
    for target in targets {
        let family: &[&str] = match target.as_ref() {
            "__ALL_PRUNABLE__" => &["Linear", "Conv1d", "Conv2d", "Conv3d"],
            "__ALL_QUANTIZABLE__" => &["Linear", "Conv2d", "Conv3d"],
            "__ALL__" => {
                let known = ["__ALL_PRUNABLE__", "__ALL_QUANTIZABLE__"].map(str::to_owned).to_vec();
                return Err(ErrorKind::UnknownName { what: "target", name: "__ALL__".to_owned(), known }.into());
            }
            plain => &[plain],
        };
        expanded.extend(family.iter().map(|&class| class.to_owned()));
    }
    Ok(expanded)
}

/// At most `count` of `names` that a pattern which matches nothing may have meant, nearest first.
///
/// A name is judged by its whole and by its last part. Of names that differ in numbers only, the
/// first stands for all.
pub fn nearest_names<'a>(pattern: &str, names: impl IntoIterator<Item = &'a str>, count: usize) -> Vec<&'a str> {
    let wanted = literal_part(pattern);
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut seen = HashSet::new();
    let mut scored: Vec<(f64, &str)> = names
        .into_iter()
        .filter(|name| !name.is_empty() && seen.insert(without_numbers(name)))
        .map(|name| {
            let last = name.rsplit('.').next().unwrap_or(name);
            let whole = strsim::normalized_damerau_levenshtein(&wanted, name);
            (whole.max(strsim::normalized_damerau_levenshtein(&wanted, last)), name)
        })
        .filter(|(score, _)| *score >= 0.4)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    scored.into_iter().take(count).map(|(_, name)| name).collect()
}

/// The pattern itself where exact, else the longest run of a regular expression without operators.
fn literal_part(pattern: &str) -> String {
    let Some(expression) = pattern.strip_prefix("re:") else {
        return pattern.to_owned();
    };
    let plain = expression.replace("\\.", ".").replace("\\d+", "0");
    let runs = plain.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '.'));
    let trimmed = runs.map(|run| run.trim_matches('.'));
    trimmed.max_by_key(|run| run.len()).unwrap_or_default().to_owned()
}

fn without_numbers(name: &str) -> String {
    let parts = name.split('.').map(|part| if part.bytes().all(|b| b.is_ascii_digit()) { "#" } else { part });
    parts.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_target_finds_the_name_meant_once_for_all_layers() {
        let names = ["lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj", "model.norm"];
        assert_eq!(nearest_names("re:.*q_porj$", names, 3), ["model.layers.0.self_attn.q_proj"]);
        assert_eq!(nearest_names("lm_haed", names, 3), ["lm_head"]);
        assert_eq!(nearest_names("model.layers.1.self_atn.q_proj", names, 1), ["model.layers.0.self_attn.q_proj"]);
        assert!(nearest_names("re:.*", names, 3).is_empty());
        assert!(nearest_names("zzzzzzz", names, 3).is_empty());
    }

    #[test]
    fn a_name_that_ends_in_an_underscore_or_a_huge_number_gets_a_number() {
        assert_eq!(find_unique_name("a_", |it| it == "a_"), "a__1");
        let huge = format!("a_{}", "9".repeat(30));
        assert_eq!(find_unique_name(&huge, |it| it == huge), format!("{huge}_1"));
    }
}
