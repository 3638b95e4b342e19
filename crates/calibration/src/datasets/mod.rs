//! Data sets known by name: where they come from and how a row becomes text.

mod c4;
mod cnn_dailymail;
mod custom;
mod evolcodealpaca;
mod flickr;
mod gsm8k;
mod local;
mod open_platypus;
mod peoples_speech;
mod perfectblend;
mod ultrachat;
mod wikitext;

use serde_json::Value;

use crate::{
    Error, ErrorKind, Note, Result,
    chat::{ChatTemplate, Rendered, TemplateInputs},
    source::Row,
    tokenizer::Tokenizer,
};

pub use local::local_copy;

/// All data sets, in display order.
pub const DATASETS: &[Dataset] = &[
    c4::C4,
    cnn_dailymail::CNN_DAILYMAIL,
    custom::CUSTOM,
    evolcodealpaca::EVOLCODEALPACA,
    flickr::FLICKR,
    gsm8k::GSM8K,
    open_platypus::OPEN_PLATYPUS,
    peoples_speech::PEOPLES_SPEECH,
    perfectblend::PERFECTBLEND,
    ultrachat::ULTRACHAT_200K,
    wikitext::WIKITEXT,
];

/// A data set known by name.
#[derive(Clone, Copy, Debug)]
pub struct Dataset {
    /// Its name, in lookup form.
    pub name: &'static str,
    /// Other names, in lookup form.
    pub aliases: &'static [&'static str],
    /// Its place on the hub, which names the folder of a local copy; none for custom data.
    pub hub_id: Option<&'static str>,
    /// Its configuration unless one is given.
    pub config: Option<&'static str>,
    /// The column that holds what becomes text, unless one is given.
    pub text_column: &'static str,
    /// Splits whose names on disk differ from what users call them.
    pub split_names: &'static [(&'static str, &'static str)],
    /// How a row becomes text.
    pub prompt: Prompt,
}

/// How a row becomes text.
#[derive(Clone, Copy, Debug)]
pub enum Prompt {
    /// The text column holds it.
    Column,
    /// From columns, by a fixed template.
    Fields(fn(&Row) -> Result<Row>),
    /// From messages, by the tokenizer's chat template.
    Chat(fn(&Row) -> Result<Vec<Value>>),
    /// It needs what only an image or audio model has.
    Other(&'static str),
}

/// The data set of a name; case, spaces and underscores do not matter.
///
/// # Errors
/// [`ErrorKind::UnknownName`] with all names.
pub fn find(name: &str) -> Result<&'static Dataset> {
    let wanted = lookup_name(name);
    let fits = |dataset: &&Dataset| dataset.name == wanted || dataset.aliases.contains(&wanted.as_str());
    DATASETS.iter().find(fits).ok_or_else(|| {
        let names = DATASETS.iter().flat_map(|dataset| std::iter::once(&dataset.name).chain(dataset.aliases));
        let known = names.map(|name| (*name).to_owned()).collect();
        ErrorKind::UnknownName { what: "data set", name: name.to_owned(), known }.into()
    })
}

/// The form in which names are compared.
pub fn lookup_name(name: &str) -> String {
    name.to_lowercase().replace(['_', ' '], "-")
}

impl Dataset {
    /// The split on disk for what a user calls it.
    pub fn split<'a>(&self, given: &'a str) -> &'a str
    where
        'static: 'a,
    {
        self.split_names.iter().find(|(name, _)| *name == given).map_or(given, |(_, on_disk)| on_disk)
    }

    /// The columns that preprocessing adds to a row; none where the text column holds the text.
    ///
    /// # Errors
    /// [`ErrorKind::MissingColumn`], [`ErrorKind::ColumnType`], what the chat template refuses, and
    /// [`ErrorKind::Unsupported`] for data of images or audio.
    pub fn preprocess(&self, row: &Row, chat: Option<&Chat<'_>>) -> Result<Option<Row>> {
        match self.prompt {
            Prompt::Column => Ok(None),
            Prompt::Fields(fields) => fields(row).map(Some),
            Prompt::Chat(messages) => {
                let chat = chat.ok_or_else(|| {
                    let reason = "the data set holds chats and there is no tokenizer".to_owned();
                    Error::from(ErrorKind::Template { line: None, reason })
                })?;
                let rendered = chat.render(messages(row)?, None)?;
                Ok(Some(Row::from_iter([("text".to_owned(), Value::String(rendered.text))])))
            }
            Prompt::Other(needs) => Err(ErrorKind::Unsupported {
                what: format!("the data set `{}`, which needs {needs},", self.name),
                hint: "give rows with a text column".to_owned(),
            }
            .into()),
        }
    }
}

/// The template that chats are rendered with where a tokenizer has none.
const DEFAULT_CHAT_TEMPLATE: &str = "{% for message in messages %}\n{% if message['role'] == 'user' %}\n\
    {{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n\
    {{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n\
    {{ '<|assistant|>\\n' + message['content'] + eos_token }}\n{% endif %}\n\
    {% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}";

pub(crate) fn default_chat_template() -> Result<ChatTemplate> {
    ChatTemplate::compile(DEFAULT_CHAT_TEMPLATE)
}

/// A chat template together with the tokenizer whose special tokens it writes.
pub struct Chat<'a> {
    template: ChatTemplate,
    tokenizer: &'a Tokenizer,
}

impl<'a> Chat<'a> {
    /// The tokenizer's template, or the default one with a note.
    ///
    /// # Errors
    /// What compiling the template refuses.
    pub fn new(tokenizer: &'a Tokenizer) -> Result<(Self, Option<Note>)> {
        match tokenizer.chat_template(None)? {
            Some(template) => Ok((Self { template, tokenizer }, None)),
            None => {
                let template = default_chat_template()?;
                Ok((Self { template, tokenizer }, Some(Note::DefaultChatTemplate)))
            }
        }
    }

    /// Renders messages.
    ///
    /// # Errors
    /// What the template refuses.
    pub fn render(&self, messages: Vec<Value>, tools: Option<Vec<Value>>) -> Result<Rendered> {
        let inputs = TemplateInputs { messages, tools, ..Default::default() };
        self.template.render(&inputs, self.tokenizer.config())
    }
}

/// The list of messages in a column.
pub(crate) fn messages(row: &Row, column: &str) -> Result<Vec<Value>> {
    let found = row.get(column).ok_or_else(|| crate::token_rows::missing(row, column))?;
    let list = found.as_array().ok_or_else(|| crate::token_rows::column_type(column, found, "a list of messages"))?;
    for (i, message) in list.iter().enumerate() {
        if !message.is_object() {
            let path = format!("{column}[{i}]");
            return Err(crate::token_rows::column_type(&path, message, "an object with `role` and `content`"));
        }
    }
    Ok(list.clone())
}

/// The text of a field, empty if it is absent or null.
fn optional_text<'a>(row: &'a Row, column: &str) -> Result<&'a str> {
    match row.get(column) {
        None | Some(Value::Null) => Ok(""),
        Some(_) => crate::token_rows::text_of(row, column),
    }
}

fn text_row(text: String, prompt: Option<String>) -> Row {
    let text = std::iter::once(("text".to_owned(), Value::String(text)));
    text.chain(prompt.map(|prompt| ("prompt".to_owned(), Value::String(prompt)))).collect()
}
