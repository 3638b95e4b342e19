//! Choosing samples: only positions and lengths are kept, rows are read again when they are used.

use super::{
    ModelLimits,
    processor::{Processed, Processor},
};
use crate::{
    Error, ErrorKind, Note, Result,
    arguments::{DatasetArguments, invalid},
    batches::{Column, Sample, Sampler, by_descending_length, shard, shuffled},
    source::Source,
};

/// Where a chosen sample is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SampleRef {
    /// A row.
    Row(usize),
    /// `length` tokens that start `skip` tokens into the usable row `first_row`.
    Piece { first_row: usize, skip: usize, length: usize },
}

/// Reads rows, counts what is left out, and makes samples.
pub(super) struct Reader {
    pub(super) source: Box<dyn Source>,
    pub(super) processor: Processor,
    limits: ModelLimits,
    allowed_bad: usize,
    bad: usize,
    first_bad: Option<String>,
    blank: usize,
    cut: usize,
    notes: Vec<Note>,
}

/// One row as the reader finds it.
pub(super) enum Found {
    /// A row with tokens.
    Sample(Sample),
    /// A row that is left out.
    Nothing,
    /// The end of the data.
    End,
}

impl Reader {
    pub(super) fn new(source: Box<dyn Source>, processor: Processor, limits: ModelLimits, allowed_bad: usize) -> Self {
        let (first_bad, notes) = (None, Vec::new());
        Self { source, processor, limits, allowed_bad, bad: 0, first_bad, blank: 0, cut: 0, notes }
    }

    /// The sample of a row, checked against the model; `None` past the end or for a row without tokens.
    pub(super) fn sample(&mut self, index: usize) -> Result<Option<Processed>> {
        match self.source.row(index)? {
            Some(row) => self.processor.sample(&row).map_err(|e| self.place(e, index)),
            None => Ok(None),
        }
    }

    fn place(&self, error: Error, index: usize) -> Error {
        match error.place() {
            Some(place) if place.path != self.source.path() => error,
            _ => error.at(self.source.place(index)),
        }
    }

    fn examine(&mut self, index: usize) -> Result<Found> {
        let row = match self.source.row(index) {
            Ok(None) => return Ok(Found::End),
            Ok(Some(row)) => self.processor.sample(&row).map_err(|e| self.place(e, index)),
            Err(e) => Err(e),
        };
        match row {
            Ok(Some(processed)) => {
                self.cut += usize::from(processed.was_cut);
                if let Some(note) = processed.note
                    && !self.notes.contains(&note)
                {
                    self.notes.push(note);
                }
                self.check(&processed.sample, index)?;
                Ok(Found::Sample(processed.sample))
            }
            Ok(None) => {
                self.blank += 1;
                Ok(Found::Nothing)
            }
            Err(e) if self.bad < self.allowed_bad && is_of_one_row(&e) => {
                self.bad += 1;
                self.first_bad.get_or_insert_with(|| e.to_string());
                Ok(Found::Nothing)
            }
            Err(e) => Err(e),
        }
    }

    fn check(&self, sample: &Sample, index: usize) -> Result<()> {
        let Some(ids) = sample.get("input_ids").and_then(Column::ints) else { return Ok(()) };
        let place = |kind: ErrorKind| Err(Error::from(kind).at(self.source.place(index)));
        if let Some(rows) = self.limits.vocabulary_rows
            && let Some(&id) = ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= rows))
        {
            let token = u32::try_from(id).ok().and_then(|id| self.processor.token(id));
            return place(ErrorKind::BeyondVocabulary { id: id.unsigned_abs(), token, sample: index, rows });
        }
        // Rows that are joined are cut before the model sees them.
        let is_whole = !self.processor.is_joining();
        match self.limits.max_positions.filter(|&limit| is_whole && ids.len() > limit) {
            Some(limit) => place(ErrorKind::BeyondContext { sample: index, tokens: ids.len(), limit }),
            None => Ok(()),
        }
    }

    /// Takes what was noticed.
    pub(super) fn take_notes(&mut self) -> Vec<Note> {
        let mut notes = std::mem::take(&mut self.notes);
        if self.cut > 0 {
            let length = self.processor.max_tokens().unwrap_or(0);
            notes.push(Note::Truncated { samples: self.cut, length });
        }
        if self.blank > 0 {
            notes.push(Note::BlankRows { rows: self.blank });
        }
        if let Some(first) = self.first_bad.take() {
            notes.push(Note::BadRows { rows: self.bad, first });
        }
        notes
    }
}

/// Whether a fault is of one row's content, so that leaving the row out helps.
fn is_of_one_row(error: &Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Malformed { .. }
            | ErrorKind::TooLarge { .. }
            | ErrorKind::MissingColumn { .. }
            | ErrorKind::ColumnType { .. }
            | ErrorKind::Template { .. }
            | ErrorKind::Tokenizer { .. }
    )
}

/// Chooses samples and this rank's part of them.
pub(super) fn choose(
    reader: &mut Reader,
    arguments: &DatasetArguments,
    (rank, world): (usize, usize),
    notes: &mut Vec<Note>,
) -> Result<Vec<SampleRef>> {
    let sampler = match arguments.shuffle_calibration_samples {
        true => Sampler::Random { seed: arguments.seed },
        false => Sampler::LengthAware,
    };
    let wanted = arguments.num_calibration_samples;
    let chosen = if arguments.concatenate_data {
        choose_pieces(reader, arguments, sampler)?
    } else if arguments.streaming {
        if arguments.shuffle_calibration_samples {
            notes.push(Note::StreamingOrder);
        }
        choose_rows(reader, 0.., wanted)?.0
    } else {
        match sampler {
            Sampler::Random { seed } => {
                let n_rows = reader.source.count()?;
                let order = shuffled(n_rows, seed)?;
                let first = wanted.map_or(n_rows, |wanted| wanted.min(n_rows));
                reader.source.expect_rows(&order[..first])?;
                choose_rows(reader, order, wanted)?.0
            }
            Sampler::LengthAware => {
                let (rows, lengths) = choose_rows(reader, 0.., None)?;
                by_descending_length(&lengths, wanted).into_iter().map(|i| rows[i]).collect()
            }
        }
    };
    if chosen.is_empty() {
        let reason = match (reader.bad, reader.blank, arguments.concatenate_data) {
            (0, 0, false) => "there are no rows".to_owned(),
            (bad, blank, false) => format!("{blank} rows are blank and {bad} unreadable"),
            (.., true) => "all rows together are shorter than one piece of max_seq_length".to_owned(),
        };
        return Err(Error::from(ErrorKind::Empty { reason }).in_file(reader.source.path()));
    }
    if let Some(asked) = wanted.filter(|&asked| asked > chosen.len()) {
        notes.push(Note::FewerSamples { asked, available: chosen.len() });
    }
    let part = shard(chosen.len(), rank, world);
    if part.is_empty() {
        let reason = format!("{} samples leave none for rank {rank} of {world}", chosen.len());
        return Err(Error::from(ErrorKind::Empty { reason }).in_file(reader.source.path()));
    }
    Ok(chosen[part].to_vec())
}

/// Walks rows in an order until enough of them have tokens; also returns their lengths.
fn choose_rows(
    reader: &mut Reader,
    order: impl IntoIterator<Item = usize>,
    wanted: Option<usize>,
) -> Result<(Vec<SampleRef>, Vec<usize>)> {
    let (mut rows, mut lengths) = (Vec::new(), Vec::new());
    for index in order {
        if wanted.is_some_and(|wanted| rows.len() >= wanted) {
            break;
        }
        match reader.examine(index)? {
            Found::End => break,
            Found::Nothing => {}
            Found::Sample(sample) => {
                rows.push(SampleRef::Row(index));
                lengths.push(sample.get("input_ids").and_then(Column::n_entries).unwrap_or(0));
            }
        }
    }
    Ok((rows, lengths))
}

fn choose_pieces(reader: &mut Reader, arguments: &DatasetArguments, sampler: Sampler) -> Result<Vec<SampleRef>> {
    let length = reader.processor.max_tokens();
    let length = length.ok_or_else(|| invalid("concatenate_data", "true", "a max_seq_length to cut pieces of"))?;
    reader.processor.join_to(length);
    let is_random = matches!(sampler, Sampler::Random { .. }) && !arguments.streaming;
    // Pieces are equally long, so that without a shuffle the first ones are the longest.
    let needed = arguments.num_calibration_samples.filter(|_| !is_random).unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    // Tokens of the current piece that are there, and where it starts.
    let (mut filled, mut start) = (0, (0, 0));
    let mut index = 0;
    while pieces.len() < needed {
        let n_tokens = match reader.examine(index)? {
            Found::End => break,
            Found::Nothing => 0,
            Found::Sample(sample) => sample.get("input_ids").and_then(Column::n_entries).unwrap_or(0),
        };
        let mut used = 0;
        while used < n_tokens && pieces.len() < needed {
            if filled == 0 {
                start = (index, used);
            }
            let taken = (length - filled).min(n_tokens - used);
            filled += taken;
            used += taken;
            if filled == length {
                pieces.push(SampleRef::Piece { first_row: start.0, skip: start.1, length });
                filled = 0;
            }
        }
        index += 1;
    }
    if let (true, Sampler::Random { seed }) = (is_random, sampler) {
        let order = shuffled(pieces.len(), seed)?;
        let wanted = arguments.num_calibration_samples.unwrap_or(usize::MAX);
        pieces = order.into_iter().take(wanted).map(|i| pieces[i]).collect();
    }
    Ok(pieces)
}
