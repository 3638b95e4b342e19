//! From one row to one sample.

use std::{cell::OnceCell, sync::Arc};

use serde_json::Value;

use super::DataSettings;
use crate::{
    Error, ErrorKind, Note, PaddingSide, Result, SpecialTokens,
    arguments::{DatasetArguments, invalid},
    batches::{Column, Sample, fill_row, sample_from_row},
    chat::{ChatTemplate, Rendered, TemplateInputs},
    datasets::{self, Dataset, Prompt, default_chat_template, messages},
    source::Row,
    token_rows::{missing, text_of},
    tokenizer::{Encoded, Tokenizer},
};

/// Columns to add to a row.
pub type Preprocess = Arc<dyn Fn(&Row) -> Result<Row> + Send + Sync>;

/// Makes samples of rows as the arguments say.
pub(super) struct Processor {
    tokenizer: Option<Arc<Tokenizer>>,
    preprocess: RowPreprocess,
    text_column: String,
    /// Rows, or pieces of joined rows, are cut to this many tokens.
    max_tokens: Option<usize>,
    is_joining: bool,
    chat: OnceCell<Option<ChatTemplate>>,
    default_chat: OnceCell<ChatTemplate>,
    padding: Option<(usize, u32, PaddingSide)>,
    wants_loss_mask: bool,
}

enum RowPreprocess {
    Dataset(&'static Dataset),
    Template(Box<ChatTemplate>),
    Function(Preprocess),
}

/// A sample, and what was noticed while it was made.
pub(super) struct Processed {
    pub(super) sample: Sample,
    pub(super) was_cut: bool,
    pub(super) note: Option<Note>,
}

/// Text, how it is to be encoded, and which bytes of it the assistant wrote.
struct Text {
    rendered: Rendered,
    special: SpecialTokens,
    is_chat: bool,
}

impl Processor {
    pub(super) fn new(
        arguments: &DatasetArguments,
        settings: &DataSettings,
        dataset: &'static Dataset,
        notes: &mut Vec<Note>,
    ) -> Result<Self> {
        let tokenizer = settings.tokenizer.clone();
        let limit = tokenizer.as_ref().and_then(|tokenizer| tokenizer.config().model_max_length);
        let max_tokens = match (arguments.max_seq_length, limit) {
            (Some(asked), Some(limit)) if asked > limit => {
                notes.push(Note::ClippedLength { asked, limit });
                Some(limit)
            }
            (asked, limit) => asked.or(limit),
        };
        let padding = match (arguments.pad_to_max_length && !arguments.concatenate_data, max_tokens, &tokenizer) {
            (false, ..) | (_, _, None) => None,
            (true, None, _) => {
                return Err(invalid("max_seq_length", "absent", "a length to pad to"));
            }
            (true, Some(length), Some(tokenizer)) => {
                let pad_id = tokenizer
                    .pad_id()
                    .ok_or_else(|| invalid("pad_to_max_length", "true", "a tokenizer with a padding or end token"))?;
                Some((length, pad_id, tokenizer.config().padding_side))
            }
        };
        let preprocess = match (&settings.preprocess, &arguments.preprocessing_func) {
            (Some(function), _) => RowPreprocess::Function(Arc::clone(function)),
            (None, Some(template)) if template.contains("{{") || template.contains("{%") => {
                RowPreprocess::Template(Box::new(ChatTemplate::compile(template)?))
            }
            (None, Some(name)) => RowPreprocess::Dataset(datasets::find(name).map_err(|_| {
                invalid(
                    "preprocessing_func",
                    &format!("`{name}`"),
                    "the name of a data set, or a template of its columns",
                )
            })?),
            (None, None) => RowPreprocess::Dataset(dataset),
        };
        let is_default_column = arguments.text_column == DatasetArguments::default().text_column;
        let text_column = if is_default_column { dataset.text_column } else { &arguments.text_column };
        Ok(Self {
            tokenizer,
            preprocess,
            text_column: text_column.to_owned(),
            max_tokens,
            is_joining: false,
            chat: OnceCell::new(),
            default_chat: OnceCell::new(),
            padding,
            wants_loss_mask: arguments.use_loss_mask,
        })
    }

    /// Tokens of a sample at most.
    pub(super) fn max_tokens(&self) -> Option<usize> {
        self.max_tokens
    }

    /// Keeps rows whole, because pieces of `length` are cut after rows are joined.
    pub(super) fn join_to(&mut self, length: usize) {
        self.is_joining = true;
        self.max_tokens = Some(length);
    }

    /// Whether rows are kept whole and joined.
    pub(super) fn is_joining(&self) -> bool {
        self.is_joining
    }

    /// Text of a token.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.as_ref()?.token(id)
    }

    /// The sample of a row, or `None` for a row without tokens.
    pub(super) fn sample(&self, row: &Row) -> Result<Option<Processed>> {
        if row.contains_key("input_ids") {
            let mut sample = sample_from_row(row)?;
            let n_tokens = sample.get("input_ids").and_then(Column::n_entries).unwrap_or(0);
            sample.entry("attention_mask".to_owned()).or_insert_with(|| Column::Ints(vec![1; n_tokens]));
            self.require_loss_mask(&sample)?;
            return Ok((n_tokens > 0).then_some(Processed { sample, was_cut: false, note: None }));
        }
        let tokenizer = self.tokenizer.as_deref().ok_or_else(|| {
            let found = row.keys().cloned().collect();
            Error::from(ErrorKind::MissingColumn { column: "input_ids".to_owned(), found })
        })?;
        let mut note = None;
        let text = self.text(row, tokenizer, &mut note)?;
        let max_tokens = self.max_tokens.filter(|_| !self.is_joining).unwrap_or(usize::MAX);
        let encoded = tokenizer.encode_cut(&text.rendered.text, text.special, max_tokens)?;
        if encoded.ids.is_empty() {
            return Ok(None);
        }
        if text.is_chat && text.special == SpecialTokens::Add && note.is_none() {
            note = doubled_start(tokenizer, &text.rendered.text);
        }
        let mut sample = Sample::new();
        sample.insert("input_ids".to_owned(), Column::Ints(encoded.ids.iter().map(|&id| i64::from(id)).collect()));
        sample.insert("attention_mask".to_owned(), Column::Ints(vec![1; encoded.ids.len()]));
        if self.wants_loss_mask {
            if text.is_chat && !text.rendered.assistant.is_empty() {
                sample.insert("loss_mask".to_owned(), Column::Ints(loss_mask(&encoded, &text.rendered)));
            }
            self.require_loss_mask(&sample)?;
        }
        if let Some((length, pad_id, side)) = self.padding {
            for (name, fill) in [("input_ids", i64::from(pad_id)), ("attention_mask", 0), ("loss_mask", 0)] {
                if let Some(Column::Ints(values)) = sample.get_mut(name) {
                    fill_row(values, length, fill, side);
                }
            }
        }
        Ok(Some(Processed { sample, was_cut: encoded.n_tokens > encoded.ids.len(), note }))
    }

    /// The tokenizer's template, compiled when it is first needed.
    fn chat_template(&self) -> Result<Option<&ChatTemplate>> {
        if self.chat.get().is_none() {
            let compiled = self.tokenizer.as_ref().map(|tokenizer| tokenizer.chat_template(None)).transpose()?;
            // Set once: this is the only place, and it runs only while the cell is empty.
            let _ = self.chat.set(compiled.flatten());
        }
        Ok(self.chat.get().and_then(Option::as_ref))
    }

    fn default_template(&self) -> Result<&ChatTemplate> {
        if let Some(template) = self.default_chat.get() {
            return Ok(template);
        }
        let compiled = default_chat_template()?;
        Ok(self.default_chat.get_or_init(|| compiled))
    }

    fn require_loss_mask(&self, sample: &Sample) -> Result<()> {
        if self.wants_loss_mask && !sample.contains_key("loss_mask") {
            let expected = "a column `loss_mask`, or chats whose template has generation blocks";
            return Err(invalid("use_loss_mask", "true", expected));
        }
        Ok(())
    }

    fn text(&self, row: &Row, tokenizer: &Tokenizer, note: &mut Option<Note>) -> Result<Text> {
        let plain = |text: String| Text {
            rendered: Rendered { text, assistant: Vec::new() },
            special: SpecialTokens::Add,
            is_chat: false,
        };
        let added = match &self.preprocess {
            RowPreprocess::Function(function) => Some(function(row)?),
            RowPreprocess::Template(template) => {
                let inputs = TemplateInputs { variables: row.clone(), ..Default::default() };
                return Ok(plain(template.render(&inputs, tokenizer.config())?.text));
            }
            RowPreprocess::Dataset(Dataset { prompt: Prompt::Chat(messages), .. }) => {
                let template = match self.chat_template()? {
                    Some(template) => template,
                    None => {
                        *note = Some(Note::DefaultChatTemplate);
                        self.default_template()?
                    }
                };
                let inputs = TemplateInputs { messages: messages(row)?, ..Default::default() };
                let rendered = template.render(&inputs, tokenizer.config())?;
                return Ok(Text { rendered, special: SpecialTokens::Add, is_chat: true });
            }
            RowPreprocess::Dataset(dataset) => dataset.preprocess(row, None)?,
        };
        if let Some(added) = added {
            if added.contains_key("text") {
                return Ok(plain(text_of(&added, "text")?.to_owned()));
            }
            if let Some(Value::String(text)) = added.get(&self.text_column) {
                return Ok(plain(text.clone()));
            }
        }
        if row.contains_key(&self.text_column) {
            return Ok(plain(text_of(row, &self.text_column)?.to_owned()));
        }
        // Chats of the user's own are rendered by the model's template, which writes the special tokens itself.
        if row.get("messages").is_some_and(Value::is_array)
            && let Some(template) = self.chat_template()?
        {
            let tools = row.get("tools").and_then(Value::as_array).cloned();
            let inputs = TemplateInputs { messages: messages(row, "messages")?, tools, ..Default::default() };
            let rendered = template.render(&inputs, tokenizer.config())?;
            return Ok(Text { rendered, special: SpecialTokens::Skip, is_chat: true });
        }
        Err(missing(row, &self.text_column))
    }
}

fn doubled_start(tokenizer: &Tokenizer, text: &str) -> Option<Note> {
    let token = tokenizer.config().bos_token.as_ref()?;
    let adds_it = || {
        let empty = tokenizer.encode("", SpecialTokens::Add).ok()?;
        empty.first().copied().zip(tokenizer.id(token)).filter(|(first, id)| first == id)
    };
    (text.starts_with(token.as_str()) && adds_it().is_some()).then(|| Note::DoubledStart { token: token.clone() })
}

/// 1 for each token that has a byte of what the assistant wrote.
fn loss_mask(encoded: &Encoded, rendered: &Rendered) -> Vec<i64> {
    let is_assistant = |&(start, end): &(usize, usize)| {
        rendered.assistant.iter().any(|span| start < span.end && end > span.start && start < end)
    };
    encoded.offsets.iter().map(|offsets| i64::from(is_assistant(offsets))).collect()
}
