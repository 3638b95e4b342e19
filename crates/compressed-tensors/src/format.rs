//! Names of the on-disk formats, and which one a scheme is written in.

use crate::{ErrorKind, Result};

/// How the tensors of a module, or of a whole model, are laid out on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompressionFormat {
    /// As in the source.
    Dense,
    /// The retired bitmask layout; no codec writes it.
    SparseBitmask,
    /// The retired 2:4 layout; no codec writes it.
    Sparse24Bitmask,
    /// One integer code per int8.
    IntQuantized,
    /// One float code per e4m3.
    FloatQuantized,
    /// One code per element, for schemes that no other format names.
    NaiveQuantized,
    /// Integer codes in a dense bit stream.
    PackQuantized,
    /// The retired 2:4 kernel layout; no codec writes it.
    Marlin24,
    /// Only of a model: more than one format.
    MixedPrecision,
    /// Two e2m1 codes a byte, e4m3 scales, one global scale.
    Nvfp4PackQuantized,
    /// Two e2m1 codes a byte, power-of-two scales.
    Mxfp4PackQuantized,
    /// One e4m3 code a byte, power-of-two scales.
    Mxfp8Quantized,
}

impl CompressionFormat {
    /// Every format, in the reference's order.
    pub const ALL: [Self; 12] = [
        Self::Dense,
        Self::SparseBitmask,
        Self::Sparse24Bitmask,
        Self::IntQuantized,
        Self::FloatQuantized,
        Self::NaiveQuantized,
        Self::PackQuantized,
        Self::Marlin24,
        Self::MixedPrecision,
        Self::Nvfp4PackQuantized,
        Self::Mxfp4PackQuantized,
        Self::Mxfp8Quantized,
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::SparseBitmask => "sparse-bitmask",
            Self::Sparse24Bitmask => "sparse-24-bitmask",
            Self::IntQuantized => "int-quantized",
            Self::FloatQuantized => "float-quantized",
            Self::NaiveQuantized => "naive-quantized",
            Self::PackQuantized => "pack-quantized",
            Self::Marlin24 => "marlin-24",
            Self::MixedPrecision => "mixed-precision",
            Self::Nvfp4PackQuantized => "nvfp4-pack-quantized",
            Self::Mxfp4PackQuantized => "mxfp4-pack-quantized",
            Self::Mxfp8Quantized => "mxfp8-quantized",
        }
    }

    /// Reads the exact name.
    ///
    /// # Errors
    /// `UnknownName`.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(|it| it.name().to_owned()).to_vec();
            ErrorKind::UnknownName { what: "compression format", name: name.to_owned(), known }.into()
        })
    }
}
