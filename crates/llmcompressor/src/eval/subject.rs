//! A model that runs: dense in memory, its activations, keys and values quantized as its config says.

use std::{path::Path, sync::Arc};

use models::{Held, HookGuard, Hooks, Model, ModelOptions, NonFiniteWatch, Run, Tied};
use tensor::{Budget, Engine, Tensor};

use super::{Compute, DenseWeights, rows::Window};
use crate::{
    activations::{Integers, Product, quantize_activations, quantize_attentions},
    catalog::Catalog,
    error::{ErrorKind, Result},
    source::open_source,
};

/// A model and what it runs with.
pub(crate) struct Subject {
    model: Model,
    weights: Arc<DenseWeights>,
    engine: Engine,
    hooks: Hooks,
    integers: Integers,
    _quantizers: Vec<HookGuard>,
}

impl Subject {
    /// Opens a directory or a hub id.
    ///
    /// # Errors
    /// Faults of the checkpoint; an architecture that is not supported; `Option` for integer products where no layer has codes.
    pub(crate) fn open(model: &str, compute: Compute, product: Product, budget: &Budget) -> Result<Self> {
        let source = open_source(model)?;
        let catalog = Catalog::of(&source)?;
        let config = source.config()?.clone();
        let weights = Arc::new(DenseWeights::new(source, catalog)?);
        let given: Arc<dyn models::Weights> = Arc::<DenseWeights>::clone(&weights);
        let model = Model::build(&config, given, ModelOptions { dtype: compute.dtype(), tied: Tied::Shared })?;
        let engine = Engine::new(budget.clone());
        let engine = if product == Product::Blocks { engine } else { engine.exact() };
        let hooks = Hooks::new();
        let stored = (weights.source(), weights.catalog());
        let integers = match product {
            Product::Numbers | Product::Blocks => Integers::default(),
            Product::Int8 => Integers::find(&model, stored.0, stored.1)?,
        };
        if product == Product::Int8 && integers.len() == 0 {
            let found = "int8 for a model without a linear layer of 8-bit integers".to_owned();
            let expected = "weights around zero, per row or tensor, and inputs per token or tensor (W8A8)".to_owned();
            return Err(ErrorKind::Option { option: "--product", found, expected }.into());
        }
        let mut quantizers = quantize_activations(&hooks, &engine.budget, &model, stored, &integers)?;
        quantizers.extend(integers.compute(&hooks, &engine, &weights));
        quantizers.extend(quantize_attentions(&hooks, &engine.budget, &model, stored)?);
        Ok(Self { model, weights, engine, hooks, integers, _quantizers: quantizers })
    }

    pub(crate) fn dir(&self) -> &Path {
        self.weights.source().dir()
    }

    /// The checkpoint's `config.json`.
    ///
    /// # Errors
    /// Faults of the file.
    pub(crate) fn config(&self) -> Result<&serde_json::Value> {
        Ok(self.weights.source().config()?)
    }

    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Linear layers that multiply codes.
    pub(crate) fn n_coded(&self) -> usize {
        self.integers.len()
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// Keeps all weights in memory once they are read.
    pub(crate) fn hold(&self) -> Held<'_> {
        let store = self.model.store();
        self.integers.keep();
        store.hold_for_runs(store.parameters().map(|it| it.0))
    }

    /// Rows of the output head's weight.
    pub(crate) fn vocabulary(&self) -> Option<usize> {
        let head = self.model.linear(self.model.causal()?.head)?;
        Some(self.model.store().info(head.weight).shape[0])
    }

    /// Hidden states (1, T, C) before the head.
    pub(crate) fn hidden(&self, ids: &[u32]) -> Result<Tensor> {
        let ids: Vec<i64> = ids.iter().map(|it| i64::from(*it)).collect();
        let shape = [1, ids.len()];
        let ids = self.engine.budget.tensor::<i64>(ids, &shape).map_err(models::Error::from)?;
        Ok(self.model.hidden(self.run(), &ids, None)?)
    }

    /// Negative log-likelihood of the tokens that a window judges.
    pub(super) fn nll(&self, window: &Window, hidden: &Tensor) -> Result<Vec<f64>> {
        let states = self.states(hidden, window.first_judged - 1, window.ids.len() - window.first_judged)?;
        Ok(self.model.nll(self.run(), &states, &window.ids[window.first_judged..])?)
    }

    /// Logits (1, N, V) after the tokens `first..first + len`.
    pub(crate) fn logits(&self, hidden: &Tensor, first: usize, len: usize) -> Result<Tensor> {
        Ok(self.model.logits(self.run(), &self.states(hidden, first, len)?)?)
    }

    /// The innermost module whose output is the first that is not finite; the head where all before it are.
    pub(crate) fn first_non_finite(&self, ids: &[u32]) -> Result<String> {
        let watch = NonFiniteWatch::new(&self.model, &self.hooks, &self.engine.budget);
        self.hidden(ids)?;
        let head = || self.model.causal().map_or_else(String::new, |it| self.model.tree().path(it.head).to_owned());
        Ok(watch.first().unwrap_or_else(head))
    }

    fn states(&self, hidden: &Tensor, first: usize, len: usize) -> Result<Tensor> {
        let states = hidden.slice(1, first, len).and_then(|it| it.dense(&self.engine.budget));
        Ok(states.map_err(models::Error::from)?)
    }

    /// With its hooks, where there are any.
    pub(crate) fn run(&self) -> Run<'_> {
        Run { engine: &self.engine, hooks: (!self.hooks.is_empty()).then_some(&self.hooks) }
    }
}
