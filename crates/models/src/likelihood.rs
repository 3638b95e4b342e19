//! Negative log-likelihood of tokens, without ever holding all logits.

use graph::Value;
use tensor::nll::{RowState, VOCABULARY_TILE, merge_tile};
use tensor::{LaidOut, Op, Tensor, indices};

use crate::Model;
use crate::context::{Causal, Cx, Run, hear};
use crate::error::{Error, ErrorKind, Result};
use crate::hooks::Tap;
use crate::layers::exactly;

impl Model {
    /// The parts of the model, if it is a causal language model.
    pub fn causal(&self) -> Option<Causal> {
        self.layer(self.tree().root()).ok()?.as_causal()
    }

    /// What the head takes: ids (B, T) -> hidden states (B, T, C).
    ///
    /// # Errors
    /// What a module refuses, placed at the innermost.
    pub fn hidden(&self, run: Run<'_>, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let causal = self.causal().ok_or(ErrorKind::NotCallable)?;
        let inputs = std::iter::once(ids).chain(mask).cloned().map(Value::from).collect();
        let [hidden] = exactly(Cx::compute(self, run).call_all(causal.body, inputs)?, "hidden states")?;
        Ok(hidden.into_tensor()?)
    }

    /// Scores of all tokens: hidden states (..., C) -> logits (..., V) in the model's type.
    ///
    /// # Errors
    /// What the head refuses.
    pub fn logits(&self, run: Run<'_>, hidden: &Tensor) -> Result<Tensor> {
        let causal = self.causal().ok_or(ErrorKind::NotCallable)?;
        let mut logits = self.call_module(run, causal.head, vec![hidden.clone()])?;
        for op in &causal.after_head {
            logits = op.forward(run.engine, logits)?;
        }
        let [logits] = <[Tensor; 1]>::try_from(logits)
            .map_err(|found| ErrorKind::Arity { found: found.len(), expected: "logits" })?;
        Ok(logits)
    }

    /// Negative log-likelihood of every next token: ids (B, T) -> B times T - 1 numbers, row after row.
    ///
    /// # Errors
    /// What a module refuses, placed at the innermost.
    pub fn next_token_nll(&self, run: Run<'_>, ids: &Tensor, mask: Option<&Tensor>) -> Result<Vec<f64>> {
        let hidden = self.hidden(run, ids, mask)?;
        let &[batch, tokens, _] = hidden.shape() else {
            return Err(ErrorKind::Arity { found: hidden.shape().len(), expected: "3 dimensions" }.into());
        };
        let tokens_before = tokens.saturating_sub(1);
        let numbers = indices(ids, usize::MAX)?;
        let mut all = Vec::with_capacity(batch * tokens_before);
        for row in 0..batch {
            let states = hidden.slice(0, row, 1)?.slice(1, 0, tokens_before)?.dense(&run.engine.budget)?;
            let next = &numbers[row * tokens + tokens.min(1)..(row + 1) * tokens];
            all.extend(self.nll(run, &states, next)?);
        }
        Ok(all)
    }

    /// Negative log-likelihood of `targets` given the hidden states that the head takes: hidden (..., C) of as many rows.
    ///
    /// Logits are computed in tiles of [`VOCABULARY_TILE`] tokens, rounded to the model's type, and merged in order.
    ///
    /// # Errors
    /// [`tensor::ErrorKind::Index`] for a target beyond the vocabulary, and what the head refuses.
    pub fn nll(&self, run: Run<'_>, hidden: &Tensor, targets: &[u32]) -> Result<Vec<f64>> {
        let causal = self.causal().ok_or(ErrorKind::NotCallable)?;
        self.nll_by(run, &causal, hidden, targets, VOCABULARY_TILE)
            .map_err(|error| error.at(self.tree().path(causal.head)))
    }

    fn nll_by(&self, run: Run<'_>, causal: &Causal, hidden: &Tensor, targets: &[u32], tile: usize) -> Result<Vec<f64>> {
        let linear = self.linear(causal.head).ok_or(ErrorKind::NotCallable)?;
        let vocabulary = self.store().info(linear.weight).shape[0];
        if let Some(&found) = targets.iter().find(|&&target| target as usize >= vocabulary) {
            return Err(tensor::Error::from(tensor::ErrorKind::Index { found: found.into(), bound: vocabulary }).into());
        }
        let mut heard = hear(self, run, causal.head, Tap::Input, vec![hidden.clone()])?;
        let hidden = heard.pop().ok_or(ErrorKind::Arity { found: 0, expected: "hidden states" })?;
        let mut states = vec![RowState::default(); targets.len()];
        let laid_out = self.store().laid_out(run.engine, linear.weight, hidden.dtype())?;
        let laid_out = laid_out.filter(|_| tile.is_multiple_of(LaidOut::ROWS));
        for first_token in (0..vocabulary).step_by(tile) {
            let len = tile.min(vocabulary - first_token);
            let rows = |id| self.store().rows(run.engine, id, first_token, len);
            let bias = linear.bias.map(rows).transpose()?;
            let mut logits = match &laid_out {
                Some(weight) => {
                    let part = (first_token, len);
                    vec![weight.linear(run.engine, &hidden, part, bias.as_ref()).map_err(Error::from)?]
                }
                None => {
                    let inputs = [hidden.clone(), rows(linear.weight)?].into_iter().chain(bias);
                    Op::Linear.forward(run.engine, inputs.collect())?
                }
            };
            for op in &causal.after_head {
                logits = op.forward(run.engine, logits)?;
            }
            let [logits] = <[Tensor; 1]>::try_from(logits)
                .map_err(|found| ErrorKind::Arity { found: found.len(), expected: "logits" })?;
            merge_tile(run.engine.profile, &logits.to_f32()?, first_token, targets, &mut states)
                .map_err(|error| Error::from(tensor::Error::from(error)))?;
        }
        Ok(states.iter().map(|state| state.nll().unwrap_or(f64::NAN)).collect())
    }
}
