//! Streaming decompression of one weight: slabs of its stored tensors in, dense rows out.

mod decoder;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::{
    DType, Error, ErrorKind, Result,
    args::QuantizationStrategy,
    format::CompressionFormat,
    numbers::{Float, read_f32},
    packing::{self, Layout, PackedDim},
    quantize::ScaleMap,
    scales::{Arithmetic, Code, power_of_two},
    scheme::QuantizationScheme,
    simd::Isa,
    weight_compressor::TensorSpec,
};

use decoder::{Decoder, RowScales};

/// A stored tensor that rows cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredPart {
    /// `weight` or `weight_packed`.
    Codes,
    /// `weight_scale`.
    Scale,
    /// `weight_zero_point`.
    ZeroPoint,
}

/// Bytes of the stored tensors for the rows at hand, each cut by [`WeightDecompressor::input_range`].
#[derive(Clone, Copy, Debug)]
pub struct StoredRows<'a> {
    /// `weight` or `weight_packed`.
    pub codes: &'a [u8],
    /// `weight_scale`.
    pub scale: &'a [u8],
    /// `weight_zero_point`, where the scheme is asymmetric.
    pub zero_point: Option<&'a [u8]>,
    /// `weight_global_scale`, where there is one.
    pub global_scale: Option<f32>,
    /// `weight_g_idx` of older checkpoints: the group of each column. A negative entry means column order.
    pub g_idx: Option<&'a [i32]>,
}

/// Turns the stored rows of one compressed weight back into dense rows.
///
/// The arithmetic is the reference's: results have the scale's type, or bf16 for the formats with packed scales.
#[derive(Clone, Debug)]
pub struct WeightDecompressor {
    code: Code,
    strategy: QuantizationStrategy,
    symmetric: bool,
    rows: usize,
    cols: usize,
    tile: [usize; 2],
    codes: Codes,
    codes_per_row_bytes: usize,
    scale: Scale,
    zero_points: ZeroPoints,
    isa: Isa,
}

#[derive(Clone, Copy, Debug)]
enum Codes {
    Plain,
    Words(u32, Layout),
    Nibbles,
}

#[derive(Clone, Copy, Debug)]
enum Scale {
    Dense(Float),
    E4M3,
    Exponent,
}

#[derive(Clone, Copy, Debug)]
enum ZeroPoints {
    Plain(DType),
    Packed(u32, Layout),
}

impl WeightDecompressor {
    /// Prepares to read a weight of `rows` rows and `cols` columns from tensors of these types and shapes.
    ///
    /// For packed integers the shape is what `weight_shape` says; see [`stored_shape`] for the other formats.
    ///
    /// # Errors
    /// [`ErrorKind::MissingTensor`], [`ErrorKind::Shape`] or [`ErrorKind::DType`] for stored tensors that do not
    /// make up this weight, [`ErrorKind::Unsupported`] for a format or scheme that no weight is stored in.
    pub fn new(
        scheme: &QuantizationScheme,
        format: CompressionFormat,
        stored: &[TensorSpec],
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        use CompressionFormat as F;
        use QuantizationStrategy as S;
        let args = scheme.weights.as_ref().ok_or_else(|| ErrorKind::Unsupported {
            what: "decompressing weights by a scheme without weights".to_owned(),
        })?;
        let arithmetic = Arithmetic::of(args)?;
        let map = ScaleMap::weight(args, &[rows, cols])?;
        let find = |name: &str| {
            let missing = || Error::from(ErrorKind::MissingTensor { tensor: name.to_owned() });
            stored.iter().find(|it| it.name == name).ok_or_else(missing)
        };
        let (name, codes) = match format {
            F::PackQuantized => {
                let bits = packing::check_bits(args.num_bits)?;
                let spec = find("weight_packed")?;
                let words = spec.shape.last().copied().unwrap_or(0);
                ("weight_packed", Codes::Words(bits, Layout::of("weight_packed", cols, bits, words)?))
            }
            F::Nvfp4PackQuantized | F::Mxfp4PackQuantized => {
                packing::check_nibble_cols("weight", rows, cols)?;
                ("weight_packed", Codes::Nibbles)
            }
            F::IntQuantized | F::FloatQuantized | F::NaiveQuantized | F::Mxfp8Quantized => ("weight", Codes::Plain),
            _ => return Err(ErrorKind::Unsupported { what: format!("decompressing format {}", format.name()) }.into()),
        };
        if matches!(codes, Codes::Nibbles) != (arithmetic.code == Code::E2M1) {
            let what = format!("{}-bit {:?} weights in format {}", args.num_bits, args.r#type, format.name());
            return Err(ErrorKind::Unsupported { what: what.to_lowercase() }.into());
        }
        let (dtype, width) = match codes {
            Codes::Plain => (arithmetic.code.storage(), cols),
            Codes::Words(bits, layout) => (DType::I32, layout.words(cols, bits)),
            Codes::Nibbles => (DType::U8, cols / 2),
        };
        check_spec(find(name)?, dtype, rows.saturating_mul(width), &[rows, width])?;
        let spec = find("weight_scale")?;
        let scale = match (format, spec.dtype) {
            (F::Nvfp4PackQuantized, DType::F8E4M3) => Scale::E4M3,
            (F::Mxfp4PackQuantized | F::Mxfp8Quantized, DType::U8) => Scale::Exponent,
            (F::Mxfp4PackQuantized | F::Mxfp8Quantized | F::Nvfp4PackQuantized, found) => {
                let expected = "U8 exponents or F8_E4M3, as the format says".to_owned();
                return Err(ErrorKind::DType { tensor: spec.name.clone(), found, expected }.into());
            }
            (_, dtype) => Scale::Dense(Float::of(dtype, &spec.name)?),
        };
        check_spec(spec, spec.dtype, map.scales(), map.scale_shape())?;
        let tile = match args.strategy {
            S::Group | S::TensorGroup => [1, crate::quantize::group_size(args, "weight", &[rows, cols])?],
            S::Block => crate::quantize::block(args)?,
            _ => [1, cols.max(1)],
        };
        let zero_points = match codes {
            _ if args.symmetric => ZeroPoints::Plain(arithmetic.zp_dtype),
            Codes::Words(bits, _) if matches!(args.strategy, S::Group | S::Channel) => {
                let spec = find("weight_zero_point")?;
                let layout = Layout::of(&spec.name, rows, bits, spec.shape.first().copied().unwrap_or(0))?;
                let shape = [layout.words(rows, bits), cols.div_ceil(tile[1])];
                check_spec(spec, DType::I32, shape[0] * shape[1], &shape)?;
                ZeroPoints::Packed(bits, layout)
            }
            _ => {
                let spec = find("weight_zero_point")?;
                check_spec(spec, spec.dtype, map.scales(), map.scale_shape())?;
                ZeroPoints::Plain(spec.dtype)
            }
        };
        Ok(Self {
            code: arithmetic.code,
            strategy: args.strategy,
            symmetric: args.symmetric,
            rows,
            cols,
            tile,
            codes,
            codes_per_row_bytes: width * dtype.bits() / 8,
            scale,
            zero_points,
            isa: Isa::detect(),
        })
    }

    /// The same on another instruction set; all give the same bytes.
    #[must_use]
    pub fn with_isa(mut self, isa: Isa) -> Self {
        self.isa = isa.min(Isa::detect());
        self
    }

    /// The type that results have before they are cast.
    pub fn dtype(&self) -> DType {
        match self.scale {
            Scale::Dense(float) => float.dtype(),
            Scale::E4M3 | Scale::Exponent => DType::BF16,
        }
    }

    /// Rows and columns of the dense weight.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.cols]
    }

    /// A slab starts at a multiple of this and ends at one or at the last row.
    pub fn row_quantum(&self) -> usize {
        match self.zero_points {
            ZeroPoints::Packed(_, Layout::Dense) => 32,
            ZeroPoints::Packed(bits, Layout::Legacy) => (32 / bits) as usize,
            ZeroPoints::Plain(_) => self.tile[0],
        }
    }

    /// Where the bytes for `n_rows` rows from `first_row` lie in a stored tensor; the whole tensor where all rows
    /// share it.
    pub fn input_range(&self, part: StoredPart, first_row: usize, n_rows: usize) -> Range<usize> {
        let end = first_row + n_rows;
        let scale_bytes = match self.scale {
            Scale::Dense(float) => float.dtype().bits() / 8,
            Scale::E4M3 | Scale::Exponent => 1,
        };
        let tiles = |bytes: usize| match self.strategy {
            QuantizationStrategy::Tensor => 0..bytes,
            _ => {
                let row = self.scales_per_row() * bytes;
                first_row.div_ceil(self.tile[0]) * row..end.div_ceil(self.tile[0]) * row
            }
        };
        match (part, self.zero_points) {
            (StoredPart::Codes, _) => first_row * self.codes_per_row_bytes..end * self.codes_per_row_bytes,
            (StoredPart::Scale, _) => tiles(scale_bytes),
            (StoredPart::ZeroPoint, ZeroPoints::Plain(dtype)) => tiles(dtype.bits() / 8),
            (StoredPart::ZeroPoint, ZeroPoints::Packed(bits, layout)) => {
                let row = self.scales_per_row() * 4;
                layout.words(first_row, bits) * row..layout.words(end, bits) * row
            }
        }
    }

    fn scales_per_row(&self) -> usize {
        self.cols.div_ceil(self.tile[1])
    }

    /// Decompresses `n_rows` rows from `first_row` into little-endian values of `dtype`.
    ///
    /// `out` is resized to the rows; a type other than [`dtype`](Self::dtype) is one more rounding.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for a slab cut at the wrong row or stored bytes of the wrong length,
    /// [`ErrorKind::MissingTensor`] for an absent zero point or global scale.
    pub fn decompress_rows(
        &self,
        first_row: usize,
        n_rows: usize,
        stored: &StoredRows<'_>,
        dtype: DType,
        out: &mut Vec<u8>,
    ) -> Result<()> {
        let end = first_row.saturating_add(n_rows);
        let quantum = self.row_quantum();
        if end > self.rows || !first_row.is_multiple_of(quantum) || !(end == self.rows || end.is_multiple_of(quantum)) {
            let expected = format!("rows cut at multiples of {quantum} within {} rows", self.rows);
            return Err(ErrorKind::Shape { tensor: "weight".to_owned(), found: vec![first_row, end], expected }.into());
        }
        let part = |part, bytes: &[u8], tensor: &str| {
            let expected = self.input_range(part, first_row, n_rows).len();
            if bytes.len() == expected {
                return Ok(());
            }
            let expected = format!("{expected} bytes for rows {first_row} to {end}");
            Err(Error::from(ErrorKind::Shape { tensor: tensor.to_owned(), found: vec![bytes.len()], expected }))
        };
        part(StoredPart::Codes, stored.codes, "weight")?;
        part(StoredPart::Scale, stored.scale, "weight_scale")?;
        let scales = self.scales(stored)?;
        let zero_points = match (self.symmetric, stored.zero_point) {
            (true, _) => None,
            (false, None) => return Err(ErrorKind::MissingTensor { tensor: "weight_zero_point".to_owned() }.into()),
            (false, Some(bytes)) => {
                part(StoredPart::ZeroPoint, bytes, "weight_zero_point")?;
                Some(self.zero_points(bytes, n_rows)?)
            }
        };
        let groups = self.groups(stored.g_idx)?;
        let float = match (self.scale, stored.global_scale) {
            (_, Some(_)) => Float::F32,
            (Scale::Dense(float), None) => float,
            (_, None) => Float::BF16,
        };
        let natural = Float::of(self.dtype(), "weight")?;
        let element_bytes = dtype.bits() / 8;
        out.resize(n_rows * self.cols * element_bytes, 0);
        if self.cols == 0 || n_rows == 0 {
            return Ok(());
        }
        let mut decoder = Decoder::new(self, self.isa);
        let per_row = self.scales_per_row();
        let rows = stored.codes.chunks(self.codes_per_row_bytes).zip(out.chunks_mut(self.cols * element_bytes));
        for (row, (codes, out)) in rows.enumerate() {
            let first = if scales.len() == 1 { 0 } else { row / self.tile[0] * per_row };
            let scales = RowScales {
                scales: &scales[first..],
                zero_points: zero_points.as_ref().map(|it| &it[first..]),
                groups: groups.as_deref(),
                float,
                natural,
            };
            decoder.row(codes, scales, dtype, out)?;
        }
        Ok(())
    }

    /// Scales as they multiply: divided by the global scale where there is one.
    fn scales(&self, stored: &StoredRows<'_>) -> Result<Vec<f32>> {
        let mut scales = match self.scale {
            Scale::Exponent => stored.scale.iter().map(|code| power_of_two(*code)).collect(),
            Scale::E4M3 | Scale::Dense(_) => {
                let dtype = if let Scale::Dense(float) = self.scale { float.dtype() } else { DType::F8E4M3 };
                let mut scales = vec![0.0; stored.scale.len() / (dtype.bits() / 8)];
                read_f32(dtype, stored.scale, &mut scales)?;
                scales
            }
        };
        match stored.global_scale {
            Some(global_scale) => scales.iter_mut().for_each(|scale| *scale /= global_scale),
            None if self.strategy == QuantizationStrategy::TensorGroup => {
                return Err(ErrorKind::MissingTensor { tensor: "weight_global_scale".to_owned() }.into());
            }
            None => {}
        }
        Ok(scales)
    }

    fn zero_points(&self, bytes: &[u8], n_rows: usize) -> Result<Vec<f32>> {
        match self.zero_points {
            ZeroPoints::Plain(dtype) => {
                let mut values = vec![0.0; bytes.len() / (dtype.bits() / 8)];
                read_f32(dtype, bytes, &mut values)?;
                Ok(values)
            }
            ZeroPoints::Packed(bits, layout) => {
                let words: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|b| i32::from_le_bytes(*b)).collect();
                let codes = packing::unpack(&words, n_rows, self.scales_per_row(), bits, PackedDim::Rows, layout)?;
                Ok(codes.into_iter().map(f32::from).collect())
            }
        }
    }

    /// The group of each column where it is not its position that says so.
    fn groups(&self, g_idx: Option<&[i32]>) -> Result<Option<Vec<usize>>> {
        let Some(g_idx) = g_idx.filter(|it| it.iter().all(|group| *group >= 0)) else { return Ok(None) };
        let groups: Vec<usize> = g_idx.iter().map(|group| *group as usize).collect();
        if groups.len() == self.cols && groups.iter().all(|group| *group < self.scales_per_row()) {
            return Ok(Some(groups));
        }
        let expected = format!("{} group numbers below {}", self.cols, self.scales_per_row());
        Err(ErrorKind::Shape { tensor: "weight_g_idx".to_owned(), found: vec![g_idx.len()], expected }.into())
    }
}

/// Rows and columns of a weight stored in any format but packed integers.
///
/// # Errors
/// [`ErrorKind::MissingTensor`] without codes, [`ErrorKind::Shape`] for codes that are no matrix,
/// [`ErrorKind::Unsupported`] for packed integers, whose shape is the content of `weight_shape`.
pub fn stored_shape(format: CompressionFormat, stored: &[TensorSpec]) -> Result<[usize; 2]> {
    use CompressionFormat as F;
    let (name, per_element) = match format {
        F::PackQuantized => {
            let what = "reading the shape of packed integers from a header".to_owned();
            return Err(ErrorKind::Unsupported { what }.into());
        }
        F::Nvfp4PackQuantized | F::Mxfp4PackQuantized => ("weight_packed", 2),
        _ => ("weight", 1),
    };
    let spec =
        stored.iter().find(|it| it.name == name).ok_or_else(|| ErrorKind::MissingTensor { tensor: name.to_owned() })?;
    match spec.shape[..] {
        [rows, cols] => Ok([rows, cols.saturating_mul(per_element)]),
        _ => {
            let expected = "two dimensions".to_owned();
            Err(ErrorKind::Shape { tensor: name.to_owned(), found: spec.shape.clone(), expected }.into())
        }
    }
}

fn check_spec(spec: &TensorSpec, dtype: DType, elements: usize, shape: &[usize]) -> Result<()> {
    if spec.dtype != dtype {
        let expected = dtype.to_string();
        return Err(ErrorKind::DType { tensor: spec.name.clone(), found: spec.dtype, expected }.into());
    }
    // One trailing or leading dimension of 1 more or less is the same data.
    if spec.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim)) == Some(elements) {
        return Ok(());
    }
    let expected = format!("{shape:?}");
    Err(ErrorKind::Shape { tensor: spec.name.clone(), found: spec.shape.clone(), expected }.into())
}
