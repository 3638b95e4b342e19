//! What a caller should tell the user although nothing failed.

use std::fmt;

/// Something noticed while data was chosen or read; a run goes on and its report keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Note {
    /// An argument that is accepted and has no effect.
    NoEffect {
        /// Name of the argument.
        argument: &'static str,
    },
    /// A form of an argument that still works and will not for ever.
    Deprecated {
        /// What was given, and what to give.
        what: String,
    },
    /// Fewer samples than asked for.
    FewerSamples {
        /// Samples asked for.
        asked: usize,
        /// Samples there are.
        available: usize,
    },
    /// `max_seq_length` exceeds what the tokenizer was made for.
    ClippedLength {
        /// The length asked for.
        asked: usize,
        /// The length used.
        limit: usize,
    },
    /// Samples that were cut.
    Truncated {
        /// How many.
        samples: usize,
        /// The length they were cut to.
        length: usize,
    },
    /// Rows without a single token, which are left out.
    BlankRows {
        /// How many.
        rows: usize,
    },
    /// Rows that could not be read and were allowed to be left out.
    BadRows {
        /// How many.
        rows: usize,
        /// The first fault.
        first: String,
    },
    /// The data has several splits and none was named.
    SplitChosen {
        /// The split that is used.
        split: String,
        /// All splits.
        found: Vec<String>,
    },
    /// A chat data set is rendered with the built-in template because the tokenizer has none.
    DefaultChatTemplate,
    /// The rendered chat begins with the token that the tokenizer adds once more.
    DoubledStart {
        /// That token.
        token: String,
    },
    /// Streaming reads from the front: rows are neither shuffled nor sorted.
    StreamingOrder,
    /// Rows of a shuffled batch have unequal lengths, of which the shortest counts.
    ShuffledBatches {
        /// Rows of a batch.
        batch_size: usize,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoEffect { argument } => write!(f, "`{argument}` has no effect"),
            Self::Deprecated { what } => write!(f, "{what}"),
            Self::FewerSamples { asked, available } => {
                write!(f, "{asked} samples were asked for, there are {available}; all are used")
            }
            Self::ClippedLength { asked, limit } => {
                write!(f, "max_seq_length {asked} is beyond the tokenizer's {limit}, which is used")
            }
            Self::Truncated { samples, length } => write!(f, "{samples} samples were cut to {length} tokens"),
            Self::BlankRows { rows } => write!(f, "{rows} rows without tokens were left out"),
            Self::BadRows { rows, first } => write!(f, "{rows} unreadable rows were left out, the first: {first}"),
            Self::SplitChosen { split, found } => {
                write!(f, "split `{split}` of {} is used; name one in `splits`", found.join(", "))
            }
            Self::DefaultChatTemplate => write!(f, "the tokenizer has no chat template, a plain one is used"),
            Self::DoubledStart { token } => {
                write!(
                    f,
                    "the chat template writes `{token}` and the tokenizer adds it once more, as the reference does"
                )
            }
            Self::StreamingOrder => write!(f, "streaming takes rows from the front, unshuffled"),
            Self::ShuffledBatches { batch_size } => {
                write!(f, "shuffled batches of {batch_size} mix lengths; unshuffled ones are sorted by length")
            }
        }
    }
}
