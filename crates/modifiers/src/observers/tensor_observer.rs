//! The one observer behind every registered name: a range or a search per batch, joined as its entry says.

use compressed_tensors::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
    minmax::MinMaxObserver,
    numbers::Float,
    quantize::{Qparams, ScaleMap},
    scales::global_scale,
};
use serde_json::{Value, json};

use super::{
    importance::{Importance, column_factors},
    improvements::{Improvements, n_evaluated},
    observer::{Observed, Observer, Partial, Reduction, Role, nothing_seen},
    registry::{Memory, ObserverEntry},
    search::{GridSearch, Range},
    settings::ObserverSettings,
    weight_search::WeightSearch,
};

/// An observer of one tensor.
#[derive(Clone, Debug)]
pub struct TensorObserver {
    entry: ObserverEntry,
    settings: ObserverSettings,
    role: Role,
    args: QuantizationArgs,
    seen: Option<(Float, MinMaxObserver)>,
    importance: Option<Importance>,
    n_evaluated: usize,
    warning: Option<String>,
}

impl TensorObserver {
    /// An observer that has seen nothing; kwargs are those of `args`.
    ///
    /// # Errors
    /// [`ErrorKind::UnknownField`] and [`ErrorKind::InvalidField`] for kwargs.
    pub fn new(entry: &ObserverEntry, role: Role, args: &QuantizationArgs) -> Result<Self> {
        let settings = ObserverSettings::read(entry.observation, &entry.known_kwargs(), &args.observer_kwargs)?;
        Ok(Self::with_settings(entry, settings, role, args))
    }

    /// As [`new`](Self::new) with kwargs that are read already, as those of a [`Choice`](super::Choice).
    pub fn with_settings(
        entry: &ObserverEntry,
        settings: ObserverSettings,
        role: Role,
        args: &QuantizationArgs,
    ) -> Self {
        let (entry, args) = (*entry, args.clone());
        Self { entry, settings, role, args, seen: None, importance: None, n_evaluated: 0, warning: None }
    }

    /// Candidates that the last search tried.
    pub fn n_evaluated(&self) -> usize {
        self.n_evaluated
    }

    /// Sums of squared inputs seen so far.
    pub fn importance(&self) -> Option<&Importance> {
        self.importance.as_ref()
    }

    /// The ranges of one batch.
    fn batch(&mut self, observed: &Observed<'_>, map: &ScaleMap) -> Result<Vec<Range>> {
        let (values, float) = (observed.values, observed.float);
        if let (Role::Weight, &[rows, cols]) = (self.role, observed.shape) {
            let mut search = WeightSearch::with_settings(&self.settings, &self.args, float, [rows, cols])?;
            if self.entry.needs_inputs() {
                search = search.with_factors(self.column_factors(cols)?);
            }
            let searched = search.search_values(values)?;
            self.n_evaluated = searched.n_evaluated();
            return Ok(searched.ranges().to_vec());
        }
        let Some(settings) = &self.settings.search else { return Ok(map.ranges(values)) };
        if self.entry.needs_inputs() {
            let reason = "only weights have importance";
            if settings.is_strict {
                return Err(
                    ErrorKind::Unsupported { what: format!("{} ({reason}) with `strict`", self.entry.name) }.into()
                );
            }
            self.warning = Some(format!("all columns count alike in the search: {reason}"));
        }
        let grid = GridSearch::new(settings, &self.args, float)?;
        let mut found = Improvements::new(grid.factors.len(), grid.patience);
        let mut ranges = Vec::new();
        match map.scales() {
            1 => grid.runs(values, None, values.len(), None, (&mut ranges, &mut found)),
            n_scales => {
                let mut runs = vec![Vec::new(); n_scales];
                values.iter().enumerate().for_each(|(i, x)| runs[map.index(i)].push(*x));
                for run in runs {
                    grid.runs(&run, None, run.len().max(1), None, (&mut ranges, &mut found));
                }
            }
        }
        self.n_evaluated = n_evaluated(&found.any(), grid.factors.len(), grid.patience);
        let steps = found.lasts(self.n_evaluated);
        Ok(ranges.into_iter().zip(steps).map(|(range, step)| grid.candidate(range, step)).collect())
    }

    fn column_factors(&mut self, n_cols: usize) -> Result<Option<Vec<f32>>> {
        let is_strict = self.settings.search.is_some_and(|it| it.is_strict);
        let (factors, warning) = column_factors(&self.args, n_cols, self.importance.as_ref(), is_strict)?;
        self.warning = warning;
        Ok(factors)
    }

    /// Starts over with given statistics.
    fn set_ranges(&mut self, float: Float, ranges: Vec<Range>, scale_shape: &[usize]) -> Result<()> {
        let mut seen = MinMaxObserver::new(self.entry.running(&self.settings), float);
        seen.observe_ranges(ranges, scale_shape)?;
        self.seen = Some((float, seen));
        Ok(())
    }
}

impl Observer for TensorObserver {
    fn name(&self) -> &'static str {
        self.entry.name
    }

    fn args(&self) -> &QuantizationArgs {
        &self.args
    }

    fn observe(&mut self, observed: &Observed<'_>) -> Result<()> {
        if observed.values.is_empty() || (self.role == Role::Weight && self.seen.is_some()) {
            return Ok(());
        }
        if observed.shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim)) != Some(observed.values.len()) {
            let (found, expected) = (observed.shape.to_vec(), format!("{} values", observed.values.len()));
            return Err(ErrorKind::Shape { tensor: self.role.base_name().to_owned(), found, expected }.into());
        }
        let map = self.role.scale_map(&self.args, observed.shape)?;
        let ranges = self.batch(observed, &map)?;
        match &mut self.seen {
            Some((_, seen)) => seen.observe_ranges(ranges, map.scale_shape()),
            None => self.set_ranges(observed.float, ranges, map.scale_shape()),
        }
    }

    fn needs_inputs(&self) -> bool {
        self.role == Role::Weight && self.entry.needs_inputs()
    }

    fn observe_inputs(&mut self, inputs: &Observed<'_>) -> Result<()> {
        if !self.needs_inputs() || inputs.values.is_empty() {
            return Ok(());
        }
        let n_features = inputs.shape.last().copied().unwrap_or(1);
        self.importance.get_or_insert_with(|| Importance::new(n_features)).add(inputs.values)
    }

    fn ranges(&self) -> &[(f32, f32)] {
        self.seen.as_ref().map_or(&[], |it| it.1.ranges())
    }

    fn scale_shape(&self) -> &[usize] {
        self.seen.as_ref().map_or(&[], |it| it.1.scale_shape())
    }

    fn amax(&self) -> Option<f32> {
        self.seen.as_ref().and_then(|it| it.1.amax())
    }

    fn qparams(&self, amax: Option<f32>) -> Result<Qparams> {
        let (float, seen) = self.seen.as_ref().ok_or_else(|| nothing_seen(self.entry.name))?;
        let shared = amax.filter(|_| self.args.strategy == QuantizationStrategy::TensorGroup);
        seen.qparams(&self.args, shared.map(|amax| global_scale(amax, *float)))
    }

    fn clear(&mut self) {
        self.seen = None;
        self.importance = None;
    }

    fn partials(&self) -> Vec<Partial> {
        if let Some(importance) = &self.importance {
            let sum = importance.sum.iter().map(|it| f64::from(*it)).collect();
            return vec![
                Partial { name: "sum", reduction: Reduction::Sum, values: sum },
                Partial { name: "count", reduction: Reduction::Sum, values: vec![importance.count as f64] },
            ];
        }
        let [min, max] = match self.entry.memory {
            Memory::None => return Vec::new(),
            Memory::All => [Reduction::Min, Reduction::Max],
            Memory::Average => [Reduction::Average; 2],
        };
        let (mins, maxs) = self.ranges().iter().map(|(min, max)| (f64::from(*min), f64::from(*max))).unzip();
        vec![
            Partial { name: "min_vals", reduction: min, values: mins },
            Partial { name: "max_vals", reduction: max, values: maxs },
        ]
    }

    fn set_partials(&mut self, partials: &[Partial]) -> Result<()> {
        let own = self.partials();
        let fits = |(own, new): (&Partial, &Partial)| own.name == new.name && own.values.len() == new.values.len();
        if own.len() != partials.len() || !own.iter().zip(partials).all(fits) {
            let describe = |of: &[Partial]| of.iter().map(|it| it.values.len()).collect::<Vec<_>>();
            let expected = format!("{:?} values of {} statistics", describe(&own), own.len());
            return Err(
                ErrorKind::Shape { tensor: "statistics".to_owned(), found: describe(partials), expected }.into()
            );
        }
        let [first, second] = partials else { return Ok(()) };
        if let Some(importance) = &mut self.importance {
            importance.sum = first.values.iter().map(|it| *it as f32).collect();
            importance.count = second.values[0] as u64;
            return Ok(());
        }
        let Some((float, seen)) = &self.seen else { return Ok(()) };
        let (float, shape) = (*float, seen.scale_shape().to_vec());
        let round = |it: f64| float.round(it as f32);
        let ranges = first.values.iter().zip(&second.values).map(|(min, max)| (round(*min), round(*max))).collect();
        self.set_ranges(float, ranges, &shape)
    }

    fn snapshot(&self) -> Value {
        let bits = |values: &mut dyn Iterator<Item = f32>| values.map(f32::to_bits).collect::<Vec<_>>();
        let seen = self.seen.as_ref().map(|(float, seen)| {
            json!({
                "dtype": float.dtype().safetensors_name(),
                "scale_shape": seen.scale_shape(),
                "min_vals": bits(&mut seen.ranges().iter().map(|it| it.0)),
                "max_vals": bits(&mut seen.ranges().iter().map(|it| it.1)),
            })
        });
        let importance =
            self.importance.as_ref().map(|it| json!({"sum": bits(&mut it.sum.iter().copied()), "count": it.count}));
        json!({"observer": self.entry.name, "seen": seen, "importance": importance})
    }

    fn restore(&mut self, snapshot: &Value) -> Result<()> {
        let refuse = |field: &str, expected: &str| {
            let (field, found, expected) = (field.to_owned(), snapshot[field].to_string(), expected.to_owned());
            compressed_tensors::Error::from(ErrorKind::InvalidField { field, found, expected })
        };
        if snapshot["observer"] != self.entry.name {
            return Err(refuse("observer", self.entry.name));
        }
        self.clear();
        if !snapshot["seen"].is_null() {
            let (float, ranges, shape) =
                read_seen(&snapshot["seen"]).ok_or_else(|| refuse("seen", "the ranges of a snapshot"))?;
            self.set_ranges(float, ranges, &shape)?;
        }
        if !snapshot["importance"].is_null() {
            let importance = read_importance(&snapshot["importance"]);
            self.importance = Some(importance.ok_or_else(|| refuse("importance", "the sums of a snapshot"))?);
        }
        Ok(())
    }

    fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }
}

fn read_seen(seen: &Value) -> Option<(Float, Vec<Range>, Vec<usize>)> {
    let floats = [Float::BF16, Float::F16, Float::F32];
    let float = floats.into_iter().find(|it| seen["dtype"] == it.dtype().safetensors_name())?;
    let shape = seen["scale_shape"].as_array()?.iter();
    let shape = shape.map(|it| it.as_u64().and_then(|it| usize::try_from(it).ok())).collect::<Option<Vec<_>>>()?;
    let (mins, maxs) = (read_bits(&seen["min_vals"])?, read_bits(&seen["max_vals"])?);
    let n_scales = shape.iter().try_fold(1usize, |n, dim| n.checked_mul(*dim))?;
    let is_whole = mins.len() == n_scales && maxs.len() == n_scales;
    is_whole.then(|| (float, mins.into_iter().zip(maxs).collect(), shape))
}

fn read_importance(importance: &Value) -> Option<Importance> {
    Some(Importance { sum: read_bits(&importance["sum"])?, count: importance["count"].as_u64()? })
}

fn read_bits(values: &Value) -> Option<Vec<f32>> {
    let bits = values.as_array()?.iter();
    bits.map(|it| it.as_u64().and_then(|it| u32::try_from(it).ok()).map(f32::from_bits)).collect()
}
