//! Text of tokens that come one by one.

use calibration::Tokenizer;

use crate::error::Result;

/// Tokens before the first new one that its text depends on.
const BEFORE: usize = 6;

/// Turns ids into text as soon as it is whole: a letter may be spread over several tokens.
pub(super) struct Stream<'t> {
    tokenizer: &'t Tokenizer,
    ids: Vec<u32>,
    /// The text of the first `known` ids was said.
    known: usize,
}

impl<'t> Stream<'t> {
    /// The text after `ids`.
    pub(super) fn new(tokenizer: &'t Tokenizer, ids: &[u32]) -> Self {
        let ids = ids[ids.len().saturating_sub(BEFORE)..].to_vec();
        Self { tokenizer, known: ids.len(), ids }
    }

    /// What another token makes whole; perhaps nothing.
    pub(super) fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let new = self.new_text()?;
        if new.is_empty() || new.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.known = self.ids.len();
        // A few tokens suffice to know whether the next begins a word.
        let far = self.known.saturating_sub(BEFORE);
        self.ids.drain(..far);
        self.known -= far;
        Ok(new)
    }

    /// What is left, whole or not.
    pub(super) fn rest(self) -> Result<String> {
        self.new_text()
    }

    fn new_text(&self) -> Result<String> {
        let (before, all) = (self.tokenizer.decode(&self.ids[..self.known])?, self.tokenizer.decode(&self.ids)?);
        Ok(all.get(before.len()..).unwrap_or_default().to_owned())
    }
}
