//! The `llmcompressor` command.

fn main() {}
