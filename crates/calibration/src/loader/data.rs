//! The calibration data of a run, batch by batch.

use super::{
    DataSettings,
    locate::locate,
    plan::{Reader, SampleRef, choose},
    processor::Processor,
};
use crate::{
    Error, ErrorKind, Note, Result,
    arguments::{DatasetArguments, invalid},
    batches::{Batch, Collator, Column, Sample, collate},
    datasets::{self, Dataset},
    source::Source,
};

/// Samples chosen from a source, and how they become batches.
///
/// The choice is made once: every pass over the batches sees the same samples in the same order.
pub struct CalibrationData {
    reader: Reader,
    samples: Vec<SampleRef>,
    batch_size: usize,
    collator: Collator,
    settings: DataSettings,
    notes: Vec<Note>,
}

impl CalibrationData {
    /// Finds the data that arguments name and chooses samples; `None` if they name none.
    ///
    /// # Errors
    /// What [`DatasetArguments::validate`] refuses, files that are absent or malformed, a missing text column, no
    /// usable sample, and samples beyond the model's limits; with file and line.
    pub fn open(arguments: &DatasetArguments, settings: &DataSettings) -> Result<Option<Self>> {
        let mut notes = arguments.validate()?;
        let Some((source, dataset, found)) = locate(arguments, settings.hub_cache.as_deref())? else { return Ok(None) };
        notes.extend(found);
        Self::choose(arguments, settings, source, dataset, notes).map(Some)
    }

    /// Chooses samples from a source that is open already; `dataset` and `splits` play no role.
    ///
    /// # Errors
    /// As [`CalibrationData::open`].
    pub fn from_source(arguments: &DatasetArguments, settings: &DataSettings, source: Box<dyn Source>) -> Result<Self> {
        let notes = arguments.validate()?;
        Self::choose(arguments, settings, source, datasets::find("custom")?, notes)
    }

    fn choose(
        arguments: &DatasetArguments,
        settings: &DataSettings,
        source: Box<dyn Source>,
        dataset: &'static Dataset,
        mut notes: Vec<Note>,
    ) -> Result<Self> {
        if settings.world == 0 || settings.rank >= settings.world {
            let found = format!("{} of {}", settings.rank, settings.world);
            return Err(invalid("rank", &found, "a rank below the number of ranks"));
        }
        let processor = Processor::new(arguments, settings, dataset, &mut notes)?;
        let max_seq_length = arguments.max_seq_length.and(processor.max_tokens());
        let tokenizer = settings.tokenizer.as_deref();
        let pad_id = tokenizer.and_then(|tokenizer| tokenizer.pad_id());
        let side = tokenizer.map(|tokenizer| tokenizer.config().padding_side).unwrap_or_default();
        let collator = Collator::named(&arguments.data_collator, max_seq_length, pad_id, side)?;
        let mut reader = Reader::new(source, processor, settings.limits, arguments.skip_bad_rows);
        let samples = choose(&mut reader, arguments, (settings.rank, settings.world), &mut notes)?;
        if arguments.batch_size > 1 && arguments.shuffle_calibration_samples && !arguments.concatenate_data {
            notes.push(Note::ShuffledBatches { batch_size: arguments.batch_size });
        }
        notes.extend(reader.take_notes());
        Ok(Self { reader, samples, batch_size: arguments.batch_size, collator, settings: settings.clone(), notes })
    }

    /// Number of batches.
    pub fn n_batches(&self) -> usize {
        self.samples.len().div_ceil(self.batch_size)
    }

    /// Number of samples.
    pub fn n_samples(&self) -> usize {
        self.samples.len()
    }

    /// What to tell the user.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// Batch `index`, or `None` past the last one.
    ///
    /// # Errors
    /// Rows that cannot be read any more, and what the collator refuses.
    pub fn batch(&mut self, index: usize) -> Result<Option<Batch>> {
        let start = index.saturating_mul(self.batch_size).min(self.samples.len());
        let end = start.saturating_add(self.batch_size).min(self.samples.len());
        if start == end {
            return Ok(None);
        }
        let samples = (start..end).map(|i| self.sample(i)).collect::<Result<Vec<_>>>()?;
        match &self.settings.collate {
            Some(function) => function(samples).map(Some),
            None => collate(samples, &self.collator).map(Some),
        }
    }

    /// All batches in order.
    pub fn batches(&mut self) -> Batches<'_> {
        Batches { data: self, next: 0 }
    }

    /// Sample `index` in the chosen order, as it is before a collator sees it.
    ///
    /// # Errors
    /// Rows that cannot be read any more.
    pub fn sample(&mut self, index: usize) -> Result<Sample> {
        let gone = |reader: &Reader| {
            let reason = "a row that was there is gone, the data changed while it was read".to_owned();
            Error::from(ErrorKind::Malformed { format: "data", reason }).in_file(reader.source.path())
        };
        match self.samples.get(index).copied() {
            Some(SampleRef::Row(row)) => match self.reader.sample(row)? {
                Some(processed) => Ok(processed.sample),
                None => Err(gone(&self.reader)),
            },
            Some(SampleRef::Piece { first_row, skip, length }) => self.piece(first_row, skip, length),
            None => Err(invalid("sample", &index.to_string(), &format!("an index below {}", self.samples.len()))),
        }
    }

    /// Joins rows until the piece is full; rows that are left out were left out before.
    fn piece(&mut self, first_row: usize, skip: usize, length: usize) -> Result<Sample> {
        let mut piece = Sample::new();
        let (mut row, mut skip, mut filled) = (first_row, skip, 0);
        let n_rows = self.reader.source.count()?;
        while filled < length && row < n_rows {
            let processed = match self.reader.sample(row) {
                Ok(processed) => processed,
                // The choice of samples let this row be left out.
                Err(_) if row > first_row => None,
                Err(e) => return Err(e),
            };
            row += 1;
            let Some(processed) = processed else { continue };
            let n_tokens = processed.sample.get("input_ids").and_then(Column::n_entries).unwrap_or(0);
            let taken = (length - filled).min(n_tokens.saturating_sub(skip));
            for (name, column) in processed.sample {
                if let Column::Ints(values) = column
                    && values.len() == n_tokens
                    && let Column::Ints(joined) = piece.entry(name).or_insert_with(|| Column::Ints(Vec::new()))
                {
                    joined.extend_from_slice(&values[skip..skip + taken]);
                }
            }
            filled += taken;
            skip = 0;
        }
        Ok(piece)
    }
}

/// Batches in order.
pub struct Batches<'a> {
    data: &'a mut CalibrationData,
    next: usize,
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = self.data.batch(self.next).transpose();
        self.next += 1;
        batch
    }
}
