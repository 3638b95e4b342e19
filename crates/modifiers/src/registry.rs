//! Every modifier that a recipe may name, in display order.

use lifecycle::{
    Fields, Modifier, Result,
    recipe::{FieldSpec, ModifierSpec, Role},
};
use serde_json::Value;

use crate::{
    awq::{self, AwqFields, AwqModifier},
    gptq::{self, GptqFields, GptqModifier},
    norm_gain::{self, NormGainModifier},
    quantization::{
        QuantizationFields, QuantizationModifier,
        config::{BASE_FIELDS, FIELDS as SCHEME_FIELDS, take_settings},
    },
    smoothquant::{self, SmoothQuantModifier},
};

const fn quantization_fields() -> [FieldSpec; 16] {
    let mut fields = [BASE_FIELDS[0]; 16];
    let mut at = 0;
    while at < 16 {
        fields[at] = if at < 10 { SCHEME_FIELDS[at] } else { BASE_FIELDS[at - 10] };
        at += 1;
    }
    fields
}

/// The types that recipes resolve against.
pub const MODIFIERS: &[ModifierSpec] = &[
    ModifierSpec {
        name: QuantizationModifier::NAME,
        doc: "Gives modules schemes and scales; weights are rounded to nearest when they are packed.",
        role: Role::Quantizer,
        fields: &quantization_fields(),
        check: |fields| {
            let needs_data = QuantizationModifier::new(fields)?.needs_data();
            fields.insert("requires_calibration_data".to_owned(), needs_data.into());
            Ok(())
        },
        build: |fields| Ok(Box::new(QuantizationModifier::new(fields)?)),
    },
    ModifierSpec {
        name: GptqModifier::NAME,
        doc: "Rounds weights column by column so that the outputs of their layers change least.",
        role: Role::Quantizer,
        fields: &gptq::config::FIELDS,
        check: |fields| {
            let mut own = fields.clone();
            take_settings(&mut own)?;
            GptqFields::read(own)?;
            // It cannot work without, whatever the recipe says.
            fields.insert("requires_calibration_data".to_owned(), Value::Bool(true));
            Ok(())
        },
        build: |fields| Ok(Box::new(GptqModifier::new(fields)?)),
    },
    ModifierSpec {
        name: AwqModifier::NAME,
        doc: "Scales channels up where activations are large, before a quantizing modifier rounds the weights.",
        role: Role::TransformBeforeQuantizer,
        fields: &awq::config::FIELDS,
        check: |fields| {
            let mut own = fields.clone();
            take_settings(&mut own)?;
            AwqFields::read(own)?;
            Ok(())
        },
        build: |fields| Ok(Box::new(AwqModifier::new(fields)?)),
    },
    ModifierSpec {
        name: SmoothQuantModifier::NAME,
        doc: "Moves outliers of activations into the weights that read them.",
        role: Role::Transform,
        fields: &smoothquant::config::FIELDS,
        check: |fields| Ok(SmoothQuantModifier::new(fields).map(drop)?),
        build: |fields| Ok(Box::new(SmoothQuantModifier::new(fields)?)),
    },
    ModifierSpec {
        name: SmoothQuantModifier::LOG_EQUALIZATION,
        doc: "SmoothQuantModifier with the algorithm log_equalization, under its older name.",
        role: Role::Transform,
        fields: &smoothquant::config::FIELDS,
        check: |fields| Ok(SmoothQuantModifier::log_equalization(fields).map(drop)?),
        build: |fields| Ok(Box::new(SmoothQuantModifier::log_equalization(fields)?)),
    },
    ModifierSpec {
        name: NormGainModifier::NAME,
        doc: "Not in llm-compressor. Gives the norm before the output head the gain that it had in the dense model.",
        role: Role::Transform,
        fields: &norm_gain::modifier::FIELDS,
        check: |fields| {
            NormGainModifier::new(fields)?;
            fields.insert("requires_calibration_data".to_owned(), Value::Bool(true));
            Ok(())
        },
        build: |fields| Ok(Box::new(NormGainModifier::new(fields)?)),
    },
];

/// The modifiers of the older form of AWQ, which had a scheme of its own: AWQ, and the quantization that follows it.
///
/// # Errors
/// Fields that neither of the two accepts.
pub fn legacy_awq(fields: &Fields) -> Result<Vec<Box<dyn Modifier>>> {
    let Some((transform, scheme)) = AwqFields::split_legacy(fields) else {
        return Ok(vec![Box::new(AwqModifier::new(fields)?)]);
    };
    QuantizationFields::take(&mut scheme.clone())?.resolve()?;
    Ok(vec![Box::new(AwqModifier::new(&transform)?), Box::new(QuantizationModifier::new(&scheme)?)])
}
