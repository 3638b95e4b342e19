//! The compressed-tensors checkpoint format: schemes, arithmetic, codecs and `quantization_config`.

pub mod args;
mod array;
pub mod bins;
mod bit_stream;
pub mod codec;
pub mod codecs;
pub mod config;
pub mod converters;
mod dtype;
pub mod dynamic;
mod error;
pub mod experts;
pub mod format;
pub mod fused;
pub mod kv_cache;
pub mod minmax;
pub mod numbers;
pub mod packing;
pub mod parameter_names;
pub mod presets;
pub mod quantize;
pub mod retired;
pub mod scales;
pub mod scheme;
pub mod simd;
pub mod target;
pub mod transforms;
pub mod weight_compressor;
pub mod weight_decompressor;
pub mod weight_map;
mod wire;

pub use array::{Array, ModuleTensors};
pub use dtype::DType;
pub use error::{Error, ErrorKind, Result};
pub use wire::Reader;
