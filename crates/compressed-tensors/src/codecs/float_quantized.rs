//! `float-quantized`: one e4m3 code per element.
//!
//! `weight` holds float8 e4m3 codes; `weight_scale` has the weight's type and the strategy's shape: `[1]`, `[O,
//! 1]` or one per tile. Chosen for 8-bit float weights with quantized inputs.

use crate::{
    codec::{Codec, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `float-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct FloatQuantized;

impl Codec for FloatQuantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::FloatQuantized
    }

    fn page(&self) -> &'static str {
        "`weight` holds float8 e4m3 codes; `weight_scale` has the weight's type and the strategy's shape: \
         `[1]`, `[O, 1]` or one per tile. Chosen for 8-bit float weights with quantized inputs."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        required_with(&["weight", "weight_scale"], scheme)
    }
}
