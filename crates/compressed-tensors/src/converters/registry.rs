//! All converters by name, and which of them a checkpoint needs.

use serde_json::{Map, Value};

use super::{
    ActOrder, AutoAwqConverter, AutoAwqExporter, AutoGptqConverter, AutoGptqExporter, CheckpointFormat,
    CompressedTensorsDequantizer, Converter, Fp8BlockDequantizer, ModelOptNvfp4Converter,
    modules::{invalid, names},
};
use crate::{
    DType, Error, ErrorKind, Result,
    config::{CheckpointConfig, QUANT_METHOD, QuantizationConfig, locate_section},
};

/// A converter as a user finds it.
#[derive(Clone, Copy, Debug)]
pub struct ConverterEntry {
    /// The reference's name; those that it lacks are named alike.
    pub name: &'static str,
    /// What it does, reads and refuses.
    pub page: &'static str,
    /// Makes one of its arguments, a JSON object, and the `config.json` of the checkpoint. Absent where
    /// tensors are needed too.
    pub build: Option<Build>,
}

/// Makes a converter of its arguments and of the `config.json` of the checkpoint.
pub type Build = fn(&Value, &Value) -> Result<Box<dyn Converter>>;

/// Every converter, in display order.
pub const CONVERTERS: &[ConverterEntry] = &[
    ConverterEntry {
        name: "AutoAWQConverter",
        page: "Reads AutoAWQ checkpoints (`quant_method: awq`, 4 bits, version `gemm`) as `pack-quantized`. \
               Every weight keeps its codes, scales and zero points. Other versions are refused.",
        build: Some(|args, model| Ok(Box::new(AutoAwqConverter::from_source_config(&overlaid(args, model)?)?))),
    },
    ConverterEntry {
        name: "AutoGPTQConverter",
        page: "Reads AutoGPTQ checkpoints (`quant_method: gptq`; 2, 3, 4 or 8 bits; `gptq` and `gptq_v2`) as \
               `pack-quantized`. Every weight keeps its codes, scales and zero points. Columns out of order \
               (`desc_act`) are refused; such a checkpoint can be dequantized.",
        build: Some(|args, model| {
            Ok(Box::new(AutoGptqConverter::from_source_config(&overlaid(args, model)?, ActOrder::Refuse)?))
        }),
    },
    ConverterEntry {
        name: "ModelOptNvfp4Converter",
        page: "Reads NVFP4 checkpoints of ModelOpt (`quant_algo: NVFP4`) as `nvfp4-pack-quantized`. Codes stay; \
               the second scales become their reciprocals. Scales without a packed weight are refused.",
        build: Some(|args, model| Ok(Box::new(ModelOptNvfp4Converter::from_source_config(&overlaid(args, model)?)?))),
    },
    ConverterEntry {
        name: "FP8BlockDequantizer",
        page: "Turns FP8 weights with block scales (`weight_scale_inv`, f32 or e8m0) into dense weights. Edge \
               blocks may be ragged, and scales may lie in another shard. A weight without scales is refused.",
        build: Some(|args, model| {
            Ok(Box::new(Fp8BlockDequantizer::from_source_config(&overlaid(args, model)?, output_dtype(args)?)?))
        }),
    },
    ConverterEntry {
        name: "CompressedTensorsDequantizer",
        page: "Turns compressed-tensors checkpoints of every format, retired ones included, into dense weights \
               and drops the scales of activations and caches.",
        build: Some(|args, model| {
            let ignore = names(args, "ignore")?.unwrap_or_default();
            Ok(Box::new(CompressedTensorsDequantizer::from_model_config(model, &ignore, output_dtype(args)?)?))
        }),
    },
    ConverterEntry {
        name: "MagnitudeExpertPruner",
        page: "Removes the part `sparsity` of the experts of each router, those with the smallest router rows, \
               renumbers the rest and corrects the number of experts in `config.json`.",
        build: None,
    },
    ConverterEntry {
        name: "AutoAWQExporter",
        page: "Writes `pack-quantized` checkpoints with 4-bit weights as AutoAWQ, version `gemm`. Symmetric \
               weights get the zero point 8; scales are cast to float16.",
        build: Some(|_, model| Ok(Box::new(AutoAwqExporter::new(&quantization_of(model)?)?))),
    },
    ConverterEntry {
        name: "AutoGPTQExporter",
        page: "Writes `pack-quantized` checkpoints with weights of 2, 3, 4 or 8 bits as AutoGPTQ, `gptq` or \
               `gptq_v2`. Scales are cast to float16; `g_idx` is in column order.",
        build: Some(|args, model| {
            let format = match args.get("checkpoint_format") {
                None => CheckpointFormat::V1,
                Some(it) => CheckpointFormat::from_json(it)?,
            };
            Ok(Box::new(AutoGptqExporter::new(&quantization_of(model)?, format)?))
        }),
    },
];

/// The entry of this name.
///
/// # Errors
/// [`ErrorKind::UnknownName`].
pub fn converter_entry(name: &str) -> Result<&'static ConverterEntry> {
    CONVERTERS.iter().find(|it| it.name == name).ok_or_else(|| {
        let known = CONVERTERS.iter().map(|it| it.name.to_owned()).collect();
        ErrorKind::UnknownName { what: "converter", name: name.to_owned(), known }.into()
    })
}

/// What the source says about its quantization, with arguments in place of its own values.
fn overlaid(args: &Value, model_config: &Value) -> Result<Value> {
    let mut fields = match locate_section(model_config) {
        Some((_, Value::Object(section))) => section.clone(),
        _ => Map::new(),
    };
    let args = args.as_object().ok_or_else(|| invalid("arguments", args, "an object"))?;
    fields.extend(args.iter().map(|(key, value)| (key.clone(), value.clone())));
    Ok(Value::Object(fields))
}

fn output_dtype(args: &Value) -> Result<DType> {
    match args.get("dtype").filter(|it| !it.is_null()) {
        None => Ok(DType::BF16),
        Some(it) => it.as_str().and_then(DType::from_torch_name).ok_or_else(|| invalid("dtype", it, "a torch dtype")),
    }
}

fn quantization_of(model_config: &Value) -> Result<QuantizationConfig> {
    let found = CheckpointConfig::from_model_config(model_config)?.and_then(|it| it.quantization);
    found.ok_or_else(|| invalid("quantization_config", "absent", "that of a compressed-tensors checkpoint"))
}

/// The converter from another format to this one that the `config.json` of a checkpoint calls for.
///
/// `None` for dense checkpoints and for those of this format.
///
/// # Errors
/// [`ErrorKind::UnknownName`] for a `quant_method` that no converter reads; as the converters' own readers.
pub fn source_converter(model_config: &Value, dtype: DType) -> Result<Option<Box<dyn Converter>>> {
    Ok(match read_source(model_config, ActOrder::Refuse, dtype)? {
        Source::Foreign(converter) => Some(converter),
        Source::Dense | Source::CompressedTensors => None,
    })
}

/// The converters, in order, that make a checkpoint dense; none where it is dense already.
///
/// # Errors
/// As [`source_converter`].
pub fn dense_chain(model_config: &Value, dtype: DType) -> Result<Vec<Box<dyn Converter>>> {
    match read_source(model_config, ActOrder::KeepGroupIndex, dtype)? {
        Source::Dense => Ok(Vec::new()),
        Source::CompressedTensors => {
            Ok(vec![Box::new(CompressedTensorsDequantizer::from_model_config(model_config, &[], dtype)?)])
        }
        Source::Foreign(converter) => match converter.update_config(None)? {
            None => Ok(vec![converter]),
            Some(config) => {
                let dequantizer = CompressedTensorsDequantizer::new(config, &[], dtype)?;
                Ok(vec![converter, Box::new(dequantizer)])
            }
        },
    }
}

enum Source {
    Dense,
    CompressedTensors,
    Foreign(Box<dyn Converter>),
}

fn read_source(model_config: &Value, act_order: ActOrder, dtype: DType) -> Result<Source> {
    let Some((location, section)) = locate_section(model_config) else { return Ok(Source::Dense) };
    let converter: Result<Box<dyn Converter>> = match section.get("quant_method").and_then(Value::as_str) {
        None | Some(QUANT_METHOD | "sparseml") => return Ok(Source::CompressedTensors),
        Some("awq") => AutoAwqConverter::from_source_config(section).map(|it| Box::new(it) as _),
        Some("gptq") => AutoGptqConverter::from_source_config(section, act_order).map(|it| Box::new(it) as _),
        Some("modelopt" | "modelopt_fp4") => {
            ModelOptNvfp4Converter::from_source_config(section).map(|it| Box::new(it) as _)
        }
        Some("fp8") => Fp8BlockDequantizer::from_source_config(section, dtype).map(|it| Box::new(it) as _),
        Some(other) => Err(Error::from(ErrorKind::UnknownName {
            what: "quant_method",
            name: other.to_owned(),
            known: [QUANT_METHOD, "awq", "gptq", "modelopt", "fp8"].map(str::to_owned).to_vec(),
        })),
    };
    converter.map(Source::Foreign).map_err(|e| e.at(location.path()))
}
