//! The observers by name, and which one a tensor gets.

use compressed_tensors::{
    ErrorKind, Result,
    args::{Dynamic, QuantizationArgs},
    minmax::Running,
};
use serde_json::Value;

use super::{
    observer::{Observer, Role},
    settings::{AVERAGING, ObserverSettings, SearchKind, SearchSettings, known_kwargs},
    tensor_observer::TensorObserver,
};

/// How an observer finds the range of one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Observation {
    /// Its smallest and largest value.
    Range,
    /// The best of many shrunk ranges; these are the defaults of its kwargs.
    Search(SearchSettings),
}

/// How an observer joins batches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// The last batch alone counts.
    None,
    /// The widest range counts.
    All,
    /// A moving average, weighted by `averaging_constant`.
    Average,
}

/// A registered observer.
#[derive(Clone, Copy, Debug)]
pub struct ObserverEntry {
    /// Name in recipes.
    pub name: &'static str,
    /// The page in the documentation.
    pub doc: &'static str,
    /// How it finds a range.
    pub observation: Observation,
    /// How it joins batches.
    pub memory: Memory,
    /// The observer that this name stands for, where it is an alias.
    pub alias_of: Option<&'static str>,
    /// Makes one for a tensor of this role.
    pub construct: fn(&ObserverEntry, Role, &QuantizationArgs) -> Result<Box<dyn Observer>>,
}

const MSE: SearchSettings = SearchSettings {
    kind: SearchKind::Mse,
    maxshrink: 0.2,
    patience: Some(5),
    grid: 100.0,
    norm: 2.4,
    expand: 1.0,
    is_strict: false,
};

const EXPANDED_MSE: SearchSettings =
    SearchSettings { expand: 1.8, maxshrink: 1.0 - 0.8 / 1.8, grid: 200.0, patience: Some(1000), ..MSE };

const IMATRIX: SearchSettings =
    SearchSettings { kind: SearchKind::IMatrix, maxshrink: 0.95, grid: 20.0, norm: 3.0, ..MSE };

const EXPANDED_IMATRIX: SearchSettings = SearchSettings { kind: SearchKind::IMatrix, ..EXPANDED_MSE };

const fn entry(name: &'static str, doc: &'static str, observation: Observation, memory: Memory) -> ObserverEntry {
    ObserverEntry { name, doc, observation, memory, alias_of: None, construct }
}

/// Every observer, in display order.
pub const OBSERVERS: &[ObserverEntry] = &[
    entry("memoryless_minmax", "Smallest and largest value of the last batch", Observation::Range, Memory::None),
    entry("static_minmax", "Smallest and largest value of all batches", Observation::Range, Memory::All),
    entry("minmax", "Moving average of smallest and largest values", Observation::Range, Memory::Average),
    entry("memoryless_mse", "Shrunk range with the least error", Observation::Search(MSE), Memory::None),
    entry("mse", "Moving average of ranges with the least error", Observation::Search(MSE), Memory::Average),
    entry(
        "nvfp4_expanded_mse",
        "Range with the least error, from 1.8 to 0.8 times the observed one",
        Observation::Search(EXPANDED_MSE),
        Memory::None,
    ),
    ObserverEntry {
        alias_of: Some("nvfp4_expanded_mse"),
        ..entry("fouroversix", "Another name of nvfp4_expanded_mse", Observation::Search(EXPANDED_MSE), Memory::None)
    },
    entry(
        "imatrix_mse",
        "Shrunk range with the least error, weighted by the mean square of each input",
        Observation::Search(IMATRIX),
        Memory::None,
    ),
    entry(
        "nvfp4_expanded_imatrix",
        "As imatrix_mse, from 1.8 to 0.8 times the observed range",
        Observation::Search(EXPANDED_IMATRIX),
        Memory::None,
    ),
];

fn construct(entry: &ObserverEntry, role: Role, args: &QuantizationArgs) -> Result<Box<dyn Observer>> {
    Ok(Box::new(TensorObserver::new(entry, role, args)?))
}

impl ObserverEntry {
    /// The kwargs that it takes, in display order.
    pub fn known_kwargs(&self) -> Vec<&'static str> {
        known_kwargs(self.observation, self.memory == Memory::Average)
    }

    /// The value that a kwarg has where it is not given; null for what never ends a search, and for unknown names.
    pub fn default_of(&self, kwarg: &str) -> Value {
        let Observation::Search(search) = self.observation else {
            return if kwarg == "averaging_constant" { AVERAGING.into() } else { Value::Null };
        };
        match kwarg {
            "maxshrink" => search.maxshrink.into(),
            "patience" => search.patience.into(),
            "grid" => search.grid.into(),
            "norm" => search.norm.into(),
            "expand" => search.expand.into(),
            "strict" => search.is_strict.into(),
            "averaging_constant" => AVERAGING.into(),
            _ => Value::Null,
        }
    }

    /// Whether it needs the inputs of the module whose weight it observes.
    pub fn needs_inputs(&self) -> bool {
        matches!(self.observation, Observation::Search(SearchSettings { kind: SearchKind::IMatrix, .. }))
    }

    pub(super) fn running(&self, settings: &ObserverSettings) -> Running {
        match self.memory {
            Memory::None => Running::LastBatch,
            Memory::All => Running::All,
            Memory::Average => Running::Average(settings.averaging_constant),
        }
    }
}

/// Looks an observer up; case, `-`, `_` and spaces make no difference.
///
/// # Errors
/// [`ErrorKind::UnknownName`] with all names.
pub fn find_observer(name: &str) -> Result<&'static ObserverEntry> {
    let normal = |name: &str| name.to_lowercase().replace(['-', ' '], "_");
    let wanted = normal(name);
    OBSERVERS.iter().find(|it| it.name == wanted).ok_or_else(|| {
        let known = OBSERVERS.iter().map(|it| it.name.to_owned()).collect();
        ErrorKind::UnknownName { what: "observer", name: name.to_owned(), known }.into()
    })
}

/// The observer that a tensor gets.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The observer.
    pub entry: &'static ObserverEntry,
    /// Its kwargs, checked.
    pub settings: ObserverSettings,
    /// What the user should know about the choice.
    pub warning: Option<String>,
}

/// The observer of a weight: nothing carries over between batches there, and names that would are replaced.
///
/// # Errors
/// [`ErrorKind::UnknownName`], [`ErrorKind::UnknownField`] and [`ErrorKind::InvalidField`] for the name and kwargs.
pub fn weight_observer(args: &QuantizationArgs) -> Result<Choice> {
    choose(args, args.observer.as_deref().unwrap_or("memoryless_minmax"), |requested| match requested.name {
        "static_minmax" | "minmax" => Some("memoryless_minmax"),
        "mse" => Some("memoryless_mse"),
        _ => None,
    })
}

/// The observer of an activation or attention state; `None` where scales are found on every call.
///
/// # Errors
/// As [`weight_observer`].
pub fn activation_observer(args: &QuantizationArgs) -> Result<Option<Choice>> {
    if args.dynamic == Dynamic::Yes {
        return Ok(None);
    }
    choose(args, args.observer.as_deref().unwrap_or("minmax"), |_| None).map(Some)
}

fn choose(
    args: &QuantizationArgs,
    name: &str,
    replacement: impl Fn(&ObserverEntry) -> Option<&'static str>,
) -> Result<Choice> {
    let requested = find_observer(name)?;
    // Kwargs are those of the observer that was asked for, so that its replacement does not refuse them.
    let known = requested.known_kwargs();
    let settings = ObserverSettings::read(requested.observation, &known, &args.observer_kwargs)?;
    let (entry, warning) = match (requested.alias_of, replacement(requested)) {
        (Some(target), _) => (find_observer(target)?, Some(format!("observer `{name}` is another name of `{target}`"))),
        (None, Some(target)) if target == "memoryless_mse" => {
            (find_observer(target)?, Some(format!("weights take observer `{target}` instead of `{name}`")))
        }
        (None, Some(target)) => (find_observer(target)?, None),
        (None, None) => (requested, None),
    };
    Ok(Choice { entry, settings, warning })
}
