//! `{% generation %}` blocks: the parts of a chat that the assistant wrote.

use std::{ops::Range, sync::LazyLock};

use minijinja::{Error, State, Value, value::Kwargs};
use regex::Regex;

/// Two noncharacters of Unicode around what an assistant wrote; text that holds them is refused before rendering.
const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';

/// Name of the function that a block calls.
pub(super) const FUNCTION: &str = "__generation";

static TAG: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\{%([-+]?)\s*(generation|endgeneration)\s*([-+]?)%\}").expect("the pattern is constant and tested")
});

/// Writes generation blocks as call blocks, which the engine knows.
pub(super) fn as_calls(template: &str) -> String {
    let replace = |found: &regex::Captures<'_>| {
        let inside = if &found[2] == "generation" { format!("call {FUNCTION}()") } else { "endcall".to_owned() };
        format!("{{%{} {inside} {}%}}", &found[1], &found[3])
    };
    TAG.replace_all(template, replace).into_owned()
}

/// Whether text would be taken for a mark.
pub(super) fn has_marks(text: &str) -> bool {
    text.contains([OPEN, CLOSE])
}

/// Renders the body of a block between marks.
pub(super) fn mark(state: &mut State<'_, '_>, arguments: Kwargs) -> Result<Value, Error> {
    let caller: Value = arguments.get("caller")?;
    arguments.assert_all_used()?;
    let body = caller.call(state, &[])?;
    Ok(Value::from_safe_string(format!("{OPEN}{body}{CLOSE}")))
}

/// Takes the marks out of rendered text and says which bytes lay between them.
pub(super) fn take_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut start = None;
    for c in marked.chars() {
        match c {
            OPEN => start = Some(text.len()),
            CLOSE => spans.extend(start.take().map(|start| start..text.len())),
            c => text.push(c),
        }
    }
    (text, spans)
}
