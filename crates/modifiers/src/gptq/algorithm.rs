//! The numbers of GPTQ: accumulation, order of columns, damping, factor, sweep, and what was lost.
#![expect(non_snake_case, reason = "matrices are capital letters")]

use compressed_tensors::{
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::Qparams,
    scales::{Arithmetic, Code},
};
use kernels::{
    Element, Mat, MatMut, Profile, cholesky, gemm,
    gptq_sweep::{self, Rounding, ScaleType, Sweep},
    syrk,
};
use rayon::prelude::*;

use crate::{
    error::{ErrorKind, Result, check_len},
    quantization::algorithm::WeightSpec,
};

/// Rows that are swept in one call, which bounds the memory beside the weights.
const SLAB_ROWS: usize = 512;

/// Second moments of a layer's inputs: `sum_t x_t x_t^T`, upper triangle, f32, with the counts that scale it.
///
/// Neither the count nor the reference's factor 2 changes what GPTQ writes, for damping is relative; they scale the loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Hessian {
    cols: usize,
    sum: Vec<f32>,
    n_samples: u64,
    n_tokens: u64,
}

impl Hessian {
    /// Of no input, for weights with `cols` columns.
    pub fn new(cols: usize) -> Self {
        Self { cols, sum: vec![0.0; cols * cols], n_samples: 0, n_tokens: 0 }
    }

    /// From a sum `(N, N)` row-major, of which the upper triangle is used, and its counts.
    ///
    /// # Errors
    /// A sum that is not `cols` by `cols`.
    pub fn from_sum(cols: usize, mut sum: Vec<f32>, n_samples: u64, n_tokens: u64) -> Result<Self> {
        check_len("hessian", sum.len(), &[cols, cols])?;
        sum.chunks_exact_mut(cols.max(1)).enumerate().for_each(|(idx, row)| row[..idx].fill(0.0));
        Ok(Self { cols, sum, n_samples, n_tokens })
    }

    /// Adds tokens `(T, N)` that belong to `n_samples` sequences.
    ///
    /// The sum is f32 and its bits depend on how tokens are cut into calls, unless at multiples of
    /// [`syrk::PANEL_TOKENS`].
    ///
    /// # Errors
    /// Tokens of another width.
    pub fn accumulate<I: Element>(&mut self, profile: Profile, x: Mat<'_, I>, n_samples: u64) -> Result<()> {
        check_len("columns of an input", x.cols(), &[self.cols])?;
        syrk::accumulate(profile, x, &mut self.sum)?;
        self.n_samples += n_samples;
        self.n_tokens += x.rows() as u64;
        Ok(())
    }

    /// Adds what another rank, or another part of the data, has seen.
    ///
    /// # Errors
    /// A sum of another width.
    pub fn merge(&mut self, other: &Self) -> Result<()> {
        check_len("hessian", other.sum.len(), &[self.cols, self.cols])?;
        self.sum.iter_mut().zip(&other.sum).for_each(|(sum, other)| *sum += other);
        self.n_samples += other.n_samples;
        self.n_tokens += other.n_tokens;
        Ok(())
    }

    /// The moments after the inputs were divided by `scales` (N), as smoothing does: `diag(1/s) H diag(1/s)`.
    ///
    /// # Errors
    /// Scales of another number.
    pub fn divide_inputs(&mut self, scales: &[f32]) -> Result<()> {
        check_len("scales", scales.len(), &[self.cols])?;
        if self.cols > 0 {
            self.sum.par_chunks_mut(self.cols).zip(scales).for_each(|(row, s)| {
                row.iter_mut().zip(scales).for_each(|(sum, t)| *sum = *sum / s / t);
            });
        }
        Ok(())
    }

    /// Columns of the weights that read the input.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The sum; elements below the diagonal are 0.
    pub fn sum(&self) -> &[f32] {
        &self.sum
    }

    /// Sequences seen.
    pub fn n_samples(&self) -> u64 {
        self.n_samples
    }

    /// Tokens seen.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// `sum_t (W x_t)^2` over rows of a weight (R, N): the sum of squares that they put out on all tokens; products in f32, their
    /// sum in f64.
    ///
    /// # Errors
    /// Rows of another width.
    pub fn energy(&self, profile: Profile, rows: &[f32]) -> Result<f64> {
        let N = self.cols;
        if N == 0 {
            return Ok(0.0);
        }
        let R = rows.len() / N;
        let mut products = vec![0.0; rows.len()];
        gemm::matmul(
            profile,
            Mat::new(rows, R, N)?,
            Mat::new(&self.sum, N, N)?,
            None,
            MatMut::new(&mut products, R, N)?,
        )?;
        let mut total = 0.0;
        for (row, products) in rows.chunks_exact(N).zip(products.chunks_exact(N)) {
            for ((w, product), i) in row.iter().zip(products).zip(0..) {
                // The triangle has each pair once, and the diagonal once too often when it is doubled.
                total += f64::from(*w) * (2.0 * f64::from(*product) - f64::from(self.sum[i * N + i]) * f64::from(*w));
            }
        }
        // Rounding may put a form of a singular matrix below 0.
        Ok(total.max(0.0))
    }

    /// The number of columns and the whole matrix `(N, N)`, its diagonal raised by a share of its mean; an element of 0 there
    /// counts as 1.
    pub(crate) fn damped(&self, dampening_frac: f32) -> (usize, Vec<f32>) {
        let N = self.cols;
        let mut diagonal: Vec<f32> = (0..N).map(|i| self.element(i, i)).collect();
        diagonal.iter_mut().filter(|it| **it == 0.0).for_each(|it| *it = 1.0);
        let mean = (diagonal.iter().map(|&it| f64::from(it)).sum::<f64>() / N.max(1) as f64) as f32;
        let mut H = vec![0.0f32; N * N];
        H.par_chunks_mut(N.max(1)).enumerate().for_each(|(i, row)| {
            row.iter_mut().enumerate().for_each(|(j, it)| *it = self.element(i, j));
            row[i] = diagonal[i] + dampening_frac * mean;
        });
        (N, H)
    }

    /// `2 sum / n`, the reference's normalized element.
    fn element(&self, i: usize, j: usize) -> f32 {
        let (i, j) = if i <= j { (i, j) } else { (j, i) };
        2.0 * self.sum[i * self.cols + j] / self.n_samples.max(1) as f32
    }

    /// What the reference's normalization makes of an element 1 of the sum.
    pub(super) fn unit(&self) -> f32 {
        2.0 / self.n_samples.max(1) as f32
    }
}

/// In which order columns are visited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// As they are stored.
    #[default]
    Stored,
    /// The largest diagonal element first, equal ones as stored (`actorder: static`). Groups stay those of stored order.
    Diagonal,
}

/// What is done when a damped matrix has no factor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Escalation {
    /// The damping of each attempt is that of the one before times this.
    pub growth: f32,
    /// And at least this.
    pub least: f32,
    /// Further attempts before rounding to nearest.
    pub attempts: u32,
}

impl Escalation {
    /// Up to a thousand times the damping asked for.
    pub const DEFAULT: Self = Self { growth: 10.0, least: 0.001, attempts: 3 };
    /// Round to nearest at once, as the reference does.
    pub const NONE: Self = Self { growth: 1.0, least: 0.0, attempts: 0 };
}

/// How the diagonal is raised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Damping {
    /// Share of the mean diagonal that is added to it.
    pub frac: f32,
    /// What follows a failure.
    pub escalation: Escalation,
    /// Fewer tokens than this, and at least one, make no second moments worth using.
    pub min_tokens: u64,
}

impl Default for Damping {
    fn default() -> Self {
        Self { frac: 0.01, escalation: Escalation::DEFAULT, min_tokens: 1 }
    }
}

/// Why weights are rounded to nearest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fallback {
    /// Too few tokens came by.
    Tokens {
        /// How many did.
        seen: u64,
    },
    /// No damping gave a factor.
    NotPositiveDefinite {
        /// The last pivot that was not positive, as a position in the order of visits.
        pivot: usize,
        /// What stood there.
        value: f64,
    },
}

/// All that the sweep needs to know of an input, and the record of how it came about.
#[derive(Clone, Debug, PartialEq)]
pub struct Factored {
    /// Stored column of each visit.
    pub order: Vec<u32>,
    /// Stored columns whose input is always 0; their weights become 0.
    pub dead: Vec<u32>,
    /// U `(N, N)` upper in order of visits, `H^-1 = U^T U`; `None` for a fallback.
    pub factor: Option<Vec<f32>>,
    /// Share of the mean diagonal that the last attempt added.
    pub dampening_frac: f32,
    /// Factorizations tried.
    pub attempts: u32,
    /// Why there is no factor.
    pub fallback: Option<Fallback>,
}

impl Factored {
    /// For weights with `cols` columns whose input was seen too seldom.
    pub fn nearest(cols: usize, seen: u64) -> Self {
        Self {
            order: (0..cols as u32).collect(),
            dead: Vec::new(),
            factor: None,
            dampening_frac: 0.0,
            attempts: 0,
            fallback: Some(Fallback::Tokens { seen }),
        }
    }
}

/// Orders, damps and factors second moments.
///
/// A damping that fails is raised as [`Escalation`] says, and where nothing helps weights are rounded to nearest: both are
/// part of the result, not errors.
///
/// # Errors
/// A diagonal that is not finite, with the first such channel.
pub fn factorize(profile: Profile, hessian: &Hessian, order: Order, damping: &Damping) -> Result<Factored> {
    let N = hessian.cols;
    let mut diagonal: Vec<f32> = (0..N).map(|i| hessian.element(i, i)).collect();
    if let Some(channel) = diagonal.iter().position(|it| !it.is_finite()) {
        let value = f64::from(diagonal[channel]);
        return Err(ErrorKind::NonFinite { what: "second moment of inputs", channel, value }.into());
    }
    let mut visits: Vec<u32> = (0..N as u32).collect();
    let seen = hessian.n_tokens;
    if seen < damping.min_tokens.max(1) {
        return Ok(Factored::nearest(N, seen));
    }
    if order == Order::Diagonal {
        visits.sort_by(|&a, &b| diagonal[b as usize].total_cmp(&diagonal[a as usize]));
    }
    let dead: Vec<u32> = (0..N as u32).filter(|&j| diagonal[j as usize] == 0.0).collect();
    dead.iter().for_each(|&j| diagonal[j as usize] = 1.0);
    let mean = (diagonal.iter().map(|&it| f64::from(it)).sum::<f64>() / N.max(1) as f64) as f32;
    let mut result =
        Factored { order: visits, dead, factor: None, dampening_frac: damping.frac, attempts: 0, fallback: None };
    let mut H = vec![0.0f32; N * N];
    loop {
        damped(hessian, &result.order, &diagonal, result.dampening_frac * mean, &mut H);
        result.attempts += 1;
        let error = match cholesky::inverse_factor_f32(profile, &mut H, N) {
            Ok(()) if H.iter().all(|it| it.is_finite()) => {
                result.fallback = None;
                result.factor = Some(H);
                return Ok(result);
            }
            Ok(()) => Fallback::NotPositiveDefinite { pivot: 0, value: f64::INFINITY },
            Err(error) => match *error.kind() {
                kernels::ErrorKind::NotPositiveDefinite { pivot, value } => {
                    Fallback::NotPositiveDefinite { pivot, value }
                }
                _ => return Err(error.into()),
            },
        };
        result.fallback = Some(error);
        if result.attempts > damping.escalation.attempts {
            return Ok(result);
        }
        // What is 0 does not grow.
        result.dampening_frac = (result.dampening_frac * damping.escalation.growth).max(damping.escalation.least);
    }
}

/// Elements of a line of the processor's caches.
const NEIGHBOURS: usize = 16;

/// The upper triangle in order of visits, with the diagonal given and raised.
fn damped(hessian: &Hessian, order: &[u32], diagonal: &[f32], raise: f32, H: &mut [f32]) {
    let N = order.len();
    if N == 0 {
        return;
    }
    let mut visit_of = vec![0; N];
    order.iter().enumerate().for_each(|(i, &p)| visit_of[p as usize] = i);
    // Rows whose elements lie side by side in a column are filled together: each line of memory is fetched once for all of them.
    let mut rows: Vec<(usize, &mut [f32])> = H.chunks_mut(N).enumerate().collect();
    rows.sort_unstable_by_key(|(i, _)| order[*i]);
    rows.par_chunks_mut(NEIGHBOURS).for_each(|rows| {
        for (i, row) in &mut *rows {
            row[..*i].fill(0.0);
            row[*i] = diagonal[order[*i] as usize] + raise;
        }
        for (q, &j) in visit_of.iter().enumerate() {
            for (i, row) in rows.iter_mut().filter(|it| it.0 < j) {
                row[j] = hessian.element(order[*i] as usize, q);
            }
        }
    });
}

/// A weight `(O, N)` that reads the factored input.
#[derive(Debug)]
pub struct Consumer<'a> {
    /// The scheme's arguments for weights.
    pub args: &'a QuantizationArgs,
    /// Type of the weight.
    pub float: Float,
    /// Scales and zero points of the weight as it was before any change, as its module stores them.
    pub qparams: &'a Qparams,
    /// O.
    pub rows: usize,
    /// The values, replaced by dequantized ones of type `float`.
    pub weight: &'a mut [f32],
}

/// What became of a consumer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantized {
    /// Sum over weights of `err^2 / 2`, err in units of the factor's diagonal: the reference's figure.
    pub loss: f64,
}

/// How a consumer's rows are rounded; equal ones are swept as one stack.
#[derive(Clone, Debug, PartialEq)]
struct Layout {
    rounding: Rounding,
    scale_type: ScaleType,
    is_symmetric: bool,
    groups: usize,
    group_of_visit: Vec<u32>,
}

/// A row of a consumer with its own scales.
struct Row<'a> {
    weight: &'a mut [f32],
    scales: &'a [f32],
    zero_points: &'a [f32],
    float: Float,
    consumer: usize,
}

/// Rounds the weights of all consumers, each row on its own; consumers of one layout are swept together.
///
/// The result of a consumer does not depend on which others are given.
///
/// # Errors
/// Weights and scales that do not fit their arguments, integers of more than 16 bits.
pub fn quantize(profile: Profile, input: &Factored, consumers: &mut [Consumer<'_>]) -> Result<Vec<Quantized>> {
    let N = input.order.len();
    let mut prepared = Vec::with_capacity(consumers.len());
    for consumer in consumers.iter() {
        check_len("weight", consumer.weight.len(), &[consumer.rows, N])?;
        prepared.push(prepare(consumer, &input.order)?);
    }
    let mut losses = vec![Quantized { loss: 0.0 }; consumers.len()];
    if N == 0 {
        return Ok(losses);
    }
    let mut stack: Vec<Row<'_>> = Vec::new();
    let mut layout: Option<&Layout> = None;
    for (idx, (consumer, prepared)) in consumers.iter_mut().zip(&prepared).enumerate() {
        if layout.is_some_and(|it| *it != prepared.layout) {
            sweep(profile, input, layout, &mut stack, &mut losses)?;
        }
        layout = Some(&prepared.layout);
        let float = consumer.float;
        for (row, weight) in consumer.weight.chunks_exact_mut(N).enumerate() {
            let at = row / prepared.rows_per_scale * prepared.layout.groups;
            let part = at..at + prepared.layout.groups;
            let zero_points = prepared.zero_points.get(part.clone()).unwrap_or_default();
            stack.push(Row { weight, scales: &prepared.scales[part], zero_points, float, consumer: idx });
            if stack.len() == SLAB_ROWS {
                sweep(profile, input, layout, &mut stack, &mut losses)?;
            }
        }
    }
    sweep(profile, input, layout, &mut stack, &mut losses)?;
    Ok(losses)
}

/// Scales of a consumer, already divided by the global one.
struct Prepared {
    layout: Layout,
    scales: Vec<f32>,
    zero_points: Vec<f32>,
    rows_per_scale: usize,
}

/// The kernels' name of a type.
pub(super) fn scale_type(float: Float) -> ScaleType {
    match float {
        Float::F32 => ScaleType::F32,
        Float::BF16 => ScaleType::Bf16,
        Float::F16 => ScaleType::F16,
    }
}

fn prepare(consumer: &Consumer<'_>, order: &[u32]) -> Result<Prepared> {
    let &Consumer { args, float, qparams, rows, .. } = consumer;
    let tiles = WeightSpec { args, float, rows, cols: order.len() }.tiles()?;
    let arithmetic = Arithmetic::of(args)?;
    let rounding = match arithmetic.code {
        Code::Int { bits: bits @ ..=16 } => Rounding::int(bits),
        Code::Int { bits } => {
            let expected = "at most 16 for GPTQ".to_owned();
            return Err(ErrorKind::InvalidField { field: "num_bits", found: bits.to_string(), expected }.into());
        }
        Code::E4M3 => Rounding::Fp8E4m3,
        Code::E2M1 => Rounding::Fp4E2m1,
    };
    check_len("scales", qparams.scales.len(), &[tiles.count])?;
    let scale_type = scale_type(qparams.global_scale.map_or(qparams.dtype, |_| Float::F32));
    let scales = match qparams.global_scale {
        Some(global) => qparams.scales.iter().map(|it| it / global).collect(),
        None => qparams.scales.clone(),
    };
    let zero_points = match (&qparams.zero_points, arithmetic.symmetric) {
        (Some(zero_points), false) => zero_points.clone(),
        (None, false) => vec![0.0; tiles.count],
        (_, true) => Vec::new(),
    };
    if !arithmetic.symmetric {
        check_len("zero points", zero_points.len(), &[tiles.count])?;
    }
    let is_whole = matches!(args.strategy, QuantizationStrategy::Tensor | QuantizationStrategy::Channel);
    let group = |&col: &u32| if is_whole { 0 } else { col / tiles.width as u32 };
    let layout = Layout {
        rounding,
        scale_type,
        is_symmetric: arithmetic.symmetric,
        groups: tiles.per_row,
        group_of_visit: order.iter().map(group).collect(),
    };
    Ok(Prepared { layout, scales, zero_points, rows_per_scale: tiles.height })
}

/// Sweeps a stack of rows and empties it.
fn sweep(
    profile: Profile,
    input: &Factored,
    layout: Option<&Layout>,
    stack: &mut Vec<Row<'_>>,
    losses: &mut [Quantized],
) -> Result<()> {
    let (Some(layout), false) = (layout, stack.is_empty()) else { return Ok(()) };
    let (R, N) = (stack.len(), input.order.len());
    for row in stack.iter_mut() {
        input.dead.iter().for_each(|&j| row.weight[j as usize] = 0.0);
    }
    let mut loss = vec![0.0f32; R];
    if let Some(factor) = &input.factor {
        let gather = |of: fn(&Row<'_>) -> Vec<f32>| stack.iter().flat_map(of).collect::<Vec<f32>>();
        let scales = gather(|row| row.scales.to_vec());
        let zero_points = gather(|row| row.zero_points.to_vec());
        let mut W = vec![0.0f32; R * N];
        W.par_chunks_exact_mut(N).zip(&*stack).for_each(|(to, row)| {
            to.iter_mut().zip(&input.order).for_each(|(to, &j)| *to = row.weight[j as usize]);
        });
        let plan = Sweep {
            rows: R,
            cols: N,
            factor,
            rounding: layout.rounding,
            scale_type: layout.scale_type,
            scales: &scales,
            zero_points: (!layout.is_symmetric).then_some(&zero_points),
            groups: layout.groups,
            group_of_col: &layout.group_of_visit,
            rows_per_scale: 1,
        };
        gptq_sweep::sweep(profile, &plan, &mut W, &mut loss)?;
        W.par_chunks_exact(N).zip(&mut *stack).for_each(|(from, row)| {
            from.iter().zip(&input.order).for_each(|(from, &j)| row.weight[j as usize] = row.float.round(*from));
        });
    } else {
        stack.par_iter_mut().zip(&mut loss).for_each(|(row, loss)| nearest(layout, &input.order, row, loss));
    }
    for (row, loss) in stack.drain(..).zip(loss) {
        losses[row.consumer].loss += f64::from(loss);
    }
    Ok(())
}

/// A row under the identity as its factor.
fn nearest(layout: &Layout, order: &[u32], row: &mut Row<'_>, loss: &mut f32) {
    for (&j, &group) in order.iter().zip(&layout.group_of_visit) {
        let (w, group) = (&mut row.weight[j as usize], group as usize);
        let zero_point = row.zero_points.get(group).copied();
        let q = gptq_sweep::quantize_dequantize(layout.rounding, layout.scale_type, *w, row.scales[group], zero_point);
        let err = *w - q;
        *loss += err * err * 0.5;
        *w = row.float.round(q);
    }
}
