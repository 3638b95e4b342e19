//! `mxfp8-quantized`: one e4m3 code per element with power-of-two group scales.
//!
//! `weight` holds e4m3 codes; `weight_scale` holds the exponent of a power of two per 32 columns, plus 127, in
//! uint8. Decompresses to bf16.

use crate::{
    codec::{Codec, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `mxfp8-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp8Quantized;

impl Codec for Mxfp8Quantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::Mxfp8Quantized
    }

    fn page(&self) -> &'static str {
        "`weight` holds e4m3 codes; `weight_scale` holds the exponent of a power of two per 32 columns, plus \
         127, in uint8. Decompresses to bf16."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        required_with(&["weight", "weight_scale"], scheme)
    }
}
