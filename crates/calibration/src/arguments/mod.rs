//! What a user may say about model, data and recipe, under the reference's names.

mod dataset;
mod parse;

pub(crate) use dataset::invalid;
pub use dataset::{DatasetArguments, Splits, TRACING_IGNORE, Targets};
pub use parse::{Arguments, ModelArguments, RecipeArguments};
