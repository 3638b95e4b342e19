//! `pack-quantized`: integers of 1 to 8 bits in a dense bit stream.
//!
//! `weight_packed` holds each row as a little-endian bit stream in int32 words: code i, plus half the range, in
//! bits `i * bits` and up, straddling words. `weight_shape` is the shape of the weight; zero points per group or
//! channel are packed the same way down the rows. Words of the older layout, without straddling, and
//! `weight_g_idx` are read.

use crate::{
    args::QuantizationStrategy,
    codec::{Codec, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `pack-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct PackQuantized;

impl Codec for PackQuantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::PackQuantized
    }

    fn page(&self) -> &'static str {
        "`weight_packed` holds each row as a little-endian bit stream in int32 words: code i, plus half the \
         range, in bits `i * bits` and up, straddling words. `weight_shape` is the shape of the weight; zero \
         points per group or channel are packed the same way down the rows. Words of the older layout, \
         without straddling, and `weight_g_idx` are read."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        let mut names = required_with(&["weight_packed", "weight_scale", "weight_shape"], scheme);
        if scheme.input_activations.as_ref().is_some_and(|it| it.strategy == QuantizationStrategy::TensorGroup) {
            names.push("input_global_scale");
        }
        names
    }
}
