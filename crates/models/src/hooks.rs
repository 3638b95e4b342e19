//! Hooks on modules: who listens hears inputs, outputs, and the query, key and value of attention.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use graph::ModuleId;
use tensor::Tensor;

use crate::error::{BoxedError, ErrorKind, Result};

/// What of a module is heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tap {
    /// What it is called with.
    Input,
    /// What it is called with, instead of calling it: a tensor that a hook gives is its output, and the module does not compute.
    Instead,
    /// What it gives.
    Output,
    /// The query of an attention, after rotation: (B, T, H, D).
    Query,
    /// The key, after rotation: (B, T, K, D).
    Key,
    /// The value: (B, T, K, D).
    Value,
}

/// What a hook hears.
#[derive(Debug)]
pub struct Observation<'a> {
    /// The module.
    pub module: ModuleId,
    /// What of it.
    pub tap: Tap,
    /// The values; none for an input of a container that a subgraph does not hold.
    pub values: &'a [Option<Tensor>],
}

impl Observation<'_> {
    /// The first value.
    pub fn first(&self) -> Option<&Tensor> {
        self.values.first().and_then(Option::as_ref)
    }
}

type Hook = dyn Fn(&Observation<'_>) -> Result<Option<Tensor>, BoxedError> + Send + Sync;

/// A set of hooks; clones are handles to the same set.
///
/// A run hears hooks only if it is given the set, so that "without hooks" is an argument.
#[derive(Clone, Default)]
pub struct Hooks(Arc<Mutex<Registry>>);

#[derive(Default)]
struct Registry {
    next: u64,
    hooks: HashMap<(ModuleId, Tap), Vec<Numbered>>,
}

/// A hook with its number.
type Numbered = (u64, Arc<Hook>);

/// Keeps a hook in its set until it is dropped.
#[must_use = "the hook is removed when its guard is dropped"]
pub struct HookGuard {
    set: Weak<Mutex<Registry>>,
    at: (ModuleId, Tap),
    number: u64,
}

impl Hooks {
    /// An empty set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `hook` whenever `tap` of `module` is heard, after those added before it, while the guard lives.
    ///
    /// Threads may call it at the same time, and no lock is held: a thread that waits within it may take up other work of the run,
    /// and come to the same hook again.
    ///
    /// A tensor that the hook gives takes the place of the first value, for later hooks and for the computation; modules that
    /// hold others allow none.
    pub fn add(
        &self,
        module: ModuleId,
        tap: Tap,
        hook: impl Fn(&Observation<'_>) -> Result<Option<Tensor>, BoxedError> + Send + Sync + 'static,
    ) -> HookGuard {
        let mut registry = lock(&self.0);
        let number = registry.next;
        registry.next += 1;
        registry.hooks.entry((module, tap)).or_default().push((number, Arc::new(hook)));
        HookGuard { set: Arc::downgrade(&self.0), at: (module, tap), number }
    }

    /// Number of hooks that live.
    pub fn len(&self) -> usize {
        lock(&self.0).hooks.values().map(Vec::len).sum()
    }

    /// Whether no hook lives.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn has(&self, module: ModuleId, tap: Tap) -> bool {
        lock(&self.0).hooks.contains_key(&(module, tap))
    }

    /// Lets hooks hear `values`; a replacement changes the first of them. True where one was replaced.
    pub(crate) fn hear(&self, module: ModuleId, tap: Tap, values: &mut [Option<Tensor>]) -> Result<bool> {
        // A hook may add and drop hooks, so the set is free while it runs.
        let hooks: Vec<_> = match lock(&self.0).hooks.get(&(module, tap)) {
            Some(hooks) => hooks.iter().map(|(_, hook)| Arc::clone(hook)).collect(),
            None => return Ok(false),
        };
        let mut is_replaced = false;
        for hook in hooks {
            let given = hook(&Observation { module, tap, values }).map_err(ErrorKind::Hook)?;
            if let (Some(given), Some(first)) = (given, values.first_mut()) {
                *first = Some(given);
                is_replaced = true;
            }
        }
        Ok(is_replaced)
    }
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        let Some(set) = self.set.upgrade() else { return };
        let mut registry = lock(&set);
        let removed = registry.hooks.get_mut(&self.at).and_then(|hooks| {
            let position = hooks.iter().position(|(number, _)| *number == self.number)?;
            Some(hooks.remove(position))
        });
        if registry.hooks.get(&self.at).is_some_and(Vec::is_empty) {
            registry.hooks.remove(&self.at);
        }
        drop(registry);
        // What the hook captured may hold guards of the same set.
        drop(removed);
    }
}

fn lock(set: &Mutex<Registry>) -> MutexGuard<'_, Registry> {
    set.lock().unwrap_or_else(PoisonError::into_inner)
}
