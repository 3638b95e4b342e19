//! Better scales and codes for a weight that is rounded: both are moved while the error of the layer's outputs falls.
#![expect(non_snake_case, reason = "matrices are capital letters")]

use compressed_tensors::{
    args::QuantizationStrategy,
    numbers::Float,
    quantize::Qparams,
    scales::{Arithmetic, Code},
};
use kernels::{
    Profile,
    descent::{self, Grid},
};

use super::algorithm::{Hessian, scale_type};
use crate::{
    error::{Result, check_len},
    quantization::algorithm::WeightSpec,
};

/// Shares of a range that a search tries, from the whole of it downwards.
const SHRINKS: usize = 32;

/// What the smallest tried share of a range is.
const LEAST_SHARE: f32 = 0.6;

/// The damped second moments `(N, N)`, by which an error of a row costs `e H e^T`.
#[derive(Clone, Debug)]
pub(super) struct Objective {
    cols: usize,
    H: Vec<f32>,
}

impl Objective {
    /// Of second moments whose diagonal is raised by a share of its mean; inputs that are always 0 get a diagonal of 1.
    pub(super) fn new(hessian: &Hessian, dampening_frac: f32) -> Self {
        let (N, H) = hessian.damped(dampening_frac);
        Self { cols: N, H }
    }

    /// The diagonal (N): what an error of each column costs by itself.
    pub(super) fn costs(&self) -> Vec<f32> {
        self.H.iter().copied().step_by(self.cols + 1).collect()
    }
}

/// How a weight is rounded, if its codes are integers with scales of whole groups of a row.
fn grid<'a>(spec: &WeightSpec<'_>, dtype: Float, zero_points: Option<&'a [f32]>) -> Result<Option<Grid<'a>>> {
    let arithmetic = Arithmetic::of(spec.args)?;
    let is_by_row = matches!(spec.args.strategy, QuantizationStrategy::Group | QuantizationStrategy::Channel);
    let Code::Int { bits: bits @ 1..=8 } = arithmetic.code else { return Ok(None) };
    if !is_by_row || spec.cols == 0 {
        return Ok(None);
    }
    Ok(Some(Grid {
        cols: spec.cols,
        width: spec.tiles()?.width.min(spec.cols),
        bits,
        scale_type: scale_type(dtype),
        weight_type: scale_type(spec.float),
        zero_points: zero_points.filter(|_| !arithmetic.symmetric),
    }))
}

/// Replaces scales (and zero points) by those of the shrunk range of each group whose rounding costs least, where the error of
/// column j costs `costs[j]` times its square. Weights of other forms than integer groups and channels are left alone.
///
/// # Errors
/// Weights, scales and costs of other lengths than the specification's.
pub(super) fn search_scales(
    profile: Profile,
    spec: &WeightSpec<'_>,
    costs: &[f32],
    weight: &[f32],
    qparams: &mut Qparams,
) -> Result<()> {
    check_len("weight", weight.len(), &[spec.rows, spec.cols])?;
    check_len("scales", qparams.scales.len(), &[spec.tiles()?.count])?;
    let arithmetic = Arithmetic::of(spec.args)?;
    if grid(spec, qparams.dtype, None)?.is_none() {
        return Ok(());
    }
    let ranges = spec.ranges(weight)?;
    let mut best = vec![f32::INFINITY; ranges.len()];
    let mut sums = best.clone();
    for step in 0..SHRINKS {
        let share = 1.0 - (1.0 - LEAST_SHARE) * step as f32 / (SHRINKS - 1) as f32;
        let shrunk: Vec<(f32, f32)> = ranges.iter().map(|(low, high)| (low * share, high * share)).collect();
        let tried = Qparams::from_ranges(&arithmetic, &shrunk, spec.float, None).stored_as(spec.float);
        let Some(grid) = grid(spec, tried.dtype, tried.zero_points.as_deref())? else { return Ok(()) };
        descent::rounding_costs(profile, &grid, costs, weight, &tried.scales, &mut sums)?;
        for at in (0..sums.len()).filter(|at| tried.scales[*at] > 0.0) {
            if sums[at] < best[at] {
                best[at] = sums[at];
                qparams.scales[at] = tried.scales[at];
                if let (Some(to), Some(from)) = (&mut qparams.zero_points, grid.zero_points) {
                    to[at] = from[at];
                }
            }
        }
    }
    Ok(())
}

/// Moves the codes and scales of `rounded`, which stands for `weight`, `rounds` times over: in each round every code goes where
/// the error of the outputs is least while all else stays, then every scale. The error never rises.
///
/// Returns the error before and after, `sum e H e^T` over the rows. Weights of other forms than integer groups and channels are
/// left alone.
///
/// # Errors
/// Weights and scales of other lengths than the specification's.
pub(super) fn refine(
    profile: Profile,
    spec: &WeightSpec<'_>,
    objective: &Objective,
    rounds: u32,
    weight: &[f32],
    rounded: &mut [f32],
    qparams: &mut Qparams,
) -> Result<[f64; 2]> {
    check_len("scales", qparams.scales.len(), &[spec.tiles()?.count])?;
    let Some(grid) = grid(spec, qparams.dtype, qparams.zero_points.as_deref())? else { return Ok([0.0; 2]) };
    Ok(descent::descend(profile, &grid, &objective.H, rounds, weight, rounded, &mut qparams.scales)?)
}
