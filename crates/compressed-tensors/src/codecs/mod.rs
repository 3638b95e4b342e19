//! The codecs, one file each.

pub mod dense;
pub mod float_quantized;
pub mod int_quantized;
pub mod mxfp4_pack_quantized;
pub mod mxfp8_quantized;
pub mod naive_quantized;
pub mod nvfp4_pack_quantized;
pub mod pack_quantized;
