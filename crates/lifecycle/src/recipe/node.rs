//! A recipe's text as a tree whose nodes know their line and column.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DuplicateKeyPolicy, MessageFormatter, Spanned};

use crate::{
    Result,
    error::{Error, ErrorKind, Place},
};

/// How deep a text may nest, as in serde_json.
const DEEPEST: usize = 128;

/// Which syntaxes a text may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// JSON, else YAML.
    Either,
    /// JSON only.
    Json,
    /// YAML only.
    Yaml,
}

/// A value of a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    pub(super) tree: Tree,
    pub(super) place: Option<Place>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Tree {
    Scalar(Value),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Option<Place>,
}

impl Node {
    /// Reads a text. `file` is named in places.
    pub(super) fn parse(text: &str, format: Format, file: Option<&str>) -> Result<Self> {
        let json = match format {
            Format::Yaml => None,
            _ => match serde_json::from_str::<Value>(text) {
                Ok(value) => Some(value),
                Err(error) if format == Format::Json => {
                    let (line, column) = (error.line() as u64, error.column() as u64);
                    let kind = ErrorKind::Syntax { format: "JSON", reason: strip_position(&error.to_string()) };
                    return Err(Error::from(kind).at(place(file, line, column)));
                }
                Err(_) => None,
            },
        };
        let Some(json) = json else { return yaml(text, file) };
        // JSON is YAML but for tabs between its tokens, so its nodes have places too, and a key that stands
        // twice is found. Where the two readings differ, JSON's counts.
        match yaml(&text.replace('\t', " "), file) {
            Ok(node) if node.to_value() == json => Ok(node),
            Err(error) if matches!(error.kind(), ErrorKind::DuplicateKey { .. }) => Err(error),
            _ => Ok(Self::from_value(json)),
        }
    }

    /// A tree without places.
    pub(super) fn from_value(value: Value) -> Self {
        let tree = match value {
            Value::Array(items) => Tree::List(items.into_iter().map(Self::from_value).collect()),
            Value::Object(map) => {
                let pair = |(name, value)| (Key { name, place: None }, Self::from_value(value));
                Tree::Map(map.into_iter().map(pair).collect())
            }
            scalar => Tree::Scalar(scalar),
        };
        Self { tree, place: None }
    }

    /// The value without places.
    pub(super) fn to_value(&self) -> Value {
        match &self.tree {
            Tree::Scalar(value) => value.clone(),
            Tree::List(items) => items.iter().map(Self::to_value).collect(),
            Tree::Map(pairs) => Value::Object(Self::pairs_to_map(pairs)),
        }
    }

    pub(super) fn pairs_to_map(pairs: &[(Key, Self)]) -> Map<String, Value> {
        pairs.iter().map(|(key, node)| (key.name.clone(), node.to_value())).collect()
    }

    /// The pairs of a mapping.
    pub(super) fn map(&self, what: impl Into<String>) -> Result<&[(Key, Self)]> {
        match &self.tree {
            Tree::Map(pairs) => Ok(pairs),
            _ => Err(self.shape(what, "a mapping")),
        }
    }

    /// A fault about what this node is.
    pub(super) fn shape(&self, what: impl Into<String>, expected: &str) -> Error {
        let found = match &self.tree {
            Tree::Scalar(Value::Null) => "empty".to_owned(),
            Tree::Scalar(value) => shortened(&value.to_string()),
            Tree::List(_) => "a list".to_owned(),
            Tree::Map(_) => "a mapping".to_owned(),
        };
        self.fault(ErrorKind::Shape { what: what.into(), found, expected: expected.to_owned() })
    }

    /// A fault at this node.
    pub(super) fn fault(&self, kind: ErrorKind) -> Error {
        at(kind.into(), self.place.as_ref())
    }
}

impl Key {
    /// A fault at this key.
    pub(super) fn fault(&self, kind: ErrorKind) -> Error {
        at(kind.into(), self.place.as_ref())
    }
}

/// The fault at a place, if there is one.
pub(super) fn at(error: Error, place: Option<&Place>) -> Error {
    match place {
        Some(place) => error.at(place.clone()),
        None => error,
    }
}

fn shortened(text: &str) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return format!("`{text}`");
    }
    format!("`{}...`", text.chars().take(LONGEST).collect::<String>())
}

fn place(file: Option<&str>, line: u64, column: u64) -> Place {
    Place::Recipe { file: file.map(str::to_owned), line, column }
}

/// serde_json's message without its own position, which the place says.
fn strip_position(message: &str) -> String {
    message.rsplit_once(" at line ").map_or(message, |it| it.0).to_owned()
}

fn yaml(text: &str, file: Option<&str>) -> Result<Node> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! { max_depth: DEEPEST },
        duplicate_keys: DuplicateKeyPolicy::Error,
        reject_unsupported_tags: true,
        // A text that says yes stays a text until a field wants a truth value.
        strict_booleans: true,
        with_snippet: false,
    };
    let spanned: Spanned<RawNode> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| yaml_error(&error, file))?;
    Ok(placed(spanned, file))
}

fn yaml_error(error: &serde_saphyr::Error, file: Option<&str>) -> Error {
    let error = error.without_snippet();
    let kind = match error {
        serde_saphyr::Error::DuplicateMappingKey { key: Some(key), .. } => {
            ErrorKind::DuplicateKey { name: key.clone() }
        }
        _ => {
            let reason = serde_saphyr::UserMessageFormatter.format_message(error).into_owned();
            ErrorKind::Syntax { format: "YAML", reason }
        }
    };
    let location = error.location();
    match location {
        Some(location) => Error::from(kind).at(place(file, location.line(), location.column())),
        None => kind.into(),
    }
}

/// A node as the parser gives it, its children spanned.
enum RawNode {
    Scalar(Value),
    List(Vec<Spanned<RawNode>>),
    Map(Vec<(Spanned<String>, Spanned<RawNode>)>),
}

fn placed(spanned: Spanned<RawNode>, file: Option<&str>) -> Node {
    let at = |location: serde_saphyr::Location| Some(place(file, location.line(), location.column()));
    let node_place = at(spanned.referenced);
    let tree = match spanned.value {
        RawNode::Scalar(value) => Tree::Scalar(value),
        RawNode::List(items) => Tree::List(items.into_iter().map(|it| placed(it, file)).collect()),
        RawNode::Map(pairs) => {
            let pair = |(key, node): (Spanned<String>, Spanned<RawNode>)| {
                (Key { name: key.value, place: at(key.referenced) }, placed(node, file))
            };
            Tree::Map(pairs.into_iter().map(pair).collect())
        }
    };
    Node { tree, place: node_place }
}

impl<'de> Deserialize<'de> for RawNode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = RawNode;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<RawNode, E> {
        Ok(RawNode::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<RawNode, E> {
        Ok(RawNode::Scalar(Value::Null))
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<RawNode, D::Error> {
        RawNode::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<RawNode, E> {
        Ok(RawNode::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<RawNode, E> {
        Ok(RawNode::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<RawNode, E> {
        Ok(RawNode::Scalar(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<RawNode, E> {
        let finite = || E::custom("a number that is infinite or not a number");
        Ok(RawNode::Scalar(Value::Number(Number::from_f64(value).ok_or_else(finite)?)))
    }

    fn visit_str<E>(self, value: &str) -> Result<RawNode, E> {
        Ok(RawNode::Scalar(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<RawNode, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(RawNode::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<RawNode, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = access.next_entry()? {
            pairs.push(pair);
        }
        Ok(RawNode::Map(pairs))
    }
}
