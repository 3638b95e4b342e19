//! Schemes with a name, from `UNQUANTIZED` to `MXFP8`.

use crate::{
    DType, ErrorKind, Result,
    args::{ArgsBuilder, Dynamic, QuantizationArgs, QuantizationStrategy as S, QuantizationType},
    scheme::QuantizationScheme,
};

/// A named scheme.
#[derive(Debug)]
pub struct Preset {
    /// The name, in capitals.
    pub name: &'static str,
    /// What it does, in one line.
    pub doc: &'static str,
    weights: Option<Row>,
    inputs: Option<Row>,
}

/// Arguments of a preset as constant data; what is not set has its default.
#[derive(Clone, Copy, Debug)]
struct Row {
    kind: QuantizationType,
    bits: i64,
    asymmetric: bool,
    strategy: S,
    group_size: Option<i64>,
    block: Option<(usize, usize)>,
    dynamic: Dynamic,
    scale_dtype: Option<DType>,
    observer: Option<&'static str>,
}

impl Row {
    const fn new(kind: QuantizationType, bits: i64, strategy: S) -> Self {
        Self {
            kind,
            bits,
            asymmetric: false,
            strategy,
            group_size: None,
            block: None,
            dynamic: Dynamic::No,
            scale_dtype: None,
            observer: None,
        }
    }

    const fn int(bits: i64, strategy: S) -> Self {
        Self::new(QuantizationType::Int, bits, strategy)
    }

    const fn float(bits: i64, strategy: S) -> Self {
        Self::new(QuantizationType::Float, bits, strategy)
    }

    /// A float whose groups have scales of their own type; the zero point has that type too.
    const fn micro(bits: i64, strategy: S, group_size: i64, scale: DType) -> Self {
        Self { group_size: Some(group_size), scale_dtype: Some(scale), ..Self::float(bits, strategy) }
    }

    const fn groups_of(self, columns: i64) -> Self {
        Self { group_size: Some(columns), ..self }
    }

    const fn dynamic(self, dynamic: Dynamic) -> Self {
        Self { dynamic, ..self }
    }

    const fn observed_by(self, name: &'static str) -> Self {
        Self { observer: Some(name), ..self }
    }

    fn args(self) -> QuantizationArgs {
        let mut draft = match self.kind {
            QuantizationType::Int => ArgsBuilder::int(self.bits),
            QuantizationType::Float => ArgsBuilder::float(self.bits),
        }
        .strategy(self.strategy)
        .dynamic(self.dynamic);
        if self.asymmetric {
            draft = draft.asymmetric();
        }
        if let Some(columns) = self.group_size {
            draft = draft.group_size(columns);
        }
        if let Some((rows, columns)) = self.block {
            draft = draft.block(rows, columns);
        }
        if let Some(dtype) = self.scale_dtype {
            draft = draft.scale_dtype(dtype).zp_dtype(dtype);
        }
        if let Some(name) = self.observer {
            draft = draft.observer(name);
        }
        draft.build().expect("a row of PRESETS breaks no rule: `every_preset_is_as_in_the_reference` builds each")
    }
}

const TOKEN8: Row = Row::int(8, S::Token).dynamic(Dynamic::Yes);
const TOKEN4: Row = Row::int(4, S::Token).dynamic(Dynamic::Yes);
const FP8_TOKEN: Row = Row::float(8, S::Token).dynamic(Dynamic::Yes);
const NVFP4: Row = Row::micro(4, S::TensorGroup, 16, DType::F8E4M3);
const MXFP4: Row = Row::micro(4, S::Group, 32, DType::U8);
const MXFP8: Row = Row::micro(8, S::Group, 32, DType::U8);

const fn groups(bits: i64) -> Row {
    Row::int(bits, S::Group).groups_of(128)
}

const fn row(name: &'static str, doc: &'static str, weights: Row, inputs: Option<Row>) -> Preset {
    Preset { name, doc, weights: Some(weights), inputs }
}

/// Every preset, in display order.
pub const PRESETS: &[Preset] = &[
    Preset { name: "UNQUANTIZED", doc: "leaves the targets as they are", weights: None, inputs: None },
    row("W4A16", "4-bit integer weights in groups of 128", groups(4), None),
    row(
        "W4A16_ASYM",
        "4-bit integer weights in groups of 128, with zero points",
        Row { asymmetric: true, ..groups(4) },
        None,
    ),
    row("W8A16", "8-bit integer weights in groups of 128", groups(8), None),
    row(
        "W8A8",
        "8-bit integer weights per channel, 8-bit integer inputs per token",
        Row::int(8, S::Channel),
        Some(TOKEN8),
    ),
    row("INT8", "the same as W8A8", Row::int(8, S::Channel), Some(TOKEN8)),
    row(
        "FP8",
        "e4m3 weights and inputs per tensor, input scales from calibration",
        Row::float(8, S::Tensor),
        Some(Row::float(8, S::Tensor).observed_by("static_minmax")),
    ),
    row("FP8_DYNAMIC", "e4m3 weights per channel, e4m3 inputs per token", Row::float(8, S::Channel), Some(FP8_TOKEN)),
    row(
        "FP8_BLOCK",
        "e4m3 weights in tiles of 128 x 128, e4m3 inputs in groups of 128",
        Row { block: Some((128, 128)), ..Row::float(8, S::Block) },
        Some(Row::float(8, S::Group).groups_of(128).dynamic(Dynamic::Yes)),
    ),
    row("NVFP4A16", "e2m1 weights in groups of 16 with e4m3 scales and a global scale", NVFP4, None),
    row(
        "NVFP4",
        "NVFP4A16 weights, e2m1 inputs whose global scale comes from calibration",
        NVFP4,
        Some(NVFP4.dynamic(Dynamic::Local).observed_by("static_minmax")),
    ),
    row("MXFP4A16", "e2m1 weights in groups of 32 with power-of-two scales", MXFP4, None),
    row("MXFP4", "MXFP4A16 weights, e2m1 inputs in groups of 32", MXFP4, Some(MXFP4.dynamic(Dynamic::Yes))),
    row("MXFP8A16", "e4m3 weights in groups of 32 with power-of-two scales", MXFP8, None),
    row("MXFP8", "MXFP8A16 weights, e4m3 inputs in groups of 32", MXFP8, Some(MXFP8.dynamic(Dynamic::Yes))),
    row("W4AFP8", "4-bit integer weights in groups of 128, e4m3 inputs per token", groups(4), Some(FP8_TOKEN)),
    row("W2A16", "2-bit integer weights in groups of 128", groups(2), None),
    row("W3A16", "3-bit integer weights in groups of 128", groups(3), None),
    row("W5A16", "5-bit integer weights in groups of 128", groups(5), None),
    row("W6A16", "6-bit integer weights in groups of 128", groups(6), None),
    row("W7A16", "7-bit integer weights in groups of 128", groups(7), None),
    row("W2A8", "2-bit integer weights in groups of 128, 8-bit integer inputs per token", groups(2), Some(TOKEN8)),
    row("W3A8", "3-bit integer weights in groups of 128, 8-bit integer inputs per token", groups(3), Some(TOKEN8)),
    row("W4A8", "4-bit integer weights in groups of 128, 8-bit integer inputs per token", groups(4), Some(TOKEN8)),
    row("W5A8", "5-bit integer weights in groups of 128, 8-bit integer inputs per token", groups(5), Some(TOKEN8)),
    row("W6A8", "6-bit integer weights in groups of 128, 8-bit integer inputs per token", groups(6), Some(TOKEN8)),
    row("W7A8", "7-bit integer weights in groups of 128, 8-bit integer inputs per token", groups(7), Some(TOKEN8)),
    row("W2A4", "2-bit integer weights in groups of 128, 4-bit integer inputs per token", groups(2), Some(TOKEN4)),
    row("W3A4", "3-bit integer weights in groups of 128, 4-bit integer inputs per token", groups(3), Some(TOKEN4)),
    row("W4A4", "4-bit integer weights in groups of 128, 4-bit integer inputs per token", groups(4), Some(TOKEN4)),
];

impl Preset {
    /// Looks a name up, in any letter case.
    ///
    /// # Errors
    /// `UnknownName`, with all names.
    pub fn named(name: &str) -> Result<&'static Self> {
        PRESETS.iter().find(|it| it.name.eq_ignore_ascii_case(name)).ok_or_else(|| {
            let known = PRESETS.iter().map(|it| it.name.to_owned()).collect();
            ErrorKind::UnknownName { what: "scheme", name: name.to_owned(), known }.into()
        })
    }

    /// The scheme, for these targets.
    pub fn scheme(&self, targets: Vec<String>) -> QuantizationScheme {
        QuantizationScheme {
            weights: self.weights.map(Row::args),
            input_activations: self.inputs.map(Row::args),
            ..QuantizationScheme::unquantized(targets)
        }
    }
}

/// The scheme called `name`, for these targets.
///
/// # Errors
/// `UnknownName`, with all names.
pub fn preset(name: &str, targets: Vec<String>) -> Result<QuantizationScheme> {
    Preset::named(name).map(|it| it.scheme(targets))
}
