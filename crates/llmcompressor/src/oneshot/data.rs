//! Calibration data as batches of token ids.

use std::{path::Path, sync::Arc};

use calibration::{CalibrationData, DataSettings, ModelLimits, Tokenizer, arguments::DatasetArguments};
use models::Model;
use pipelines::CalibrationBatch;
use tensor::Engine;

use crate::error::{ErrorKind, Result};

/// Batches, and what is known of them.
pub(super) struct Data {
    pub(super) batches: Vec<CalibrationBatch>,
    pub(super) n_samples: usize,
    pub(super) n_tokens: usize,
    /// Most tokens of a batch, padding included.
    pub(super) batch_tokens: u64,
    /// Per batch, which tokens count; none where all do.
    pub(super) loss_masks: Option<Vec<Option<Vec<bool>>>>,
    /// Hash of all ids and masks.
    pub(super) fingerprint: String,
    pub(super) notes: Vec<String>,
}

/// Reads the data that arguments name, as the model's tokenizer sees it.
///
/// # Errors
/// No data, and every fault of it.
pub(super) fn load(arguments: &DatasetArguments, dir: &Path, model: &Model, engine: &Engine) -> Result<Data> {
    let vocabulary_rows =
        model.causal().and_then(|it| model.linear(it.head)).map(|it| model.store().info(it.weight).shape[0]);
    // Data may hold token ids, which need none.
    let has_tokenizer = dir.join("tokenizer.json").is_file();
    let tokenizer = has_tokenizer.then(|| Tokenizer::from_dir(dir)).transpose()?;
    let settings = DataSettings {
        tokenizer: tokenizer.map(Arc::new),
        limits: ModelLimits { vocabulary_rows, max_positions: model.max_positions() },
        ..DataSettings::default()
    };
    let Some(mut data) = CalibrationData::open(arguments, &settings)? else {
        let found = "absent".to_owned();
        let expected = "calibration data: a modifier of the recipe needs it".to_owned();
        return Err(ErrorKind::Option { option: "--data", found, expected }.into());
    };
    let (n_samples, notes) = (data.n_samples(), data.notes().iter().map(ToString::to_string).collect());
    let mut rows = Vec::with_capacity(data.n_batches());
    let mut loss_masks = arguments.use_loss_mask.then(|| Vec::with_capacity(data.n_batches()));
    for batch in data.batches() {
        let batch = batch?;
        let Some((ids, n_rows, n_tokens)) = batch.input_ids() else { continue };
        let mask = batch.matrix("attention_mask").map(|it| it.0.to_vec());
        if let Some(masks) = &mut loss_masks {
            masks.push(batch.matrix("loss_mask").map(|it| it.0.iter().map(|it| *it == 1).collect::<Vec<bool>>()));
        }
        rows.push((ids.to_vec(), mask, [n_rows, n_tokens]));
    }
    let is_padded = rows.iter().any(|it| it.1.as_ref().is_some_and(|mask| mask.contains(&0)));
    let mut digest = blake3::Hasher::new();
    let mut batches = Vec::with_capacity(rows.len());
    let mut n_all = 0;
    let mut batch_tokens = 0;
    for (ids, mask, shape) in rows {
        let mask = is_padded.then(|| mask.unwrap_or_else(|| vec![1; ids.len()]));
        batch_tokens = batch_tokens.max(ids.len() as u64);
        n_all += mask.as_ref().map_or(ids.len(), |it| it.iter().filter(|it| **it != 0).count());
        for extent in shape {
            digest.update(&(extent as u64).to_le_bytes());
        }
        for value in ids.iter().chain(mask.iter().flatten()) {
            digest.update(&value.to_le_bytes());
        }
        let tensor = |values: Vec<i64>| engine.budget.tensor(values, &shape).map_err(models::Error::from);
        batches.push(CalibrationBatch { ids: tensor(ids)?, mask: mask.map(tensor).transpose()? });
    }
    for mask in loss_masks.iter().flatten().flatten() {
        digest.update(&mask.iter().map(|it| u8::from(*it)).collect::<Vec<u8>>());
    }
    let fingerprint = digest.finalize().to_hex().to_string();
    Ok(Data { batches, n_samples, n_tokens: n_all, batch_tokens, loss_masks, fingerprint, notes })
}
