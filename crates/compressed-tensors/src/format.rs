//! Names of the on-disk formats, and which one a scheme is written in.

use crate::{
    DType, ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy, QuantizationType},
    scheme::QuantizationScheme,
};

/// How the tensors of a module, or of a whole model, are laid out on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CompressionFormat {
    /// As in the source.
    Dense,
    /// The retired bitmask layout; no codec writes it.
    SparseBitmask,
    /// The retired 2:4 layout; no codec writes it.
    Sparse24Bitmask,
    /// One integer code per int8.
    IntQuantized,
    /// One float code per e4m3.
    FloatQuantized,
    /// One code per element, for schemes that no other format names.
    NaiveQuantized,
    /// Integer codes in a dense bit stream.
    PackQuantized,
    /// The retired 2:4 kernel layout; no codec writes it.
    Marlin24,
    /// Only of a model: more than one format.
    MixedPrecision,
    /// Two e2m1 codes a byte, e4m3 scales, one global scale.
    Nvfp4PackQuantized,
    /// Two e2m1 codes a byte, power-of-two scales.
    Mxfp4PackQuantized,
    /// One e4m3 code a byte, power-of-two scales.
    Mxfp8Quantized,
}

impl CompressionFormat {
    /// Every format, in the reference's order.
    pub const ALL: [Self; 12] = [
        Self::Dense,
        Self::SparseBitmask,
        Self::Sparse24Bitmask,
        Self::IntQuantized,
        Self::FloatQuantized,
        Self::NaiveQuantized,
        Self::PackQuantized,
        Self::Marlin24,
        Self::MixedPrecision,
        Self::Nvfp4PackQuantized,
        Self::Mxfp4PackQuantized,
        Self::Mxfp8Quantized,
    ];

    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dense => "dense",
            Self::SparseBitmask => "sparse-bitmask",
            Self::Sparse24Bitmask => "sparse-24-bitmask",
            Self::IntQuantized => "int-quantized",
            Self::FloatQuantized => "float-quantized",
            Self::NaiveQuantized => "naive-quantized",
            Self::PackQuantized => "pack-quantized",
            Self::Marlin24 => "marlin-24",
            Self::MixedPrecision => "mixed-precision",
            Self::Nvfp4PackQuantized => "nvfp4-pack-quantized",
            Self::Mxfp4PackQuantized => "mxfp4-pack-quantized",
            Self::Mxfp8Quantized => "mxfp8-quantized",
        }
    }

    /// Reads the exact name.
    ///
    /// # Errors
    /// `UnknownName`.
    pub fn from_name(name: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name).ok_or_else(|| {
            let known = Self::ALL.map(|it| it.name().to_owned()).to_vec();
            ErrorKind::UnknownName { what: "compression format", name: name.to_owned(), known }.into()
        })
    }
}

/// The format of a module of class `class`, from its scheme alone.
///
/// Only `Linear` and `Embedding` are compressed; everything else is dense. The first rule that holds
/// decides, so that integer weights with any quantized input are stored unpacked.
pub fn infer_module_format(class: &str, scheme: &QuantizationScheme) -> CompressionFormat {
    use CompressionFormat as F;
    use QuantizationType::{Float, Int};
    let Some(weights) = scheme.weights.as_ref().filter(|_| matches!(class, "Linear" | "Embedding")) else {
        return F::Dense;
    };
    let inputs = scheme.input_activations.is_some();
    match (weights.r#type, weights.num_bits, weights.group_size) {
        (Float, 4, Some(32)) => F::Mxfp4PackQuantized,
        (Float, 8, Some(32)) if weights.scale_dtype == Some(DType::U8) => F::Mxfp8Quantized,
        (Float, 4, Some(16)) => F::Nvfp4PackQuantized,
        (Int, ..) if inputs => F::IntQuantized,
        (Int, 1..=8, _) => F::PackQuantized,
        (Float, ..) if inputs => F::FloatQuantized,
        _ => F::NaiveQuantized,
    }
}

/// The format that a module is saved in: one forced for the model, else the scheme's, else the inferred one.
///
/// A module that infers dense stays dense.
pub fn module_format(class: &str, scheme: &QuantizationScheme, forced: Option<CompressionFormat>) -> CompressionFormat {
    match infer_module_format(class, scheme) {
        CompressionFormat::Dense => CompressionFormat::Dense,
        inferred => forced.or(scheme.format).unwrap_or(inferred),
    }
}

/// The label of a model with modules in these formats.
pub fn model_format(modules: impl IntoIterator<Item = CompressionFormat>) -> CompressionFormat {
    let mut found = CompressionFormat::Dense;
    for format in modules.into_iter().filter(|&it| it != CompressionFormat::Dense) {
        match found {
            CompressionFormat::Dense => found = format,
            same if same == format => {}
            _ => return CompressionFormat::MixedPrecision,
        }
    }
    found
}

/// Refuses weights that decompress to something else than was simulated, or not at all.
///
/// The reference takes these combinations; `format` is what [`module_format`] gave.
///
/// # Errors
/// `Unsupported`, naming the combination and what to choose instead.
pub fn check_sound(scheme: &QuantizationScheme, format: CompressionFormat) -> Result<()> {
    let Some(weights) = &scheme.weights else {
        return Ok(());
    };
    match flaw(weights, format) {
        None => Ok(()),
        Some(what) => Err(crate::Error::from(ErrorKind::Unsupported { what }).at("weights")),
    }
}

fn flaw(weights: &QuantizationArgs, format: CompressionFormat) -> Option<String> {
    use CompressionFormat as F;
    use QuantizationStrategy as S;
    use QuantizationType::{Float, Int};
    let kind = weights.r#type;
    let bits = weights.num_bits;
    let power_of_two_scales = weights.scale_dtype == Some(DType::U8);
    let micro = (weights.strategy, weights.group_size, power_of_two_scales) == (S::Group, Some(32), true);
    if (kind, bits) == (Float, 4) {
        match (weights.group_size, weights.strategy) {
            (Some(16), S::TensorGroup) if matches!(weights.scale_dtype, None | Some(DType::F8E4M3)) => {}
            (Some(16), S::TensorGroup) => {
                return Some("a scale type other than float8_e4m3fn for 4-bit floats in groups of 16".to_owned());
            }
            (Some(16), _) => {
                return Some("strategy `group` for 4-bit floats in groups of 16 (`tensor_group` is)".to_owned());
            }
            (Some(32), _) if !micro => {
                return Some(
                    "4-bit floats in groups of 32 without strategy `group` and scale_dtype `torch.uint8`".to_owned(),
                );
            }
            (Some(32), _) => {}
            (size, _) => {
                let found = size.map_or("no group size".to_owned(), |it| format!("groups of {it}"));
                return Some(format!("4-bit floats with {found} (16 or 32 are)"));
            }
        }
    }
    let fits = match format {
        F::PackQuantized => kind == Int && (1..=8).contains(&bits),
        F::IntQuantized => kind == Int,
        F::FloatQuantized => (kind, bits) == (Float, 8),
        F::NaiveQuantized => kind == Int || bits == 8,
        F::Nvfp4PackQuantized => (kind, bits, weights.group_size) == (Float, 4, Some(16)),
        F::Mxfp4PackQuantized => (kind, bits) == (Float, 4) && micro,
        F::Mxfp8Quantized => (kind, bits) == (Float, 8) && micro,
        F::Dense => true,
        F::SparseBitmask | F::Sparse24Bitmask | F::Marlin24 | F::MixedPrecision => false,
    };
    (!fits).then(|| format!("{bits}-bit {} weights in format `{}`", kind.name(), format.name()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;
    use crate::{
        args::ArgsBuilder,
        presets::{PRESETS, preset},
    };

    fn weights(draft: ArgsBuilder) -> QuantizationScheme {
        let weights = Some(draft.build().unwrap());
        QuantizationScheme { weights, ..QuantizationScheme::unquantized(vec!["Linear".to_owned()]) }
    }

    #[test]
    fn every_preset_is_sound_in_its_inferred_format() {
        for row in PRESETS {
            let scheme = row.scheme(vec!["Linear".to_owned()]);
            check_sound(&scheme, infer_module_format("Linear", &scheme)).unwrap();
        }
    }

    #[test]
    fn unsound_combinations_are_refused_by_name() {
        for (draft, named) in [
            (ArgsBuilder::float(4).group_size(16), "strategy `group` for 4-bit floats"),
            (ArgsBuilder::float(4).group_size(32), "4-bit floats in groups of 32 without"),
            (
                ArgsBuilder::float(4).group_size(32).strategy(QuantizationStrategy::TensorGroup).scale_dtype(DType::U8),
                "4-bit floats in groups of 32 without",
            ),
            (ArgsBuilder::float(4).group_size(64), "4-bit floats with groups of 64"),
            (ArgsBuilder::float(4), "4-bit floats with no group size"),
            (ArgsBuilder::float(6).zp_dtype(DType::I8), "6-bit float weights in format `naive-quantized`"),
        ] {
            let scheme = weights(draft);
            let error = check_sound(&scheme, infer_module_format("Linear", &scheme)).unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Unsupported { what } if what.starts_with(named)), "{error}");
            assert_eq!(error.place(), Some("weights"));
        }
    }

    #[test]
    fn a_forced_format_that_cannot_hold_the_weights_is_refused() {
        let fp8 = preset("FP8", vec![]).unwrap();
        let forced = module_format("Linear", &fp8, Some(CompressionFormat::PackQuantized));
        assert_eq!(forced, CompressionFormat::PackQuantized);
        assert!(check_sound(&fp8, forced).is_err());
        let mut packed = preset("W4A8", vec![]).unwrap();
        packed.format = Some(CompressionFormat::PackQuantized);
        assert_eq!(module_format("Linear", &packed, None), CompressionFormat::PackQuantized);
        assert!(check_sound(&packed, CompressionFormat::PackQuantized).is_ok());
        assert_eq!(module_format("LlamaAttention", &packed, None), CompressionFormat::Dense);
    }

    #[test]
    fn a_model_is_labelled_by_its_compressed_modules() {
        use CompressionFormat as F;
        assert_eq!(model_format([]), F::Dense);
        assert_eq!(model_format([F::Dense, F::IntQuantized, F::IntQuantized]), F::IntQuantized);
        assert_eq!(model_format([F::PackQuantized, F::Dense, F::IntQuantized]), F::MixedPrecision);
    }
}
