//! Operations as values: what a graph records and a computation runs.

mod codes;
mod experts;
mod infer;
mod layout;
mod linear;
mod normalize;
mod positions;
mod recurrent;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kernels::activation::Activation;
use kernels::attention::Mask;
use kernels::rms_norm::Rounded;
use kernels::rope::Pairing;

pub use codes::CodedLinear;
pub use experts::{expert_rows, grouped_linear};
pub use linear::indices;

use crate::error::{ErrorKind, Result};
use crate::{DType, Engine, Spec, Tensor};

/// An operation with its attributes; inputs and results are tensors.
///
/// Shapes: B batch, T tokens, C channels, H heads, K key-value heads, D head width, O output rows, E experts, N rows of a
/// flattened batch, R rows handed to experts, k experts of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// `x @ w^T (+ bias)`: x (..., C), w (O, C), bias (O) -> (..., O).
    Linear,
    /// A linear layer per expert: rows (R, C), offsets (E + 1), E times w (O, C), none or E times bias (O) -> (R, O).
    GroupedLinear {
        /// E.
        experts: usize,
    },
    /// Rows of a table: ids (...), table (V, C) -> (..., C).
    Embedding,
    /// Root-mean-square normalization: x (..., C), weight (C) or none -> (..., C).
    RmsNorm {
        /// Added to the mean square.
        eps: f32,
        /// Added to the weight.
        weight_offset: f32,
        /// When the normalized row is rounded.
        rounded: Rounded,
    },
    /// Layer normalization: x (..., C), none, weight (C), or weight and bias (C) -> (..., C).
    LayerNorm {
        /// Added to the variance.
        eps: f32,
        /// Added to the weight, the sum rounded.
        weight_offset: f32,
    },
    /// Cosines and sines of T positions from the engine's first on: x (B, T, C) -> cos (T, F), sin (T, F), both f32, rounded to the type of x.
    RopeTable {
        /// F inverse frequencies.
        inverse_frequencies: Arc<[f32]>,
        /// Factor on cosine and sine.
        scaling: f32,
        /// Other frequencies for longer rows.
        longer: Option<Longer>,
    },
    /// Rotation of query or key: x (B, T, H, D), cos (T, F), sin (T, F) -> (B, T, H, D); the first 2 F channels turn.
    Rope {
        /// Which channels form a pair.
        pairing: Pairing,
    },
    /// Numbers that hide padding: mask (B, T) of 0 and 1 -> (B, T), f32, minus infinity for 0.
    KeyMask,
    /// Positions of tokens, from the engine's first on, as ids of a table: ids (B, T), none or a mask (B, T) -> (B, T) U32.
    ///
    /// Under a mask a position counts the tokens before it that are not hidden; a hidden token has the position -1, or 0 where
    /// `offset` is 0.
    Positions {
        /// Added to each position.
        offset: u32,
    },
    /// Numbers that grow with a key's position, by head: x (B, T, C), none or a key mask (B, T) -> (B, H, T), f32.
    ///
    /// Under a mask positions count the keys before it that are not hidden, and hidden keys stay so.
    Alibi {
        /// H factors on the position.
        slopes: Arc<[f32]>,
        /// The type that products are rounded to; that of x by default.
        rounded_to: Option<DType>,
        /// Factor on the rounded products.
        factor: f32,
    },
    /// Scaled dot-product attention: q (B, T, H, D), k (B, T, K, D), v (B, T, K, D'), then sinks (H) and key mask (B, T) as
    /// declared -> (B, T, H, D'); the key mask may have numbers by head: (B, H, T).
    Attention(Attention),
    /// `f(x)`: any shape.
    Activate(Activation),
    /// `f(gate) * up`, the activation rounded first: both of one shape.
    Gated(Activation),
    /// `(up + 1) * gate * sigmoid(alpha * gate)`, the gate at most `limit`, up within `limit` of 0, each step rounded: both of
    /// one shape.
    GatedClamped {
        /// Factor inside of the sigmoid.
        alpha: f32,
        /// The limit.
        limit: f32,
    },
    /// `f(gate) * x`, the activation rounded first: gate (N, 1), x (N, C) -> (N, C).
    ScaleRows(Activation),
    /// `a + b`: both of one shape.
    Add,
    /// `a * b`: both of one shape.
    Mul,
    /// `x * factor`.
    Scale {
        /// The factor.
        factor: f32,
    },
    /// `x * factor`, the factor rounded to the type of x first.
    ScaleInType {
        /// The factor.
        factor: f32,
    },
    /// `cap * tanh(x / cap)`, each step rounded.
    Softcap {
        /// The cap.
        cap: f32,
    },
    /// Softmax over the last dimension.
    Softmax,
    /// Choice of experts: logits (N, E), then a correction (E) as declared -> weights (N, k) in the logits' type, experts (N, k)
    /// U32 in falling order of score.
    Route(Route),
    /// Rows for experts: x (N, C), experts (N, k) -> rows (R, C), offsets (E + 1) U32, places (N, k) U32.
    ///
    /// Rows are in order of expert, then row; `places` says which row of R belongs to a choice.
    /// Under [`Routing::All`](crate::Routing::All) rows is the view (E, N, C).
    Dispatch {
        /// E.
        experts: usize,
    },
    /// Rows of experts times the weight of the choice that they belong to: rows (R, C), places (N, k), weights (N, k) -> (R, C).
    ///
    /// A row that belongs to no choice, under [`Routing::All`](crate::Routing::All), is left as it is.
    WeighRows,
    /// The weighted sum of what experts gave: rows (R, C), places (N, k), weights (N, k) or none -> (N, C).
    ///
    /// Experts are added in rising order; each product and each sum is rounded.
    Combine,
    /// The same numbers in another float type.
    Cast {
        /// The type.
        dtype: DType,
    },
    /// (..., H * D) -> (..., H, D).
    SplitHeads {
        /// D.
        head_dim: usize,
    },
    /// (..., H, D) -> (..., H * D).
    MergeHeads,
    /// Channels of heads one after the other: a (B, T, H, D), b (B, T, H, D') or (B, T, 1, D') for all heads -> (B, T, H, D + D').
    ConcatHeads,
    /// `x * (1 + scale * ln(1 + floor((t + 1) / period)))` for the position t, the product rounded: x (B, T, H, D).
    ScaleByPosition {
        /// Positions from one step to the next.
        period: f32,
        /// Factor on the logarithm.
        scale: f32,
    },
    /// A causal convolution of each channel: x (B, T, C), w (C, 1, K), bias (C) or none -> (B, T, C).
    CausalConv,
    /// Mamba 2's scan: x (B, T, H, P), steps (B, T, H), k and q (B, T, G, N), then by head logarithms of decays, biases of steps
    /// and factors of the skip (H) -> (B, T, H, P); see [`kernels::recurrence::selective_scan`].
    SelectiveScan {
        /// Least and largest step.
        limits: [f32; 2],
    },
    /// The gated delta rule: v (B, T, H, P), k and q (B, T, G, D), betas and gates (B, T, H), then by head logarithms of decays
    /// and biases of gates (H) -> (B, T, H, P); see [`kernels::recurrence::delta_scan`].
    DeltaScan,
    /// Rows that a key mask hides are zero: x (B, T, C), key mask (B, T) -> (B, T, C).
    HideRows,
    /// (B, T, C) -> (B * T, C).
    Flatten,
    /// x (B * T, C), like (B, T, _) -> (B, T, C).
    Unflatten,
    /// Channels `start..start + len` of the last dimension.
    Narrow {
        /// First channel.
        start: usize,
        /// Number of channels.
        len: usize,
    },
    /// Two dimensions exchanged.
    Transpose {
        /// One dimension.
        a: usize,
        /// The other.
        b: usize,
    },
}

/// Attributes of [`Op::Attention`].
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// Factor on the dot products.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// `c * tanh(score / c)` in place of a score.
    pub softcap: Option<f32>,
    /// Whether a score per head without a value is an input.
    pub sinks: Presence,
    /// Whether a key mask is an input.
    pub key_mask: Presence,
}

/// Whether an optional input is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It is.
    Given,
    /// It is not.
    Absent,
}

/// Attributes of [`Op::Route`].
#[derive(Clone, Debug, PartialEq)]
pub struct Route {
    /// k, experts of a row; equal scores go to the lower index.
    pub n_chosen: usize,
    /// How logits become weights.
    pub scores: Scores,
    /// Whether the chosen weights are divided by their sum.
    pub normalize: Normalize,
    /// Groups of experts of which the best are chosen first.
    pub groups: Option<Groups>,
    /// Whether a number per expert is added to the scores before the choice, though not to the weights.
    pub correction: Presence,
    /// Factor on the weights.
    pub factor: f32,
}

impl Normalize {
    /// By a config's flag.
    pub fn from_flag(is_one: bool) -> Self {
        if is_one { Self::ToOne } else { Self::No }
    }
}

impl Route {
    /// A choice of `n_chosen` among all experts.
    pub fn new(n_chosen: usize, scores: Scores, normalize: Normalize) -> Self {
        Self { n_chosen, scores, normalize, groups: None, correction: Presence::Absent, factor: 1.0 }
    }
}

/// Groups of equally many experts one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    /// How many there are.
    pub n_groups: usize,
    /// From how many of them experts are chosen.
    pub n_chosen: usize,
    /// What makes a group better than another.
    pub by: GroupScore,
}

/// What makes a group of experts better than another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best score.
    Best,
    /// The sum of its two best scores.
    SumOfTwo,
}

/// Other frequencies for rows longer than `after` tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Longer {
    /// Up to how many tokens the usual ones hold.
    pub after: usize,
    /// What holds beyond.
    pub frequencies: LongFrequencies,
}

/// Inverse frequencies of long rows.
#[derive(Clone, Debug, PartialEq)]
pub enum LongFrequencies {
    /// As many as the usual ones.
    Given(Arc<[f32]>),
    /// Those of the base `theta * (factor * T / after - (factor - 1))^(D / (D - 2))` for D = 2 F.
    Grown {
        /// The usual base.
        theta: f64,
        /// By how much the context is meant to grow.
        factor: f64,
    },
}

/// How logits become weights, in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scores {
    /// Softmax over all experts, then the choice.
    Softmax,
    /// The choice, then softmax over the chosen.
    SoftmaxOfChosen,
    /// The sigmoid of each, then the choice.
    Sigmoid,
    /// The choice, then the sigmoid of the chosen.
    SigmoidOfChosen,
}

/// Whether the chosen weights are made to sum to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalize {
    /// They are.
    ToOne,
    /// They are left as they are.
    No,
}

impl Op {
    /// The name in a printed graph and in node names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::GroupedLinear { .. } => "grouped_linear",
            Self::Embedding => "embedding",
            Self::RmsNorm { .. } => "rms_norm",
            Self::LayerNorm { .. } => "layer_norm",
            Self::RopeTable { .. } => "rope_table",
            Self::Rope { .. } => "rope",
            Self::KeyMask => "key_mask",
            Self::Positions { .. } => "positions",
            Self::Alibi { .. } => "alibi",
            Self::Attention(_) => "attention",
            Self::Activate(_) => "activate",
            Self::Gated(_) => "gated",
            Self::GatedClamped { .. } => "gated_clamped",
            Self::ScaleRows(_) => "scale_rows",
            Self::Add => "add",
            Self::Mul => "mul",
            Self::Scale { .. } => "scale",
            Self::ScaleInType { .. } => "scale_in_type",
            Self::Softcap { .. } => "softcap",
            Self::Softmax => "softmax",
            Self::Route(_) => "route",
            Self::Dispatch { .. } => "dispatch",
            Self::WeighRows => "weigh_rows",
            Self::Combine => "combine",
            Self::Cast { .. } => "cast",
            Self::SplitHeads { .. } => "split_heads",
            Self::MergeHeads => "merge_heads",
            Self::ConcatHeads => "concat_heads",
            Self::ScaleByPosition { .. } => "scale_by_position",
            Self::CausalConv => "causal_conv",
            Self::SelectiveScan { .. } => "selective_scan",
            Self::DeltaScan => "delta_scan",
            Self::HideRows => "hide_rows",
            Self::Flatten => "flatten",
            Self::Unflatten => "unflatten",
            Self::Narrow { .. } => "narrow",
            Self::Transpose { .. } => "transpose",
        }
    }

    /// Whether computing it twice costs next to nothing beside a linear layer, so that it may be computed with the weights
    /// that are current when its consumer runs. A gate has no weights, and gives half of what it takes: it is computed at once, so
    /// that what is kept between waves is small.
    pub fn is_prologue(&self) -> bool {
        match self {
            Self::RmsNorm { .. }
            | Self::LayerNorm { .. }
            | Self::Activate(_)
            | Self::Softmax
            | Self::Route(_)
            | Self::Dispatch { .. }
            | Self::WeighRows
            | Self::Cast { .. }
            | Self::SplitHeads { .. }
            | Self::MergeHeads
            | Self::Flatten
            | Self::Unflatten
            | Self::Narrow { .. }
            | Self::Transpose { .. } => true,
            Self::Linear
            | Self::GroupedLinear { .. }
            | Self::Embedding
            | Self::RopeTable { .. }
            | Self::Rope { .. }
            | Self::Gated(_)
            | Self::GatedClamped { .. }
            | Self::KeyMask
            | Self::Positions { .. }
            | Self::Alibi { .. }
            | Self::Attention(_)
            | Self::ConcatHeads
            | Self::ScaleByPosition { .. }
            | Self::CausalConv
            | Self::SelectiveScan { .. }
            | Self::DeltaScan
            | Self::HideRows
            | Self::ScaleRows(_)
            | Self::Add
            | Self::Mul
            | Self::Scale { .. }
            | Self::ScaleInType { .. }
            | Self::Softcap { .. }
            | Self::Combine => false,
        }
    }

    /// What comes out for what goes in; known extents are checked, symbolic ones are carried.
    ///
    /// # Errors
    /// [`ErrorKind::Arity`], [`ErrorKind::Shape`], [`ErrorKind::DType`], [`ErrorKind::Symbolic`], placed at the operation.
    pub fn infer(&self, inputs: &[Spec]) -> Result<Vec<Spec>> {
        infer::infer(self, inputs).map_err(|error| error.at(self.name()))
    }

    /// Computes; inputs that nobody else holds may be written over.
    ///
    /// # Errors
    /// Those of [`Op::infer`], [`ErrorKind::Budget`], [`ErrorKind::Index`] and [`ErrorKind::Kernel`], placed at the operation.
    pub fn forward(&self, engine: &Engine, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let specs: Vec<_> = inputs.iter().map(Spec::of).collect();
        // Rows of all experts are a view of three dimensions where a trace sees two.
        if !matches!(self, Self::GroupedLinear { .. } | Self::WeighRows) {
            self.infer(&specs)?;
        }
        self.compute(engine, inputs).map_err(|error| error.at(self.name()))
    }

    fn compute(&self, engine: &Engine, inputs: Vec<Tensor>) -> Result<Vec<Tensor>> {
        let one = |result: Result<Tensor>| result.map(|tensor| vec![tensor]);
        match self {
            Self::Linear => one(linear::linear(engine, &inputs)),
            Self::GroupedLinear { experts } => one(experts::grouped(engine, *experts, &inputs)),
            Self::Embedding => one(linear::embedding(engine, &inputs[0], &inputs[1])),
            Self::RmsNorm { eps, weight_offset, rounded } => {
                one(normalize::rms_norm(engine, [*eps, *weight_offset], *rounded, &inputs))
            }
            Self::LayerNorm { eps, weight_offset } => {
                one(normalize::layer_norm(engine, [*eps, *weight_offset], &inputs))
            }
            Self::RopeTable { inverse_frequencies, scaling, longer } => {
                positions::rope_table(engine, inverse_frequencies, *scaling, longer.as_ref(), &inputs[0])
            }
            Self::Rope { pairing } => one(positions::rope(engine, *pairing, inputs)),
            Self::KeyMask => one(positions::key_mask(engine, &inputs[0])),
            Self::Positions { offset } => one(positions::positions(engine, *offset, &inputs)),
            Self::Alibi { slopes, rounded_to, factor } => {
                one(positions::alibi(engine, slopes, *rounded_to, *factor, &inputs))
            }
            Self::ScaleByPosition { period, scale } => {
                one(positions::scale_by_position(engine, [*period, *scale], &inputs[0]))
            }
            Self::Attention(attention) => one(positions::attention(engine, attention, &inputs)),
            Self::Activate(f) => one(normalize::activate(engine, *f, &inputs[0])),
            Self::Gated(f) => one(normalize::gated(engine, *f, &inputs[0], &inputs[1])),
            Self::GatedClamped { alpha, limit } => {
                one(normalize::gated_clamped(engine, [*alpha, *limit], &inputs[0], &inputs[1]))
            }
            Self::ScaleRows(f) => one(normalize::scale_rows(engine, *f, &inputs[0], &inputs[1])),
            Self::Add => one(normalize::zip(engine, inputs, |a, b| a + b)),
            Self::Mul => one(normalize::zip(engine, inputs, |a, b| a * b)),
            Self::Scale { factor } => one(normalize::scale(engine, *factor, &inputs[0])),
            Self::ScaleInType { factor } => one(normalize::scale_in_type(engine, *factor, &inputs[0])),
            Self::Softcap { cap } => one(normalize::softcap(engine, *cap, &inputs[0])),
            Self::Softmax => one(normalize::softmax(engine, &inputs[0])),
            Self::Route(route) => experts::route(engine, route, &inputs),
            Self::Dispatch { experts } => experts::dispatch(engine, *experts, &inputs[0], &inputs[1]),
            Self::WeighRows => one(experts::weigh_rows(engine, &inputs)),
            Self::Combine => one(experts::combine(engine, &inputs)),
            Self::Cast { dtype } => one(normalize::cast(engine, *dtype, &inputs[0])),
            Self::CausalConv => one(recurrent::causal_conv(engine, &inputs)),
            Self::SelectiveScan { limits } => one(recurrent::selective_scan(engine, *limits, &inputs)),
            Self::DeltaScan => one(recurrent::delta_scan(engine, &inputs)),
            Self::HideRows => one(recurrent::hide_rows(engine, &inputs[0], &inputs[1])),
            Self::ConcatHeads => one(layout::concat_heads(engine, &inputs[0], &inputs[1])),
            Self::SplitHeads { .. }
            | Self::MergeHeads
            | Self::Flatten
            | Self::Unflatten
            | Self::Narrow { .. }
            | Self::Transpose { .. } => one(layout::view(engine, self, &inputs)),
        }
    }
}

/// Calls a generic body for the float type that a tensor has.
macro_rules! with_float {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            crate::DType::F32 => {
                type $T = f32;
                $body
            }
            crate::DType::BF16 => {
                type $T = half::bf16;
                $body
            }
            crate::DType::F16 => {
                type $T = half::f16;
                $body
            }
            found => Err(crate::op::not_float("x", found)),
        }
    };
}
pub(crate) use with_float;

pub(crate) fn not_float(argument: &'static str, found: DType) -> crate::Error {
    ErrorKind::DType { argument, found, expected: "one of F32, BF16, F16".to_owned() }.into()
}
