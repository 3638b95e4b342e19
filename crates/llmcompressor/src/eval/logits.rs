//! Logits of all rows as one f32 tensor in a safetensors file, for a comparison with another engine.

use std::{
    fs,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
};

use tensor::Tensor;

use super::{Subject, Window};
use crate::error::{ErrorKind, Result};

/// Tokens whose logits are computed together.
const TOKENS: usize = 64;

/// A file that is written row by row under a temporary name.
pub(super) struct File {
    path: PathBuf,
    partial: PathBuf,
    writer: BufWriter<fs::File>,
}

impl File {
    /// Begins a file for the logits (B, T, V) of `windows`.
    ///
    /// # Errors
    /// `Option` for windows that differ in length and a path that cannot be written.
    pub(super) fn create(path: &Path, windows: &[Window], subject: &Subject) -> Result<Self> {
        let refuse = |found: String, expected: &str| ErrorKind::Option {
            option: "--save-logits",
            found,
            expected: expected.to_owned(),
        };
        let n_tokens = windows.first().map_or(0, |it| it.ids.len());
        if let Some(other) = windows.iter().map(|it| it.ids.len()).find(|it| *it != n_tokens) {
            return Err(refuse(format!("given rows of {n_tokens} and of {other} tokens"), "rows of one length").into());
        }
        let shape = [windows.len(), n_tokens, subject.vocabulary().unwrap_or(0)];
        let bytes: usize = 4 * shape.iter().product::<usize>();
        let header = serde_json::json!({"logits": {"dtype": "F32", "shape": shape, "data_offsets": [0, bytes]}});
        let header = header.to_string();
        let header = format!("{header:<width$}", width = header.len().next_multiple_of(8));
        let partial = path.with_extension("safetensors.partial");
        let unusable =
            |error: std::io::Error| refuse(format!("{} ({error})", path.display()), "a file that can be written");
        let mut writer = BufWriter::new(fs::File::create(&partial).map_err(unusable)?);
        let begun = writer.write_all(&(header.len() as u64).to_le_bytes());
        begun.and_then(|()| writer.write_all(header.as_bytes())).map_err(unusable)?;
        Ok(Self { path: path.to_owned(), partial, writer })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// What the head refuses; `Option` where the file cannot be written.
    pub(super) fn add(&mut self, subject: &Subject, hidden: &Tensor) -> Result<()> {
        let n_tokens = hidden.shape().get(1).copied().unwrap_or(0);
        for first in (0..n_tokens).step_by(TOKENS) {
            let logits = subject.logits(hidden, first, TOKENS.min(n_tokens - first))?;
            let values = logits.to_f32().map_err(models::Error::from)?;
            let bytes: Vec<u8> = values.iter().flat_map(|it| it.to_le_bytes()).collect();
            self.writer.write_all(&bytes).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    /// Gives the file its name.
    ///
    /// # Errors
    /// `Option` where it cannot be written.
    pub(super) fn finish(mut self) -> Result<()> {
        let written = self.writer.flush().and_then(|()| fs::rename(&self.partial, &self.path));
        Ok(written.map_err(|error| self.failed(&error))?)
    }

    fn failed(&self, error: &std::io::Error) -> ErrorKind {
        let found = format!("{} ({error})", self.path.display());
        ErrorKind::Option { option: "--save-logits", found, expected: "a file that can be written".to_owned() }
    }
}
