//! When the last norm is heard and changed.

use compressed_tensors::target::{NamedModule, Patterns};
use lifecycle::{
    Division, Divisors, Event, Fields, Modifier, ModuleStore, Place, Result, Sample, Settings, State, Tap, TapPoint,
    error::Error,
    recipe::{FieldKind, FieldSpec},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::algorithm::{Gain, divide_norm};
use crate::{
    dense::read,
    error::ErrorKind,
    quantization::config::{read_fields, take_settings},
    smoothquant::{
        config::refuse_schedule,
        divisors,
        modifier::{Parameter, norm_of},
    },
};

/// Gives the last norm the gain that it had in the dense model.
#[derive(Debug)]
pub struct NormGainModifier {
    settings: Settings,
    fields: Fields,
    written: Written,
    /// The norm and what reads it, once they are known.
    place: Option<[String; 2]>,
    gain: Option<Gain>,
    divisors: Vec<Divisors>,
    report: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Written {
    norm: Option<String>,
    reader: Option<String>,
}

/// Names of the last norm and of the output head in most models; what has a number around it is in a layer.
const NORMS: &str = r"re:^([a-z_]+\.)*(norm|norm_f|ln_f|final_layernorm|final_layer_norm)$";
const READERS: &str = r"re:^([a-z_]+\.)*(lm_head|embed_out)$";

const fn field(name: &'static str, doc: &'static str) -> FieldSpec {
    FieldSpec { name, kind: FieldKind::Text, default: Some("null"), doc }
}

/// What recipes may say.
pub(crate) const FIELDS: [FieldSpec; 2] = [
    field("norm", "Pattern of the norm whose weight changes, of several the last; the one before the output head."),
    field("reader", "Pattern of the linear that reads it; the output head."),
];

impl NormGainModifier {
    /// The type's name.
    pub const NAME: &'static str = "NormGainModifier";

    /// From all fields of a recipe, defaults written out.
    ///
    /// # Errors
    /// Fields of another kind, and a schedule.
    pub fn new(fields: &Fields) -> crate::Result<Self> {
        let mut own = fields.clone();
        let settings = take_settings(&mut own)?;
        refuse_schedule(&settings)?;
        let written = read_fields(own.clone())?;
        Ok(Self { settings, fields: own, written, place: None, gain: None, divisors: Vec::new(), report: None })
    }

    /// The norm and its reader in a model; none where it has none of the usual names, or where they are to stay as they are.
    ///
    /// # Errors
    /// A pattern of the recipe that matches nothing.
    fn resolve(&self, model: &dyn ModuleStore) -> Result<Option<[String; 2]>> {
        let last = |written: &Option<String>, usual: &str| -> Result<Option<&str>> {
            let text = written.as_deref().unwrap_or(usual);
            let pattern = Patterns::compile(&[text])?;
            let mut found = None;
            for module in model.modules().iter().filter(|it| !it.internal && it.parameters.contains_key("weight")) {
                if pattern.matches_module(NamedModule { name: &module.name, classes: &[] })? {
                    found = Some(module);
                }
            }
            if found.is_none() && written.is_some() {
                let kind =
                    ErrorKind::Mapping { smooth: text.to_owned(), reason: "no module has such a name".to_owned() };
                return Err(crate::Error::from(kind).into());
            }
            Ok(found.filter(|it| !it.frozen).map(|it| it.name.as_str()))
        };
        let (norm, reader) = (last(&self.written.norm, NORMS)?, last(&self.written.reader, READERS)?);
        Ok(norm.zip(reader).map(|(norm, reader)| [norm.to_owned(), reader.to_owned()]))
    }
}

impl Modifier for NormGainModifier {
    fn type_name(&self) -> &str {
        Self::NAME
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn fields(&self) -> Fields {
        self.fields.clone()
    }

    fn needs_data(&self) -> bool {
        true
    }

    fn hears_unchanged(&self) -> bool {
        true
    }

    fn reads(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.resolve(model)?.into_iter().flatten().collect())
    }

    fn writes(&self, model: &dyn ModuleStore) -> Result<Vec<String>> {
        Ok(self.resolve(model)?.into_iter().map(|[norm, _]| norm).collect())
    }

    fn taps(&self, model: &dyn ModuleStore) -> Result<Vec<Tap>> {
        Ok(self.resolve(model)?.into_iter().map(|[_, reader]| Tap::new(reader, TapPoint::Input)).collect())
    }

    fn divisions(&self, model: &dyn ModuleStore) -> Result<Vec<Division>> {
        // Nothing makes up for it: logits are to change.
        Ok(self.writes(model)?.into_iter().map(|module| Division { module, balanced: Vec::new() }).collect())
    }

    fn take_divisors(&mut self) -> Vec<Divisors> {
        std::mem::take(&mut self.divisors)
    }

    fn take_data(&mut self) -> Option<Value> {
        self.report.take()
    }

    fn on_initialize(&mut self, state: &mut State) -> Result<bool> {
        self.place = self.resolve(state.model()?)?;
        Ok(true)
    }

    fn on_tap(&mut self, tap: &Tap, sample: &Sample<'_>) -> Result<()> {
        // Where the dense model does not run beside, nothing is known of it.
        let Some(unchanged) = sample.unchanged else { return Ok(()) };
        let (x, u) = (read(sample.value)?, read(unchanged)?);
        let channels = sample.value.shape().last().copied().unwrap_or(0);
        let gain = self.gain.get_or_insert_with(|| Gain::new(channels));
        Ok(gain.observe(&x, &u).map_err(|e| e.at(&tap.module))?)
    }

    fn on_sequential_epoch_end(&mut self, state: &mut State, _event: &Event, modules: &[String]) -> Result<()> {
        let Some([norm, reader]) = self.place.clone().filter(|it| modules.contains(&it[1])) else { return Ok(()) };
        let Some(gain) = self.gain.take() else { return Ok(()) };
        let at = |error: Error| error.at(Place::Module(norm.clone()));
        let model = state.model_mut()?;
        let mut weight = Parameter::read(model, &norm, "weight")?;
        let Some(kind) = norm_of(model, &norm, &weight)? else {
            let reason = "a matrix, expected the weight of a norm".to_owned();
            return Err(crate::Error::from(ErrorKind::Mapping { smooth: norm, reason }).into());
        };
        let before = weight.values.clone();
        let share = divide_norm(kind, &gain, &mut weight.values).map_err(|e| at(e.into()))?;
        weight.write(model)?;
        let by = divisors(kind, &vec![share as f32; before.len()], &before, &weight.values)?;
        self.divisors = vec![Divisors { module: norm.clone(), by }];
        self.report = Some(json!([{"norm": norm, "reader": reader, "tokens": gain.n_tokens(), "share": share}]));
        Ok(())
    }

    fn on_finalize(&mut self, _state: &mut State) -> Result<bool> {
        if self.gain.is_none() {
            return Ok(true);
        }
        let modules = self.place.iter().flatten().cloned().collect();
        let what = "what a norm gives was gathered and never used";
        Err(crate::Error::from(ErrorKind::Statistics { what, modules }).into())
    }
}
