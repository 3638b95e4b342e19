//! AutoAWQ: 4-bit checkpoints of version `gemm`, read and written.

use serde_json::{Value, json};

use super::{
    Converter, TensorShapes,
    modules::{
        bad_shape, check_lengths, check_shape, contained, containing, i32_array, invalid, join, left_over, linears,
        matrix, merged, names, shape, split, take, transposed, words,
    },
    packed_linear::{FLOATS, IntScheme, PackedLinear, scales_as_f16},
};
use crate::{
    DType, Error, ErrorKind, ModuleTensors, Result,
    config::QuantizationConfig,
    packing::transpose,
    target::{Matcher, NamedModule},
};

/// Column of a run of eight that nibble j of a word holds.
const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// What AutoAWQ names a linear's tensors.
const TENSORS: [&str; 3] = ["qweight", "qzeros", "scales"];

/// Reads AutoAWQ checkpoints.
///
/// `qweight` I32 (in, out / 8), `qzeros` I32 (groups, out / 8) and `scales` (groups, out) become
/// `pack-quantized` tensors.
#[derive(Clone, Debug)]
pub struct AutoAwqConverter {
    scheme: IntScheme,
    targets: Vec<String>,
    ignore: Vec<String>,
    matcher: Matcher,
}

impl AutoAwqConverter {
    /// A converter for weights in groups of `group_size` columns, -1 for one group.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for a group size, [`ErrorKind::Pattern`] for a target or ignore.
    pub fn new(group_size: i64, zero_point: ZeroPoint, targets: Vec<String>, ignore: Vec<String>) -> Result<Self> {
        let scheme = IntScheme::new(4, group_size, zero_point == ZeroPoint::Fixed)?;
        let matcher = Matcher::compile(&targets, &ignore)?;
        Ok(Self { scheme, targets, ignore, matcher })
    }

    /// Reads the `quantization_config` of an AutoAWQ checkpoint; `targets` and `ignore`, which it lacks,
    /// may stand beside its fields.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidField`] for fields that no `gemm` checkpoint of 4 bits has.
    pub fn from_source_config(config: &Value) -> Result<Self> {
        let bits = config.get("bits").or_else(|| config.get("w_bit"));
        if let Some(bits) = bits.filter(|it| it.as_u64() != Some(4)) {
            return Err(invalid("bits", bits, "4"));
        }
        let version = config.get("version").unwrap_or(&Value::Null);
        if !version.is_null() && !version.as_str().is_some_and(|it| it.eq_ignore_ascii_case("gemm")) {
            return Err(invalid("version", version, "`gemm`"));
        }
        let size = config.get("group_size").or_else(|| config.get("q_group_size"));
        let size = size.map_or(Ok(128), |it| it.as_i64().ok_or_else(|| invalid("group_size", it, "an integer")))?;
        let zero_point = match config.get("zero_point") {
            None => ZeroPoint::Stored,
            Some(it) => match it.as_bool() {
                Some(true) => ZeroPoint::Stored,
                Some(false) => ZeroPoint::Fixed,
                None => return Err(invalid("zero_point", it, "true or false")),
            },
        };
        let mut ignore = vec!["lm_head".to_owned()];
        match config.get("modules_to_not_convert") {
            None | Some(Value::Null) => {}
            Some(names) => {
                for name in crate::wire::strings("modules_to_not_convert", names)? {
                    ignore.push(containing(&name));
                }
            }
        }
        let ignore = names(config, "ignore")?.unwrap_or(ignore);
        Self::new(size, zero_point, names(config, "targets")?.unwrap_or_else(linears), ignore)
    }
}

/// Whether a checkpoint stores zero points.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoint {
    /// In `qzeros`.
    Stored,
    /// No: they are 8.
    Fixed,
}

impl Converter for AutoAwqConverter {
    fn process_module(&self, module: &str, mut tensors: ModuleTensors) -> Result<ModuleTensors> {
        let shapes = super::shapes_of(&tensors);
        self.plan_module(module, &shapes)?;
        if !tensors.contains_key("qweight") {
            return Ok(tensors);
        }
        check_lengths(&tensors)?;
        let qweight = take(&mut tensors, "qweight")?;
        let (n_in, n_out) = (qweight.shape[0], qweight.shape[1] * 8);
        let scales = transposed(&take(&mut tensors, "scales")?);
        let n_groups = scales.shape[1];
        let zero_points = match self.scheme.symmetric {
            true => None,
            false => Some(transpose(&unpack_words(&words(&take(&mut tensors, "qzeros")?)), n_groups, n_out)),
        };
        let codes = transpose(&unpack_words(&words(&qweight)), n_in, n_out);
        tensors.extend(PackedLinear { n_out, n_in, n_groups, codes, scales, zero_points }.into_tensors(4)?);
        Ok(tensors)
    }

    fn plan_module(&self, module: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        if !tensors.contains_key("qweight") {
            return match TENSORS.iter().find(|it| tensors.contains_key(**it)) {
                Some(name) => Err(left_over(name, "there is no `qweight` beside it")),
                None => Ok(tensors.clone()),
            };
        }
        if !self.matcher.matches(NamedModule { name: module, classes: &["Linear"] })? {
            return Err(left_over("qweight", "its module is ignored or no target, and yet quantized"));
        }
        let [n_in, n_words] = matrix(tensors, "qweight", &[DType::I32])?;
        let n_out = n_words.checked_mul(8).ok_or_else(|| bad_shape("qweight", &[n_in, n_words], "fewer words"))?;
        let n_groups = self.scheme.n_groups("qweight", n_in)?;
        matrix(tensors, "scales", FLOATS)?;
        check_shape(tensors, "scales", &[n_groups, n_out])?;
        if self.scheme.symmetric && tensors.contains_key("qzeros") {
            return Err(left_over("qzeros", "the config says that there are no zero points"));
        }
        if !self.scheme.symmetric {
            matrix(tensors, "qzeros", &[DType::I32])?;
            check_shape(tensors, "qzeros", &[n_groups, n_words])?;
        }
        let mut planned = tensors.clone();
        planned.retain(|name, _| !TENSORS.contains(&name.as_str()));
        planned.extend(self.scheme.packed_shapes(n_out, n_in, n_groups, tensors["scales"].dtype));
        Ok(planned)
    }

    fn dependencies(&self, name: &str, exists: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        let (module, local) = split(name);
        if local != "qweight" {
            return Ok(Vec::new());
        }
        let mut needed = vec![join(module, "scales")];
        let zeros = join(module, "qzeros");
        if !self.scheme.symmetric || exists(&zeros) {
            needed.push(zeros);
        }
        Ok(needed)
    }

    fn update_config(&self, config: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        merged(config, self.scheme.config(&self.targets, &self.ignore)?)
    }
}

/// Writes AutoAWQ checkpoints of `pack-quantized` ones with 4-bit weights.
#[derive(Clone, Debug)]
pub struct AutoAwqExporter {
    scheme: IntScheme,
    not_converted: Vec<String>,
}

impl AutoAwqExporter {
    /// An exporter for a checkpoint with this config.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for anything but one group of 4-bit integers without activations,
    /// [`ErrorKind::InvalidField`] for an ignore that names of modules cannot say.
    pub fn new(config: &QuantizationConfig) -> Result<Self> {
        let scheme = single_scheme(config)?;
        if scheme.bits != 4 {
            return Err(Error::from(ErrorKind::Unsupported { what: format!("AutoAWQ with {} bits", scheme.bits) }));
        }
        let names = config.ignore.iter().map(|pattern| {
            contained(pattern).ok_or_else(|| invalid("ignore", pattern, "names, or patterns `re:.*name.*`"))
        });
        let not_converted = names.filter(|it| !matches!(it, Ok(name) if name == "lm_head")).collect::<Result<_>>()?;
        Ok(Self { scheme, not_converted })
    }
}

/// The scheme of a config with one group of integer weights and no activations.
pub(super) fn single_scheme(config: &QuantizationConfig) -> Result<IntScheme> {
    let unsupported = |what: &str| Error::from(ErrorKind::Unsupported { what: what.to_owned() });
    let mut schemes = config.config_groups.values();
    let (Some(scheme), None) = (schemes.next(), schemes.next()) else {
        return Err(unsupported("exporting a config with other than one group"));
    };
    if scheme.input_activations.is_some() || scheme.output_activations.is_some() || config.kv_cache_scheme.is_some() {
        return Err(unsupported("exporting quantized activations"));
    }
    match &scheme.weights {
        Some(weights) => IntScheme::of_args(weights),
        None => Err(unsupported("exporting a config without quantized weights")),
    }
}

impl Converter for AutoAwqExporter {
    fn process_module(&self, module: &str, mut tensors: ModuleTensors) -> Result<ModuleTensors> {
        let shapes = super::shapes_of(&tensors);
        self.plan_module(module, &shapes)?;
        if !tensors.contains_key("weight_packed") {
            return Ok(tensors);
        }
        check_lengths(&tensors)?;
        let extents = PackedLinear::check_tensors(&shapes, self.scheme)?;
        let linear = PackedLinear::take(&mut tensors, self.scheme, extents)?;
        let [n_out, n_in, n_groups] = extents;
        let n_words = n_out / 8;
        let qweight = pack_words(&transpose(&linear.codes, n_out, n_in));
        let zeros = linear.zero_points.unwrap_or_else(|| vec![0; n_out * n_groups]);
        let qzeros = pack_words(&transpose(&zeros, n_out, n_groups));
        tensors.insert("qweight".to_owned(), i32_array(&[n_in, n_words], &qweight));
        tensors.insert("qzeros".to_owned(), i32_array(&[n_groups, n_words], &qzeros));
        tensors.insert("scales".to_owned(), transposed(&scales_as_f16(&linear.scales)?));
        Ok(tensors)
    }

    fn plan_module(&self, _: &str, tensors: &TensorShapes) -> Result<TensorShapes> {
        if !tensors.contains_key("weight_packed") {
            return Ok(tensors.clone());
        }
        let [n_out, n_in, n_groups] = PackedLinear::check_tensors(tensors, self.scheme)?;
        if !n_out.is_multiple_of(8) {
            return Err(bad_shape("weight_packed", &[n_out], "rows in multiples of 8, which share a word"));
        }
        let mut planned = tensors.clone();
        planned.retain(|name, _| !name.starts_with("weight_"));
        planned.insert("qweight".to_owned(), shape(DType::I32, &[n_in, n_out / 8]));
        planned.insert("qzeros".to_owned(), shape(DType::I32, &[n_groups, n_out / 8]));
        planned.insert("scales".to_owned(), shape(DType::F16, &[n_groups, n_out]));
        Ok(planned)
    }

    fn dependencies(&self, name: &str, _: &dyn Fn(&str) -> bool) -> Result<Vec<String>> {
        Ok(packed_companions(name, self.scheme))
    }

    fn update_config(&self, _: Option<QuantizationConfig>) -> Result<Option<QuantizationConfig>> {
        Ok(None)
    }

    fn update_model_config(&self, config: &mut Value) -> Result<()> {
        let map = config.as_object_mut().ok_or_else(|| invalid("config.json", "no object", "an object"))?;
        let names = (!self.not_converted.is_empty()).then_some(&self.not_converted);
        let section = json!({
            "quant_method": "awq",
            "version": "gemm",
            "bits": 4,
            "group_size": self.scheme.group_size_field(),
            "zero_point": true,
            "modules_to_not_convert": names,
        });
        map.insert("quantization_config".to_owned(), section);
        Ok(())
    }
}

/// The companions of a `weight_packed`.
pub(super) fn packed_companions(name: &str, scheme: IntScheme) -> Vec<String> {
    let (module, local) = split(name);
    if local != "weight_packed" {
        return Vec::new();
    }
    let mut needed = vec![join(module, "weight_scale"), join(module, "weight_shape")];
    if !scheme.symmetric {
        needed.push(join(module, "weight_zero_point"));
    }
    needed
}

/// Signed codes of words, eight each, in column order.
fn unpack_words(words: &[i32]) -> Vec<i8> {
    let mut codes = vec![0; words.len() * 8];
    for (word, codes) in words.iter().zip(codes.as_chunks_mut::<8>().0) {
        for (nibble, column) in ORDER.into_iter().enumerate() {
            codes[column] = ((word >> (4 * nibble) & 15) - 8) as i8;
        }
    }
    codes
}

/// The inverse of [`unpack_words`].
fn pack_words(codes: &[i8]) -> Vec<i32> {
    let word = |codes: &[i8; 8]| {
        ORDER
            .into_iter()
            .enumerate()
            .fold(0, |word, (nibble, column)| word | ((i32::from(codes[column]) + 8) & 15) << (4 * nibble))
    };
    codes.as_chunks::<8>().0.iter().map(word).collect()
}
