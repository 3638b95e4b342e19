//! One flat map of keywords split over model, data set and recipe arguments.

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{DatasetArguments, dataset::invalid};
use crate::{ErrorKind, Note, Result};

/// Everything a flat map of keywords says.
#[derive(Clone, Debug, PartialEq)]
pub struct Arguments {
    /// Which model, and how it is loaded and saved.
    pub model: ModelArguments,
    /// Which data, and how it is handled.
    pub dataset: DatasetArguments,
    /// Which recipe.
    pub recipe: RecipeArguments,
    /// Where the result goes; `None` saves nothing.
    pub output_dir: Option<String>,
    /// What to tell the user.
    pub notes: Vec<Note>,
}

/// Which model, and how it is loaded and saved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelArguments {
    /// Path or hub id.
    pub model: String,
    /// Another source of the config.
    #[serde(default)]
    pub config_name: Option<String>,
    /// Path or id of a tokenizer; moved into `processor`.
    #[serde(default)]
    pub tokenizer: Option<String>,
    /// Path or id of a processor.
    #[serde(default)]
    pub processor: Option<String>,
    /// `auto`, or a dtype name.
    #[serde(default = "auto")]
    pub precision: String,
    /// False clones tied embeddings before compression.
    #[serde(default = "yes")]
    pub tie_word_embeddings: bool,
    /// Accepted; code of a model is never run.
    #[serde(default)]
    pub trust_remote_code_model: bool,
    /// False stores dense weights that hold quantized values.
    #[serde(default = "yes")]
    pub save_compressed: bool,
    /// Revision of a hub id.
    #[serde(default = "main")]
    pub model_revision: String,
}

/// Which recipe.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecipeArguments {
    /// Path or text of a recipe.
    pub recipe: Option<Value>,
    /// Values put into the recipe by name.
    pub recipe_args: Option<Map<String, Value>>,
    /// Accepted; sessions are values here.
    pub clear_sparse_session: bool,
    /// Stage of the recipe to run.
    pub stage: Option<String>,
}

fn auto() -> String {
    "auto".to_owned()
}

fn yes() -> bool {
    true
}

fn main() -> String {
    "main".to_owned()
}

const MODEL_NAMES: [&str; 9] = [
    "model",
    "config_name",
    "tokenizer",
    "processor",
    "precision",
    "tie_word_embeddings",
    "trust_remote_code_model",
    "save_compressed",
    "model_revision",
];
const RECIPE_NAMES: [&str; 4] = ["recipe", "recipe_args", "clear_sparse_session", "stage"];

impl Arguments {
    /// Splits keywords over the arguments by name.
    ///
    /// A number or boolean given as text is read as one.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownName`] for a keyword that nothing knows, [`ErrorKind::InvalidArgument`] for a value of the
    /// wrong type, without `model`, with both `tokenizer` and `processor`, and for a `recipe_args` item without exactly
    /// one `=`.
    pub fn parse(mut keywords: Map<String, Value>) -> Result<Self> {
        let output_dir = match keywords.shift_remove("output_dir") {
            None | Some(Value::Null) => None,
            Some(Value::String(path)) => Some(path),
            Some(other) => return Err(invalid("output_dir", &other.to_string(), "a path")),
        };
        let defaults = match serde_json::to_value(DatasetArguments::default()) {
            Ok(Value::Object(defaults)) => defaults,
            _ => Map::new(),
        };
        let (mut model, mut dataset, mut recipe) = (Map::new(), Map::new(), Map::new());
        for (name, value) in keywords {
            if MODEL_NAMES.contains(&name.as_str()) {
                model.insert(name, value);
            } else if RECIPE_NAMES.contains(&name.as_str()) {
                recipe.insert(name, value);
            } else if let Some(default) = defaults.get(&name) {
                let value = typed(&name, value, default);
                dataset.insert(name, value);
            } else {
                let known = MODEL_NAMES.iter().chain(&RECIPE_NAMES).map(|name| (*name).to_owned());
                let known = known.chain(defaults.keys().cloned()).collect();
                return Err(ErrorKind::UnknownName { what: "argument", name, known }.into());
            }
        }
        if let Some(items) = recipe.get("recipe_args").and_then(Value::as_array) {
            let pairs = recipe_args(items)?;
            recipe.insert("recipe_args".to_owned(), Value::Object(pairs));
        }
        if !model.contains_key("model") {
            return Err(invalid("model", "absent", "a path or hub id"));
        }
        let mut model: ModelArguments = fields(model)?;
        if let Some(tokenizer) = model.tokenizer.take() {
            if model.processor.is_some() {
                return Err(invalid("tokenizer", "given beside `processor`", "one of the two"));
            }
            model.processor = Some(tokenizer);
        }
        let dataset: DatasetArguments = fields(dataset)?;
        let notes = dataset.validate()?;
        Ok(Self { model, dataset, recipe: fields(recipe)?, output_dir, notes })
    }
}

/// Reads all fields; where that fails, the field whose value alone fails too is the one to name.
fn fields<T: DeserializeOwned>(map: Map<String, Value>) -> Result<T> {
    let error = match serde_json::from_value(Value::Object(map.clone())) {
        Ok(read) => return Ok(read),
        Err(error) => error,
    };
    let alone = |name: &str, value: &Value| {
        let mut one = Map::from_iter([(name.to_owned(), value.clone())]);
        if let Some(model) = map.get("model") {
            one.insert("model".to_owned(), model.clone());
        }
        serde_json::from_value::<T>(Value::Object(one)).is_err()
    };
    let (name, value) = match map.iter().find(|(name, value)| alone(name, value)) {
        Some((name, value)) => (name.as_str(), value.to_string()),
        None => ("arguments", "a set of values".to_owned()),
    };
    Err(invalid(name, &value, &error.to_string()))
}

/// Counts that have no default and are numbers all the same.
const COUNTS: [&str; 4] =
    ["max_seq_length", "num_calibration_samples", "preprocessing_num_workers", "min_tokens_per_module"];

/// A number or boolean from its text, where the argument is one.
fn typed(name: &str, value: Value, default: &Value) -> Value {
    let Value::String(text) = &value else { return value };
    if !(default.is_number() || default.is_boolean() || COUNTS.contains(&name)) {
        return value;
    }
    match text.trim() {
        "True" => Value::Bool(true),
        "False" => Value::Bool(false),
        "None" => Value::Null,
        text => match serde_json::from_str::<Value>(text) {
            Ok(read @ (Value::Number(_) | Value::Bool(_) | Value::Null)) => read,
            _ => value,
        },
    }
}

fn recipe_args(items: &[Value]) -> Result<Map<String, Value>> {
    let pair = |item: &Value| {
        let parts: Vec<&str> = item.as_str().map(|text| text.split('=').collect()).unwrap_or_default();
        match parts[..] {
            [key, value] => Ok((key.to_owned(), Value::String(value.to_owned()))),
            _ => Err(invalid("recipe_args", &item.to_string(), "key=value with one `=`")),
        }
    };
    items.iter().map(pair).collect()
}
