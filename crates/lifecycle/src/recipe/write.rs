//! Writes a recipe as YAML, in the reference's layout: leaf collections in flow style, the rest in blocks.

use std::{collections::HashMap, fmt::Write as _, sync::LazyLock};

use regex::Regex;
use serde_json::{Map, Value};

use super::{Group, Recipe, Stage};
use crate::number_text::float_text;

/// Column after which a flow collection goes on in a new line.
const WIDTH: usize = 88;

impl Recipe {
    /// The recipe as a mapping in the reference's form, which reading gives back.
    ///
    /// Stages of one name get numbers, and so do groups of one name in a stage; a group with two
    /// modifiers of one type is a list.
    pub fn to_dict(&self) -> Map<String, Value> {
        let mut dict = Map::new();
        if !self.args.is_empty() {
            dict.insert("args".to_owned(), Value::Object(self.args.clone()));
        }
        let names = self.stages.iter().map(|it| it.name.as_str());
        for (key, stage) in numbered(names, "_stage").into_iter().zip(&self.stages) {
            dict.insert(key, Value::Object(stage.to_dict()));
        }
        if self.stages.is_empty() {
            dict.insert("default_stage".to_owned(), Value::Object(Map::new()));
        }
        dict
    }

    /// The recipe as YAML text, which reading gives back.
    pub fn yaml(&self) -> String {
        to_yaml(&self.to_dict())
    }
}

impl Stage {
    fn to_dict(&self) -> Map<String, Value> {
        let mut dict = Map::new();
        if !self.args.is_empty() {
            dict.insert("args".to_owned(), Value::Object(self.args.clone()));
        }
        if let Some(run_type) = &self.run_type {
            dict.insert("run_type".to_owned(), run_type.as_str().into());
        }
        let names = self.groups.iter().map(|it| it.name.as_str());
        for (key, group) in numbered(names, "_modifiers").into_iter().zip(&self.groups) {
            dict.insert(key, group.to_value());
        }
        dict
    }
}

impl Group {
    fn to_value(&self) -> Value {
        let mut dict = Map::new();
        for entry in &self.modifiers {
            dict.insert(entry.type_name.clone(), Value::Object(entry.fields.clone()));
        }
        if dict.len() == self.modifiers.len() {
            return Value::Object(dict);
        }
        let item = |(name, fields)| Value::Object(Map::from_iter([(name, fields)]));
        let entries = self.modifiers.iter().map(|it| (it.type_name.clone(), Value::Object(it.fields.clone())));
        entries.map(item).collect()
    }
}

/// Keys for names: with a number where a name stands more than once.
fn numbered<'a>(names: impl Iterator<Item = &'a str> + Clone, suffix: &str) -> Vec<String> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    names.clone().for_each(|name| *counts.entry(name).or_default() += 1);
    let mut next: HashMap<&str, usize> = HashMap::new();
    names
        .map(|name| {
            if counts[name] == 1 {
                return format!("{name}{suffix}");
            }
            let number = next.entry(name).or_default();
            *number += 1;
            format!("{name}{suffix}_{}", *number - 1)
        })
        .collect()
}

/// Writes a mapping as YAML.
pub(crate) fn to_yaml(dict: &Map<String, Value>) -> String {
    let mut writer = Writer::default();
    writer.node(&Value::Object(dict.clone()), 0, Within::Root);
    writer.out.push('\n');
    writer.out
}

/// What a block collection stands in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    /// Nothing: it begins the text.
    Root,
    /// A value of a mapping: it begins on the next line.
    Mapping,
    /// An item of a list: it begins beside the dash.
    List,
}

#[derive(Default)]
struct Writer {
    out: String,
    column: usize,
}

impl Writer {
    fn text(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn line(&mut self, indent: usize) {
        self.out.push('\n');
        self.out.push_str(&" ".repeat(indent));
        self.column = indent;
    }

    /// Writes a value whose children, if it is a block, stand at `indent`.
    fn node(&mut self, value: &Value, indent: usize, within: Within) {
        match value {
            Value::Object(map) if !is_leaf(value) => self.block_map(map, indent, within),
            Value::Array(items) if !is_leaf(value) => self.block_list(items, indent, within),
            _ => {
                if within == Within::Mapping {
                    self.text(" ");
                }
                self.flow(value, indent);
            }
        }
    }

    fn block_map(&mut self, map: &Map<String, Value>, indent: usize, within: Within) {
        for (position, (key, value)) in map.iter().enumerate() {
            if position > 0 || within == Within::Mapping {
                self.line(indent);
            }
            self.text(&scalar(key, Style::Key));
            self.text(":");
            // A list in a mapping is not indented.
            let indent = if value.is_array() && !is_leaf(value) { indent } else { indent + 2 };
            self.node(value, indent, Within::Mapping);
        }
    }

    fn block_list(&mut self, items: &[Value], indent: usize, within: Within) {
        for (position, item) in items.iter().enumerate() {
            if position > 0 || within == Within::Mapping {
                self.line(indent);
            }
            self.text("- ");
            self.node(item, indent + 2, Within::List);
        }
    }

    /// Writes a scalar or a leaf collection; its further lines stand at `indent`.
    fn flow(&mut self, value: &Value, indent: usize) {
        match value {
            Value::Object(map) => {
                self.text("{");
                for (position, (key, value)) in map.iter().enumerate() {
                    self.separate(position, indent);
                    self.text(&scalar(key, Style::Flow));
                    self.text(": ");
                    self.text(&leaf(value, Style::Flow));
                }
                self.text("}");
            }
            Value::Array(items) => {
                self.text("[");
                for (position, item) in items.iter().enumerate() {
                    self.separate(position, indent);
                    self.text(&leaf(item, Style::Flow));
                }
                self.text("]");
            }
            _ => self.text(&leaf(value, Style::Block)),
        }
    }

    fn separate(&mut self, position: usize, indent: usize) {
        if position > 0 {
            self.text(",");
        }
        if self.column > WIDTH {
            self.line(indent);
        } else if position > 0 {
            self.text(" ");
        }
    }
}

/// Whether a collection holds scalars only, which puts it in flow style.
fn is_leaf(value: &Value) -> bool {
    let is_scalar = |it: &Value| !it.is_array() && !it.is_object();
    match value {
        Value::Object(map) => map.values().all(is_scalar),
        Value::Array(items) => items.iter().all(is_scalar),
        _ => true,
    }
}

/// Where a text stands, which decides what must be quoted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Key,
    Block,
    Flow,
}

fn leaf(value: &Value, style: Style) -> String {
    match value {
        Value::String(text) => scalar(text, style),
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(float) => {
                let text = float_text(float);
                if text.contains('.') { text } else { text.replacen('e', ".0e", 1) }
            }
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

fn scalar(text: &str, style: Style) -> String {
    let shape = Shape::of(text);
    let plain = match style {
        Style::Flow => shape.flow_plain && !text.is_empty(),
        Style::Key | Style::Block => shape.block_plain && !text.is_empty(),
    };
    if plain && !resolves(text) {
        return text.to_owned();
    }
    if shape.single_quoted {
        return format!("'{}'", text.replace('\'', "''"));
    }
    double_quoted(text)
}

fn double_quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            letter if is_printable(letter) => out.push(letter),
            letter => {
                let code = letter as u32;
                // Writing to a string cannot fail.
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02X}"),
                    0x100..=0xffff => write!(out, "\\u{code:04X}"),
                    _ => write!(out, "\\U{code:08X}"),
                };
            }
        }
    }
    out.push('"');
    out
}

fn is_printable(letter: char) -> bool {
    matches!(letter, ' '..='~' | '\u{a0}'..='\u{2027}' | '\u{202a}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}'
        | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..='\u{10ffff}')
}

/// Which styles can carry a text.
struct Shape {
    flow_plain: bool,
    block_plain: bool,
    single_quoted: bool,
}

impl Shape {
    fn of(text: &str) -> Self {
        let letters: Vec<char> = text.chars().collect();
        let is_space = |it: Option<&char>| it.is_none_or(|it| matches!(it, ' ' | '\t' | '\n' | '\r' | '\0'));
        let (mut flow, mut block) = (false, false);
        if text.starts_with("---") || text.starts_with("...") {
            (flow, block) = (true, true);
        }
        for (position, letter) in letters.iter().enumerate() {
            let ends_word = is_space(letters.get(position + 1));
            if position == 0 {
                match letter {
                    '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`' => {
                        (flow, block) = (true, true);
                    }
                    '?' | ':' => (flow, block) = (true, block | ends_word),
                    '-' if ends_word => (flow, block) = (true, true),
                    _ => {}
                }
            } else {
                match letter {
                    ',' | '?' | '[' | ']' | '{' | '}' => flow = true,
                    ':' => (flow, block) = (true, block | ends_word),
                    '#' if is_space(letters.get(position - 1)) => (flow, block) = (true, true),
                    _ => {}
                }
            }
        }
        let printable = letters.iter().copied().all(is_printable);
        let framed = text.starts_with(' ') || text.ends_with(' ');
        Self {
            flow_plain: printable && !framed && !flow,
            block_plain: printable && !framed && !block,
            single_quoted: printable,
        }
    }
}

/// Texts that YAML 1.1 or 1.2 reads as something else when they stand unquoted.
static RESOLVED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r"(?x)^(?:
        ~ | null | Null | NULL | <<? | =
        | yes | Yes | YES | no | No | NO | true | True | TRUE | false | False | FALSE
        | on | On | ON | off | Off | OFF
        | [-+]?0b[0-1_]+ | [-+]?0o?[0-7_]+ | [-+]?[0-9][0-9_]* | [-+]?0x[0-9a-fA-F_]+
        | [-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?
        | [-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?
        | [-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?
        | [-+]?\.?(?:inf|Inf|INF) | \.?(?:nan|NaN|NAN)
        | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt\ \t].*)?
        )$",
    )
    .ok()
});

fn resolves(text: &str) -> bool {
    // Without the pattern, which is constant and compiles, everything would be quoted.
    RESOLVED.as_ref().is_none_or(|it| it.is_match(text))
}
