//! Keys and values of tokens that a model was given, so that the next token is computed alone.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use graph::{Function, ModuleId, NodeKind};
use tensor::{Budget, Engine, Growing, Op};

use crate::Model;
use crate::context::Run;
use crate::error::Result;
use crate::hooks::{HookGuard, Hooks, Tap};
use crate::model::TraceInputs;

/// Keys and values of every attention of a model, in hooks that live as long as it does.
///
/// Attention is heard when it has its key and value, after rotation; the hooks keep them and hand over those of all tokens in
/// their place. Nothing else in a model knows of it: a run of the next tokens with [`KvCache::engine`] gives, bit for bit, what
/// a run of all tokens gives for them.
pub struct KvCache {
    /// Of each attention the keys, then the values.
    caches: Vec<Arc<Mutex<Growing>>>,
    _guards: Vec<HookGuard>,
}

/// Why the next token of a model needs all tokens before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Uncached {
    /// An operation carries a state from token to token that is not kept.
    State {
        /// The operation.
        operation: &'static str,
    },
    /// Frequencies of rotation change for all tokens once a row is longer than this.
    Frequencies {
        /// Tokens of the longest row that keeps them.
        after: usize,
    },
    /// A module computes attention twice, and the two cannot be told apart.
    Twice,
}

impl fmt::Display for Uncached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::State { operation } => write!(f, "`{operation}` carries a state that is not kept"),
            Self::Frequencies { after } => write!(f, "frequencies of rotation change after {after} tokens"),
            Self::Twice => f.write_str("a module computes attention twice"),
        }
    }
}

impl KvCache {
    /// An empty cache for rows of up to `n_tokens` tokens, or why there can be none; hooks that shall change keys and values
    /// before they are kept are added to `hooks` first.
    ///
    /// # Errors
    /// What a module refuses of a trace.
    pub fn open(model: &Model, hooks: &Hooks, budget: &Budget, n_tokens: usize) -> Result<Result<Self, Uncached>> {
        let modules = match attentions(model, n_tokens)? {
            Ok(modules) => modules,
            Err(why) => return Ok(Err(why)),
        };
        let mut it = Self { caches: Vec::new(), _guards: Vec::new() };
        for (module, tap) in modules.into_iter().flat_map(|module| [(module, Tap::Key), (module, Tap::Value)]) {
            let cache = Arc::new(Mutex::new(Growing::default()));
            it.caches.push(Arc::clone(&cache));
            let budget = budget.clone();
            it._guards.push(hooks.add(module, tap, move |heard| match heard.first() {
                Some(rows) => Ok(Some(lock(&cache).push(&budget, rows)?)),
                None => Ok(None),
            }));
        }
        Ok(Ok(it))
    }

    /// Tokens that are kept.
    pub fn len(&self) -> usize {
        self.caches.first().map_or(0, |it| lock(it).len())
    }

    /// Whether no token is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the next tokens are computed with.
    pub fn engine(&self, engine: &Engine) -> Engine {
        engine.at_position(self.len())
    }
}

impl Model {
    /// Why there can be no [`KvCache`] for rows of `n_tokens` tokens; none where there can.
    ///
    /// # Errors
    /// What a module refuses of a trace.
    pub fn uncached(&self, n_tokens: usize) -> Result<Option<Uncached>> {
        Ok(attentions(self, n_tokens)?.err())
    }

    /// Modules that compute attention, whose keys and values can be heard, in running order.
    ///
    /// # Errors
    /// What a module refuses of a trace.
    pub fn attentions(&self) -> Result<Vec<ModuleId>> {
        let graph = self.trace_operations(TraceInputs::Ids)?;
        let is_attention = |kind: &NodeKind| matches!(kind, NodeKind::CallFunction(Function::Op(Op::Attention(_))));
        let nodes = graph.nodes().filter(|(_, node)| is_attention(&node.kind));
        Ok(nodes.filter_map(|(_, node)| Some(graph.scope(node.scope?).module)).collect())
    }
}

fn attentions(model: &Model, n_tokens: usize) -> Result<Result<Vec<ModuleId>, Uncached>> {
    for (_, node) in model.trace_operations(TraceInputs::Ids)?.nodes() {
        let NodeKind::CallFunction(Function::Op(op)) = &node.kind else { continue };
        match op {
            Op::CausalConv | Op::SelectiveScan { .. } | Op::DeltaScan => {
                return Ok(Err(Uncached::State { operation: op.name() }));
            }
            Op::RopeTable { longer: Some(longer), .. } if n_tokens > longer.after => {
                return Ok(Err(Uncached::Frequencies { after: longer.after }));
            }
            _ => {}
        }
    }
    let modules = model.attentions()?;
    let unique: BTreeSet<&ModuleId> = modules.iter().collect();
    Ok(if unique.len() == modules.len() { Ok(modules) } else { Err(Uncached::Twice) })
}

impl Model {
    /// Logits (1, 1, V) after the last of the tokens `ids`, which follow those that `cache` holds.
    ///
    /// `run.hooks` is the set that the cache was opened with; without a cache `ids` are all tokens.
    ///
    /// # Errors
    /// What a module refuses, placed at the innermost; the cache then holds no state that can be used.
    pub fn next_logits(&self, run: Run<'_>, cache: Option<&KvCache>, ids: &[u32]) -> Result<tensor::Tensor> {
        let engine = cache.map(|it| it.engine(run.engine));
        let run = Run { engine: engine.as_ref().unwrap_or(run.engine), ..run };
        let numbers = ids.iter().map(|it| i64::from(*it)).collect();
        let ids = run.engine.budget.tensor::<i64>(numbers, &[1, ids.len()])?;
        let hidden = self.hidden(run, &ids, None)?;
        let last = hidden.shape()[1].saturating_sub(1);
        self.logits(run, &hidden.slice(1, last, 1)?.dense(&run.engine.budget)?)
    }
}

fn lock(cache: &Mutex<Growing>) -> MutexGuard<'_, Growing> {
    cache.lock().unwrap_or_else(PoisonError::into_inner)
}
