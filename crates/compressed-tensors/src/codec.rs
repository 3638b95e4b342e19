//! Codecs: a module's dense tensors to what is on disk, and back.

use crate::{
    Array, DType, ErrorKind, ModuleTensors, Result,
    args::{Dynamic, QuantizationArgs, QuantizationStrategy},
    codecs,
    format::CompressionFormat,
    numbers::read_f32,
    packing::{self, Layout, PackedDim},
    scheme::QuantizationScheme,
    weight_compressor::{Given, MinMax, SlabOutputs, TensorSpec, WeightCompressor},
    weight_decompressor::{StoredRows, WeightDecompressor, stored_shape},
};

/// One on-disk format of a module's tensors; stateless.
///
/// Tensors carry local names (`weight`, `weight_scale`). What a codec does not know passes through.
pub trait Codec: Sync {
    /// The format.
    fn format(&self) -> CompressionFormat;

    /// The format's name in `quantization_config`.
    fn name(&self) -> &'static str {
        self.format().name()
    }

    /// What the format is for, and its layout, in a few sentences.
    fn page(&self) -> &'static str;

    /// The tensors that a weight of this type and shape becomes, in order, without its data.
    ///
    /// # Errors
    /// As [`WeightCompressor::new`].
    fn outputs(&self, scheme: &QuantizationScheme, dtype: DType, rows: usize, cols: usize) -> Result<Vec<TensorSpec>> {
        Ok(WeightCompressor::new(scheme, self.format(), dtype, rows, cols)?.outputs().to_vec())
    }

    /// Names of the tensors without which a stored module is incomplete, the one that marks it first.
    fn required(&self, scheme: &QuantizationScheme) -> Vec<&'static str>;

    /// Compresses `weight`, by `weight_scale`, `weight_zero_point` and `weight_global_scale` where present and by
    /// its own range otherwise. Zero points of symmetric arguments are dropped.
    ///
    /// # Errors
    /// As [`WeightCompressor::new`]; [`ErrorKind::MissingTensor`] without a weight; [`ErrorKind::DType`] for scales
    /// of another type than the weight.
    fn compress(&self, tensors: ModuleTensors, scheme: &QuantizationScheme) -> Result<ModuleTensors> {
        compress(self.format(), tensors, scheme)
    }

    /// Restores `weight`; scales and zero points stay, unpacked.
    ///
    /// # Errors
    /// As [`WeightDecompressor::new`].
    fn decompress(&self, tensors: ModuleTensors, scheme: &QuantizationScheme) -> Result<ModuleTensors> {
        decompress(self.format(), tensors, scheme)
    }
}

/// Every codec, in display order.
pub const CODECS: &[&dyn Codec] = &[
    &codecs::dense::Dense,
    &codecs::int_quantized::IntQuantized,
    &codecs::float_quantized::FloatQuantized,
    &codecs::naive_quantized::NaiveQuantized,
    &codecs::pack_quantized::PackQuantized,
    &codecs::nvfp4_pack_quantized::Nvfp4PackQuantized,
    &codecs::mxfp4_pack_quantized::Mxfp4PackQuantized,
    &codecs::mxfp8_quantized::Mxfp8Quantized,
];

/// The codec of a format.
///
/// # Errors
/// [`ErrorKind::UnknownName`] for a format without a codec: the retired ones and `mixed-precision`.
pub fn codec(format: CompressionFormat) -> Result<&'static dyn Codec> {
    CODECS.iter().find(|it| it.format() == format).copied().ok_or_else(|| {
        let known = CODECS.iter().map(|it| it.name().to_owned()).collect();
        ErrorKind::UnknownName { what: "codec", name: format.name().to_owned(), known }.into()
    })
}

/// Codes, scale and, where asymmetric, zero point: what the unpacked formats need.
pub(crate) fn required_with(names: &[&'static str], scheme: &QuantizationScheme) -> Vec<&'static str> {
    let mut names = names.to_vec();
    if scheme.weights.as_ref().is_some_and(|it| !it.symmetric) {
        names.push("weight_zero_point");
    }
    names
}

/// Whether inputs are quantized by scales that calibration found.
pub(crate) fn has_static_inputs(scheme: &QuantizationScheme) -> bool {
    scheme.input_activations.as_ref().is_some_and(|it| it.dynamic == Dynamic::No)
}

/// Drops the zero points that symmetric arguments leave at 0.
fn drop_symmetric_zero_points(tensors: &mut ModuleTensors, scheme: &QuantizationScheme) {
    let drops = [
        ("input_zero_point", &scheme.input_activations),
        ("weight_zero_point", &scheme.weights),
        ("output_zero_point", &scheme.output_activations),
    ];
    for (name, args) in drops {
        if args.as_ref().is_some_and(|it: &QuantizationArgs| it.symmetric) {
            tensors.shift_remove(name);
        }
    }
}

fn compress(
    format: CompressionFormat,
    mut tensors: ModuleTensors,
    scheme: &QuantizationScheme,
) -> Result<ModuleTensors> {
    let weight = take(&mut tensors, "weight")?;
    let &[rows, cols] = &weight.shape[..] else {
        let expected = "two dimensions".to_owned();
        return Err(ErrorKind::Shape { tensor: "weight".to_owned(), found: weight.shape, expected }.into());
    };
    let compressor = WeightCompressor::new(scheme, format, weight.dtype, rows, cols)?;
    let scales = tensors.shift_remove("weight_scale");
    if let Some(found) = scales.as_ref().map(|it| it.dtype).filter(|it| *it != weight.dtype) {
        let expected = format!("{}, as the weight", weight.dtype);
        return Err(ErrorKind::DType { tensor: "weight_scale".to_owned(), found, expected }.into());
    }
    let scales = scales.map(|it| values(&it)).transpose()?;
    let zero_points = tensors.shift_remove("weight_zero_point").map(|it| values(&it)).transpose()?;
    let global_scale = tensors.shift_remove("weight_global_scale").map(|it| values(&it)).transpose()?;
    let whole = compressor.scan(0, &weight.data);
    let global_scale = global_scale.and_then(|it| it.first().copied()).or_else(|| compressor.global_scale(&whole));
    let given = scales.as_ref().map(|scales| Given { scales, zero_points: zero_points.as_deref() });

    let outputs = compress_whole(&compressor, &weight.data, given, &whole, global_scale)?;
    tensors.extend(outputs);
    drop_symmetric_zero_points(&mut tensors, scheme);
    Ok(tensors)
}

/// Compresses all rows in one slab.
fn compress_whole(
    compressor: &WeightCompressor,
    weight: &[u8],
    given: Option<Given<'_>>,
    whole: &MinMax,
    global_scale: Option<f32>,
) -> Result<Vec<(String, Array)>> {
    let mut slab = SlabOutputs::new();
    let rest = match given {
        Some(given) => {
            compressor.compress_rows_with(0, weight, given, global_scale, &mut slab)?;
            compressor.finish_with(given, global_scale)?
        }
        None => {
            compressor.compress_rows(0, weight, Some(whole), global_scale, &mut slab)?;
            compressor.finish(Some(whole), global_scale)?
        }
    };
    let mut data: Vec<Vec<u8>> = (0..compressor.outputs().len()).map(|idx| slab.bytes(idx).to_vec()).collect();
    for (idx, bytes) in rest {
        data[idx] = bytes;
    }
    let arrays = compressor
        .outputs()
        .iter()
        .zip(data)
        .map(|(spec, data)| (spec.name.clone(), Array { dtype: spec.dtype, shape: spec.shape.clone(), data }));
    Ok(arrays.collect())
}

fn decompress(
    format: CompressionFormat,
    mut tensors: ModuleTensors,
    scheme: &QuantizationScheme,
) -> Result<ModuleTensors> {
    let specs: Vec<TensorSpec> = tensors
        .iter()
        .map(|(name, array)| TensorSpec { name: name.clone(), dtype: array.dtype, shape: array.shape.clone() })
        .collect();
    let shape = match format {
        CompressionFormat::PackQuantized => packed_shape(&tensors)?,
        _ => stored_shape(format, &specs)?,
    };
    let decompressor = WeightDecompressor::new(scheme, format, &specs, shape)?;
    let is_packed = tensors.contains_key("weight_packed") && format != CompressionFormat::Mxfp8Quantized;
    let codes = take(&mut tensors, if is_packed { "weight_packed" } else { "weight" })?;
    let g_idx = tensors.shift_remove("weight_g_idx").map(|it| integers(&it)).transpose()?;
    let scale = tensors.get("weight_scale").ok_or_else(|| missing("weight_scale"))?;
    let global_scale = tensors.get("weight_global_scale").map(values).transpose()?;
    let stored = StoredRows {
        codes: &codes.data,
        scale: &scale.data,
        zero_point: tensors.get("weight_zero_point").map(|it| it.data.as_slice()),
        global_scale: global_scale.and_then(|it| it.first().copied()),
        g_idx: g_idx.as_deref(),
    };
    let mut data = Vec::new();
    decompressor.decompress_rows(0, shape[0], &stored, decompressor.dtype(), &mut data)?;
    let scale = unpacked_scale(format, scale)?;
    tensors.insert("weight_scale".to_owned(), scale);
    unpack_zero_point(&mut tensors, scheme, shape)?;
    tensors.insert("weight".to_owned(), Array { dtype: decompressor.dtype(), shape: shape.to_vec(), data });
    Ok(tensors)
}

/// The scale as a module holds it after decompression: bf16 where the format packs it.
fn unpacked_scale(format: CompressionFormat, scale: &Array) -> Result<Array> {
    use CompressionFormat as F;
    let values = match format {
        F::Nvfp4PackQuantized => values(scale)?,
        F::Mxfp4PackQuantized | F::Mxfp8Quantized => {
            scale.data.iter().map(|code| crate::scales::power_of_two(*code)).collect()
        }
        _ => return Ok(scale.clone()),
    };
    let mut data = vec![0; values.len() * 2];
    crate::numbers::write_f32(DType::BF16, &values, &mut data)?;
    Ok(Array { dtype: DType::BF16, shape: scale.shape.clone(), data })
}

/// Turns a zero point packed along rows into int8.
fn unpack_zero_point(tensors: &mut ModuleTensors, scheme: &QuantizationScheme, [rows, cols]: [usize; 2]) -> Result<()> {
    use QuantizationStrategy as S;
    let Some(args) = scheme.weights.as_ref().filter(|it| matches!(it.strategy, S::Group | S::Channel)) else {
        return Ok(());
    };
    let Some(array) = tensors.get_mut("weight_zero_point").filter(|it| it.dtype == DType::I32 && !args.symmetric)
    else {
        return Ok(());
    };
    let bits = packing::check_bits(args.num_bits)?;
    let per_row = match args.strategy {
        S::Group => cols / crate::quantize::group_size(args, "weight", &[rows, cols])?,
        _ => 1,
    };
    let layout = Layout::of("weight_zero_point", rows, bits, array.shape.first().copied().unwrap_or(0))?;
    let codes = packing::unpack(&integers(array)?, rows, per_row, bits, PackedDim::Rows, layout)?;
    let data = codes.into_iter().map(|code| code as u8).collect();
    *array = Array { dtype: DType::I8, shape: vec![rows, per_row], data };
    Ok(())
}

fn packed_shape(tensors: &ModuleTensors) -> Result<[usize; 2]> {
    let array = tensors.get("weight_shape").ok_or_else(|| missing("weight_shape"))?;
    let dims: Option<Vec<usize>> = match array.dtype {
        DType::I64 => {
            array.data.as_chunks::<8>().0.iter().map(|b| usize::try_from(i64::from_le_bytes(*b)).ok()).collect()
        }
        DType::I32 => {
            array.data.as_chunks::<4>().0.iter().map(|b| usize::try_from(i32::from_le_bytes(*b)).ok()).collect()
        }
        found => {
            let expected = "I64 or I32".to_owned();
            return Err(ErrorKind::DType { tensor: "weight_shape".to_owned(), found, expected }.into());
        }
    };
    match dims.as_deref() {
        Some(&[rows, cols]) => Ok([rows, cols]),
        _ => {
            let expected = "two dimensions that are not negative".to_owned();
            Err(ErrorKind::Shape { tensor: "weight_shape".to_owned(), found: array.shape.clone(), expected }.into())
        }
    }
}

fn take(tensors: &mut ModuleTensors, name: &str) -> Result<Array> {
    tensors.shift_remove(name).ok_or_else(|| missing(name))
}

fn missing(name: &str) -> crate::Error {
    ErrorKind::MissingTensor { tensor: name.to_owned() }.into()
}

fn values(array: &Array) -> Result<Vec<f32>> {
    let mut values = vec![0.0; array.data.len() * 8 / array.dtype.bits()];
    read_f32(array.dtype, &array.data, &mut values)?;
    Ok(values)
}

fn integers(array: &Array) -> Result<Vec<i32>> {
    match array.dtype {
        DType::I32 => Ok(array.data.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect()),
        DType::I64 => Ok(array.data.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as i32).collect()),
        found => Err(ErrorKind::DType { tensor: "indices".to_owned(), found, expected: "I32".to_owned() }.into()),
    }
}
