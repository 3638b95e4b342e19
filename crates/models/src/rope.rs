//! Inverse frequencies of rotary position embedding, with the rescalings of long-context models.

use std::sync::Arc;

use tensor::elementary::ln_f64;
use tensor::{LongFrequencies, Longer, inverse_frequencies};

use crate::config::Config;
use crate::error::{Error, Result};

/// Inverse frequencies (F) and the factor on cosine and sine.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frequencies {
    pub(crate) inverse: Arc<[f32]>,
    pub(crate) scaling: f32,
    /// Those of rows longer than the context that the model was first trained on.
    pub(crate) longer: Option<Longer>,
}

/// The rope part of a config: `rope_parameters`, or `rope_theta` and `rope_scaling` in transformers 4.
struct Scaling<'a> {
    config: Config<'a>,
    part: Option<Config<'a>>,
    key: &'static str,
}

/// The factor on scores that YaRN asks for with `mscale_all_dim`, where a model squares it (DeepSeek).
pub(crate) fn latent_score_factor(config: &Config<'_>) -> Result<f64> {
    let Some(part) = config.part("rope_parameters").or(config.part("rope_scaling")) else { return Ok(1.0) };
    let all = part.number_or("mscale_all_dim", 0.0)?;
    let is_scaled = part.text("rope_type")?.or(part.text("type")?).is_some_and(|kind| kind != "default");
    let factor = part.number_or("factor", 1.0)?;
    if !is_scaled || all == 0.0 || factor <= 1.0 {
        return Ok(1.0);
    }
    let magnitude = 0.1 * all * ln_f64(factor) + 1.0;
    Ok(magnitude * magnitude)
}

impl Frequencies {
    /// The frequencies for heads of which `rotary_dim` channels turn; `default_theta` where the config names none.
    pub(crate) fn from_config(config: &Config<'_>, rotary_dim: usize, default_theta: f64) -> Result<Self> {
        let scaling = match config.part("rope_parameters") {
            Some(part) => Scaling { config: *config, part: Some(part), key: "rope_parameters" },
            None => Scaling { config: *config, part: config.part("rope_scaling"), key: "rope_scaling" },
        };
        scaling.frequencies(rotary_dim, default_theta)
    }

    /// Frequencies of full layers, then those of layers with a window: parts of `rope_parameters` by layer type, or the one
    /// scaling of transformers 4 for full layers and none for the others. `theta`: the defaults of both.
    pub(crate) fn by_layer_type(config: &Config<'_>, rotary_dim: usize, theta: [f64; 2]) -> Result<Vec<Self>> {
        let parts = config.part("rope_parameters");
        let [full, sliding] =
            ["full_attention", "sliding_attention"].map(|kind| parts.and_then(|parts| parts.part(kind)));
        if let (Some(full), Some(sliding)) = (full, sliding) {
            let of = |part, theta| {
                let scaling = Scaling { config: *config, part: Some(part), key: "rope_parameters" };
                scaling.frequencies(rotary_dim, theta)
            };
            return Ok(vec![of(full, theta[0])?, of(sliding, theta[1])?]);
        }
        let plain = Self::of(inverse_frequencies(theta[1], rotary_dim), 1.0);
        Ok(vec![Self::from_config(config, rotary_dim, theta[0])?, plain])
    }

    fn of(inverse: Vec<f32>, scaling: f32) -> Self {
        Self { inverse: inverse.into(), scaling, longer: None }
    }
}

impl Scaling<'_> {
    fn frequencies(&self, rotary_dim: usize, default_theta: f64) -> Result<Frequencies> {
        let theta = match self.part.map(|part| part.number("rope_theta")).transpose()?.flatten() {
            Some(theta) => theta,
            None => self.config.number_or("rope_theta", default_theta)?,
        };
        let plain = inverse_frequencies(theta, rotary_dim);
        let kind = match self.part {
            None => None,
            Some(part) => part.text("rope_type")?.or(part.text("type")?),
        };
        match kind.unwrap_or("default") {
            "default" => Ok(Frequencies::of(plain, 1.0)),
            "linear" => {
                let factor = self.number("factor")? as f32;
                Ok(Frequencies::of(plain.into_iter().map(|f| f / factor).collect(), 1.0))
            }
            "llama3" => self.llama3(plain).map(|inverse| Frequencies::of(inverse, 1.0)),
            "yarn" if self.part.is_some_and(|part| part.get("short_factor").is_some()) => self.longrope(&plain),
            "yarn" => self.yarn(&plain, theta, rotary_dim),
            "dynamic" => self.dynamic(plain, theta),
            "longrope" | "su" => self.longrope(&plain),
            found => Err(Error::config(found, "default, linear, dynamic, llama3, yarn or longrope")
                .at(format_args!("config.json: {}", self.key))),
        }
    }

    fn number(&self, key: &str) -> Result<f64> {
        let found = self.part.map(|part| part.number(key)).transpose()?.flatten();
        found.ok_or_else(|| Error::config("nothing", "a number").at(format_args!("config.json: {}.{key}", self.key)))
    }

    fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.part.map(|part| part.number(key)).transpose()?.flatten().unwrap_or(default))
    }

    /// Tokens of the context that the model was first trained on.
    fn original_context(&self) -> Result<f64> {
        let key = "original_max_position_embeddings";
        match self.part.map(|part| part.number(key)).transpose()?.flatten() {
            Some(tokens) => Ok(tokens),
            None => self.config.number_or(key, self.config.number_or("max_position_embeddings", 2048.0)?),
        }
    }

    /// The base grows with the row once it is longer than the model's context.
    fn dynamic(&self, plain: Vec<f32>, theta: f64) -> Result<Frequencies> {
        let factor = self.number("factor")?;
        let after = self.config.size_or("max_position_embeddings", 2048)?;
        let longer = Longer { after, frequencies: LongFrequencies::Grown { theta, factor } };
        Ok(Frequencies { longer: Some(longer), ..Frequencies::of(plain, 1.0) })
    }

    /// Each channel is slowed by a factor of its own, another in rows beyond the original context (LongRoPE).
    fn longrope(&self, plain: &[f32]) -> Result<Frequencies> {
        let after = self.original_context()?;
        let slowed = |key: &str| -> Result<Arc<[f32]>> {
            let factors = self.part.map(|part| part.numbers(key)).transpose()?.unwrap_or_default();
            if factors.len() != plain.len() {
                let error = Error::config(format_args!("{} numbers", factors.len()), plain.len().to_string());
                return Err(error.at(format_args!("config.json: {}.{key}", self.key)));
            }
            Ok(plain.iter().zip(factors).map(|(frequency, factor)| frequency / factor as f32).collect())
        };
        let reached = self.config.number_or("max_position_embeddings", after)?;
        let factor = self.number_or("factor", reached / after)?;
        let implied = if factor <= 1.0 { 1.0 } else { (1.0 + ln_f64(factor) / ln_f64(after)).sqrt() };
        let scaling = self.number_or("attention_factor", implied)? as f32;
        let longer = Longer { after: after as usize, frequencies: LongFrequencies::Given(slowed("long_factor")?) };
        Ok(Frequencies { inverse: slowed("short_factor")?, scaling, longer: Some(longer) })
    }

    /// Long wavelengths are slowed by `factor`, short ones are left alone, those between are blended.
    fn llama3(&self, plain: Vec<f32>) -> Result<Vec<f32>> {
        let factor = self.number("factor")? as f32;
        let (low, high) = (self.number("low_freq_factor")? as f32, self.number("high_freq_factor")? as f32);
        let context = self.original_context()? as f32;
        let rescale = |frequency: f32| {
            let wavelength = 2.0 * std::f32::consts::PI / frequency;
            let slowed = if wavelength > context / low { frequency / factor } else { frequency };
            if wavelength < context / high || wavelength > context / low {
                return slowed;
            }
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 - smooth) * slowed / factor + smooth * slowed
        };
        Ok(plain.into_iter().map(rescale).collect())
    }

    /// Frequencies between slowed and plain by how often a channel turns within the original context (YaRN).
    fn yarn(&self, plain: &[f32], theta: f64, rotary_dim: usize) -> Result<Frequencies> {
        let factor = self.number("factor")?;
        let context = self.original_context()?;
        let (fast, slow) = (self.number_or("beta_fast", 32.0)?, self.number_or("beta_slow", 1.0)?);
        let magnitude = |scale: f64, weight: f64| if scale <= 1.0 { 1.0 } else { 0.1 * weight * ln_f64(scale) + 1.0 };
        let (mscale, all) = (self.number_or("mscale", 0.0)?, self.number_or("mscale_all_dim", 0.0)?);
        let implied = if mscale != 0.0 && all != 0.0 {
            magnitude(factor, mscale) / magnitude(factor, all)
        } else {
            magnitude(factor, 1.0)
        };
        let scaling = self.number_or("attention_factor", implied)? as f32;
        let turns = |turns: f64| {
            rotary_dim as f64 * ln_f64(context / (turns * 2.0 * std::f64::consts::PI)) / (2.0 * ln_f64(theta))
        };
        let is_truncated = self.part.map(|part| part.flag_or("truncate", crate::config::Flag::On)).transpose()?;
        let (mut low, mut high) = (turns(fast), turns(slow));
        if is_truncated.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0), high.min(rotary_dim as f64 - 1.0));
        if low == high {
            high += 0.001;
        }
        let blend = |(idx, &frequency): (usize, &f32)| {
            let ramp = ((idx as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
            let kept = 1.0 - ramp;
            frequency / factor as f32 * (1.0 - kept) + frequency * kept
        };
        Ok(Frequencies::of(plain.iter().enumerate().map(blend).collect(), scaling))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(config: serde_json::Value) -> Result<Frequencies> {
        Frequencies::from_config(&Config::new(&config), 8, 10_000.0)
    }

    #[test]
    fn transformers_4_and_5_say_the_same() {
        let new = json!({"rope_parameters": {"rope_theta": 500.0, "rope_type": "linear", "factor": 4.0}});
        let old = json!({"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 4.0}});
        assert_eq!(read(new).unwrap(), read(old).unwrap());
        assert_eq!(read(json!({})).unwrap(), read(json!({"rope_theta": 10000.0, "rope_scaling": null})).unwrap());
    }

    #[test]
    fn an_unknown_scaling_is_refused_by_name() {
        let error = read(json!({"rope_scaling": {"rope_type": "spiral"}})).unwrap_err();
        assert_eq!(
            error.to_string(),
            "found spiral, expected default, linear, dynamic, llama3, yarn or longrope (in `config.json: rope_scaling`)"
        );
        let error = read(json!({"rope_scaling": {"rope_type": "linear"}})).unwrap_err();
        assert_eq!(error.place(), Some("config.json: rope_scaling.factor"));
    }
}
