//! Quantize, dequantize and fake-quantize over f32-valued slices, with the roundings of the storage types.
//!
//! These plain loops define the result; the streaming compressor and its vector paths are compared with them.

use crate::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::{Float, e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3, round_integer},
    scales::{Arithmetic, Code, Qparam, clamp, propagating_max, propagating_min},
};

/// Precision of `x / scale`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Division {
    /// Rounded to the operands' type, as the reference does on a CPU.
    #[default]
    Eager,
    /// Kept in f32, as the reference's compression kernel does on a GPU.
    F32,
}

/// Which scale an element uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleMap {
    strategy: QuantizationStrategy,
    shape: Vec<usize>,
    tiling: Tiling,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tiling {
    /// Element `i` uses scale `(i / run) % period`.
    Runs { run: usize, period: usize },
    /// Tiles of a matrix with `cols` columns, `per_row` tiles across.
    Tiles { cols: usize, height: usize, width: usize, per_row: usize },
}

impl ScaleMap {
    /// The scales of a weight `(O, N)`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for groups that do not divide the columns and for what is no matrix,
    /// [`ErrorKind::Unsupported`] for strategies of activations.
    pub fn weight(args: &QuantizationArgs, shape: &[usize]) -> Result<Self> {
        use QuantizationStrategy as S;
        let &[rows, cols] = shape else {
            return Err(bad_shape("weight", shape, "two dimensions".to_owned()));
        };
        // Room for eight bytes an element keeps every later size within the address space.
        if rows.checked_mul(cols).and_then(|it| it.checked_mul(8)).is_none() {
            return Err(bad_shape("weight", shape, "a matrix that fits the address space".to_owned()));
        }
        let (tiling, scales) = match args.strategy {
            S::Tensor => (Tiling::Runs { run: rows * cols, period: 1 }, vec![1]),
            S::Channel => (Tiling::Runs { run: cols, period: rows }, vec![rows, 1]),
            S::Group | S::TensorGroup => {
                let group = group_size(args, "weight", shape)?;
                (Tiling::Runs { run: group, period: rows * (cols / group) }, vec![rows, cols / group])
            }
            S::Block => {
                let [height, width] = block(args)?;
                let per_row = cols.div_ceil(width);
                (Tiling::Tiles { cols, height, width, per_row }, vec![rows.div_ceil(height), per_row])
            }
            S::Token | S::AttnHead => return Err(no_strategy(args, "weights")),
        };
        Ok(Self { strategy: args.strategy, shape: scales, tiling })
    }

    /// The scales that an activation gets on every call.
    ///
    /// One scale per token takes three dimensions or more; with fewer there is one scale in all, as in the reference.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn dynamic(args: &QuantizationArgs, shape: &[usize]) -> Result<Self> {
        use QuantizationStrategy as S;
        let elements: usize = shape.iter().product();
        let (tiling, scales) = match args.strategy {
            S::Token if shape.len() > 2 => {
                let run = shape[2..].iter().product();
                let mut scales = vec![1; shape.len()];
                scales[..2].copy_from_slice(&shape[..2]);
                (Tiling::Runs { run, period: shape[0] * shape[1] }, scales)
            }
            S::Token | S::Tensor => (Tiling::Runs { run: elements, period: 1 }, vec![1]),
            S::Group | S::TensorGroup => {
                let group = group_size(args, "activation", shape)?;
                let mut scales = shape.to_vec();
                if let Some(last) = scales.last_mut() {
                    *last /= group;
                }
                (Tiling::Runs { run: group, period: elements / group }, scales)
            }
            S::Channel | S::Block | S::AttnHead => return Err(no_strategy(args, "dynamic activations")),
        };
        Ok(Self { strategy: args.strategy, shape: scales, tiling })
    }

    /// The scales that calibration finds for an activation, for an attention state `(B, H, T, D)` per head.
    ///
    /// # Errors
    /// As [`weight`](Self::weight).
    pub fn calibrated(args: &QuantizationArgs, shape: &[usize]) -> Result<Self> {
        use QuantizationStrategy as S;
        let elements: usize = shape.iter().product();
        let (tiling, scales) = match (args.strategy, shape) {
            (S::Tensor, _) => (Tiling::Runs { run: elements, period: 1 }, vec![1]),
            (S::Group | S::TensorGroup, &[.., last]) => {
                let group = group_size(args, "activation", shape)?;
                (Tiling::Runs { run: group, period: last / group }, vec![last / group])
            }
            (S::AttnHead, &[_, heads, tokens, width]) => {
                (Tiling::Runs { run: tokens * width, period: heads }, vec![heads, 1, 1])
            }
            (S::AttnHead, _) => return Err(bad_shape("activation", shape, "(B, H, T, D)".to_owned())),
            _ => return Err(no_strategy(args, "calibrated activations")),
        };
        Ok(Self { strategy: args.strategy, shape: scales, tiling })
    }

    /// Shape of the scale tensor.
    pub fn scale_shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of scales.
    pub fn scales(&self) -> usize {
        self.shape.iter().product()
    }

    /// The scale of element `i`.
    pub fn index(&self, i: usize) -> usize {
        match self.tiling {
            Tiling::Runs { run, period } => (i / run.max(1)) % period.max(1),
            Tiling::Tiles { cols, height, width, per_row } => (i / cols / height) * per_row + (i % cols) / width,
        }
    }

    /// Smallest and largest value under each scale, starting from the first value seen; NaN is kept.
    ///
    /// Scales without elements get `(0, 0)`.
    pub fn ranges(&self, values: &[f32]) -> Vec<(f32, f32)> {
        let mut ranges: Vec<Option<(f32, f32)>> = vec![None; self.scales()];
        for (i, &value) in values.iter().enumerate() {
            let range = &mut ranges[self.index(i)];
            *range = Some(match *range {
                Some((min, max)) => (propagating_min(min, value), propagating_max(max, value)),
                None => (value, value),
            });
        }
        ranges.into_iter().map(Option::unwrap_or_default).collect()
    }

    fn is_grouped(&self) -> bool {
        matches!(self.strategy, QuantizationStrategy::Group | QuantizationStrategy::TensorGroup)
    }
}

/// Scales and zero points as values, with the type they are stored in.
#[derive(Clone, Debug, PartialEq)]
pub struct Qparams {
    /// One scale per element of the map's scale shape.
    pub scales: Vec<f32>,
    /// The scales' type.
    pub dtype: Float,
    /// Zero points, as many as scales; the reference passes zeros where symmetric.
    pub zero_points: Option<Vec<f32>>,
    /// The second scale of the tensor_group strategy.
    pub global_scale: Option<f32>,
}

impl Qparams {
    /// From ranges, in the type the reference computes in: `float`, or f32 with a global scale.
    pub fn from_ranges(
        arithmetic: &Arithmetic,
        ranges: &[(f32, f32)],
        float: Float,
        global_scale: Option<f32>,
    ) -> Self {
        let qparams: Vec<Qparam> =
            ranges.iter().map(|&(min, max)| arithmetic.qparam(min, max, float, global_scale)).collect();
        Self {
            scales: qparams.iter().map(|q| q.scale).collect(),
            dtype: if global_scale.is_some() { Float::F32 } else { float },
            zero_points: Some(qparams.iter().map(|q| q.zero_point).collect()),
            global_scale,
        }
    }

    /// As a module stores them: scales rounded to `float`.
    #[must_use]
    pub fn stored_as(mut self, float: Float) -> Self {
        self.scales.iter_mut().for_each(|scale| *scale = float.round(*scale));
        self.dtype = float;
        self
    }

    /// The divisor of scale `idx` and the type it has.
    #[inline(always)]
    fn divisor(&self, idx: usize) -> (f32, Float) {
        match self.global_scale {
            Some(global_scale) => (self.scales[idx] / global_scale, Float::F32),
            None => (self.scales[idx], self.dtype),
        }
    }
}

/// The quantized value, before it is turned into bits, of one element.
///
/// `float` is the type of `x` and `result` that of the quotient.
#[inline(always)]
pub fn quantize_value(
    code: Code,
    x: f32,
    divisor: f32,
    zero_point: Option<f32>,
    [float, result]: [Float; 2],
    division: Division,
) -> f32 {
    let value = x / divisor;
    let value = match division {
        Division::Eager => {
            let value = result.round(value);
            zero_point.map_or(value, |zero_point| result.round(value + float.round(zero_point)))
        }
        Division::F32 => zero_point.map_or(value, |zero_point| value + zero_point),
    };
    let within = clamp(value, code.low(), code.high());
    let quantized = match code {
        Code::Int { .. } => round_integer(within),
        Code::E4M3 => e4m3_to_f32(f32_to_e4m3(within)),
        Code::E2M1 => e2m1_to_f32(f32_to_e2m1(within)),
    };
    // One NaN for all, since the sign of a computed NaN differs between CPUs; chosen last, so that loops become vectors.
    if value.is_nan() { f32::from_bits(0x7fc0_0000) } else { quantized }
}

/// The value that a quantized value stands for, before it is cast to another type.
#[inline(always)]
pub fn dequantize_value(quantized: f32, scale: f32, zero_point: Option<f32>, float: Float) -> f32 {
    let value = float.round(quantized);
    let value = zero_point.map_or(value, |zero_point| float.round(value - float.round(zero_point)));
    float.round(value * scale)
}

/// Quantizes values of type `float` to code values; returns the type they are in.
///
/// # Errors
/// [`ErrorKind::Shape`] where `out`, the scales or the zero points do not match.
pub fn quantize(
    arithmetic: &Arithmetic,
    (values, float): (&[f32], Float),
    map: &ScaleMap,
    qparams: &Qparams,
    division: Division,
    out: &mut [f32],
) -> Result<Float> {
    check(values, map, qparams, out)?;
    let zero_points = qparams.zero_points.as_deref();
    let result = float.promote(qparams.divisor_dtype());
    for (i, (&value, out)) in values.iter().zip(out).enumerate() {
        let idx = map.index(i);
        let (divisor, _) = qparams.divisor(idx);
        *out = quantize_value(arithmetic.code, value, divisor, zero_points.map(|z| z[idx]), [float, result], division);
    }
    Ok(result)
}

/// Turns code values back; returns the type of the result.
///
/// The grouped strategies cast to `output` where given; the others return the scale's type, as the reference does.
///
/// # Errors
/// As [`quantize`].
pub fn dequantize(
    codes: &[f32],
    map: &ScaleMap,
    qparams: &Qparams,
    output: Option<Float>,
    out: &mut [f32],
) -> Result<Float> {
    check(codes, map, qparams, out)?;
    let zero_points = qparams.zero_points.as_deref();
    let dtype = qparams.divisor_dtype();
    let cast = output.filter(|_| map.is_grouped());
    for (i, (&code, out)) in codes.iter().zip(out).enumerate() {
        let idx = map.index(i);
        let (scale, _) = qparams.divisor(idx);
        let value = dequantize_value(code, scale, zero_points.map(|z| z[idx]), dtype);
        *out = cast.map_or(value, |cast| cast.round(value));
    }
    Ok(cast.unwrap_or(dtype))
}

/// Quantizes and turns back at once; returns the type of the result.
///
/// # Errors
/// As [`quantize`].
pub fn fake_quantize(
    arithmetic: &Arithmetic,
    (values, float): (&[f32], Float),
    map: &ScaleMap,
    qparams: &Qparams,
    out: &mut [f32],
) -> Result<Float> {
    check(values, map, qparams, out)?;
    let zero_points = qparams.zero_points.as_deref();
    let dtype = qparams.divisor_dtype();
    let types = [float, float.promote(dtype)];
    let cast = map.is_grouped().then_some(float);
    for (i, (&value, out)) in values.iter().zip(out).enumerate() {
        let idx = map.index(i);
        let (scale, _) = qparams.divisor(idx);
        let zero_point = zero_points.map(|z| z[idx]);
        let code = quantize_value(arithmetic.code, value, scale, zero_point, types, Division::Eager);
        let value = dequantize_value(code, scale, zero_point, dtype);
        *out = cast.map_or(value, |cast| cast.round(value));
    }
    Ok(cast.unwrap_or(dtype))
}

impl Qparams {
    fn divisor_dtype(&self) -> Float {
        if self.global_scale.is_some() { Float::F32 } else { self.dtype }
    }
}

/// The bits of quantized values: integers, e4m3 bytes, or one e2m1 code a byte.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where `out` has another size.
pub fn code_bytes(code: Code, quantized: &[f32], out: &mut [u8]) -> Result<()> {
    if code == Code::E2M1 {
        // The sign of zero is a bit of the value here, unlike when a number is rounded.
        for (&value, out) in quantized.iter().zip(out) {
            *out = (f32_to_e2m1(value) & 7) | ((value.to_bits() >> 28) as u8 & 8);
        }
        return Ok(());
    }
    crate::numbers::write_f32(code.storage(), quantized, out)
}

/// The values of bits that [`code_bytes`] wrote.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where `bytes` are too few.
pub fn code_values(code: Code, bytes: &[u8], out: &mut [f32]) -> Result<()> {
    if code == Code::E2M1 {
        bytes.iter().zip(out).for_each(|(&byte, out)| *out = e2m1_to_f32(byte));
        return Ok(());
    }
    crate::numbers::read_f32(code.storage(), bytes, out)
}

fn check(values: &[f32], map: &ScaleMap, qparams: &Qparams, out: &[f32]) -> Result<()> {
    let expected = map.scales();
    if qparams.scales.len() != expected {
        return Err(bad_shape("scale", &[qparams.scales.len()], format!("{:?}", map.scale_shape())));
    }
    if let Some(found) = qparams.zero_points.as_ref().map(Vec::len).filter(|it| *it != expected) {
        return Err(bad_shape("zero_point", &[found], format!("{:?}", map.scale_shape())));
    }
    if values.len() != out.len() {
        return Err(bad_shape("output", &[out.len()], format!("{} elements", values.len())));
    }
    Ok(())
}

/// The group size where it divides the last dimension.
pub(crate) fn group_size(args: &QuantizationArgs, tensor: &str, shape: &[usize]) -> Result<usize> {
    let group = args.group_size.and_then(|it| usize::try_from(it).ok()).filter(|it| *it > 0);
    let Some(group) = group else {
        return Err(ErrorKind::InvalidField {
            field: "group_size".to_owned(),
            found: format!("{:?}", args.group_size),
            expected: "a positive number of columns".to_owned(),
        }
        .into());
    };
    match shape.last() {
        Some(cols) if cols % group == 0 => Ok(group),
        _ => Err(bad_shape(
            tensor,
            shape,
            format!("{} columns to be a multiple of group_size {group}", shape.last().copied().unwrap_or(1)),
        )),
    }
}

/// The block structure of a block strategy.
pub(crate) fn block(args: &QuantizationArgs) -> Result<[usize; 2]> {
    args.block_structure.filter(|it| !it.contains(&0)).ok_or_else(|| {
        ErrorKind::InvalidField {
            field: "block_structure".to_owned(),
            found: format!("{:?}", args.block_structure),
            expected: "two positive numbers".to_owned(),
        }
        .into()
    })
}

fn bad_shape(tensor: &str, found: &[usize], expected: String) -> crate::Error {
    ErrorKind::Shape { tensor: tensor.to_owned(), found: found.to_vec(), expected }.into()
}

fn no_strategy(args: &QuantizationArgs, of: &str) -> crate::Error {
    ErrorKind::Unsupported { what: format!("strategy {:?} of {of}", args.strategy) }.into()
}
