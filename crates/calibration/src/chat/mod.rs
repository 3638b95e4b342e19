//! Chat templates: Jinja as Hugging Face renders it, with limits on what a template may cost.

mod generation;
mod python_json;
mod strftime;
mod template;

pub use strftime::Moment;
pub use template::{AddGenerationPrompt, ChatTemplate, Rendered, TemplateInputs};
