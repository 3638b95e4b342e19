//! Unit and property tests of patterns.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use proptest::prelude::*;

use super::*;

fn error(text: &str) -> (String, String) {
    match Pattern::parse(text).unwrap_err().kind() {
        ErrorKind::Pattern { pattern, reason } => (pattern.clone(), reason.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_regular_expression_is_anchored_at_the_start_only() {
    assert!(match_name("model.q_proj", "re:model").unwrap());
    assert!(!match_name("model.q_proj", "re:q_proj").unwrap());
    assert!(match_name("b", "re:a|b").unwrap());
    assert!(!match_name("xb", "re:a|b").unwrap());
}

#[test]
fn look_around_and_references_work() {
    let ignore_first = "re:model\\.layers\\.(?!0\\.).*_proj$";
    assert!(!match_name("model.layers.0.q_proj", ignore_first).unwrap());
    assert!(match_name("model.layers.10.q_proj", ignore_first).unwrap());
    assert!(match_name("a.a", r"re:(\w)\.\1$").unwrap());
    assert!(!match_name("a.b", r"re:(\w)\.\1$").unwrap());
    assert!(match_name("a.b", r"re:(?<!x)a\Z|(?P<n>a)\.b").unwrap());
    assert!(match_name("ab", "re:(a)?(?(1)b|c)").unwrap());
    assert!(match_name("aab", "re:a++b").unwrap());
    assert!(!match_name("aab", "re:a++ab").unwrap());
    assert!(match_name("aXb", "re:(?i)AxB").unwrap());
}

#[test]
fn a_bad_pattern_says_what_is_wrong_with_it() {
    assert_eq!(error("re:a)("), ("re:a)(".to_owned(), "unbalanced `)`".to_owned()));
    assert!(error("re:(\\w{1000}){1000}").1.contains("size limit"));
    let placed = Matcher::compile(&["Linear"], &["re:["]).unwrap_err();
    assert_eq!(placed.place(), Some("ignore"));
}

#[test]
fn a_pattern_that_backtracks_without_end_is_stopped() {
    let pattern = Pattern::parse(r"re:((a|a)+)+(?!\w)$").unwrap();
    let found = pattern.matches(&format!("{}b", "a".repeat(60))).unwrap_err();
    assert!(matches!(found.kind(), ErrorKind::Pattern { pattern, .. } if pattern.starts_with("re:((a")), "{found}");
}

#[test]
fn classes_match_by_equality_and_a_linear_base_is_a_linear() {
    let module = NamedModule { name: "a", classes: &["LinearBase"] };
    for target in ["Linear", "LinearBase", "Module", "a"] {
        assert!(Patterns::compile(&[target]).unwrap().matches_module(module).unwrap(), "{target}");
        assert!(Pattern::parse(target).unwrap().matches_module(module).unwrap(), "{target}");
    }
    assert!(!Patterns::compile(&["linear", "re:Lin.*"]).unwrap().matches_module(module).unwrap());
}

#[test]
fn entries_that_match_nothing_are_named_in_order() {
    let patterns = Patterns::compile(&["Linear", "re:.*x", "lm_head", "Embedding"]).unwrap();
    let modules = [NamedModule { name: "lm_head", classes: &["Linear"] }, NamedModule { name: "y", classes: &[] }];
    assert_eq!(patterns.unmatched(modules).unwrap(), ["re:.*x", "Embedding"]);
}

/// What a simple pattern of letters, dots, `.` and `.*` means, by recursion.
fn naive(pattern: &[&str], name: &str) -> bool {
    match pattern.split_first() {
        None => true,
        Some((&"$", rest)) => name.is_empty() && naive(rest, name),
        Some((&".*", rest)) => (0..=name.len()).any(|cut| naive(rest, &name[cut..])),
        Some((&".", rest)) => !name.is_empty() && naive(rest, &name[1..]),
        Some((&literal, rest)) => {
            name.strip_prefix(literal.trim_start_matches('\\')).is_some_and(|tail| naive(rest, tail))
        }
    }
}

proptest! {
    #[test]
    fn simple_patterns_match_as_the_naive_model_says(
        pieces in prop::collection::vec(prop::sample::select(vec!["a", "b", r"\.", ".", ".*", "_", "$"]), 0..7),
        name in "[ab._]{0,8}",
    ) {
        let expected = naive(&pieces, &name);
        let text = format!("re:{}", pieces.concat());
        prop_assert_eq!(match_name(&name, &text).unwrap(), expected, "{}", text);
        let backtracking = format!("re:(?=.*){}", pieces.concat());
        prop_assert_eq!(match_name(&name, &backtracking).unwrap(), expected, "{}", backtracking);
    }

    #[test]
    fn compiled_lists_agree_with_single_entries(
        targets in prop::collection::vec("(re:)?[ab.]{0,3}[*$]?", 0..6),
        name in "[ab.]{0,5}",
        class in "[ab]{1,2}",
    ) {
        let Ok(patterns) = Patterns::compile(&targets) else { return Ok(()) };
        let module = NamedModule { name: &name, classes: &[&class] };
        let by_name: Vec<bool> = patterns.entries().iter().map(|it| it.matches(&name).unwrap()).collect();
        prop_assert_eq!(patterns.matches_name(&name).unwrap(), by_name.contains(&true));
        let by_module = patterns.entries().iter().filter(|it| it.matches_module(module).unwrap()).count();
        prop_assert_eq!(patterns.matches_module(module).unwrap(), by_module > 0);
        prop_assert_eq!(patterns.matching(module).unwrap().len(), by_module);
    }

    #[test]
    fn no_pattern_panics(text in "re:.{0,20}", name in ".{0,10}") {
        let _ = match_name(&name, &text);
    }
}
