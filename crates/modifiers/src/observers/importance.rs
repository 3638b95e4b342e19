//! Importance of a weight's columns: the mean square of each input feature.

use compressed_tensors::{
    ErrorKind, Result,
    args::{QuantizationArgs, QuantizationStrategy},
};

/// Sums of squared inputs per feature, and the number of tokens they are from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    /// Sum of squares per input feature.
    pub sum: Vec<f32>,
    /// Number of tokens.
    pub count: u64,
}

impl Importance {
    /// Of `n_features` inputs, with nothing seen.
    pub fn new(n_features: usize) -> Self {
        Self { sum: vec![0.0; n_features], count: 0 }
    }

    /// Adds a batch of rows of `n_features` values; each batch is summed in f64 and added in f32.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for values that are no whole rows.
    pub fn add(&mut self, values: &[f32]) -> Result<()> {
        let n_features = self.sum.len();
        if n_features == 0 || !values.len().is_multiple_of(n_features) {
            let expected = format!("rows of {n_features} values");
            return Err(ErrorKind::Shape { tensor: "input".to_owned(), found: vec![values.len()], expected }.into());
        }
        let mut sums = vec![0.0; n_features];
        for row in values.chunks(n_features) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += f64::from(x * x);
            }
        }
        self.sum.iter_mut().zip(&sums).for_each(|(sum, new)| *sum += *new as f32);
        self.count += (values.len() / n_features) as u64;
        Ok(())
    }

    /// Factors of the columns' errors, 1 on average; or why there are none.
    fn factors(&self, n_cols: usize) -> std::result::Result<Vec<f32>, String> {
        if self.count == 0 {
            return Err("no inputs were seen".to_owned());
        }
        let means: Vec<f32> = self.sum.iter().map(|sum| sum / self.count as f32).collect();
        if means.iter().any(|it| !it.is_finite()) {
            return Err("some mean squares are not finite".to_owned());
        }
        if means.iter().any(|it| *it < 0.0) {
            return Err("some mean squares are negative".to_owned());
        }
        if means.iter().all(|it| *it == 0.0) {
            return Err("all mean squares are zero".to_owned());
        }
        if means.len() != n_cols {
            return Err(format!("{} mean squares for {n_cols} columns", means.len()));
        }
        let mean = means.iter().map(|it| f64::from(*it)).sum::<f64>() / means.len() as f64;
        let divisor = mean as f32 + f32::MIN_POSITIVE;
        Ok(means.iter().map(|it| it / divisor).collect())
    }
}

/// The factors that a search of a weight uses; `None` with a warning where it has to treat all columns alike.
///
/// # Errors
/// [`ErrorKind::Unsupported`] in place of the warning where `is_strict`.
pub(super) fn column_factors(
    args: &QuantizationArgs,
    n_cols: usize,
    importance: Option<&Importance>,
    is_strict: bool,
) -> Result<(Option<Vec<f32>>, Option<String>)> {
    let factors = match (args.strategy, importance) {
        (QuantizationStrategy::Tensor | QuantizationStrategy::Block, _) => {
            Err(format!("strategy {} has none", args.strategy.name()))
        }
        (_, None) => Err("no inputs were seen".to_owned()),
        (_, Some(importance)) => importance.factors(n_cols),
    };
    match factors {
        Ok(factors) => Ok((Some(factors), None)),
        Err(reason) if is_strict => {
            Err(ErrorKind::Unsupported { what: format!("importance of columns ({reason}) with `strict`") }.into())
        }
        Err(reason) => Ok((None, Some(format!("all columns count alike in the search: {reason}")))),
    }
}
