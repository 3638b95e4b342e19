//! `naive-quantized`: one code per element, for whatever no other format names.
//!
//! The layout of int-quantized and float-quantized. Chosen for 8-bit float weights with unquantized inputs and
//! for integers wider than 8 bits.

use crate::{
    codec::{Codec, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `naive-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct NaiveQuantized;

impl Codec for NaiveQuantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::NaiveQuantized
    }

    fn page(&self) -> &'static str {
        "The layout of int-quantized and float-quantized. Chosen for 8-bit float weights with unquantized \
         inputs and for integers wider than 8 bits."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        required_with(&["weight", "weight_scale"], scheme)
    }
}
