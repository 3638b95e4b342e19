//! A registry for recipes: two toys, and the field lists of some of the reference's modifiers.

use lifecycle::{
    Fields, Modifier, Registry, Result, Settings, State,
    error::ErrorKind,
    recipe::{FieldKind, FieldSpec, ModifierSpec, Role},
};
use serde_json::{Value, json};

/// A modifier that only carries fields.
pub(crate) struct Carrier {
    pub(crate) type_name: &'static str,
    pub(crate) settings: Settings,
    pub(crate) fields: Fields,
}

impl Carrier {
    /// A modifier from all fields of its type.
    pub(crate) fn new(type_name: &'static str, fields: &Fields) -> Self {
        let number = |name: &str| fields.get(name).and_then(Value::as_f64);
        let settings = Settings {
            index: fields.get("index").and_then(Value::as_i64),
            group: fields.get("group").and_then(Value::as_str).map(str::to_owned),
            start: number("start"),
            end: number("end"),
            update: number("update"),
        };
        let base = ["requires_calibration_data", "index", "group", "start", "end", "update"];
        let mut fields = fields.clone();
        fields.retain(|name, _| !base.contains(&name.as_str()));
        Self { type_name, settings, fields }
    }
}

impl Modifier for Carrier {
    fn type_name(&self) -> &str {
        self.type_name
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn fields(&self) -> Fields {
        self.fields.clone()
    }

    fn targets(&self) -> Vec<String> {
        match self.fields.get("targets") {
            Some(Value::String(target)) => vec![target.clone()],
            Some(Value::Array(targets)) => targets.iter().filter_map(|it| it.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        }
    }

    fn on_initialize(&mut self, _: &mut State) -> Result<bool> {
        Ok(true)
    }
}

const fn field(name: &'static str, kind: FieldKind, default: &'static str) -> FieldSpec {
    FieldSpec { name, kind, default: Some(default), doc: "A field." }
}

const TEXT: FieldKind = FieldKind::Text;
const FLOAT: FieldKind = FieldKind::Float;
const BOOL: FieldKind = FieldKind::Bool;

/// Where the base fields stand in modifiers with a scheme: behind their own.
const BASE: [FieldSpec; 6] = [
    field("requires_calibration_data", BOOL, "false"),
    field("index", FieldKind::Int, "null"),
    field("group", TEXT, "null"),
    field("start", FLOAT, "null"),
    field("end", FLOAT, "null"),
    field("update", FLOAT, "null"),
];

const TOY_A: &[FieldSpec] = &[
    field("targets", FieldKind::TextOrList, "\"Linear\""),
    field("sparsity", FLOAT, "0.5"),
    field("flag", BOOL, "false"),
    field("nested", FieldKind::Map(&FieldKind::Any), "null"),
    field("internal_", FieldKind::Int, "3"),
];

const TOY_B: &[FieldSpec] = &[field("ignore", FieldKind::List(&FieldKind::Text), "[]"), field("alpha", FLOAT, "null")];

const WEIGHTS: FieldKind = FieldKind::Object(&[
    field("num_bits", FieldKind::Int, "8"),
    field("type", FieldKind::Choice(&["int", "float"]), "\"int\""),
    field("symmetric", BOOL, "true"),
    field("group_size", FieldKind::Int, "null"),
    field("strategy", FieldKind::Choice(&["tensor", "channel", "group"]), "null"),
    field("block_structure", FieldKind::Any, "null"),
    field("dynamic", FieldKind::OneOf(&[BOOL, TEXT]), "false"),
    field("actorder", TEXT, "null"),
    field("scale_dtype", TEXT, "null"),
    field("zp_dtype", TEXT, "null"),
    field("observer", TEXT, "\"memoryless_minmax\""),
    field("observer_kwargs", FieldKind::Map(&FieldKind::Any), "{}"),
]);

const SCHEME: FieldKind = FieldKind::Object(&[
    field("targets", FieldKind::TextList, "[\"Linear\"]"),
    field("weights", WEIGHTS, "null"),
    field("input_activations", WEIGHTS, "null"),
    field("output_activations", WEIGHTS, "null"),
    field("format", TEXT, "null"),
]);

const QUANTIZATION: [FieldSpec; 10] = [
    field("config_groups", FieldKind::Map(&SCHEME), "null"),
    field("targets", FieldKind::TextList, "[\"Linear\"]"),
    field("ignore", FieldKind::List(&TEXT), "[]"),
    field("scheme", FieldKind::OneOf(&[TEXT, FieldKind::Map(&FieldKind::TextList)]), "null"),
    field("kv_cache_scheme", WEIGHTS, "null"),
    field("weight_observer", TEXT, "null"),
    field("input_observer", TEXT, "null"),
    field("output_observer", TEXT, "null"),
    field("observer", FieldKind::Map(&TEXT), "null"),
    field("bypass_divisibility_checks", BOOL, "false"),
];

const fn quantization() -> [FieldSpec; 16] {
    let mut all = [BASE[0]; 16];
    let mut at = 0;
    while at < 16 {
        all[at] = if at < 10 { QUANTIZATION[at] } else { BASE[at - 10] };
        at += 1;
    }
    all
}

const fn gptq() -> [FieldSpec; 20] {
    let mut all = [BASE[0]; 20];
    let mut at = 0;
    while at < 16 {
        all[at] = quantization()[at];
        at += 1;
    }
    all[10].default = Some("true");
    all[16] = field("block_size", FieldKind::Int, "128");
    all[17] = field("dampening_frac", FLOAT, "0.01");
    all[18] = field("actorder", FieldKind::OneOf(&[BOOL, TEXT]), "\"static\"");
    all[19] = field("batched_quantization", TEXT, "\"auto\"");
    all
}

const AWQ: &[FieldSpec] = &[
    field("requires_calibration_data", BOOL, "true"),
    field("mappings", FieldKind::Any, "null"),
    field("offload_device", TEXT, "null"),
    field("duo_scaling", FieldKind::OneOf(&[BOOL, TEXT]), "true"),
    field("n_grid", FieldKind::Int, "20"),
];

const MAGNITUDE: &[FieldSpec] = &[
    field("targets", FieldKind::TextOrList, "\"__ALL_PRUNABLE__\""),
    field("init_sparsity", FLOAT, "null"),
    field("final_sparsity", FLOAT, "null"),
    field("update_scheduler", TEXT, "\"cubic\""),
    field("scheduler_args", FieldKind::Map(&FieldKind::Any), "{}"),
    field("mask_structure", TEXT, "\"unstructured\""),
    field("leave_enabled", BOOL, "false"),
    field("apply_globally", BOOL, "false"),
];

const SMOOTH: &[FieldSpec] = &[
    field("requires_calibration_data", BOOL, "true"),
    field("smoothing_strength", FLOAT, "0.5"),
    field("mappings", FieldKind::List(&FieldKind::Any), "null"),
    field("ignore", FieldKind::List(&TEXT), "null"),
    field("num_calibration_steps", FieldKind::Int, "null"),
    field("calibration_function", TEXT, "null"),
    field("algorithm", TEXT, "\"smoothquant\""),
];

/// Static activations need data, and a scheme beside groups is refused.
fn check_quantization(fields: &mut Fields) -> Result<()> {
    if !fields["scheme"].is_null() && !fields["config_groups"].is_null() {
        return Err(ErrorKind::InvalidField {
            type_name: "QuantizationModifier".into(),
            field: "scheme".into(),
            found: "given".into(),
            expected: "absent beside `config_groups`".into(),
        }
        .into());
    }
    let is_static = fields["scheme"] == "FP8";
    fields["requires_calibration_data"] = json!(is_static);
    Ok(())
}

fn unchecked(_: &mut Fields) -> Result<()> {
    Ok(())
}

const fn spec(
    name: &'static str,
    role: Role,
    fields: &'static [FieldSpec],
    build: fn(&Fields) -> Result<Box<dyn Modifier>>,
) -> ModifierSpec {
    ModifierSpec { name, doc: "A modifier.", role, fields, check: unchecked, build }
}

/// All types.
pub(crate) fn registry() -> Registry {
    const QUANTIZATION: &[FieldSpec] = &quantization();
    const GPTQ: &[FieldSpec] = &gptq();
    const TARGETS: &[FieldSpec] = &[MAGNITUDE[0]];
    let mut quantization = spec("QuantizationModifier", Role::Quantizer, QUANTIZATION, |fields| {
        Ok(Box::new(Carrier::new("QuantizationModifier", fields)))
    });
    quantization.check = check_quantization;
    Registry::new(&[
        spec("ToyAModifier", Role::Other, TOY_A, |it| Ok(Box::new(Carrier::new("ToyAModifier", it)))),
        spec("ToyBModifier", Role::Other, TOY_B, |it| Ok(Box::new(Carrier::new("ToyBModifier", it)))),
        quantization,
        spec("GPTQModifier", Role::Quantizer, GPTQ, |it| Ok(Box::new(Carrier::new("GPTQModifier", it)))),
        spec("AWQModifier", Role::TransformBeforeQuantizer, AWQ, |it| Ok(Box::new(Carrier::new("AWQModifier", it)))),
        spec("ConstantPruningModifier", Role::Pruner, TARGETS, |it| {
            Ok(Box::new(Carrier::new("ConstantPruningModifier", it)))
        }),
        spec("MagnitudePruningModifier", Role::Pruner, MAGNITUDE, |it| {
            Ok(Box::new(Carrier::new("MagnitudePruningModifier", it)))
        }),
        spec("SmoothQuantModifier", Role::Transform, SMOOTH, |it| {
            Ok(Box::new(Carrier::new("SmoothQuantModifier", it)))
        }),
    ])
}
