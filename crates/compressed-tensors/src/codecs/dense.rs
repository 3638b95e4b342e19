//! `dense`: the weight as it is.
//!
//! The weight and everything beside it stay as they are; scales and zero points that are present are kept, also
//! symmetric ones.

use crate::{
    DType, ModuleTensors, Result, codec::Codec, format::CompressionFormat, scheme::QuantizationScheme,
    weight_compressor::TensorSpec,
};

/// `dense`.
#[derive(Clone, Copy, Debug)]
pub struct Dense;

impl Codec for Dense {
    fn format(&self) -> CompressionFormat {
        CompressionFormat::Dense
    }

    fn page(&self) -> &'static str {
        "The weight and everything beside it stay as they are; scales and zero points that are present are \
         kept, also symmetric ones."
    }

    fn required(&self, _: &QuantizationScheme) -> Vec<&'static str> {
        vec!["weight"]
    }

    fn outputs(&self, _: &QuantizationScheme, dtype: DType, rows: usize, cols: usize) -> Result<Vec<TensorSpec>> {
        Ok(vec![TensorSpec { name: "weight".to_owned(), dtype, shape: vec![rows, cols] }])
    }

    fn compress(&self, tensors: ModuleTensors, _: &QuantizationScheme) -> Result<ModuleTensors> {
        Ok(tensors)
    }

    fn decompress(&self, tensors: ModuleTensors, _: &QuantizationScheme) -> Result<ModuleTensors> {
        Ok(tensors)
    }
}
