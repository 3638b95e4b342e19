//! `mxfp4-pack-quantized`: two e2m1 codes a byte with power-of-two group scales.
//!
//! `weight_packed` as in nvfp4-pack-quantized; `weight_scale` holds the exponent of a power of two per 32
//! columns, plus 127, in uint8. Decompresses to bf16.

use crate::{
    codec::{Codec, has_static_inputs, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `mxfp4-pack-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct Mxfp4PackQuantized;

impl Codec for Mxfp4PackQuantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::Mxfp4PackQuantized
    }

    fn page(&self) -> &'static str {
        "`weight_packed` as in nvfp4-pack-quantized; `weight_scale` holds the exponent of a power of two per \
         32 columns, plus 127, in uint8. Decompresses to bf16."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        let mut names = required_with(&["weight_packed", "weight_scale"], scheme);
        if has_static_inputs(scheme) {
            names.push("input_global_scale");
        }
        names
    }
}
