//! A compiled chat template and its rendering.

use std::{collections::BTreeMap, ops::Range};

use minijinja::{
    Environment, Output, State, UndefinedBehavior, Value,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use serde_json::Value as Json;

use super::{
    Moment, generation,
    python_json::{KeyOrder, dumps},
};
use crate::{Error, ErrorKind, Result, TokenizerConfig};

/// The longest template that is compiled; the longest known one has 30 KiB.
const MAX_TEMPLATE_BYTES: usize = 256 << 10;
/// Steps of one rendering; known templates take under a million.
const FUEL: u64 = 5_000_000;
/// Bytes that one rendering may write, whether they reach the result or not.
const MAX_OUTPUT_BYTES: usize = 64 << 20;
/// Deeper nesting of macros and blocks is refused.
const MAX_RECURSION: usize = 100;
const NAME: &str = "chat";
const WRITTEN: &str = "written_bytes";

/// A template that turns messages into text.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

/// What a template is rendered with.
#[derive(Clone, Debug, Default)]
pub struct TemplateInputs {
    /// The messages: objects with `role` and `content`.
    pub messages: Vec<Json>,
    /// Tool descriptions; `None` in the template without any.
    pub tools: Option<Vec<Json>>,
    /// Documents; `None` in the template without any.
    pub documents: Option<Vec<Json>>,
    /// Whether the text ends where the assistant goes on.
    pub add_generation_prompt: AddGenerationPrompt,
    /// Further variables.
    pub variables: serde_json::Map<String, Json>,
    /// What `strftime_now` prints.
    pub now: Moment,
}

/// Whether the text ends where the assistant goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AddGenerationPrompt {
    /// It ends after the last message.
    #[default]
    No,
    /// It ends with the head of the assistant's next message.
    Yes,
}

/// Rendered text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The text.
    pub text: String,
    /// Byte ranges that lay in `{% generation %}` blocks.
    pub assistant: Vec<Range<usize>>,
}

impl ChatTemplate {
    /// Compiles a template with Hugging Face's settings: blocks are trimmed, loop controls are there, nothing can be
    /// included and nothing can be changed.
    ///
    /// # Errors
    /// [`ErrorKind::Template`] with the line, [`ErrorKind::TooLarge`].
    pub fn compile(source: &str) -> Result<Self> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let (found, limit) = (format!("{} bytes", source.len()), format!("{MAX_TEMPLATE_BYTES} bytes"));
            return Err(ErrorKind::TooLarge { what: "chat template", found, limit }.into());
        }
        if generation::has_marks(source) {
            return Err(refused(None, "it holds the noncharacters U+FDD0 or U+FDD1"));
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|e| error(&e))?;
        environment.set_syntax(syntax);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_RECURSION);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(write_counted);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function(generation::FUNCTION, generation::mark);
        environment.add_template_owned(NAME, generation::as_calls(source)).map_err(|e| error(&e))?;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders messages; special tokens are variables of the template.
    ///
    /// # Errors
    /// [`ErrorKind::Template`] with the line for what the template raises, does wrong, or costs too much.
    pub fn render(&self, inputs: &TemplateInputs, tokens: &TokenizerConfig) -> Result<Rendered> {
        let mut variables = serde_json::Map::new();
        for (name, token) in [
            ("bos_token", &tokens.bos_token),
            ("eos_token", &tokens.eos_token),
            ("pad_token", &tokens.pad_token),
            ("unk_token", &tokens.unk_token),
        ] {
            if let Some(token) = token {
                variables.insert(name.to_owned(), Json::String(token.clone()));
            }
        }
        variables.extend(inputs.variables.clone());
        let optional = |items: &Option<Vec<Json>>| items.clone().map_or(Json::Null, Json::Array);
        variables.insert("messages".to_owned(), Json::Array(inputs.messages.clone()));
        variables.insert("tools".to_owned(), optional(&inputs.tools));
        variables.insert("documents".to_owned(), optional(&inputs.documents));
        let prompt = inputs.add_generation_prompt == AddGenerationPrompt::Yes;
        variables.insert("add_generation_prompt".to_owned(), Json::Bool(prompt));
        if variables.values().any(holds_marks) {
            return Err(refused(None, "a message holds the noncharacters U+FDD0 or U+FDD1"));
        }
        let now = inputs.now;
        let strftime_now = move |format: String| {
            now.strftime(&format)
                .map_err(|e| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, e.to_string()))
        };
        let context: BTreeMap<String, Value> = variables
            .iter()
            .map(|(name, value)| (name.clone(), Value::from(Serde(value))))
            .chain([("strftime_now".to_owned(), Value::from_function(strftime_now))])
            .collect();
        let marked = crate::tokenizer::guarded(|| {
            let template = self.environment.get_template(NAME).map_err(|e| error(&e))?;
            template.render(Value::from(context)).map_err(|e| error(&e))
        })
        .unwrap_or_else(|said| Err(refused(None, &format!("it breaks the template engine: {said}"))))?;
        let (text, assistant) = generation::take_marks(&marked);
        Ok(Rendered { text, assistant })
    }
}

fn holds_marks(value: &Json) -> bool {
    match value {
        Json::String(text) => generation::has_marks(text),
        Json::Array(items) => items.iter().any(holds_marks),
        Json::Object(map) => map.iter().any(|(key, value)| generation::has_marks(key) || holds_marks(value)),
        _ => false,
    }
}

/// Writes a printed value and counts its bytes, also where the text is captured and never reaches the result.
fn write_counted(
    out: &mut Output<'_>,
    state: &mut State<'_, '_>,
    value: &Value,
) -> std::result::Result<(), minijinja::Error> {
    use std::fmt::Write;

    struct Counted<'a, 'out> {
        out: &'a mut Output<'out>,
        left: usize,
    }

    impl Write for Counted<'_, '_> {
        fn write_str(&mut self, text: &str) -> std::fmt::Result {
            self.left = self.left.checked_sub(text.len()).ok_or(std::fmt::Error)?;
            self.out.write_str(text)
        }
    }

    if value.is_undefined() {
        return Ok(());
    }
    let written = state.get_temp(WRITTEN).and_then(|count| count.as_usize()).unwrap_or(0);
    let mut counted = Counted { out, left: MAX_OUTPUT_BYTES.saturating_sub(written) };
    let outcome = write!(counted, "{value}");
    let written = MAX_OUTPUT_BYTES - counted.left;
    outcome.map_err(|_| {
        let reason = format!("it writes more than {MAX_OUTPUT_BYTES} bytes");
        minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, reason)
    })?;
    state.set_temp(WRITTEN, Value::from(written));
    Ok(())
}

fn raise_exception(message: String) -> std::result::Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, format!("it raised: {message}")))
}

/// `tojson` as transformers has it: Python's JSON, nothing escaped for HTML.
fn to_json(value: Serde<Json>, indent: Option<Value>, options: Kwargs) -> std::result::Result<Value, minijinja::Error> {
    const MAX_INDENT: usize = 16;
    let wrong = |reason: &str| minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, reason.to_owned());
    let indent = match indent.or(options.get("indent")?).filter(|indent| !indent.is_none()) {
        Some(indent) => {
            let indent = indent.as_usize().filter(|indent| *indent <= MAX_INDENT);
            Some(indent.ok_or_else(|| wrong("tojson takes an indent of 0 to 16"))?)
        }
        None => None,
    };
    let given: Option<Vec<String>> = options.get("separators")?;
    let sort: Option<bool> = options.get("sort_keys")?;
    let _ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let default = if indent.is_some() { (",", ": ") } else { (", ", ": ") };
    let separators = match given.as_deref() {
        None => default,
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(wrong("tojson takes two separators")),
    };
    let order = if sort == Some(true) { KeyOrder::Sorted } else { KeyOrder::AsGiven };
    Ok(Value::from_safe_string(dumps(&value.0, indent, separators, order)))
}

fn error(error: &minijinja::Error) -> Error {
    // The innermost cause says what went wrong; the outer ones say through which macro.
    let mut reason = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    if error.kind() == minijinja::ErrorKind::OutOfFuel {
        reason = format!("it takes more than {FUEL} steps");
    }
    refused(error.line(), &reason)
}

fn refused(line: Option<usize>, reason: &str) -> Error {
    ErrorKind::Template { line, reason: reason.to_owned() }.into()
}
