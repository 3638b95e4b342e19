//! How a model is cut into subgraphs: what each takes, gives, drops and costs, from config and headers alone.

mod costs;
mod picture;
mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::Arc,
};

use graph::{Function, ModuleId, NodeKind, Port, Subgraph, find_target_nodes};
use models::{Model, ModelOptions, ParameterId, TraceInputs};
use serde::Serialize;
use tensor::Spec;

pub use graph::Policy;

use crate::{
    catalog::Catalog,
    error::{ErrorKind, Result},
    eval::{Compute, DenseWeights},
    source::open_source,
};
use costs::{Costs, bytes};

/// The number of the form that [`Trace`] is written in as JSON; it rises where a field changes its meaning or goes.
pub const FORM: u32 = 1;

/// What `trace` is asked to do.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The model: a directory or a hub id.
    pub model: String,
    /// Patterns of the modules that subgraphs are cut at; none for the classes that the architecture does not split.
    pub targets: Vec<String>,
    /// How the graph is cut.
    pub policy: Policy,
    /// Tokens of a row, which the cost of attention depends on.
    pub seq_len: usize,
    /// The type that the model would compute in.
    pub compute: Compute,
}

impl TraceOptions {
    /// Options that cut `model` before its decoder layers.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            targets: Vec::new(),
            policy: Policy::BeforeTargets,
            seq_len: 2048,
            compute: Compute::Auto,
        }
    }
}

/// A model in subgraphs, in running order.
#[derive(Clone, Debug, Serialize)]
pub struct Trace {
    /// [`FORM`].
    pub form: u32,
    /// The model as given.
    pub model: String,
    /// Its architecture.
    pub model_type: &'static str,
    /// The type that it computes in.
    pub dtype: String,
    /// `compat` or `before_targets`.
    pub partition: &'static str,
    /// How many targets share a subgraph; none for `before_targets`, where equally deep ones do.
    pub targets_per_subgraph: Option<usize>,
    /// The patterns that the targets were found by.
    pub targets: Vec<String>,
    /// How many modules they matched.
    pub n_targets: usize,
    /// Tokens of a row.
    pub seq_len: usize,
    /// The subgraphs.
    pub subgraphs: Vec<TracedSubgraph>,
    /// Costs of all of them.
    pub totals: Totals,
}

/// A part of a model that runs on its own.
#[derive(Clone, Debug, Serialize)]
pub struct TracedSubgraph {
    /// Its place in the order.
    pub index: usize,
    /// Targets that it calls.
    pub targets: Vec<String>,
    /// Modules that it calls, in running order; a module called twice stands here twice.
    pub calls: Vec<String>,
    /// Operations between these calls, in running order.
    pub functions: Vec<String>,
    /// Modules that it calls and all they hold, each once, parents first.
    pub submodules: Vec<String>,
    /// Values that it takes.
    pub inputs: Vec<TracedValue>,
    /// Values that it gives to later subgraphs, then results of the model.
    pub outputs: Vec<TracedValue>,
    /// Inputs that no later subgraph takes.
    pub consumed: Vec<String>,
    /// Values that wait for later subgraphs once it has run.
    pub kept: Vec<String>,
    /// Parameters that it needs.
    pub n_parameters: u64,
    /// Their bytes in the type computed in.
    pub parameter_bytes: u64,
    /// Floating-point operations of a token in linear layers, attention, convolutions and scans.
    pub flop_per_token: u64,
    /// Bytes of the kept values for each token.
    pub kept_bytes_per_token: u64,
    /// Bytes of the kept values whatever the number of tokens.
    pub kept_fixed_bytes: u64,
}

/// A value that travels between subgraphs.
#[derive(Clone, Debug, Serialize)]
pub struct TracedValue {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: String,
    /// Extents: numbers, or B, T and R (rows handed to experts), or products as in `B*T`.
    pub shape: Vec<String>,
}

/// Costs of a whole model.
#[derive(Clone, Debug, Serialize)]
pub struct Totals {
    /// Parameters, those that several subgraphs need counted once.
    pub n_parameters: u64,
    /// Their bytes in the type computed in.
    pub parameter_bytes: u64,
    /// Bytes of the subgraph that needs most.
    pub largest_parameter_bytes: u64,
    /// Floating-point operations of a token.
    pub flop_per_token: u64,
    /// The most bytes that are kept for each token between two subgraphs.
    pub largest_kept_bytes_per_token: u64,
}

/// Cuts `options.model` into subgraphs; headers and config are read, weights are not.
///
/// # Errors
/// Faults of the checkpoint; an architecture that is not supported; a target that matches no module, with the nearest
/// names; `Option` for rows of no token.
pub fn trace(options: &TraceOptions) -> Result<Trace> {
    if options.seq_len == 0 {
        let (found, expected) = ("0".to_owned(), "1 token or more".to_owned());
        return Err(ErrorKind::Option { option: "--seq-len", found, expected }.into());
    }
    let source = open_source(&options.model)?;
    let catalog = Catalog::of(&source)?;
    let config = source.config()?.clone();
    let weights = Arc::new(DenseWeights::new(source, catalog)?);
    let model =
        Model::build(&config, weights, ModelOptions { dtype: options.compute.dtype(), ..ModelOptions::default() })?;
    let targets = model.match_targets(&options.targets)?;
    let subgraphs = model.subgraphs(&targets, TraceInputs::Ids, options.policy)?;
    let mut costs = Costs::of(&model, options.seq_len)?;
    let kept = kept(&subgraphs);
    let mut traced = Vec::with_capacity(subgraphs.len());
    let mut all: BTreeSet<ParameterId> = BTreeSet::new();
    for (index, (subgraph, kept)) in subgraphs.iter().zip(kept).enumerate() {
        let parameters = model.parameters_of(subgraph)?;
        let mut it = describe(&model, &targets, subgraph, index);
        (it.n_parameters, it.parameter_bytes) = sizes(&model, &parameters);
        it.flop_per_token = costs.flop_per_token(&model, subgraph);
        (it.kept_bytes_per_token, it.kept_fixed_bytes) = costs.kept_bytes(kept.values());
        it.kept = kept.into_keys().collect();
        all.extend(parameters);
        traced.push(it);
    }
    let (n_parameters, parameter_bytes) = sizes(&model, &all);
    let most = |of: fn(&TracedSubgraph) -> u64| traced.iter().map(of).max().unwrap_or(0);
    let totals = Totals {
        n_parameters,
        parameter_bytes,
        largest_parameter_bytes: most(|it| it.parameter_bytes),
        flop_per_token: traced.iter().map(|it| it.flop_per_token).sum(),
        largest_kept_bytes_per_token: most(|it| it.kept_bytes_per_token),
    };
    let no_split = || model.architecture().no_split.iter().map(|it| (*it).to_owned()).collect();
    let (partition, targets_per_subgraph) = match options.policy {
        Policy::Compat { targets_per_subgraph } => ("compat", Some(targets_per_subgraph.get())),
        Policy::BeforeTargets => ("before_targets", None),
    };
    Ok(Trace {
        form: FORM,
        model: options.model.clone(),
        model_type: model.architecture().model_type,
        dtype: model.store().dtype().torch_name().unwrap_or("unknown").to_owned(),
        partition,
        targets_per_subgraph,
        targets: if options.targets.is_empty() { no_split() } else { options.targets.clone() },
        n_targets: targets.len(),
        seq_len: options.seq_len,
        subgraphs: traced,
        totals,
    })
}

/// What a subgraph is, without its costs.
fn describe(model: &Model, targets: &BTreeSet<ModuleId>, subgraph: &Subgraph, index: usize) -> TracedSubgraph {
    let path = |module: &ModuleId| model.tree().path(*module).to_owned();
    let graph = &subgraph.graph;
    let mut calls = Vec::new();
    let mut functions = Vec::new();
    let mut outputs = Vec::new();
    for (_, node) in graph.nodes() {
        match &node.kind {
            NodeKind::CallModule(modules) => calls.extend(modules.iter().map(path)),
            NodeKind::CallFunction(Function::Op(op)) => functions.push(op.name().to_owned()),
            NodeKind::CallFunction(Function::Named(name)) | NodeKind::CallMethod(name) => functions.push(name.clone()),
            NodeKind::Output { names, .. } => {
                outputs = names.iter().zip(&node.args).map(|(name, port)| value(name, graph.spec(*port))).collect();
            }
            NodeKind::Placeholder | NodeKind::GetAttr(_) => {}
        }
    }
    let target_nodes = find_target_nodes(graph, targets);
    let called: BTreeSet<&ModuleId> = target_nodes.iter().flat_map(|id| graph.node(*id).modules()).collect();
    TracedSubgraph {
        index,
        targets: called.into_iter().filter(|it| targets.contains(it)).map(path).collect(),
        calls,
        functions,
        submodules: subgraph.submodules(model.tree()).iter().map(path).collect(),
        inputs: subgraph.input_names.iter().map(|name| value(name, input_spec(subgraph, name))).collect(),
        outputs,
        consumed: subgraph.consumed_names.iter().cloned().collect(),
        kept: Vec::new(),
        n_parameters: 0,
        parameter_bytes: 0,
        flop_per_token: 0,
        kept_bytes_per_token: 0,
        kept_fixed_bytes: 0,
    }
}

fn input_spec<'a>(subgraph: &'a Subgraph, name: &str) -> Option<&'a Spec> {
    subgraph.graph.find(name).and_then(|id| subgraph.graph.spec(Port::from(id)))
}

fn value(name: &str, spec: Option<&Spec>) -> TracedValue {
    TracedValue {
        name: name.to_owned(),
        dtype: spec.map_or_else(String::new, |it| it.dtype.to_string()),
        shape: spec.map_or_else(Vec::new, |it| it.shape.iter().map(ToString::to_string).collect()),
    }
}

/// For each subgraph the values that exist after it and are taken later.
fn kept(subgraphs: &[Subgraph]) -> Vec<BTreeMap<String, Spec>> {
    let mut kept: Vec<BTreeMap<String, Spec>> = Vec::with_capacity(subgraphs.len());
    let mut later: BTreeMap<String, Spec> = BTreeMap::new();
    for subgraph in subgraphs.iter().rev() {
        kept.push(later.clone());
        let graph = &subgraph.graph;
        if let Some(NodeKind::Output { names, .. }) = graph.output().map(|id| &graph.node(id).kind) {
            names.iter().for_each(|name| drop(later.remove(name)));
        }
        let taken = subgraph.input_names.iter().filter_map(|it| Some((it.clone(), input_spec(subgraph, it)?.clone())));
        later.extend(taken);
    }
    kept.reverse();
    kept
}

/// Number and bytes of parameters.
fn sizes(model: &Model, parameters: &BTreeSet<ParameterId>) -> (u64, u64) {
    let size = |id: &ParameterId| {
        let info = model.store().info(*id);
        let n = info.shape.iter().product::<usize>() as u64;
        (n, bytes(n, info.dtype))
    };
    parameters.iter().map(size).fold((0, 0), |sum, it| (sum.0 + it.0, sum.1 + it.1))
}

impl Trace {
    /// The subgraphs for a person to read.
    pub fn text(&self) -> String {
        text::text(self)
    }

    /// A picture of the subgraphs, the values between them and their costs, as SVG.
    pub fn svg(&self) -> String {
        picture::svg(self)
    }

    /// The same picture as a page.
    pub fn html(&self) -> String {
        picture::html(self)
    }
}

/// A file that a trace is drawn into.
#[derive(Clone, Debug)]
pub struct Picture {
    path: PathBuf,
    draw: fn(&Trace) -> String,
}

impl Picture {
    /// A picture in the form that the end of the file's name says.
    ///
    /// # Errors
    /// `Option` for another end than `.svg` and `.html`.
    pub fn at(path: PathBuf) -> Result<Self> {
        let draw = match path.extension().and_then(|it| it.to_str()) {
            Some("svg") => Trace::svg,
            Some("html" | "htm") => Trace::html,
            _ => {
                let (found, expected) = (path.display().to_string(), "a file that ends in .svg or .html".to_owned());
                return Err(ErrorKind::Option { option: "--picture", found, expected }.into());
            }
        };
        Ok(Self { path, draw })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// `File`.
    pub fn draw(&self, trace: &Trace) -> Result<()> {
        let mut partial = self.path.clone().into_os_string();
        partial.push(".partial");
        let written = fs::write(&partial, (self.draw)(trace)).and_then(|()| fs::rename(&partial, &self.path));
        Ok(written.map_err(|source| ErrorKind::File { path: self.path.clone(), source })?)
    }
}
