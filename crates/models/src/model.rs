//! A model: its tree, its parameters, and how it runs and is traced.

use std::collections::BTreeSet;
use std::sync::Arc;

use compressed_tensors::target::{NamedModule, Patterns, nearest_names};
use graph::{
    Extent, Graph, ModuleId, ModuleTree, Policy, Produced, SequentialTracer, Subgraph, Value, forward,
    get_sequential_ancestors, partition, partition_graph, trace_consumed_names,
};
use serde_json::Value as Json;
use tensor::{DType, Dim, Spec, Symbol, Tensor};

use crate::architectures::{self, Architecture};
use crate::build::{Builder, Separated};
use crate::config::{Config, Nesting, text_config};
use crate::context::{Cx, Layer, Run, Runner};
use crate::error::{Error, ErrorKind, Result};
use crate::layers::Linear;
use crate::links::Links;
use crate::store::{Held, ParameterId, ParameterInfo, Store, Weights};

/// How a model is built.
#[derive(Clone, Copy, Debug, Default)]
pub struct ModelOptions {
    /// The type to compute in; by default the config's, or F32.
    pub dtype: Option<DType>,
    /// What becomes of an output head that has the embedding's weight.
    pub tied: Tied,
}

/// What becomes of an output head that has the embedding's weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tied {
    /// They share one parameter.
    #[default]
    Shared,
    /// Each has a parameter of its own, so that one can change without the other.
    Separate,
}

/// Which inputs a trace has beside `input_ids`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceInputs {
    /// None.
    Ids,
    /// `attention_mask` (B, T), 0 for padding.
    IdsAndMask,
}

impl TraceInputs {
    /// Names of the inputs, in order.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::Ids => &["input_ids"],
            Self::IdsAndMask => &["input_ids", "attention_mask"],
        }
    }
}

/// A model of one of the [`ARCHITECTURES`](crate::ARCHITECTURES).
pub struct Model {
    architecture: &'static Architecture,
    tree: ModuleTree,
    layers: Vec<Option<Box<dyn Layer>>>,
    owned: Vec<Vec<ParameterId>>,
    store: Store,
    links: Links,
    separated: Option<Separated>,
    max_positions: Option<usize>,
}

impl Model {
    /// The model of a checkpoint directory; nothing but headers is read.
    ///
    /// # Errors
    /// [`ErrorKind::Weights`] where there is no config, and those of [`Model::build`].
    pub fn open(source: Arc<checkpoint::Source>, options: ModelOptions) -> Result<Self> {
        let config = source.config().map_err(|error| ErrorKind::Weights(error.into()))?.clone();
        Self::build(&config, source, options)
    }

    /// The model of a config, over `weights`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownArchitecture`], [`ErrorKind::Config`] placed at the key, [`ErrorKind::MissingTensor`] and
    /// [`ErrorKind::Shape`] placed at the tensor.
    pub fn build(config: &Json, weights: Arc<dyn Weights>, options: ModelOptions) -> Result<Self> {
        // A larger model runs on text by its language model alone; what else it has is left as it is.
        let inner = text_config(config).filter(|_| architectures::find(&Config::new(config)).is_err());
        let config = match &inner {
            None => Config::new(config),
            Some(text) => {
                let has = |name: &str| weights.spec(name).is_some();
                let nesting = match () {
                    () if has("model.language_model.embed_tokens.weight") => Nesting::Inside,
                    () if has("language_model.model.embed_tokens.weight") => Nesting::Whole,
                    () => Nesting::Alone,
                };
                Config::new(text).nested(nesting)
            }
        };
        let architecture = architectures::find(&config)?;
        let mut builder = (architecture.build)(&config)?;
        let separated = match options.tied {
            Tied::Shared => None,
            Tied::Separate => builder.separate(),
        };
        let Builder { tree, layers, parameters, owned, links, .. } = builder;
        let dtype = match options.dtype {
            Some(dtype) => dtype,
            None => config.dtype()?.unwrap_or(DType::F32),
        };
        let max_positions = config.max_positions()?;
        let store = Store::new(weights, dtype, parameters)?;
        Ok(Self { architecture, tree, layers, owned, store, links, separated, max_positions })
    }

    /// Most tokens of a row, by the config; none where positions do not end.
    pub fn max_positions(&self) -> Option<usize> {
        self.max_positions
    }

    /// What it is.
    pub fn architecture(&self) -> &'static Architecture {
        self.architecture
    }

    /// Its modules.
    pub fn tree(&self) -> &ModuleTree {
        &self.tree
    }

    /// Its parameters.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Which of its modules feed which.
    pub fn links(&self) -> &Links {
        &self.links
    }

    /// The weights that [`Tied::Separate`] took apart.
    pub fn separated(&self) -> Option<Separated> {
        self.separated
    }

    /// Parameters of a module itself, not of those it holds.
    pub fn own_parameters(&self, module: ModuleId) -> &[ParameterId] {
        &self.owned[module.index()]
    }

    /// Names of a module's classes, its own first; one that derives from `Linear` is meant by that name too.
    pub fn classes(&self, module: ModuleId) -> Vec<&'static str> {
        let own = self.tree.class(module);
        let is_derived = own != "Linear" && self.linear(module).is_some();
        std::iter::once(own).chain(is_derived.then_some("Linear")).collect()
    }

    /// The name that a module's tensors are written under: its path, but for what a checkpoint calls otherwise.
    pub fn written_name(&self, module: ModuleId) -> String {
        self.name_by(module, |info| &info.written)
    }

    /// The name that a module's tensors have in the checkpoint: its path, but for what is called otherwise there.
    pub fn stored_name(&self, module: ModuleId) -> String {
        self.name_by(module, |info| &info.name)
    }

    fn name_by(&self, module: ModuleId, name: impl Fn(&ParameterInfo) -> &String) -> String {
        let path = self.tree.path(module);
        let depth = |name: &str| name.matches('.').count();
        let own = self.own_parameters(module).iter().map(|id| self.store.info(*id));
        let mut stems = own.filter_map(|info| {
            let local = info.path.strip_prefix(path)?;
            // A tensor that lies deeper than its module names another one.
            name(info).strip_suffix(local).filter(|stem| depth(stem) == depth(path))
        });
        stems.next().unwrap_or(path).to_owned()
    }

    /// Names of a module other than its path, as its tensors are called in the checkpoint and where they are written.
    pub fn other_names(&self, module: ModuleId) -> Vec<String> {
        let path = self.tree.path(module);
        let mut names = Vec::new();
        for info in self.own_parameters(module).iter().map(|id| self.store.info(*id)) {
            let Some(local) = info.path.strip_prefix(path).filter(|it| !it.is_empty()) else { continue };
            let stems = [&info.written, &info.name].into_iter().filter_map(|it| it.strip_suffix(local));
            names.extend(stems.filter(|it| *it != path).map(str::to_owned));
        }
        names.sort();
        names.dedup();
        names
    }

    /// The parameters of a linear layer; none for other modules.
    pub fn linear(&self, module: ModuleId) -> Option<&Linear> {
        self.layers[module.index()].as_ref()?.as_linear()
    }

    pub(crate) fn layer(&self, module: ModuleId) -> Result<&dyn Layer> {
        let layer = self.layers[module.index()].as_deref();
        layer.ok_or_else(|| ErrorKind::NotCallable.into())
    }

    /// Modules whose name or class a pattern matches; the empty list means the classes that the architecture does not split.
    ///
    /// # Errors
    /// [`ErrorKind::NoMatch`] with the nearest names for a pattern that matches nothing, [`ErrorKind::Pattern`].
    pub fn match_targets<S: AsRef<str>>(&self, patterns: &[S]) -> Result<BTreeSet<ModuleId>> {
        if patterns.is_empty() {
            return self.match_targets(self.architecture.no_split);
        }
        let compiled = Patterns::compile(patterns)?;
        let classes: Vec<Vec<&str>> = self.tree.ids().map(|id| self.classes(id)).collect();
        let named = |id: ModuleId| NamedModule { name: self.tree.path(id), classes: &classes[id.index()] };
        if let Some(pattern) = compiled.unmatched(self.tree.ids().map(named))?.first() {
            let names = self.tree.ids().map(|id| self.tree.path(id));
            let nearest = nearest_names(pattern, names, 3).into_iter().map(str::to_owned).collect();
            return Err(ErrorKind::NoMatch { pattern: (*pattern).to_owned(), nearest }.into());
        }
        let mut matched = BTreeSet::new();
        for id in self.tree.ids() {
            if compiled.matches_module(named(id))? {
                matched.insert(id);
            }
        }
        Ok(matched)
    }

    /// Calls one module on tensors, as the model would: a layer replayed on inputs that were kept.
    ///
    /// # Errors
    /// [`ErrorKind::NotCallable`] for a module that only holds others, and what the module refuses, placed at the innermost.
    pub fn call_module(&self, run: Run<'_>, module: ModuleId, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let inputs = inputs.into_iter().map(Value::from).collect();
        let outputs = Cx::compute(self, run).call_all(module, inputs)?;
        Ok(outputs.into_iter().map(Value::into_tensor).collect::<graph::Result<_>>()?)
    }

    /// Logits (B, T, V) of ids (B, T) and perhaps a mask (B, T).
    ///
    /// # Errors
    /// What a module refuses, placed at the innermost.
    pub fn forward(&self, run: Run<'_>, ids: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
        let inputs = std::iter::once(ids).chain(mask).cloned().map(Value::from).collect();
        let [logits] = crate::layers::exactly(Cx::compute(self, run).call_all(self.tree.root(), inputs)?, "logits")?;
        Ok(logits.into_tensor()?)
    }

    /// The graph of the model in which modules that hold none of `targets` are one node each; batch and time are symbolic.
    ///
    /// # Errors
    /// What a module refuses.
    pub fn trace(&self, targets: &BTreeSet<ModuleId>, inputs: TraceInputs) -> Result<Graph> {
        self.record(SequentialTracer::new(get_sequential_ancestors(&self.tree, targets)), inputs)
    }

    /// The graph of the model in operations and parameters alone.
    ///
    /// # Errors
    /// What a module refuses.
    pub fn trace_operations(&self, inputs: TraceInputs) -> Result<Graph> {
        self.record(SequentialTracer::of_operations(), inputs)
    }

    fn record(&self, mut tracer: SequentialTracer, inputs: TraceInputs) -> Result<Graph> {
        let shape = vec![Dim::symbol(Symbol::Batch), Dim::symbol(Symbol::Time)];
        let mut values = Vec::new();
        for name in inputs.names() {
            values.push(tracer.placeholder(name, Spec::new(DType::I64, shape.clone()))?);
        }
        let outputs = Cx::trace(self, &mut tracer).call_all(self.tree.root(), values)?;
        let [logits] = crate::layers::exactly(outputs, "logits")?;
        Ok(tracer.finish(&[("logits", logits)])?)
    }

    /// Subgraphs in running order that together do what the model does.
    ///
    /// # Errors
    /// Those of [`Model::trace`].
    pub fn subgraphs(
        &self,
        targets: &BTreeSet<ModuleId>,
        inputs: TraceInputs,
        policy: Policy,
    ) -> Result<Vec<Subgraph>> {
        let graph = self.trace(targets, inputs)?;
        let mut subgraphs = partition_graph(&graph, &partition(&graph, targets, policy)?)?;
        trace_consumed_names(&mut subgraphs);
        Ok(subgraphs)
    }

    /// Runs a subgraph on values by name.
    ///
    /// # Errors
    /// A missing value, and what a module refuses.
    pub fn run_subgraph(
        &self,
        run: Run<'_>,
        subgraph: &Subgraph,
        inputs: impl FnMut(&str) -> Option<Tensor>,
        extent: &Extent,
    ) -> Result<Produced> {
        forward(&subgraph.graph, &mut Runner { model: self, run }, inputs, extent)
    }

    /// Parameters that a subgraph needs.
    ///
    /// # Errors
    /// A parameter that the model does not have.
    pub fn parameters_of(&self, subgraph: &Subgraph) -> Result<BTreeSet<ParameterId>> {
        let mut ids: BTreeSet<ParameterId> = BTreeSet::new();
        for module in subgraph.submodules(&self.tree) {
            ids.extend(self.own_parameters(module));
            ids.extend(self.linear(module).map(|linear| linear.weight));
        }
        for name in subgraph.parameters() {
            let id = self.store.find(name).ok_or_else(|| Error::from(ErrorKind::MissingTensor).at(name))?;
            ids.insert(id);
        }
        Ok(ids)
    }

    /// Keeps the parameters of a subgraph in memory, from their first use until the guard is dropped.
    ///
    /// # Errors
    /// As [`Model::parameters_of`].
    pub fn hold(&self, subgraph: &Subgraph) -> Result<Held<'_>> {
        Ok(self.store.hold(self.parameters_of(subgraph)?))
    }
}
