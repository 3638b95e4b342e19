//! `config.json`, read key by key in the forms of transformers 4 and 5.

use serde_json::Value;
use tensor::{Activation, DType};

use crate::error::{Error, Result};

/// The widest head that a config may ask for; tables are built before the checkpoint is asked.
const MOST_HEAD_DIM: usize = 1 << 16;

/// A model's config; keys that nobody reads are left alone.
#[derive(Clone, Copy, Debug)]
pub struct Config<'a> {
    value: &'a Value,
    dialect: &'static Dialect,
    nesting: Nesting,
}

/// Where a larger model keeps its language model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Nesting {
    /// It is the model itself.
    #[default]
    Alone,
    /// The body is `model.language_model`, the head stands beside `model`.
    Inside,
    /// Body and head are inside of `language_model`.
    Whole,
}

/// What a text model may leave to the larger model around it.
const SHARED_KEYS: [&str; 3] = ["tie_word_embeddings", "dtype", "torch_dtype"];

/// The config of the language model inside of a larger one.
pub(crate) fn text_config(config: &Value) -> Option<Value> {
    let mut text = config.get("text_config")?.clone();
    let keys = text.as_object_mut()?;
    for key in SHARED_KEYS {
        if let (Some(value), false) = (config.get(key), keys.contains_key(key)) {
            keys.insert(key.to_owned(), value.clone());
        }
    }
    Some(text)
}

/// How a config class differs from the usual.
#[derive(Debug)]
pub(crate) struct Dialect {
    /// Usual keys, and what they are called here; the usual ones are read too.
    pub(crate) names: &'static [(&'static str, &'static str)],
    /// The width of a head where the config does not say.
    pub(crate) head_dim: Option<usize>,
}

const USUAL: Dialect = Dialect { names: &[], head_dim: None };

impl<'a> Config<'a> {
    /// The config of a text model, or the text part of a larger one.
    pub fn new(config: &'a Value) -> Self {
        Self { value: config, dialect: &USUAL, nesting: Nesting::Alone }
    }

    /// The same config, of a language model that lies elsewhere.
    pub(crate) fn nested(self, nesting: Nesting) -> Self {
        Self { nesting, ..self }
    }

    /// Where the language model lies.
    pub(crate) fn nesting(&self) -> Nesting {
        self.nesting
    }

    /// The same config, read in a dialect.
    pub(crate) fn speaking(self, dialect: &'static Dialect) -> Self {
        Self { dialect, ..self }
    }

    /// What a key is called in this config.
    fn name<'k>(&self, key: &'k str) -> &'k str {
        let other = self.dialect.names.iter().find(|(usual, _)| *usual == key).map(|(_, other)| *other);
        match other {
            Some(other) if self.value.get(other).is_some() || self.value.get(key).is_none() => other,
            _ => key,
        }
    }

    /// What a key holds; none where it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(self.name(key)).filter(|value| !value.is_null())
    }

    /// Whether a key is there, if only with null.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.value.get(self.name(key)).is_some()
    }

    /// The part under `key`; none where it is absent or null.
    pub fn part(&self, key: &str) -> Option<Self> {
        self.get(key).map(|value| Self { value, ..*self })
    }

    fn read<T>(&self, key: &str, expected: &str, read: impl FnOnce(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value)
            .map(Some)
            .ok_or_else(|| Error::config(value, expected).at(format_args!("config.json: {}", self.name(key))))
    }

    fn required<T>(&self, key: &str, expected: &str, found: Option<T>) -> Result<T> {
        found.ok_or_else(|| Error::config("nothing", expected).at(format_args!("config.json: {}", self.name(key))))
    }

    /// A positive number that must be there.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config), placed at the key; so are those of the methods below.
    pub fn size(&self, key: &str) -> Result<usize> {
        let found = self.size_of(key)?;
        self.required(key, "a positive integer", found)
    }

    /// A positive number, if it is there.
    pub fn size_of(&self, key: &str) -> Result<Option<usize>> {
        self.read(key, "a positive integer", |value| {
            value.as_u64().filter(|&it| it > 0 && it < 1 << 32).and_then(|it| usize::try_from(it).ok())
        })
    }

    /// A positive number up to `most` that must be there: what is built in that number before the checkpoint is asked.
    pub fn count(&self, key: &str, most: usize) -> Result<usize> {
        let found = self.size(key)?;
        if found <= most {
            Ok(found)
        } else {
            Err(Error::config(found, format!("at most {most}")).at(format_args!("config.json: {}", self.name(key))))
        }
    }

    /// A positive number, or `default`.
    pub fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        Ok(self.size_of(key)?.unwrap_or(default))
    }

    /// A whole number, or `default`.
    pub fn whole_or(&self, key: &str, default: usize) -> Result<usize> {
        let whole = |value: &Value| value.as_u64().and_then(|it| usize::try_from(it).ok());
        Ok(self.read(key, "a whole number", whole)?.unwrap_or(default))
    }

    /// A number, or `default`.
    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number(key)?.unwrap_or(default))
    }

    /// A number, if it is there.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        self.read(key, "a number", Value::as_f64)
    }

    /// A number; `default` where the key is absent, none where it is null.
    pub fn number_unless_null(&self, key: &str, default: f64) -> Result<Option<f64>> {
        match self.value.get(self.name(key)) {
            None => Ok(Some(default)),
            Some(_) => self.number(key),
        }
    }

    /// A truth value, or `default`.
    pub fn flag_or(&self, key: &str, default: Flag) -> Result<bool> {
        Ok(self.read(key, "true or false", Value::as_bool)?.unwrap_or(default == Flag::On))
    }

    /// A text, if it is there.
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        self.read(key, "a string", Value::as_str)
    }

    /// A list of whole numbers, empty where it is absent.
    pub fn sizes(&self, key: &str) -> Result<Vec<usize>> {
        let list = |value: &Value| {
            value
                .as_array()?
                .iter()
                .map(|it| it.as_u64().and_then(|it| usize::try_from(it).ok()))
                .collect::<Option<Vec<_>>>()
        };
        Ok(self.read(key, "a list of whole numbers", list)?.unwrap_or_default())
    }

    /// A list of numbers, empty where it is absent.
    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let list = |value: &Value| value.as_array()?.iter().map(Value::as_f64).collect::<Option<Vec<_>>>();
        Ok(self.read(key, "a list of numbers", list)?.unwrap_or_default())
    }

    /// A lower and an upper limit, if they are there; infinity as transformers 5 writes it.
    pub(crate) fn limits(&self, key: &str) -> Result<Option<[f32; 2]>> {
        let number = |value: &Value| match value.get("__float__").and_then(Value::as_str) {
            Some("Infinity") => Some(f32::INFINITY),
            Some(_) => None,
            None => value.as_f64().map(|it| it as f32),
        };
        let pair = |value: &Value| match value.as_array()?.as_slice() {
            [low, high] => Some([number(low)?, number(high)?]).filter(|[low, high]| low <= high),
            _ => None,
        };
        self.read(key, "two rising numbers", pair)
    }

    /// A list of texts, if it is there.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let list = |value: &'a Value| value.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>();
        self.read(key, "a list of strings", list)
    }

    /// The activation under `key`, `default` where it is absent.
    pub fn activation(&self, key: &str, default: &'static str) -> Result<Activation> {
        let name = self.text(key)?.unwrap_or(default);
        Ok(match name {
            "silu" | "swish" => Activation::Silu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
            "quick_gelu" => Activation::QuickGelu,
            "relu" => Activation::Relu,
            "relu2" => Activation::ReluSquared,
            "sigmoid" => Activation::Sigmoid,
            found => {
                let expected = "silu, gelu, gelu_new, gelu_pytorch_tanh, quick_gelu, relu, relu2 or sigmoid";
                return Err(Error::config(found, expected).at(format_args!("config.json: {}", self.name(key))));
            }
        })
    }

    /// The class of the activation under `key`, where several classes compute the same.
    pub(crate) fn activation_class(&self, key: &str, default: &'static str) -> Result<Option<&'static str>> {
        Ok(match self.text(key)?.unwrap_or(default) {
            "gelu_new" => Some("NewGELUActivation"),
            "gelu_fast" => Some("FastGELUActivation"),
            _ => None,
        })
    }

    /// The type that weights were saved in: `dtype`, or `torch_dtype` in transformers 4.
    pub fn dtype(&self) -> Result<Option<DType>> {
        let (key, name) = match self.text("dtype")? {
            Some(name) => ("dtype", name),
            None => match self.text("torch_dtype")? {
                Some(name) => ("torch_dtype", name),
                None => return Ok(None),
            },
        };
        let dtype = DType::from_torch_name(name).filter(|it| matches!(it, DType::F32 | DType::BF16 | DType::F16));
        let expected = "float32, bfloat16 or float16";
        dtype.map(Some).ok_or_else(|| Error::config(name, expected).at(format_args!("config.json: {}", self.name(key))))
    }

    /// How many channels of a head turn: `partial_rotary_factor` of them, in `rope_parameters` or beside it.
    ///
    /// # Errors
    /// A factor outside 0 to 1, or an odd number of channels.
    pub fn rotary_dim(&self, head_dim: usize, default: f64) -> Result<usize> {
        let key = "partial_rotary_factor";
        let part = self.part("rope_parameters").map(|part| part.number(key)).transpose()?.flatten();
        let factor = match part {
            Some(factor) => factor,
            None => self.number_or(key, default)?,
        };
        let turning = (head_dim as f64 * factor) as usize;
        if !(0.0..=1.0).contains(&factor) || !turning.is_multiple_of(2) {
            let expected = format!("a share that makes an even number of the {head_dim} channels");
            return Err(Error::config(factor, expected).at(format_args!("config.json: {}", self.name(key))));
        }
        Ok(turning)
    }

    /// Most tokens of a row: `max_position_embeddings`, or the context before a rescaling times its factor where that is more;
    /// none where the config names none, and where positions are a slope or a state (ALiBi, Mamba).
    pub fn max_positions(&self) -> Result<Option<usize>> {
        let is_endless =
            matches!(self.text("model_type")?, Some("bloom" | "mamba2")) || self.flag_or("alibi", Flag::Off)?;
        let Some(positions) = self.size_of("max_position_embeddings")?.filter(|_| !is_endless) else { return Ok(None) };
        let Some(scaling) = self.part("rope_parameters").or(self.part("rope_scaling")) else {
            return Ok(Some(positions));
        };
        let original = scaling.size_or("original_max_position_embeddings", positions)?;
        let factor = scaling.number_or("factor", 1.0)?;
        Ok(Some(positions.max((original as f64 * factor) as usize)))
    }

    /// The width of a head: `head_dim`, or the hidden size shared by the heads.
    pub fn head_dim(&self) -> Result<usize> {
        let (hidden, heads) = (self.size("hidden_size")?, self.size("num_attention_heads")?);
        match self.size_of("head_dim")?.or(self.dialect.head_dim) {
            Some(width) if width <= MOST_HEAD_DIM => Ok(width),
            Some(width) => Err(Error::config(width, format!("at most {MOST_HEAD_DIM}")).at("config.json: head_dim")),
            None if hidden.is_multiple_of(heads) && hidden / heads <= MOST_HEAD_DIM => Ok(hidden / heads),
            None => Err(Error::config(heads, format!("a divisor of hidden_size {hidden}"))
                .at("config.json: num_attention_heads")),
        }
    }
}

/// A truth value by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flag {
    /// True.
    On,
    /// False.
    Off,
}
