//! The config groups of a run: from a preset, a scheme or a whole config, checked for what needs no data.

use std::{fs, path::Path};

use compressed_tensors::{
    Reader,
    args::{Dynamic, QuantizationArgs, QuantizationStrategy},
    config::QuantizationConfig,
    format::{check_sound, infer_module_format},
    presets::preset,
    scheme::QuantizationScheme,
    target::nearest_names,
};
use indexmap::IndexMap;
use modifiers::observers::{OBSERVERS, find_observer, weight_observer};

use super::options::{ModelFreeOptions, SchemeSource};
use crate::error::{ErrorKind, InContext, Result};

/// What is quantized, and how.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    /// Schemes by group name, each with its format filled in.
    pub(crate) schemes: IndexMap<String, QuantizationScheme>,
    /// The user's ignores, those of the config first.
    pub(crate) ignore: Vec<String>,
    /// For keys and values, where the config has it.
    pub(crate) kv_cache_scheme: Option<QuantizationArgs>,
}

/// Reads a `quantization_config` from a JSON file; a whole `config.json` that holds one will do.
///
/// # Errors
/// `File` where it cannot be read, `Format` where it is no config.
pub fn read_config(path: &Path) -> Result<QuantizationConfig> {
    let text = fs::read_to_string(path).map_err(|source| ErrorKind::File { path: path.to_owned(), source })?;
    let value: serde_json::Value = serde_json::from_str(&text)
        .map_err(|error| ErrorKind::Parse { path: path.to_owned(), reason: error.to_string() })?;
    let section = compressed_tensors::config::locate_section(&value).map_or(&value, |(_, section)| section);
    QuantizationConfig::read(section, Reader::Strict).context(path.display())
}

impl Groups {
    /// The groups that `options` ask for.
    ///
    /// # Errors
    /// `Format` for an unknown preset and for schemes that need data or cannot be stored soundly, `Option` for a
    /// group size that no scheme has.
    pub(crate) fn of(options: &ModelFreeOptions) -> Result<Self> {
        let targets = match &options.targets[..] {
            [] => vec!["Linear".to_owned()],
            targets => targets.to_vec(),
        };
        let mut groups = match &options.scheme {
            SchemeSource::Preset(name) => {
                let scheme = preset(name, targets).context("--scheme")?;
                Self::single(name.to_uppercase(), scheme)
            }
            SchemeSource::Scheme(scheme) => {
                let mut scheme = (**scheme).clone();
                if scheme.targets.is_empty() || !options.targets.is_empty() {
                    scheme.targets = targets;
                }
                Self::single("config_group_0".to_owned(), scheme)
            }
            SchemeSource::Config(config) => Self {
                schemes: config.config_groups.clone(),
                ignore: config.ignore.clone(),
                kv_cache_scheme: config.kv_cache_scheme.clone(),
            },
        };
        groups.ignore.extend(options.ignore.iter().cloned());
        if let Some(columns) = options.group_size {
            groups.set_group_size(columns)?;
        }
        if let Some(observer) = &options.observer {
            check_observer(observer)?;
        }
        for (name, scheme) in &mut groups.schemes {
            prepare(scheme, options).context(format!("config group `{name}`"))?;
        }
        Ok(groups)
    }

    fn single(name: String, scheme: QuantizationScheme) -> Self {
        Self { schemes: IndexMap::from([(name, scheme)]), ignore: Vec::new(), kv_cache_scheme: None }
    }

    fn set_group_size(&mut self, columns: usize) -> Result<()> {
        let refused = |expected: &str| ErrorKind::Option {
            option: "--group-size",
            found: columns.to_string(),
            expected: expected.to_owned(),
        };
        let size = i64::try_from(columns).ok().filter(|it| *it > 0).ok_or_else(|| refused("a positive number"))?;
        let mut n_changed = 0;
        for weights in self.schemes.values_mut().filter_map(|it| it.weights.as_mut()) {
            // Floats in groups have the group size that their format fixes.
            if weights.strategy == QuantizationStrategy::Group && weights.r#type.name() == "int" {
                weights.group_size = Some(size);
                n_changed += 1;
            }
        }
        if n_changed == 0 {
            return Err(refused("a scheme with integer weights in groups, such as W4A16").into());
        }
        Ok(())
    }
}

/// Why an observer that takes importance is refused.
const WITHOUT_DATA: &str =
    "without calibration data, whose inputs weigh its errors (choose memoryless_mse, or use `oneshot`)";

/// Refuses an option that names no observer, or one that needs data.
fn check_observer(name: &str) -> Result<()> {
    let refused = |expected: String| ErrorKind::Option { option: "--observer", found: format!("`{name}`"), expected };
    match find_observer(name) {
        Ok(entry) if entry.needs_inputs() => {
            let expected = OBSERVERS.iter().filter(|it| !it.needs_inputs()).map(|it| it.name).collect::<Vec<_>>();
            Err(refused(format!("an observer that needs no calibration data: {}", expected.join(", "))).into())
        }
        Ok(_) => Ok(()),
        Err(_) => {
            let names = || OBSERVERS.iter().map(|it| it.name);
            let nearest = nearest_names(name, names(), 3);
            let expected = match &nearest[..] {
                [] => format!("one of {}", names().collect::<Vec<_>>().join(", ")),
                nearest => format!("an observer; nearest are {}", nearest.join(", ")),
            };
            Err(refused(expected).into())
        }
    }
}

/// Fills in what the run decides, refuses what it cannot do.
fn prepare(scheme: &mut QuantizationScheme, options: &ModelFreeOptions) -> compressed_tensors::Result<()> {
    use compressed_tensors::ErrorKind::{InvalidField, Unsupported};
    let Some(weights) = scheme.weights.as_mut() else {
        let expected = "arguments; model-free quantization is about weights".to_owned();
        return Err(InvalidField { field: "weights".to_owned(), found: "null".to_owned(), expected }.into());
    };
    if let Some(observer) = &options.observer {
        if weights.observer.as_ref() != Some(observer) {
            // They are those of the observer that is replaced.
            weights.observer_kwargs.clear();
        }
        weights.observer = Some(observer.clone());
    }
    let observer = weight_observer(weights)?.entry;
    if observer.needs_inputs() {
        let what = format!("observer `{}` {WITHOUT_DATA}", observer.name);
        return Err(Unsupported { what }.into());
    }
    for (field, args) in
        [("input_activations", &scheme.input_activations), ("output_activations", &scheme.output_activations)]
    {
        if args.as_ref().is_some_and(|it| it.dynamic != Dynamic::Yes) {
            let what = format!(
                "`{field}` with static scales without calibration data (choose a dynamic scheme such as FP8_DYNAMIC, or use `oneshot`)"
            );
            return Err(Unsupported { what }.into());
        }
    }
    if scheme.targets.is_empty() {
        scheme.targets = vec!["Linear".to_owned()];
    }
    scheme.validate()?;
    let format = scheme.format.unwrap_or_else(|| infer_module_format("Linear", scheme));
    scheme.format = Some(format);
    check_sound(scheme, format)
}
