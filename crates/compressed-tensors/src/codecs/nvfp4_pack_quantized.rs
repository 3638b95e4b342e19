//! `nvfp4-pack-quantized`: two e2m1 codes a byte with e4m3 group scales and a global scale.
//!
//! `weight_packed` holds the even column in the low nibble; `weight_scale` is e4m3, one per 16 columns, already
//! multiplied by `weight_global_scale`. Decompresses to bf16 whatever the weight was.

use crate::{
    codec::{Codec, has_static_inputs, required_with},
    format::CompressionFormat,
    scheme::QuantizationScheme,
};

/// `nvfp4-pack-quantized`.
#[derive(Clone, Copy, Debug)]
pub struct Nvfp4PackQuantized;

impl Codec for Nvfp4PackQuantized {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::Nvfp4PackQuantized
    }

    fn page(&self) -> &'static str {
        "`weight_packed` holds the even column in the low nibble; `weight_scale` is e4m3, one per 16 columns, \
         already multiplied by `weight_global_scale`. Decompresses to bf16 whatever the weight was."
    }

    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str> {
        let mut names = required_with(&["weight_packed", "weight_scale", "weight_global_scale"], scheme);
        if has_static_inputs(scheme) {
            names.push("input_global_scale");
        }
        names
    }
}
