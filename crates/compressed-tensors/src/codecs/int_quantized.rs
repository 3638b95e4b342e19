//! `int-quantized`: one integer code per int8.
//!
//! `weight` holds one code per element in int8 (int16 and int32 above 8 and 16 bits), also where codes have fewer
//! bits; `weight_scale` has the weight's type, `weight_zero_point` is present where asymmetric. Chosen for
//! integer weights with quantized inputs.

use crate::{
    codec::{Codec, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `int-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct IntQuantized;

impl Codec for IntQuantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::IntQuantized
    }

    fn page(&self) -> &'static str {
        "`weight` holds one code per element in int8 (int16 and int32 above 8 and 16 bits), also where codes \
         have fewer bits; `weight_scale` has the weight's type, `weight_zero_point` is present where \
         asymmetric. Chosen for integer weights with quantized inputs."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        required_with(&["weight", "weight_scale"], scheme)
    }
}
