//! Which tensors a weight becomes under a format, known from its shape alone.

use std::ops::Range;

use crate::{
    DType, ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    format::CompressionFormat,
    numbers::Float,
    packing::{self, Layout as WordLayout},
    quantize::ScaleMap,
    scales::{Arithmetic, Code, ScaleRule},
};

/// Name, type and shape of a tensor, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Local name, e.g. `weight_packed`.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
}

/// What a tensor of a compressed weight holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Codes,
    Scale,
    ZeroPoint,
    Shape,
    GlobalScale,
}

/// How codes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CodeLayout {
    /// One element each.
    Plain,
    /// A bit stream of this many bits each.
    Words(u32),
    /// Two a byte.
    Nibbles,
}

/// Everything about a compressed weight that headers tell.
#[derive(Clone, Debug)]
pub(crate) struct WeightLayout {
    pub(crate) arithmetic: Arithmetic,
    pub(crate) strategy: QuantizationStrategy,
    pub(crate) float: Float,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Rows and columns under one scale, whole rows for tensor and channel.
    pub(crate) tile: [usize; 2],
    pub(crate) codes: CodeLayout,
    pub(crate) packs_zero_points: bool,
    pub(crate) parts: Vec<Part>,
    pub(crate) specs: Vec<TensorSpec>,
}

impl WeightLayout {
    pub(crate) fn new(
        args: &QuantizationArgs,
        format: CompressionFormat,
        float: Float,
        [rows, cols]: [usize; 2],
    ) -> Result<Self> {
        use CompressionFormat as F;
        use QuantizationStrategy as S;
        let arithmetic = Arithmetic::of(args)?;
        if rows == 0 || cols == 0 {
            let expected = "at least one row and one column".to_owned();
            return Err(ErrorKind::Shape { tensor: "weight".to_owned(), found: vec![rows, cols], expected }.into());
        }
        let map = ScaleMap::weight(args, &[rows, cols])?;
        check_sound(args, &arithmetic, format)?;
        let codes = match format {
            F::PackQuantized => CodeLayout::Words(packing::check_bits(args.num_bits)?),
            F::Nvfp4PackQuantized | F::Mxfp4PackQuantized => {
                packing::check_nibble_cols("weight", rows, cols)?;
                CodeLayout::Nibbles
            }
            _ => CodeLayout::Plain,
        };
        let tile = match args.strategy {
            S::Group | S::TensorGroup => [1, crate::quantize::group_size(args, "weight", &[rows, cols])?],
            S::Block => crate::quantize::block(args)?,
            _ => [1, cols],
        };
        let packs_zero_points = matches!(codes, CodeLayout::Words(_)) && matches!(args.strategy, S::Group | S::Channel);
        let mut layout = Self {
            arithmetic,
            strategy: args.strategy,
            float,
            rows,
            cols,
            tile,
            codes,
            packs_zero_points,
            parts: parts(format, arithmetic.symmetric),
            specs: Vec::new(),
        };
        layout.specs = layout.parts.iter().map(|part| layout.spec(*part, &map)).collect();
        Ok(layout)
    }

    fn spec(&self, part: Part, map: &ScaleMap) -> TensorSpec {
        let (rows, cols) = (self.rows, self.cols);
        let (name, dtype, shape) = match (part, self.codes) {
            (Part::Codes, CodeLayout::Plain) => ("weight", self.arithmetic.code.storage(), vec![rows, cols]),
            (Part::Codes, CodeLayout::Words(bits)) => {
                ("weight_packed", DType::I32, vec![rows, WordLayout::Dense.words(cols, bits)])
            }
            (Part::Codes, CodeLayout::Nibbles) => ("weight_packed", DType::U8, vec![rows, cols / 2]),
            (Part::Scale, _) => ("weight_scale", self.scale_dtype(), map.scale_shape().to_vec()),
            (Part::ZeroPoint, CodeLayout::Words(bits)) if self.packs_zero_points => {
                let shape = vec![WordLayout::Dense.words(rows, bits), self.scales_per_row()];
                ("weight_zero_point", DType::I32, shape)
            }
            (Part::ZeroPoint, _) => ("weight_zero_point", self.arithmetic.zp_dtype, map.scale_shape().to_vec()),
            (Part::Shape, _) => ("weight_shape", DType::I64, vec![2]),
            (Part::GlobalScale, _) => ("weight_global_scale", DType::F32, vec![1]),
        };
        TensorSpec { name: name.to_owned(), dtype, shape }
    }

    /// The scale's type on disk: packed formats keep exponents and e4m3, the others the weight's type.
    pub(crate) fn scale_dtype(&self) -> DType {
        match (self.arithmetic.rule, self.codes) {
            (ScaleRule::Mx, _) => DType::U8,
            (ScaleRule::Cast(dtype), CodeLayout::Nibbles) => dtype,
            _ => self.float.dtype(),
        }
    }

    pub(crate) fn scales_per_row(&self) -> usize {
        self.cols.div_ceil(self.tile[1])
    }

    /// Rows of a slab come in multiples of this, so that no tile and no word of zero points is cut.
    pub(crate) fn row_quantum(&self) -> usize {
        match self.codes {
            CodeLayout::Words(_) if self.packs_zero_points && !self.arithmetic.symmetric => 32,
            _ => self.tile[0],
        }
    }

    /// Bytes of output `idx` that `n_rows` rows from `first_row` make; `None` where rows do not cut it.
    pub(crate) fn range(&self, idx: usize, first_row: usize, n_rows: usize) -> Option<Range<usize>> {
        let spec = &self.specs[idx];
        let row_of = |row: usize| match (self.parts[idx], self.codes) {
            (Part::Shape | Part::GlobalScale, _) => None,
            (Part::Codes, _) => Some(row),
            (Part::Scale | Part::ZeroPoint, _) if self.strategy == QuantizationStrategy::Tensor => None,
            (Part::ZeroPoint, CodeLayout::Words(bits)) if self.packs_zero_points => {
                Some(WordLayout::Dense.words(row, bits))
            }
            (Part::Scale | Part::ZeroPoint, _) => Some(row.div_ceil(self.tile[0])),
        };
        let width = spec.shape.get(1).copied().unwrap_or(1) * spec.dtype.bits() / 8;
        Some(row_of(first_row)? * width..row_of(first_row + n_rows)? * width)
    }
}

/// The order in which the reference's compressors put them.
fn parts(format: CompressionFormat, symmetric: bool) -> Vec<Part> {
    use CompressionFormat as F;
    let all: &[Part] = match format {
        F::PackQuantized => &[Part::Scale, Part::ZeroPoint, Part::Codes, Part::Shape],
        F::Nvfp4PackQuantized => &[Part::GlobalScale, Part::Codes, Part::Scale],
        F::Mxfp4PackQuantized => &[Part::Codes, Part::Scale],
        _ => &[Part::Scale, Part::ZeroPoint, Part::Codes],
    };
    all.iter().copied().filter(|part| *part != Part::ZeroPoint || !symmetric).collect()
}

/// Refuses what the format cannot hold, and what the reference writes but cannot read back.
fn check_sound(args: &QuantizationArgs, arithmetic: &Arithmetic, format: CompressionFormat) -> Result<()> {
    use CompressionFormat as F;
    let is_grouped_globally = args.strategy == QuantizationStrategy::TensorGroup;
    let (fits, needs) = match format {
        F::PackQuantized => {
            (matches!(arithmetic.code, Code::Int { bits: ..=8 }) && !is_grouped_globally, "integers of 1 to 8 bits")
        }
        F::IntQuantized | F::FloatQuantized | F::NaiveQuantized => (
            arithmetic.code != Code::E2M1 && !is_grouped_globally && arithmetic.rule != ScaleRule::Mx,
            "integers or 8-bit floats whose scales have the weight's type",
        ),
        F::Nvfp4PackQuantized => (
            arithmetic.code == Code::E2M1 && is_grouped_globally && arithmetic.rule == ScaleRule::Cast(DType::F8E4M3),
            "4-bit floats, strategy tensor_group and scale_dtype float8_e4m3fn (a scale that is rounded only \
             when it is saved no longer fits the codes)",
        ),
        F::Mxfp4PackQuantized => (
            arithmetic.code == Code::E2M1 && arithmetic.rule == ScaleRule::Mx,
            "4-bit floats, group_size 32 and scale_dtype uint8 (any other scale is cut to a power of two when it is saved)",
        ),
        F::Mxfp8Quantized => (
            arithmetic.code == Code::E4M3 && arithmetic.rule == ScaleRule::Mx,
            "8-bit floats, group_size 32 and scale_dtype uint8",
        ),
        _ => (false, "a format that compresses weights"),
    };
    if fits {
        return Ok(());
    }
    let what = format!(
        "{}-bit {:?} weights by {:?} in format {}, which takes {needs}",
        args.num_bits,
        args.r#type,
        args.strategy,
        format.name()
    );
    Err(ErrorKind::Unsupported { what: what.to_lowercase() }.into())
}
