//! Compresses a model by a recipe: calibration data runs through it, modifiers change it, finished modules are written.

mod best;
mod commit;
mod data;
mod ending;
mod finished;
mod memory;
mod metrics;
mod options;
mod overlay;
mod page;
mod pipeline;
mod plan;
mod report;
mod scope;
mod target;

use std::{collections::HashMap, sync::Arc, time::Instant};

use checkpoint::{Finish, Generated, IndexRule, Opened, OutputPlan, Source, TensorSpec, Treatment, UnitCommit, Writer};
use compressed_tensors::config::{FORMAT_VERSION, write_section};
use indexmap::{IndexMap, IndexSet};
use kernels::Profile;
use lifecycle::{CompressionLifecycle, InitializeArgs, RecipeInput, Registry, StateUpdate, recipe::Role};
use models::{Model, ModelOptions, ParameterId, Tied, Weights};
use modifiers::MODIFIERS;
use pipelines::{ModelStore, choice::PipelineKind};
use serde_json::Value;
use tensor::{DType, Engine};

pub use ending::write_page;
pub use modifiers::quantization::{Distance, ModuleRecord};
pub use options::{ExpertCalibration, FinalCheck, OneshotOptions, Partition, RecipeSource, Scope};
pub use report::{Inputs, ModuleReport, OneshotReport, ScopeReport, Verification};

use crate::{
    Counted, ExitCode, Progress, ceiling,
    error::{Error, ErrorKind, Result},
    model_config::{remove_section, set_section, untie},
    model_free::{RunStatus, Tolerance},
    slabs::Budget,
    source::open_source,
};
use best::{best_recipe, gains_by_data};
use commit::OutputCommitter;
use overlay::Overlay;
use pipeline::Run;
use plan::{Copied, Heads, Origin, Plan, PlannedModule, plan};
use report::{module_warnings, peak_resident_bytes, scheme_text};
use scope::Selection;

/// Bytes that are copied at once.
const COPY_BYTES: usize = 8 << 20;

/// Compresses `options.model` into `options.output` by a recipe.
///
/// An interrupted run is resumed by the same call and ends in the same bytes, which depend on the source, the recipe, the data,
/// the type and the instruction set that compute, and the partition alone.
///
/// # Errors
/// Everything that headers, recipe and data can tell is refused before anything is written; see [`crate::ErrorKind`].
pub fn oneshot(options: &OneshotOptions, progress: &dyn Progress) -> Result<OneshotReport> {
    let begin = Instant::now();
    let source = Arc::new(open_source(&options.model)?);
    refuse_compressed(&source)?;
    let (mut overlay, mut model) = build(&source, Arc::<Source>::clone(&source), options)?;
    let selection = Selection::of(options, &source, &model)?;
    if let Some(weights) = selection.weights(&source, &model) {
        (overlay, model) = build(&source, weights, options)?;
    }
    let mut engine = Engine::new(ceiling::budget(options.max_memory_bytes));
    if let Some(isa) = options.profile {
        engine.profile = Profile::new(isa).map_err(ErrorKind::Profile)?;
    }
    let mut store = ModelStore::new(Arc::clone(&model), engine.clone())?;
    if let Some(chosen) = &selection.chosen {
        store.freeze(|it| !chosen.contains(it));
    }
    let mut lifecycle = CompressionLifecycle::new(Registry::new(MODIFIERS));
    let state = StateUpdate { model: Some(Box::new(store)), start: Some(-1.0), ..StateUpdate::default() };
    let recipe = Some(recipe(options, &model, progress)?);
    lifecycle.initialize(InitializeArgs { recipe, state, ..InitializeArgs::default() })?;
    lifecycle.state.min_expert_tokens = options.expert_calibration().min_tokens();
    let (pipeline, overruled) = pipeline::choose(options, &lifecycle)?;
    let dtype = model.store().dtype();
    let plan = plan(&source, &model, &lifecycle, &selection, options.max_shard_bytes)?;
    if plan.modules.is_empty() {
        let which = if selection.chosen.is_some() { "a chosen module" } else { "a module" };
        return Err(ErrorKind::NothingToDo { reason: format!("no modifier of the recipe writes to {which}") }.into());
    }
    selection.check_fused(&model, &plan.schemes)?;
    let reads_data = pipeline::reads_data(pipeline, &lifecycle);
    let data = reads_data.then(|| data::load(&options.data, source.dir(), &model, &engine)).transpose()?;
    lifecycle.state.loss_masks = data.as_ref().and_then(|it| it.loss_masks.clone());
    if reads_data {
        lifecycle.check()?;
    }
    let mut warnings = source.warnings().to_vec();
    warnings.extend(overruled);
    if let Some(data) = &data {
        warnings.extend(data.notes.iter().cloned());
    } else if options.data.is_dataset_provided() {
        warnings.push("no modifier of the recipe needs data; none was read".to_owned());
    }
    warnings.iter().for_each(|it| progress.warn(it));
    let mut fingerprints = IndexMap::from([
        ("source".to_owned(), source.fingerprint().to_owned()),
        ("recipe".to_owned(), recipe_hash(&lifecycle)),
        ("data".to_owned(), data.as_ref().map_or_else(String::new, |it| it.fingerprint.clone())),
        ("settings".to_owned(), settings(options, dtype, pipeline)),
        ("numerics profile".to_owned(), engine.profile.isa().name().to_owned()),
        ("tool".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    fingerprints.extend(selection.fingerprints(options));
    let run = Run::new(pipeline, options, &model, &engine);
    let needs = run.needs(&mut lifecycle, data.as_ref())?;
    memory::check(options, &needs)?;
    metrics::check(options)?;
    let opened = Writer::open_or_resume(&OutputPlan {
        dir: options.output.clone(),
        shards: plan.shards.clone(),
        fingerprints,
        inputs: selection.finished.iter().flat_map(|it| it.source().paths()).chain(source.paths()).collect(),
        existing: options.existing,
        extra_bytes: 0,
    })?;
    let threads = threads(options.threads);
    let mut report = OneshotReport {
        status: RunStatus::Done,
        output: options.output.clone(),
        inputs: Inputs {
            model: options.model.clone(),
            shards: source.shards().iter().map(|it| (it.file_name.clone(), it.file_bytes)).collect(),
            source_hash: source.fingerprint().to_owned(),
            data: data.as_ref().and_then(|_| options.data.dataset.clone()),
            data_hash: data.as_ref().map(|it| it.fingerprint.clone()),
            recipe_hash: recipe_hash(&lifecycle),
            recipe: lifecycle.recipe.yaml(),
        },
        modifiers: lifecycle.modifiers().iter().map(|it| it.modifier().type_name().to_owned()).collect(),
        pipeline: pipeline.name().to_owned(),
        partition: pipeline::partition(pipeline, options).name().to_owned(),
        dtype: dtype.to_string(),
        n_samples: data.as_ref().map_or(0, |it| it.n_samples),
        n_tokens: data.as_ref().map_or(0, |it| it.n_tokens),
        experts: options.expert_calibration().text(),
        scope: scope_report(options, &selection, &plan),
        modules: Vec::new(),
        rewritten: plan.modules.values().flat_map(|it| &it.dense).map(|it| it.name.clone()).collect(),
        renamed: plan.renamed.clone(),
        transformed: transformed(&lifecycle, &model)?,
        said: Vec::new(),
        n_copied_tensors: plan.copied.len(),
        warnings,
        input_bytes: source.tensors().map(|it| it.n_bytes()).sum(),
        output_bytes: plan.shards.iter().flat_map(|it| &it.tensors).filter_map(TensorSpec::n_bytes).sum(),
        n_resumed: 0,
        n_passes: 0,
        phases: IndexMap::new(),
        seconds: 0.0,
        peak_bytes: 0,
        peak_resident_bytes: None,
        threads,
        verification: None,
        fingerprints: Value::Null,
    };
    let Opened::Work(writer) = opened else {
        // The report that is there knows what became of the modules.
        let mut report = OneshotReport::of(&options.output)?;
        ending::verify_once(&mut report, options, progress)?;
        return Ok(OneshotReport { status: RunStatus::AlreadyDone, ..report });
    };
    for unit in &writer.resumed().damaged {
        progress.warn(&format!("`{unit}` was damaged since it was written; it is done again"));
    }
    report.n_resumed = writer.resumed().done.len();
    lifecycle.state.loggers = metrics::loggers(options)?;
    report.phases.insert("setup".to_owned(), begin.elapsed().as_secs_f64());
    let pool = Budget { threads, slab_bytes: 0 }.thread_pool()?;
    progress.begin("compressing", plan.modules.values().map(PlannedModule::input_bytes).sum(), Counted::Bytes);
    let outcome = pool.install(|| {
        let mut committer = OutputCommitter::new(&plan.modules, &overlay, &writer, progress, &options.interrupt);
        let spill = memory::spill(options, &needs, &writer)?;
        let times = run.execute(&mut lifecycle, data, spill, &mut committer)?;
        lifecycle.finalize()?;
        Ok((times, committer.told))
    });
    progress.end();
    let (times, told) = match outcome {
        Ok(it) => it,
        Err(error) => return Err(give_up(error, *writer)),
    };
    report.n_passes = times.passes;
    report.phases.extend(times.by_name().map(|(name, seconds)| (name.to_owned(), seconds)));
    report.modules = module_reports(&plan, &lifecycle, &told.records);
    report.said = told.said;
    if let Some((finished, chosen)) = selection.redone() {
        finished.complete(&mut report, chosen, lifecycle.state.model()?);
    }
    for warning in module_warnings(&report.modules) {
        progress.warn(&warning);
        report.warnings.push(warning);
    }
    let copying = Instant::now();
    let parts = |id| {
        let part = model.store().original(&engine, id)?;
        Ok(part.as_bytes().map_err(models::Error::from)?.to_vec())
    };
    copy((&source, &selection), &plan, &writer, options, parts)?;
    report.phases.insert("copy".to_owned(), copying.elapsed().as_secs_f64());
    source.check_unchanged()?;
    if let Some(finished) = &selection.finished {
        finished.source().check_unchanged()?;
    }
    report.seconds = begin.elapsed().as_secs_f64();
    report.peak_bytes = engine.budget.peak_bytes();
    report.peak_resident_bytes = peak_resident_bytes();
    report.fingerprints = writer.fingerprint_record();
    let recipe = recipe_text(&source, &selection, &lifecycle)?;
    writer.finish(&Finish {
        companions: source
            .companions()
            .iter()
            .filter(|it| options.remote_code == Tolerance::Allow || it.treatment != Treatment::CopyCode)
            .cloned()
            .collect(),
        generated: vec![
            Generated { name: "recipe.yaml".to_owned(), bytes: recipe.into_bytes() },
            Generated { name: "report.json".to_owned(), bytes: report.json() },
            Generated { name: "report.html".to_owned(), bytes: page::render(&report)?.into_bytes() },
        ],
        index: IndexRule::WhenSharded,
        config: Some(model_config(&source, &plan)),
    })?;
    ending::verify_once(&mut report, options, progress)?;
    Ok(report)
}

/// The model of a source over weights, and what keeps changes of them.
fn build(source: &Source, weights: Arc<dyn Weights>, options: &OneshotOptions) -> Result<(Arc<Overlay>, Arc<Model>)> {
    let overlay = Arc::new(Overlay::new(weights));
    let weights: Arc<dyn Weights> = Arc::<Overlay>::clone(&overlay);
    let build = ModelOptions { dtype: options.compute.dtype(), tied: Tied::Separate };
    Ok((overlay, Arc::new(Model::build(source.config()?, weights, build)?)))
}

fn scope_report(options: &OneshotOptions, selection: &Selection, plan: &Plan) -> Option<ScopeReport> {
    let (Scope::Only { patterns } | Scope::Redo { patterns, .. }) = &options.scope else { return None };
    let finished = selection.finished.as_ref();
    Some(ScopeReport {
        patterns: patterns.clone(),
        compressed: plan.modules.values().filter(|it| it.weight.is_some()).map(|it| it.name.clone()).collect(),
        from: finished.map(|it| it.dir().to_owned()),
        from_hash: finished.map(|it| it.source().fingerprint().to_owned()),
        n_kept: selection.redone().map_or(0, |(finished, chosen)| finished.n_kept(chosen)),
    })
}

fn recipe(options: &OneshotOptions, model: &Model, progress: &dyn Progress) -> Result<RecipeInput> {
    Ok(match &options.recipe {
        RecipeSource::File(path) => {
            std::fs::metadata(path).map_err(|source| ErrorKind::File { path: path.clone(), source })?;
            RecipeInput::File(path.clone())
        }
        RecipeSource::Text(text) => RecipeInput::Text(text.clone()),
        RecipeSource::Scheme(name) => {
            let has_data = options.data.is_dataset_provided();
            if !has_data && gains_by_data(name) {
                progress.warn("without --data weights are rounded to nearest, with it GPTQ would lose less");
            }
            RecipeInput::Text(best_recipe(name, model.tree().class(model.tree().root()), has_data, options.partition))
        }
    })
}

/// A source that is compressed has to be made dense first.
fn refuse_compressed(source: &Source) -> Result<()> {
    if compressed_tensors::config::locate_section(source.config()?).is_none() {
        return Ok(());
    }
    let found = "compressed already".to_owned();
    let expected = "a dense checkpoint (`llmcompressor convert` makes it one)".to_owned();
    Err(ErrorKind::Option { option: "MODEL", found, expected }.into())
}

/// What decides the bytes beside source, recipe and data.
fn settings(options: &OneshotOptions, dtype: DType, pipeline: PipelineKind) -> String {
    let (partition, experts) = (pipeline::partition(pipeline, options).name(), options.expert_calibration().text());
    format!("dtype {dtype}, partition {partition}, pipeline {}, experts {experts}", pipeline.name())
}

/// Every module whose weight is compressed, with what modifiers told of it.
fn module_reports(
    plan: &Plan,
    lifecycle: &CompressionLifecycle,
    records: &HashMap<String, ModuleRecord>,
) -> Vec<ModuleReport> {
    let one = |it: &PlannedModule| {
        let weight = it.weight.as_ref()?;
        let unknown = || ModuleRecord { module: it.name.clone(), ..ModuleRecord::default() };
        Some(ModuleReport {
            record: records.get(&it.name).cloned().unwrap_or_else(unknown),
            scheme: lifecycle.state.schemes.get(&it.name).map(scheme_text).unwrap_or_default(),
            format: weight.format.name().to_owned(),
            shape: [weight.rows, weight.cols],
            input_bytes: weight.dense_bytes(),
            output_bytes: weight.outputs().chain(it.scales.iter().cloned()).filter_map(|it| it.n_bytes()).sum(),
        })
    };
    plan.modules.values().filter_map(one).collect()
}

fn recipe_hash(lifecycle: &CompressionLifecycle) -> String {
    blake3::hash(lifecycle.recipe.yaml().as_bytes()).to_hex().to_string()
}

/// Modules that something else than a quantizer writes to, so that they are no approximation of the source's.
fn transformed(lifecycle: &CompressionLifecycle, model: &Model) -> Result<Vec<String>> {
    let store = lifecycle.state.model()?;
    let mut names = IndexSet::new();
    for modifier in lifecycle.modifiers().iter().map(|it| it.modifier()) {
        let spec = lifecycle.registry().get(modifier.type_name());
        if spec.is_none_or(|it| it.role != Role::Quantizer) {
            names.extend(modifier.writes(store)?);
        }
    }
    let written = |name: &String| model.tree().find(name).map_or_else(|| name.clone(), |id| model.written_name(id));
    Ok(names.iter().map(written).collect())
}

/// Copies what no modifier writes.
fn copy(
    (source, selection): (&Source, &Selection),
    plan: &Plan,
    writer: &Writer,
    options: &OneshotOptions,
    bytes_of: impl Fn(ParameterId) -> Result<Vec<u8>>,
) -> Result<()> {
    let done: std::collections::HashSet<&str> = writer.resumed().done.iter().map(|it| it.name.as_str()).collect();
    let mut buffer = Vec::new();
    let mut units = Vec::new();
    for Copied { spec, entry, part, origin } in plan.copied.iter().filter(|it| !done.contains(it.spec.name.as_str())) {
        let name = &spec.name;
        let from = match (origin, &selection.finished) {
            (Origin::Finished, Some(finished)) => finished.source(),
            _ => source,
        };
        let whole = part.map(&bytes_of).transpose()?;
        let n_bytes = whole.as_ref().map_or(entry.n_bytes(), |it| it.len() as u64);
        let mut at = 0;
        while at < n_bytes {
            if let Some(signal) = options.interrupt.signal() {
                return Err(ErrorKind::Interrupted { signal }.into());
            }
            let len = (n_bytes - at).min(COPY_BYTES as u64) as usize;
            let bytes = match &whole {
                Some(whole) => &whole[at as usize..at as usize + len],
                None => {
                    buffer.resize(len, 0);
                    from.read_into(entry, at, &mut buffer)?;
                    &buffer
                }
            };
            writer.write_at(name, at, bytes)?;
            at += len as u64;
        }
        let (name, tensors) = (name.clone(), vec![name.clone()]);
        units.push(UnitCommit { name, tensors, ..UnitCommit::default() });
    }
    Ok(writer.commit(&units)?)
}

/// The recipe behind the one that the source was made by, or the output of which something is left.
fn recipe_text(source: &Source, selection: &Selection, lifecycle: &CompressionLifecycle) -> Result<String> {
    let left = selection.redone().filter(|(finished, chosen)| finished.n_kept(chosen) > 0);
    let path = left.map_or(source, |it| it.0.source()).dir().join("recipe.yaml");
    match std::fs::read_to_string(&path) {
        // What is done again by the recipe that it was done by follows from that alone.
        Ok(existing) if left.is_some() && existing == lifecycle.recipe.yaml() => Ok(existing),
        Ok(existing) => Ok(lifecycle.recipe.yaml_behind(&existing)?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(lifecycle.recipe.yaml()),
        Err(source) => Err(ErrorKind::File { path, source }.into()),
    }
}

/// The source's config with a section for what was quantized; everything else keeps its place and value.
fn model_config(source: &Source, plan: &Plan) -> Vec<u8> {
    let mut model = match source.config() {
        Ok(Value::Object(model)) => model.clone(),
        _ => serde_json::Map::new(),
    };
    remove_section(&mut model);
    if plan.heads == Heads::Parted {
        untie(&mut model);
    }
    if let Some(section) = write_section(plan.config.as_ref(), None, FORMAT_VERSION) {
        set_section(&mut model, section);
    }
    checkpoint::pretty_json(&Value::Object(model))
}

fn threads(wanted: usize) -> usize {
    match wanted {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    }
}

/// Faults of the input leave nothing behind; after anything else the run can go on.
fn give_up(error: Error, writer: Writer) -> Error {
    if error.exit_code() == ExitCode::BadInput {
        // The fault that ended the run is what the user needs to hear, whatever clearing says.
        let _ = writer.abandon();
    }
    error
}
