//! Every tensor accounted for, and each module as its scheme says; headers and config alone.

use std::collections::{HashMap, HashSet};

use checkpoint::Source;
use compressed_tensors::{
    args::{QuantizationArgs, QuantizationStrategy},
    config::SchemeTable,
    target::NamedModule,
    weight_compressor::WeightCompressor,
};

use super::{FaultKind, Verdict};
use crate::{
    catalog::{Catalog, Method, StoredModule, StoredScheme},
    error::{InContext, Result},
    model_free::DEFAULT_IGNORE,
    tied::shared_embedding,
};

/// Local names that only compressed modules, or modules with quantized activations, have.
const QUANTIZATION_SUFFIXES: &[&str] = &["_scale", "_zero_point", "_packed", "_global_scale", "_g_idx"];

pub(super) fn check(output: &Source, catalog: &Catalog, verdict: &mut Verdict) -> Result<()> {
    let Method::CompressedTensors(config) = &catalog.method else {
        verdict.warnings.push("config.json has no quantization_config of compressed-tensors".to_owned());
        check_orphans(output, catalog, verdict);
        return Ok(());
    };
    for (name, error) in &catalog.unreadable {
        verdict.fault(FaultKind::Unreadable, name.clone(), error.to_string());
    }
    let compressed: Vec<(&StoredModule, &StoredScheme)> =
        catalog.modules.iter().filter_map(|it| Some((it, it.scheme.as_ref()?))).collect();
    verdict.n_compressed = compressed.len();
    // A group without weights is one of attention or of activations alone.
    let has_weights =
        config.quantization.iter().flat_map(|it| it.config_groups.values()).any(|it| it.weights.is_some());
    if compressed.is_empty() && has_weights {
        verdict.fault(FaultKind::NotCompressed, "config.json", "it has config groups, and no module is compressed");
    }
    for (module, scheme) in &compressed {
        check_layout(output, module, scheme, verdict);
        check_servable(module, scheme, verdict);
    }
    if let Some(quantization) = &config.quantization {
        let table = SchemeTable::new(quantization).context("quantization_config")?;
        check_targets(&table, catalog, verdict)?;
    }
    check_head(output, catalog, verdict);
    check_orphans(output, catalog, verdict);
    Ok(())
}

/// An output head that would be taken from codes.
fn check_head(output: &Source, catalog: &Catalog, verdict: &mut Verdict) {
    if let Some(embedding) = shared_embedding(output, catalog).filter(|it| it.scheme.is_some()) {
        let text = "it is compressed, and the output head has no weight of its own: no engine can tie them".to_owned();
        verdict.fault(FaultKind::Unservable, embedding.name.clone(), text);
    }
}

/// Modules that a group covers and that are stored densely.
fn check_targets(table: &SchemeTable<'_>, catalog: &Catalog, verdict: &mut Verdict) -> Result<()> {
    for module in catalog.modules.iter().filter(|it| it.scheme.is_none()) {
        let linear = NamedModule { name: &module.name, classes: &["Linear"] };
        let Some(assignment) = table.assign(linear).context("quantization_config")? else { continue };
        // A name tells no class: what an engine builds as an embedding or a norm is no `Linear` for it.
        let by_class = assignment.target == "Linear";
        if assignment.scheme.weights.is_none() || by_class && is_no_linear(&module.name)? {
            continue;
        }
        // A tensor may lie deeper than the module that a loader knows: `router.layer.weight` is the router's.
        let parent = module.name.rsplit_once('.').map_or("", |it| it.0);
        if table.ignore().matches_module(NamedModule { name: parent, classes: &[] }).context("ignore")? {
            continue;
        }
        let text = format!(
            "config group `{}` covers it by `{}`, and its weight is dense",
            assignment.group, assignment.target
        );
        verdict.fault(FaultKind::NotCompressed, module.name.clone(), text);
    }
    Ok(())
}

fn is_no_linear(name: &str) -> Result<bool> {
    for rule in DEFAULT_IGNORE.iter().filter(|it| matches!(it.reason, "embedding" | "norm")) {
        if compressed_tensors::target::match_name(name, rule.pattern).context("default ignores")? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Shapes and dtypes against those that the scheme gives.
fn check_layout(output: &Source, module: &StoredModule, scheme: &StoredScheme, verdict: &mut Verdict) {
    let matrix = &module.matrix;
    let planned = WeightCompressor::new(&scheme.scheme, scheme.format, matrix.dtype, matrix.rows, matrix.cols);
    let planned = match planned {
        Ok(it) => it,
        Err(error) => return verdict.fault(FaultKind::Layout, module.name.clone(), error.to_string()),
    };
    for spec in planned.outputs() {
        let name = format!("{}.{}", module.name, spec.name);
        match output.get(&name) {
            None => verdict.fault(FaultKind::Layout, name, "it is missing"),
            Some(found) if found.dtype != spec.dtype || !is_same_shape(&found.shape, &spec.shape) => {
                let text = format!(
                    "it is {} {:?}, the scheme gives {} {:?}",
                    found.dtype, found.shape, spec.dtype, spec.shape
                );
                verdict.fault(FaultKind::Layout, name, text);
            }
            Some(_) => {}
        }
    }
}

/// Equal, or a single number with and without a dimension: what other tools write as a scalar stays one in conversion.
fn is_same_shape(found: &[usize], planned: &[usize]) -> bool {
    found == planned || found.is_empty() && planned == [1]
}

/// Activation groups that do not divide the inputs.
fn check_servable(module: &StoredModule, scheme: &StoredScheme, verdict: &mut Verdict) {
    let group = |it: &QuantizationArgs| match it.strategy {
        QuantizationStrategy::Group | QuantizationStrategy::TensorGroup => usize::try_from(it.group_size?).ok(),
        _ => None,
    };
    let Some(size) = scheme.scheme.input_activations.as_ref().and_then(group).filter(|it| *it > 0) else { return };
    if !module.matrix.cols.is_multiple_of(size) {
        let text = format!(
            "activation groups of {size} do not divide its {} inputs: no engine can run it",
            module.matrix.cols
        );
        verdict.fault(FaultKind::Unservable, module.name.clone(), text);
    }
}

/// Scales and codes beside which there is no weight.
fn check_orphans(output: &Source, catalog: &Catalog, verdict: &mut Verdict) {
    let owned: HashSet<&str> = catalog.modules.iter().flat_map(|it| &it.tensors).map(String::as_str).collect();
    let unreadable: HashSet<&str> = catalog.unreadable.iter().map(|it| it.0.as_str()).collect();
    let mut children: HashMap<&str, usize> = HashMap::new();
    for module in &catalog.modules {
        if let Some((parent, _)) = module.name.rsplit_once('.') {
            *children.entry(parent).or_default() += 1;
        }
    }
    for entry in output.tensors().filter(|it| !owned.contains(it.name.as_str())) {
        let Some((module, local)) = entry.name.rsplit_once('.') else { continue };
        if !QUANTIZATION_SUFFIXES.iter().any(|it| local.ends_with(it)) || unreadable.contains(module) {
            continue;
        }
        // Scales of activations stand beside a weight, those of a cache beside the projections of attention.
        let belongs = match local.starts_with("weight") {
            true => false,
            false => catalog.get(module).is_some_and(|it| it.scheme.is_some()) || children.contains_key(module),
        };
        if !belongs {
            verdict.fault(FaultKind::Orphan, entry.name.clone(), "it belongs to no compressed module");
        }
    }
}
