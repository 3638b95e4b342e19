//! Integer codes, scales and zero points of a linear: the common ground of AutoAWQ, AutoGPTQ and
//! `pack-quantized`.

use indexmap::IndexMap;

use super::{
    TensorShapes,
    modules::{bad_shape, check_dtype, check_shape, i32_array, invalid, matrix, missing, shape, take, words},
};
use crate::{
    Array, DType, ErrorKind, ModuleTensors, Result,
    args::{ArgsBuilder, QuantizationArgs, QuantizationStrategy, QuantizationType},
    config::{QuantizationConfig, QuantizationStatus},
    format::CompressionFormat,
    numbers::{read_f32, write_f32},
    packing::{Layout, PackedDim, pack, unpack},
    scheme::QuantizationScheme,
};

/// Types that scales come in.
pub(super) const FLOATS: &[DType] = &[DType::F16, DType::BF16, DType::F32];

/// How the weights of all modules are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IntScheme {
    pub(super) bits: u32,
    /// Columns that share a scale; `None` for all of them.
    pub(super) group_size: Option<usize>,
    pub(super) symmetric: bool,
}

impl IntScheme {
    /// `group_size` as configs write it: -1 for one scale a row.
    pub(super) fn new(bits: u32, group_size: i64, symmetric: bool) -> Result<Self> {
        let group_size =
            match group_size {
                -1 => None,
                n => Some(usize::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| {
                    invalid("group_size", n, "a positive number of columns, or -1 for one scale a row")
                })?),
            };
        Ok(Self { bits, group_size, symmetric })
    }

    /// The scheme of quantized weights that these tensors can hold.
    pub(super) fn of_args(args: &QuantizationArgs) -> Result<Self> {
        let group_size = match args.strategy {
            QuantizationStrategy::Group => args.group_size.unwrap_or(0),
            QuantizationStrategy::Channel => -1,
            _ => 0,
        };
        let bits = crate::packing::check_bits(args.num_bits)?;
        if args.r#type != QuantizationType::Int || group_size == 0 {
            let what = "exporting weights other than integers per group or channel".to_owned();
            return Err(ErrorKind::Unsupported { what }.into());
        }
        Self::new(bits, group_size, args.symmetric)
    }

    pub(super) fn group_size_field(self) -> i64 {
        self.group_size.map_or(-1, |n| n as i64)
    }

    /// Groups of a row of `n_in` columns.
    pub(super) fn n_groups(self, tensor: &str, n_in: usize) -> Result<usize> {
        match self.group_size {
            None => Ok(1),
            Some(size) if n_in.is_multiple_of(size) => Ok(n_in / size),
            Some(size) => Err(bad_shape(tensor, &[n_in], format!("columns in whole groups of {size}"))),
        }
    }

    /// The config of a checkpoint whose targets are all quantized like this.
    pub(super) fn config(self, targets: &[String], ignore: &[String]) -> Result<QuantizationConfig> {
        let mut args = ArgsBuilder::int(i64::from(self.bits)).group_size(self.group_size_field());
        if !self.symmetric {
            args = args.asymmetric();
        }
        let format = CompressionFormat::PackQuantized;
        let mut scheme = QuantizationScheme::unquantized(targets.to_vec());
        scheme.weights = Some(args.build()?);
        scheme.format = Some(format);
        Ok(QuantizationConfig {
            config_groups: IndexMap::from_iter([("config_group_0".to_owned(), scheme)]),
            format: format.name().to_owned(),
            quantization_status: QuantizationStatus::Compressed,
            ignore: ignore.to_vec(),
            ..QuantizationConfig::default()
        })
    }

    /// The tensors of `pack-quantized` that a linear becomes.
    pub(super) fn packed_shapes(self, n_out: usize, n_in: usize, n_groups: usize, scale: DType) -> TensorShapes {
        let words = |n| Layout::Dense.words(n, self.bits);
        let mut shapes = TensorShapes::new();
        shapes.insert("weight_packed".to_owned(), shape(DType::I32, &[n_out, words(n_in)]));
        shapes.insert("weight_shape".to_owned(), shape(DType::I64, &[2]));
        shapes.insert("weight_scale".to_owned(), shape(scale, &[n_out, n_groups]));
        if !self.symmetric {
            shapes.insert("weight_zero_point".to_owned(), shape(DType::I32, &[words(n_out), n_groups]));
        }
        shapes
    }
}

/// Signed codes (O, N), scales (O, G) and zero points (O, G) of a linear.
pub(super) struct PackedLinear {
    pub(super) n_out: usize,
    pub(super) n_in: usize,
    pub(super) n_groups: usize,
    pub(super) codes: Vec<i8>,
    pub(super) scales: Array,
    /// Present where asymmetric.
    pub(super) zero_points: Option<Vec<i8>>,
}

impl PackedLinear {
    /// As `pack-quantized` stores it.
    pub(super) fn into_tensors(self, bits: u32) -> Result<ModuleTensors> {
        let Self { n_out, n_in, n_groups, .. } = self;
        let n_words = |n| Layout::Dense.words(n, bits);
        let packed = pack(&self.codes, n_out, n_in, bits, PackedDim::Cols)?;
        let extents = [n_out, n_in].iter().flat_map(|it| (*it as i64).to_le_bytes()).collect();
        let mut tensors = ModuleTensors::from_iter([
            ("weight_packed".to_owned(), i32_array(&[n_out, n_words(n_in)], &packed)),
            ("weight_shape".to_owned(), Array { dtype: DType::I64, shape: vec![2], data: extents }),
            ("weight_scale".to_owned(), self.scales),
        ]);
        if let Some(zero_points) = &self.zero_points {
            let packed = pack(zero_points, n_out, n_groups, bits, PackedDim::Rows)?;
            tensors.insert("weight_zero_point".to_owned(), i32_array(&[n_words(n_out), n_groups], &packed));
        }
        Ok(tensors)
    }

    /// Checks the tensors of a `pack-quantized` linear that is to be exported; returns (O, N, G).
    pub(super) fn check_tensors(tensors: &TensorShapes, scheme: IntScheme) -> Result<[usize; 3]> {
        if tensors.contains_key("weight_g_idx") {
            return Err(super::modules::left_over("weight_g_idx", "a column order cannot be exported"));
        }
        let [n_out, n_words] = matrix(tensors, "weight_packed", &[DType::I32])?;
        check_shape(tensors, "weight_shape", &[2])?;
        check_dtype("weight_shape", tensors["weight_shape"].dtype, &[DType::I64])?;
        let [_, n_groups] = matrix(tensors, "weight_scale", FLOATS)?;
        check_shape(tensors, "weight_scale", &[n_out, n_groups])?;
        // Headers do not tell the columns of a weight per channel; words of whole bits do where they divide.
        let n_in = match scheme.group_size {
            Some(size) => n_groups.checked_mul(size).ok_or_else(|| bad_shape("weight_scale", &[n_groups], "less"))?,
            None => {
                n_words.checked_mul(32).ok_or_else(|| bad_shape("weight_packed", &[n_words], "less"))?
                    / scheme.bits as usize
            }
        };
        Layout::of("weight_packed", n_in, scheme.bits, n_words)?;
        if !scheme.symmetric {
            let rows = tensors.get("weight_zero_point").ok_or_else(|| missing("weight_zero_point"))?;
            check_dtype("weight_zero_point", rows.dtype, &[DType::I32])?;
            let &[n_words, _] = rows.shape.as_slice() else {
                return Err(bad_shape("weight_zero_point", &rows.shape, "two dimensions"));
            };
            check_shape(tensors, "weight_zero_point", &[n_words, n_groups])?;
            Layout::of("weight_zero_point", n_out, scheme.bits, n_words)?;
        }
        Ok([n_out, n_in, n_groups])
    }

    /// Takes the tensors that [`check_tensors`](Self::check_tensors) has seen.
    pub(super) fn take(
        tensors: &mut ModuleTensors,
        scheme: IntScheme,
        [n_out, n_in, n_groups]: [usize; 3],
    ) -> Result<Self> {
        let stored = take(tensors, "weight_shape")?;
        let extents: Vec<i64> = stored.data.as_chunks().0.iter().map(|it| i64::from_le_bytes(*it)).collect();
        if extents != [n_out as i64, n_in as i64] {
            return Err(invalid("weight_shape", format!("{extents:?}"), format!("[{n_out}, {n_in}]")));
        }
        let packed = take(tensors, "weight_packed")?;
        let layout = Layout::of("weight_packed", n_in, scheme.bits, packed.shape[1])?;
        let codes = unpack(&words(&packed), n_out, n_in, scheme.bits, PackedDim::Cols, layout)?;
        let zero_points = match scheme.symmetric {
            true => None,
            false => {
                let packed = take(tensors, "weight_zero_point")?;
                let layout = Layout::of("weight_zero_point", n_out, scheme.bits, packed.shape[0])?;
                Some(unpack(&words(&packed), n_out, n_groups, scheme.bits, PackedDim::Rows, layout)?)
            }
        };
        Ok(Self { n_out, n_in, n_groups, codes, scales: take(tensors, "weight_scale")?, zero_points })
    }
}

/// Scales in f16, which the kernels of exported formats read.
pub(super) fn scales_as_f16(scales: &Array) -> Result<Array> {
    let mut values = vec![0.0; scales.elements()];
    read_f32(scales.dtype, &scales.data, &mut values)?;
    let mut data = vec![0; values.len() * 2];
    write_f32(DType::F16, &values, &mut data)?;
    let mut rounded = vec![0.0; values.len()];
    read_f32(DType::F16, &data, &mut rounded)?;
    match values.iter().zip(&rounded).find(|(value, it)| !it.is_finite() || (**it == 0.0 && **value != 0.0)) {
        Some((value, _)) => Err(invalid("weight_scale", value, "a scale within the range of float16")),
        None => Ok(Array { dtype: DType::F16, shape: scales.shape.clone(), data }),
    }
}
