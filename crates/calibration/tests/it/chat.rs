//! Chat templates: the same text as Jinja2, and limits on what a template may cost.

use std::fs;

use calibration::{
    ErrorKind, Tokenizer, TokenizerConfig,
    chat::{AddGenerationPrompt, ChatTemplate, TemplateInputs},
};
use serde_json::{Value, json};
use testkit::fixture;

fn tokens() -> TokenizerConfig {
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": "</s>", "unk_token": "<unk>"});
    TokenizerConfig::from_json(config.to_string().as_bytes()).unwrap()
}

fn list(value: &Value) -> Option<Vec<Value>> {
    value.as_array().cloned()
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/chat_templates.json");
    let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 26);
    for case in cases {
        let name = &case["name"];
        let inputs = TemplateInputs {
            messages: list(&case["messages"]).unwrap(),
            tools: list(&case["tools"]),
            documents: list(&case["documents"]),
            add_generation_prompt: match case["add_generation_prompt"] == true {
                true => AddGenerationPrompt::Yes,
                false => AddGenerationPrompt::No,
            },
            variables: case["variables"].as_object().unwrap().clone(),
            ..Default::default()
        };
        let template = ChatTemplate::compile(case["template"].as_str().unwrap());
        let rendered = template.and_then(|template| template.render(&inputs, &tokens()));
        match (rendered, &case["error"]) {
            (Ok(rendered), Value::Null) => {
                assert_eq!(rendered.text, case["text"].as_str().unwrap(), "{name}");
                let spans: Value = rendered.assistant.iter().map(|span| json!([span.start, span.end])).collect();
                assert_eq!(spans, case["assistant"], "{name}");
            }
            (Err(error), Value::String(said)) => {
                assert!(matches!(error.kind(), ErrorKind::Template { line: Some(1), .. }), "{name}: {error}");
                assert!(error.to_string().contains(said.as_str()), "{name}: {error}");
            }
            (outcome, expected) => panic!("{name}: {outcome:?}, expected {expected}"),
        }
    }
}

#[test]
fn the_fixtures_template_refuses_an_unknown_role_in_the_templates_words() {
    let tokenizer = Tokenizer::from_dir(&fixture("tiny-llama")).unwrap();
    let template = tokenizer.chat_template(None).unwrap().unwrap();
    let message = |role: &str| json!({"role": role, "content": " hi "});
    let render = |role: &str| {
        template.render(&TemplateInputs { messages: vec![message(role)], ..Default::default() }, tokenizer.config())
    };
    assert_eq!(render("user").unwrap().text, "<|begin_of_text|><|user|>hi<|eot|>");
    let error = render("wizard").unwrap_err();
    assert!(error.to_string().contains("unknown role wizard"), "{error}");
}

#[test]
fn named_templates_are_chosen_by_whether_there_are_tools() {
    let config =
        json!({"chat_template": [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]});
    let config = TokenizerConfig::from_json(config.to_string().as_bytes()).unwrap();
    let names: Vec<&str> = config.chat_templates.keys().map(String::as_str).collect();
    assert_eq!(names, ["default", "tool_use"]);
    let file = fs::read(fixture("tiny-llama").join("tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_bytes(&file, config).unwrap();
    assert_eq!(tokenizer.chat_template(None).unwrap().unwrap().source(), "plain");
    assert_eq!(tokenizer.chat_template(Some(&[])).unwrap().unwrap().source(), "tools");
    for wrong in [json!({"chat_template": 3}), json!({"chat_template": [{"name": "default"}]}), json!([])] {
        let error = TokenizerConfig::from_json(wrong.to_string().as_bytes()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Malformed { .. }), "{error}");
    }
}

fn refusal(template: &str) -> calibration::Error {
    let inputs = TemplateInputs { messages: vec![json!({"role": "user", "content": "x"})], ..Default::default() };
    ChatTemplate::compile(template).and_then(|template| template.render(&inputs, &tokens())).unwrap_err()
}

#[test]
fn hostile_templates_are_refused_with_their_line() {
    let deep_if = format!("{}{}", "{% if true %}".repeat(5000), "{% endif %}".repeat(5000));
    let deep_list = format!("{{{{ {}{} }}}}", "[".repeat(5000), "]".repeat(5000));
    for (template, line) in [
        ("\n{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}", 2),
        ("{% for i in range(1000000000) %}{{ i }}{% endfor %}", 1),
        ("\n\n{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", 3),
        ("{% include '/etc/passwd' %}", 1),
        ("{% import 'os' as os %}{{ os }}", 1),
        ("{{ 'a' * 10 ** 10 }}", 1),
        ("{{ messages.append(1) }}", 1),
        ("{{ ''.__class__.__mro__() }}", 1),
        ("{% if %}", 1),
        ("{{ messages", 1),
        ("{% generation %}", 1),
        ("{{ strftime_now('%Q') }}", 1),
        ("{{ messages | tojson(indent=100000000) }}", 1),
        (&deep_if, 1),
        (&deep_list, 1),
    ] {
        let error = refusal(template);
        let shown = &template[..template.len().min(60)];
        assert!(matches!(error.kind(), ErrorKind::Template { line: Some(at), .. } if *at == line), "{shown}: {error}");
    }
    let error = ChatTemplate::compile(&"x".repeat(300 << 10)).err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::TooLarge { .. }), "{error}");
    let error = ChatTemplate::compile("\u{fdd0}").err().unwrap();
    assert!(matches!(error.kind(), ErrorKind::Template { line: None, .. }), "{error}");
}

#[test]
fn a_template_that_writes_without_end_is_stopped() {
    for template in [
        "{% set big = 'x' * 1000000 %}{% for i in range(1000) %}{{ big }}{% endfor %}",
        "{% set big = 'x' * 1000000 %}{% for i in range(1000) %}{% set kept %}{{ big }}{% endset %}{% endfor %}",
    ] {
        let error = refusal(template);
        assert!(error.to_string().contains("writes more than"), "{error}");
    }
}
