//! What `observer_kwargs` may say: names, defaults and limits per observer.

use compressed_tensors::{ErrorKind, Result};
use serde_json::{Map, Value};

use super::registry::Observation;

/// Weight of a new batch in a moving average, where kwargs do not say.
pub(super) const AVERAGING: f64 = 0.01;
/// Most candidates that a search may try.
const MAX_STEPS: f64 = 4096.0;

/// How errors are measured and which candidates are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SearchKind {
    /// In the tensor's type, over `int(maxshrink * grid)` candidates.
    Mse,
    /// In f32, weighted by importance, over one candidate more.
    IMatrix,
}

/// The numbers of a grid search, as `observer_kwargs` gives them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SearchSettings {
    /// Which of the two searches.
    pub kind: SearchKind,
    /// Share of the range that may be cut off, 0 to 1.
    pub maxshrink: f64,
    /// Candidates that fail in a row, over all scales, before the search stops; `None` never stops.
    pub patience: Option<usize>,
    /// Candidates per unit of shrinking.
    pub grid: f64,
    /// Exponent of the error.
    pub norm: f64,
    /// Factor on the range before it is shrunk, at least 1.
    pub expand: f64,
    /// Whether absent or unusable importance is an error instead of a warning.
    pub is_strict: bool,
}

/// All that an observer's kwargs say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ObserverSettings {
    /// Weight of a new batch in a moving average.
    pub averaging_constant: f32,
    /// The search, where the observer has one.
    pub search: Option<SearchSettings>,
}

/// Names of the kwargs of each kind of observer; `triton_error_buffer` tunes a kernel that has no twin here.
const AVERAGE: &str = "averaging_constant";
const GRID: [&str; 5] = ["maxshrink", "patience", "grid", "norm", "expand"];
const TRITON: &str = "triton_error_buffer";
const STRICT: &str = "strict";

/// The kwargs that an observer takes, in display order.
pub(super) fn known_kwargs(observation: Observation, averages: bool) -> Vec<&'static str> {
    let mut known = Vec::new();
    if let Observation::Search(defaults) = observation {
        known.extend(GRID);
        known.push(if defaults.kind == SearchKind::IMatrix { STRICT } else { TRITON });
    }
    if averages {
        known.push(AVERAGE);
    }
    known
}

impl SearchSettings {
    /// Number of candidates.
    pub fn steps(&self) -> usize {
        // Truncation is what the reference's conversion to an integer does; the product is checked when read.
        let steps = (self.maxshrink * self.grid) as usize;
        match self.kind {
            SearchKind::Mse => steps,
            SearchKind::IMatrix => steps.max(1) + 1,
        }
    }

    fn read(mut self, kwargs: &Map<String, Value>) -> Result<Self> {
        let in_unit = |it: f64| (0.0..=1.0).contains(&it);
        self.maxshrink = number(kwargs, "maxshrink", self.maxshrink, in_unit, "a number from 0 to 1")?;
        self.grid = number(kwargs, "grid", self.grid, |it| it > 0.0, "a number above 0")?;
        self.norm = number(kwargs, "norm", self.norm, |it| it > 0.0 && it <= 64.0, "a number above 0, at most 64")?;
        self.expand = number(kwargs, "expand", self.expand, |it| (1.0..=64.0).contains(&it), "a number from 1 to 64")?;
        if self.maxshrink * self.grid > MAX_STEPS {
            let expected = format!("maxshrink * grid to be at most {MAX_STEPS}");
            return Err(invalid("grid", &kwargs.get("grid").cloned().unwrap_or_default(), &expected));
        }
        if let Some(value) = kwargs.get("patience") {
            let patience = value.as_u64().and_then(|it| usize::try_from(it).ok());
            let patience = patience.ok_or_else(|| invalid("patience", value, "a whole number of at least 0"))?;
            self.patience = match self.kind {
                SearchKind::IMatrix if patience == 0 => None,
                // The count is compared after it was raised, so that 0 stops where 1 does.
                _ => Some(patience.max(1)),
            };
        }
        if let Some(value) = kwargs.get(STRICT) {
            self.is_strict = value.as_bool().ok_or_else(|| invalid(STRICT, value, "true or false"))?;
        }
        number(kwargs, TRITON, 0.0, |it| it >= 0.0, "a number of at least 0")?;
        Ok(self)
    }
}

impl ObserverSettings {
    /// Reads the kwargs of an observer, given what it knows.
    pub(super) fn read(observation: Observation, known: &[&str], kwargs: &Map<String, Value>) -> Result<Self> {
        if let Some(field) = kwargs.keys().find(|key| !known.contains(&key.as_str())) {
            let known = known.iter().map(|it| (*it).to_owned()).collect();
            return Err(ErrorKind::UnknownField { field: field.clone(), known }.into());
        }
        let averaging = number(kwargs, AVERAGE, AVERAGING, |it| (0.0..=1.0).contains(&it), "a number from 0 to 1")?;
        let search = match observation {
            Observation::Search(defaults) => Some(defaults.read(kwargs)?),
            Observation::Range => None,
        };
        Ok(Self { averaging_constant: averaging as f32, search })
    }
}

fn number(
    kwargs: &Map<String, Value>,
    field: &str,
    default: f64,
    fits: impl Fn(f64) -> bool,
    expected: &str,
) -> Result<f64> {
    match kwargs.get(field) {
        None => Ok(default),
        Some(value) => value.as_f64().filter(|it| fits(*it)).ok_or_else(|| invalid(field, value, expected)),
    }
}

fn invalid(field: &str, found: &Value, expected: &str) -> compressed_tensors::Error {
    let (field, found, expected) = (field.to_owned(), found.to_string(), expected.to_owned());
    ErrorKind::InvalidField { field, found, expected }.into()
}
