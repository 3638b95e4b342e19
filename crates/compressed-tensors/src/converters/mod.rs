//! Converters: checkpoints of other formats to compressed-tensors, to dense weights, and back.
//!
//! A converter maps full tensor names to tensors, module by module, so that a caller streams a checkpoint;
//! [`inverse_weight_maps`](crate::weight_map::inverse_weight_maps) tells what a shard needs of others.

mod auto_awq;
mod auto_gptq;
mod compressed_tensors_dequantizer;
mod fp8_block_dequantizer;
mod magnitude_expert_pruner;
mod modelopt_nvfp4;
mod modules;
mod packed_linear;
mod registry;

use indexmap::IndexMap;
use serde_json::Value;

use crate::{DType, ModuleTensors, Result, config::QuantizationConfig};

pub use auto_awq::{AutoAwqConverter, AutoAwqExporter, ZeroPoint};
pub use auto_gptq::{ActOrder, AutoGptqConverter, AutoGptqExporter, CheckpointFormat};
pub use compressed_tensors_dequantizer::CompressedTensorsDequantizer;
pub use fp8_block_dequantizer::Fp8BlockDequantizer;
pub use magnitude_expert_pruner::MagnitudeExpertPruner;
pub use modelopt_nvfp4::ModelOptNvfp4Converter;
pub use registry::{Build, CONVERTERS, ConverterEntry, converter_entry, dense_chain, source_converter};

/// A tensor without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
}

/// Tensors without their data, by name.
pub type TensorShapes = IndexMap<String, TensorShape>;

/// Changes the tensors and the configuration of a checkpoint.
pub trait Converter: Send + Sync {
    /// The tensors of one module under local names, converted; `module` is its path.
    ///
    /// # Errors
    /// Tensors that are missing, left over, or of a shape or dtype that does not fit.
    fn process_module(&self, module: &str, tensors: ModuleTensors) -> Result<ModuleTensors>;

    /// What [`process_module`](Self::process_module) makes of tensors of these shapes.
    ///
    /// # Errors
    /// As for the data, as far as shapes tell.
    fn plan_module(&self, module: &str, tensors: &TensorShapes) -> Result<TensorShapes>;

    /// Names of the tensors that must be at hand when `name` is converted; `exists` asks the index.
    ///
    /// # Errors
    /// A pattern that runs past its step limit.
    fn dependencies(&self, name: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<String>>;

    /// The quantization of the result, given that of the source if it is of this format; `None` removes it.
    ///
    /// # Errors
    /// Where the two cannot be merged.
    fn update_config(&self, config: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>>;

    /// Changes other fields of `config.json`, after `quantization_config` has been written or removed.
    ///
    /// # Errors
    /// Fields that do not fit the conversion.
    fn update_model_config(&self, config: &mut Value) -> Result<()> {
        let _ = config;
        Ok(())
    }

    /// Converts tensors under full names.
    ///
    /// # Errors
    /// As [`process_module`](Self::process_module), with the module as the place.
    fn process(&self, tensors: ModuleTensors) -> Result<ModuleTensors> {
        let mut converted = ModuleTensors::new();
        for (module, locals) in modules::by_module(tensors) {
            let done = self.process_module(&module, locals).map_err(|e| modules::placed(e, &module))?;
            converted.extend(done.into_iter().map(|(local, it)| (modules::join(&module, &local), it)));
        }
        Ok(converted)
    }

    /// What [`process`](Self::process) makes of tensors of these shapes.
    ///
    /// # Errors
    /// As [`plan_module`](Self::plan_module), with the module as the place.
    fn validate(&self, tensors: &TensorShapes) -> Result<TensorShapes> {
        let mut converted = TensorShapes::new();
        for (module, locals) in modules::by_module(tensors.clone()) {
            let done = self.plan_module(&module, &locals).map_err(|e| modules::placed(e, &module))?;
            converted.extend(done.into_iter().map(|(local, it)| (modules::join(&module, &local), it)));
        }
        Ok(converted)
    }
}

/// The shapes of tensors.
pub fn shapes_of(tensors: &ModuleTensors) -> TensorShapes {
    tensors.iter().map(|(name, it)| (name.clone(), TensorShape { dtype: it.dtype, shape: it.shape.clone() })).collect()
}
