//! Hooks: which owner listens at which tap, registered by guard, switched off by argument.

use std::{
    fmt,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{
    Result,
    error::{Error, ErrorKind},
};

/// Where in a module a value is tapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TapPoint {
    /// What the module is given.
    Input,
    /// What the module gives.
    Output,
    /// Query of an attention, after its rotation.
    Query,
    /// Key of an attention, as its cache stores it.
    Key,
    /// Value of an attention, as its cache stores it.
    Value,
}

/// Points with our name and the reference's hook type.
const POINTS: [(TapPoint, &str, &str); 5] = [
    (TapPoint::Input, "input", "forward_pre"),
    (TapPoint::Output, "output", "forward"),
    (TapPoint::Query, "query", "query"),
    (TapPoint::Key, "key", "key"),
    (TapPoint::Value, "value", "value"),
];

impl fmt::Display for TapPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(POINTS[*self as usize].1)
    }
}

impl FromStr for TapPoint {
    type Err = Error;

    /// Reads `input` or the reference's hook type, `forward_pre`.
    fn from_str(text: &str) -> Result<Self> {
        POINTS.iter().find(|it| it.1 == text || it.2 == text).map(|it| it.0).ok_or_else(|| {
            let known = POINTS.iter().map(|it| it.1.to_owned()).collect();
            let what = "tap point".to_owned();
            ErrorKind::UnknownKey { what, name: text.to_owned(), nearest_names: Vec::new(), known }.into()
        })
    }
}

/// A place where values are tapped: a module and a point in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tap {
    /// Dotted path of the module.
    pub module: String,
    /// Where in the module.
    pub point: TapPoint,
}

impl Tap {
    /// A tap at a module's point.
    pub fn new(module: impl Into<String>, point: TapPoint) -> Self {
        Self { module: module.into(), point }
    }
}

impl fmt::Display for Tap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.module, self.point)
    }
}

/// Identity of a registered hook; never given out twice by one [`Hooks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookId(u64);

/// A registered hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hook {
    /// Its identity.
    pub id: HookId,
    /// Who listens, a number that the registrar chose: the lifecycle uses the modifier's position.
    pub owner: usize,
    /// Where.
    pub tap: Tap,
}

#[derive(Default)]
struct Table {
    next: u64,
    hooks: Vec<Hook>,
}

/// The hooks of one session. Clones share the same table.
#[derive(Clone, Default)]
pub struct Hooks {
    table: Arc<Mutex<Table>>,
}

impl Hooks {
    /// Registers a hook that lives as long as the guard.
    #[must_use = "the hook is removed when the guard is dropped"]
    pub fn register(&self, owner: usize, tap: Tap) -> HookGuard {
        let mut table = self.lock();
        let id = HookId(table.next);
        table.next += 1;
        table.hooks.push(Hook { id, owner, tap });
        HookGuard { id, hooks: self.clone() }
    }

    /// The hooks at a tap that the view lets through, in the order of registration.
    pub fn at(&self, tap: &Tap, view: &HookView<'_>) -> Vec<Hook> {
        self.lock().hooks.iter().filter(|it| it.tap == *tap && view.lets_through(it.id)).cloned().collect()
    }

    /// Whether any hook at the tap would be let through: lets an engine skip preparing a value.
    pub fn any_at(&self, tap: &Tap, view: &HookView<'_>) -> bool {
        self.lock().hooks.iter().any(|it| it.tap == *tap && view.lets_through(it.id))
    }

    /// Number of live hooks.
    pub fn len(&self) -> usize {
        self.lock().hooks.len()
    }

    /// Whether no hook is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // The table is valid after every single operation, so a panic elsewhere leaves nothing half done.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Hooks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.lock().hooks).finish()
    }
}

/// Keeps a hook registered; dropping it removes the hook.
#[derive(Debug)]
pub struct HookGuard {
    id: HookId,
    hooks: Hooks,
}

impl HookGuard {
    /// The hook's identity, for keep sets.
    pub fn id(&self) -> HookId {
        self.id
    }
}

impl Drop for HookGuard {
    fn drop(&mut self) {
        self.hooks.lock().hooks.retain(|it| it.id != self.id);
    }
}

/// Which hooks a run hears: an argument of the run, not a state of the process.
///
/// Views nest: inside a view that keeps `a`, one that keeps `b` lets `a` and `b` through, and the outer
/// one holds again when the inner one is gone.
#[derive(Clone, Copy, Debug)]
pub struct HookView<'a> {
    outer: Option<&'a HookView<'a>>,
    keep: &'a [HookId],
    limited: bool,
}

impl HookView<'static> {
    /// All hooks run.
    pub const ALL: Self = Self { outer: None, keep: &[], limited: false };
    /// No hook runs.
    pub const NONE: Self = Self { outer: None, keep: &[], limited: true };
}

impl<'a> HookView<'a> {
    /// A view inside this one that lets only `keep` through, beside what this one keeps.
    pub fn keeping(&'a self, keep: &'a [HookId]) -> HookView<'a> {
        HookView { outer: Some(self), keep, limited: true }
    }

    /// Whether a hook runs under this view.
    pub fn lets_through(&self, id: HookId) -> bool {
        let mut limited = false;
        let mut view = Some(self);
        while let Some(current) = view {
            if current.limited {
                limited = true;
                if current.keep.contains(&id) {
                    return true;
                }
            }
            view = current.outer;
        }
        !limited
    }
}
