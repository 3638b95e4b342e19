//! Any recipe survives being written and read.

use lifecycle::{
    Recipe,
    recipe::{Group, ModifierEntry, Stage, append_recipe_dict},
};
use proptest::{collection::vec, prelude::*};
use serde_json::{Map, Value};

/// Texts that YAML might take for something else, and any text at all.
fn text() -> impl Strategy<Value = String> {
    let tricky = [
        "",
        " ",
        "y",
        "No",
        "null",
        "~",
        "1",
        "1.0",
        "1e5",
        "0x1f",
        "0o17",
        "017",
        "1:30",
        "2001-01-01",
        ".inf",
        "-",
        "- a",
        "a: b",
        "a:",
        "#",
        "a #b",
        "re:.*q_proj$",
        "[x]",
        "{x}",
        "'",
        "\"",
        "\\",
        "*a",
        "&a",
        "!t",
        "%",
        "@",
        "<<",
        "=",
        "---",
        "...",
        "a\nb",
        "\n",
        "\ta",
        "ü",
        "\u{2028}",
        "\u{feff}x",
        "\u{1f600}",
        "a\u{0}b",
        "-1",
        "+.5",
        "1_000",
        "_",
        "nan",
        "eval(a*2)",
        "? x",
        "?",
        ":",
        "a,b",
        ",",
        "| x",
        "> x",
        "0b11",
        "1.",
        "\r",
        "a\u{85}b",
    ];
    prop_oneof![
        prop::sample::select(tricky.to_vec()).prop_map(str::to_owned),
        any::<String>(),
        "[a-z0-9 .:_'\"-]{0,100}"
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has finite numbers only", |it| it.is_finite()).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((key(), inner), 0..4).prop_map(|it| Value::Object(it.into_iter().collect())),
        ]
    })
}

/// Keys: any text but the merge key, which merges.
fn key() -> impl Strategy<Value = String> {
    text().prop_filter("not the merge key", |it| it != "<<")
}

fn fields() -> impl Strategy<Value = Map<String, Value>> {
    vec((key(), value()), 0..5).prop_map(|it| it.into_iter().collect())
}

fn name() -> impl Strategy<Value = String> {
    "[a-z]{0,3}(_[0-9])?".prop_map(|it| it.to_owned())
}

fn recipe() -> impl Strategy<Value = Recipe> {
    let entry = (prop::sample::select(vec!["AModifier", "BModifier"]), fields());
    let group = (name(), vec(entry, 0..4)).prop_map(|(name, entries)| Group {
        name,
        modifiers: entries.into_iter().map(|(type_name, fields)| ModifierEntry::new(type_name, fields)).collect(),
    });
    let run_type = prop::sample::select(vec![None, Some("train".to_owned()), Some("oneshot".to_owned())]);
    let stage = (name(), fields(), run_type, vec(group, 0..3)).prop_map(|(name, args, run_type, groups)| Stage {
        name,
        args,
        run_type,
        groups,
    });
    // A text without any modifier is refused.
    let last = Group { name: "g".into(), modifiers: vec![ModifierEntry::new("AModifier", Map::new())] };
    (fields(), vec(stage, 0..4)).prop_map(move |(args, mut stages)| {
        stages.push(Stage { name: "last".into(), groups: vec![last.clone()], ..Stage::default() });
        Recipe { args, stages }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_recipe_is_read_back_as_it_was_written(recipe in recipe()) {
        let text = recipe.yaml();
        let back = Recipe::from_text(&text, None);
        prop_assert_eq!(back, Ok(recipe), "{}", text);
    }

    #[test]
    fn a_recipe_written_behind_another_is_both(first in recipe(), second in recipe()) {
        let text = second.yaml_behind(&first.yaml()).unwrap();
        let both = Recipe::from_text(&text, None).unwrap();
        let types = |it: &Recipe| it.entries().cloned().collect::<Vec<_>>();
        let expected: Vec<_> = types(&first).into_iter().chain(types(&second)).collect();
        prop_assert_eq!(types(&both), expected);
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in ".{0,200}", target in proptest::option::of("[a-z]{0,3}")) {
        let _ = Recipe::from_text(&text, target.as_deref());
    }

    #[test]
    fn no_mutation_of_a_recipe_makes_the_reader_panic(at in 0..200usize, byte in any::<u8>(), cut in any::<bool>()) {
        let mut text = b"args: {a: 1}\ns_stage:\n  g_modifiers:\n    A: &x {b: eval(a), c: [1, 2.5, null]}\n    B: *x\n".to_vec();
        let at = at % text.len();
        if cut { text.truncate(at) } else { text[at] = byte }
        let _ = Recipe::from_text(&String::from_utf8_lossy(&text), None);
    }

    #[test]
    fn merging_mappings_loses_no_value(first in fields(), second in fields()) {
        let merged = append_recipe_dict(&first, &second);
        prop_assert_eq!(merged.len(), first.len() + second.len());
    }
}
