//! How far a model is on its way: `quantization_status`.

use std::cmp::Ordering;

use crate::{ErrorKind, Result};

/// States in the order in which a model passes through them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuantizationStatus {
    /// Parameters exist.
    #[default]
    Initialized,
    /// Scales are being found.
    Calibration,
    /// Scales are final, weights are as they were.
    Frozen,
    /// Weights are in their on-disk layout.
    Compressed,
    /// Weights came back from it.
    Decompressed,
}

impl QuantizationStatus {
    /// Every state, in order.
    pub const ALL: [Self; 5] =
        [Self::Initialized, Self::Calibration, Self::Frozen, Self::Compressed, Self::Decompressed];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Initialized => "initialized",
            Self::Calibration => "calibration",
            Self::Frozen => "frozen",
            Self::Compressed => "compressed",
            Self::Decompressed => "decompressed",
        }
    }

    /// Reads the exact name.
    ///
    /// # Errors
    /// `UnknownName`.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(|it| it.name().to_owned()).to_vec();
            ErrorKind::UnknownName { what: "quantization status", name: name.to_owned(), known }.into()
        })
    }

    /// Order against a state that may be missing; every state is past a missing one.
    pub fn compare(self, other: Option<Self>) -> Ordering {
        other.map_or(Ordering::Greater, |it| self.cmp(&it))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_is_past_a_missing_one() {
        for pair in QuantizationStatus::ALL.windows(2) {
            assert_eq!(pair[0].compare(Some(pair[1])), Ordering::Less);
            assert_eq!(pair[0].compare(Some(pair[0])), Ordering::Equal);
            assert_eq!(pair[0].compare(None), Ordering::Greater);
            assert_eq!(QuantizationStatus::from_name(pair[1].name()).ok(), Some(pair[1]));
        }
    }
}
