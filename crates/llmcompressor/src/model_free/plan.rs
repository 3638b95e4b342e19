//! From headers and options to units of work, the config and the part of the report that is known before.

use std::{collections::HashSet, sync::Arc};

use checkpoint::Source;
use compressed_tensors::format::infer_module_format;
use indexmap::IndexMap;
use modifiers::observers::weight_observer;
use serde_json::Value;

use super::{
    compress::CompressModules,
    config,
    fusion::fused_groups,
    groups::Groups,
    options::{ModelFreeOptions, Tolerance},
    remainder::{Remainder, is_void},
    report::{LeftModule, ModelFreeReport, QuantizedModule, RunStatus},
    selection::{Choice, select},
    shapes::check_groups,
};
use crate::{
    catalog::{Catalog, StoredModule},
    error::{ErrorKind, InContext, Result},
    rewrite::{CopyTensor, DensifyModule, SplitTensor, Unit},
    tied::shared_embedding,
};

/// Everything that is decided before the first weight is read.
pub(super) struct Plan {
    pub(super) units: Vec<Box<dyn Unit>>,
    pub(super) config: Vec<u8>,
    pub(super) fingerprints: IndexMap<String, String>,
    pub(super) report: ModelFreeReport,
}

/// Plans a run.
///
/// # Errors
/// All that headers and config can tell: patterns, shapes, schemes.
pub(super) fn plan(source: &Source, options: &ModelFreeOptions) -> Result<Plan> {
    let groups = Groups::of(options)?;
    let mut catalog = Catalog::of(source)?;
    if let Some((_, error)) = std::mem::take(&mut catalog.unreadable).into_iter().next() {
        return Err(error);
    }
    let names: Vec<&str> = catalog.modules.iter().map(|it| it.name.as_str()).collect();
    let selection = select(&names, &groups.schemes, &groups.ignore, options)?;
    let mut warnings = selection.warnings;
    let chosen = |group: usize| -> Vec<&StoredModule> {
        let is_chosen = |choice: &Choice| *choice == Choice::Quantize(group);
        catalog.modules.iter().zip(&selection.choices).filter(|(_, it)| is_chosen(it)).map(|(it, _)| it).collect()
    };
    let is_chosen = |name: &str| {
        names.iter().zip(&selection.choices).any(|(it, choice)| *it == name && matches!(choice, Choice::Quantize(_)))
    };
    if let Some(embedding) = shared_embedding(source, &catalog).filter(|it| is_chosen(&it.name)) {
        let error = ErrorKind::TiedEmbedding { module: embedding.name.clone() };
        match options.unservable {
            Tolerance::Refuse => return Err(error.into()),
            Tolerance::Allow => warnings.push(error.to_string()),
        }
    }
    let mut quantized = Quantized::default();
    let outputs_pool = Arc::default();
    for (idx, (name, scheme)) in groups.schemes.iter().enumerate() {
        let modules = chosen(idx);
        let observer =
            scheme.weights.as_ref().map(weight_observer).transpose().context(format!("config group `{name}`"))?;
        warnings.extend(observer.and_then(|it| it.warning));
        warnings.extend(check_groups(name, scheme, &modules, options.unservable)?);
        let format = scheme.format.unwrap_or_else(|| infer_module_format("Linear", scheme));
        let members = if CompressModules::shares_a_scale(scheme) {
            let names: Vec<&str> = modules.iter().map(|it| it.name.as_str()).collect();
            fused_groups(&names)
        } else {
            (0..modules.len()).map(|it| vec![it]).collect()
        };
        for group in members {
            let group: Vec<&StoredModule> = group.into_iter().map(|it| modules[it]).collect();
            let unit = CompressModules::new(&group, scheme, format, options.non_finite, &outputs_pool)?;
            quantized.add(name, format.name(), &group, unit);
        }
    }
    let left = catalog.modules.iter().zip(&selection.choices).filter_map(|(module, choice)| match choice {
        Choice::Leave(reason) => Some(LeftModule { module: module.name.clone(), reason: reason.text() }),
        Choice::Quantize(_) => None,
    });
    let left: Vec<LeftModule> = left.collect();
    let remainder = Remainder::of(&catalog, &selection.choices)?;
    let ignore = ignore_entries(source, &groups, &catalog, &selection.choices, &remainder)?;
    let transforms = remainder.transforms();
    let members = |group: usize| chosen(group).iter().map(|it| it.name.clone()).collect();
    let config = remainder.join(config::quantization_config(&groups, ignore), members)?;
    let Work { units, n_copied: n_copied_tensors, dropped } =
        in_source_order(source, &catalog, &selection.choices, quantized.units);
    let report = ModelFreeReport {
        status: RunStatus::Done,
        output: options.output.clone(),
        schemes: groups.schemes.iter().map(|(name, it)| (name.clone(), it.to_json())).collect(),
        quantized: quantized.report,
        left,
        n_copied_tensors,
        dropped,
        companions: source
            .companions()
            .iter()
            .filter(|it| it.treatment.is_copied())
            .map(|it| it.name.clone())
            .collect(),
        left_files: source
            .companions()
            .iter()
            .filter(|it| !it.treatment.is_copied())
            .map(|it| it.name.clone())
            .collect(),
        warnings,
        input_bytes: source.tensors().map(checkpoint::TensorEntry::n_bytes).sum(),
        output_bytes: 0,
        n_resumed: 0,
        seconds: 0.0,
        threads: 0,
        fingerprints: Value::Null,
    };
    let config = config::model_config(source, &config, transforms);
    let fingerprints = IndexMap::from([
        ("scheme".to_owned(), fingerprint(&config)),
        ("settings".to_owned(), fingerprint(format!("{:?}", options.non_finite).as_bytes())),
        ("tool".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    Ok(Plan { units, config, fingerprints, report })
}

#[derive(Default)]
struct Quantized {
    units: Vec<CompressModules>,
    report: Vec<QuantizedModule>,
}

impl Quantized {
    fn add(&mut self, scheme: &str, format: &'static str, group: &[&StoredModule], unit: CompressModules) {
        for module in group {
            let matrix = &module.matrix;
            let parameters = (matrix.rows * matrix.cols).max(1);
            self.report.push(QuantizedModule {
                module: module.name.clone(),
                scheme: scheme.to_owned(),
                format,
                shape: [matrix.rows, matrix.cols],
                dtype: matrix.dtype.to_string(),
                bits_per_parameter: unit.output_bytes(&module.name) as f64 * 8.0 / parameters as f64,
            });
        }
        self.units.push(unit);
    }
}

/// The units of a run, in order.
struct Work {
    units: Vec<Box<dyn Unit>>,
    n_copied: usize,
    /// Tensors that nothing of the output needs.
    dropped: Vec<String>,
}

/// The units with those that copy the rest, by the place of their first tensor in the source.
fn in_source_order(source: &Source, catalog: &Catalog, choices: &[Choice], quantized: Vec<CompressModules>) -> Work {
    let position: IndexMap<&str, usize> =
        source.tensors().enumerate().map(|(idx, it)| (it.name.as_str(), idx)).collect();
    let mut replaced: HashSet<String> = quantized.iter().flat_map(CompressModules::replaced_tensors).cloned().collect();
    let mut units: Vec<(usize, Box<dyn Unit>)> = Vec::new();
    for unit in quantized {
        let first = unit.replaced_tensors().filter_map(|it| position.get(it.as_str())).min().copied().unwrap_or(0);
        units.push((first, Box::new(unit)));
    }
    // An expert that is left while others of its tensor are not has to leave that tensor too; and the layouts of
    // other formats have no place in the output.
    let mut densified: Vec<&String> = Vec::new();
    for (module, choice) in catalog.modules.iter().zip(choices) {
        let is_shared = || module.tensors.iter().any(|it| replaced.contains(it));
        if matches!(choice, Choice::Leave(_)) && (module.is_foreign() || is_shared()) {
            densified.extend(&module.tensors);
            let first = module.tensors.first().and_then(|it| position.get(it.as_str())).copied().unwrap_or(0);
            units.push((first, Box::new(DensifyModule::new(module, None))));
        }
    }
    replaced.extend(densified.into_iter().cloned());
    let split = |name: &str| catalog.bias_is_split(name, |fused| replaced.contains(fused));
    let chosen = catalog.modules.iter().zip(choices).filter(|(_, it)| matches!(it, Choice::Quantize(_)));
    let chosen: HashSet<&str> = chosen.map(|(module, _)| module.name.as_str()).collect();
    let (mut n_copied, mut dropped) = (0, Vec::new());
    for (idx, entry) in source.tensors().enumerate().filter(|(_, it)| !replaced.contains(&it.name)) {
        match split(&entry.name) {
            Some(parts) => units.push((idx, Box::new(SplitTensor::new(entry, parts)))),
            None if is_void(&entry.name, catalog, |module| chosen.contains(module)) => dropped.push(entry.name.clone()),
            None => {
                n_copied += 1;
                units.push((idx, Box::new(CopyTensor::new(entry))));
            }
        }
    }
    units.sort_by_key(|it| it.0);
    Work { units: units.into_iter().map(|it| it.1).collect(), n_copied, dropped }
}

/// What the config lists as ignored: entries of the source and of the user as typed, then every matrix left dense, by
/// its exact name.
///
/// Loaders judge by names: a module that a target covers and that is not listed is expected to be compressed.
fn ignore_entries(
    source: &Source,
    groups: &Groups,
    catalog: &Catalog,
    choices: &[Choice],
    remainder: &Remainder<'_>,
) -> Result<Vec<String>> {
    let mut entries = remainder.kept_ignores(catalog, choices)?;
    for entry in remainder.without_own(&groups.ignore)? {
        if !entries.contains(&entry) {
            entries.push(entry);
        }
    }
    let mut known: HashSet<String> = entries.iter().cloned().collect();
    let mut add = |name: &str| {
        if known.insert(name.to_owned()) {
            entries.push(name.to_owned());
        }
    };
    for (module, choice) in catalog.modules.iter().zip(choices) {
        if matches!(choice, Choice::Leave(_)) && !remainder.holds(&module.name) {
            add(&module.name);
        }
    }
    let is_tied = source.config().ok().is_some_and(|it| it.get("tie_word_embeddings") == Some(&Value::Bool(true)));
    if is_tied && catalog.get("lm_head").is_none() {
        add("lm_head");
    }
    let is_left =
        |module: &StoredModule, choice: &Choice| matches!(choice, Choice::Leave(_)) && !remainder.holds(&module.name);
    let mut mtp = catalog.modules.iter().zip(choices).filter(|(it, _)| it.name.starts_with("mtp."));
    if source.tensors().any(|it| it.name.starts_with("mtp.")) && mtp.all(|(it, choice)| is_left(it, choice)) {
        add("re:^mtp.*");
    }
    Ok(entries)
}

fn fingerprint(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}
