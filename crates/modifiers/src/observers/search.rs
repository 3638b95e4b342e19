//! The grid search over shrunk ranges of one scale: fast loops over the values that share it.
//!
//! [`reference`](super::reference) defines the result. Values are taken in blocks of 16, whose shares go to eight sums in
//! f64; a candidate is left as soon as its partial sum reaches the best error, which changes nothing because
//! shares are never negative and rounding keeps order.

use compressed_tensors::{
    Result,
    args::{QuantizationArgs, QuantizationStrategy},
    numbers::Float,
    quantize::{Division, dequantize_value, quantize_value},
    scales::{Arithmetic, Code, Qparam, ScaleRule, clamp, propagating_max, propagating_min},
};
use pulp::{Arch, NullaryFnOnce};

use super::{
    improvements::Improvements,
    power::{Measure, index, power_f32},
    settings::{SearchKind, SearchSettings},
};

/// Values handled at once.
const BLOCK: usize = 16;
/// Blocks between two looks at the partial sum.
const BLOCKS: usize = 8;

/// Smallest and largest value.
pub(super) type Range = (f32, f32);

/// A grid search in the arithmetic of one tensor.
#[derive(Clone, Debug)]
pub(super) struct GridSearch {
    pub(super) arithmetic: Arithmetic,
    pub(super) float: Float,
    /// Type of differences and of their summed powers.
    pub(super) error: Float,
    pub(super) measure: Measure,
    pub(super) factors: Vec<f32>,
    pub(super) expand: f32,
    pub(super) patience: Option<usize>,
    pub(super) norm: f64,
    pub(super) is_strict: bool,
    rounding: Rounding,
    arch: Arch,
}

/// How a quotient becomes a code value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// Integers of at most 8 bits.
    Int,
    /// Symmetric e4m3.
    E4M3,
    /// Symmetric e2m1.
    E2M1,
    /// By the functions that define it.
    Defined,
}

impl GridSearch {
    pub(super) fn new(settings: &SearchSettings, args: &QuantizationArgs, float: Float) -> Result<Self> {
        let mut arithmetic = Arithmetic::of(args)?;
        if args.strategy == QuantizationStrategy::TensorGroup {
            // The global scale, which the rounding of scales needs, is not known yet.
            arithmetic.rule = ScaleRule::Plain;
        }
        let error = if settings.kind == SearchKind::IMatrix { Float::F32 } else { float };
        let rounding = match (arithmetic.code, arithmetic.symmetric) {
            (Code::Int { bits: ..=8 }, _) => Rounding::Int,
            (Code::E4M3, true) => Rounding::E4M3,
            (Code::E2M1, true) => Rounding::E2M1,
            _ => Rounding::Defined,
        };
        Ok(Self {
            arithmetic,
            float,
            error,
            measure: Measure::new(settings.norm, error),
            factors: (0..settings.steps()).map(|step| (1.0 - step as f64 / settings.grid) as f32).collect(),
            expand: settings.expand as f32,
            patience: settings.patience,
            norm: settings.norm,
            is_strict: settings.is_strict,
            rounding,
            arch: Arch::new(),
        })
    }

    /// The range that candidate `step` stands for; the first one where no candidate was tried.
    #[inline(always)]
    pub(super) fn candidate(&self, (min, max): Range, step: usize) -> Range {
        let factor = self.factors.get(step).copied().unwrap_or(1.0);
        let shrunk = |bound: f32| self.float.round(self.float.round(bound * self.expand) * factor);
        (shrunk(min), shrunk(max))
    }

    /// Scale and zero point of candidate `step`.
    #[inline(always)]
    pub(super) fn qparam(&self, range: Range, step: usize) -> Qparam {
        let (min, max) = self.candidate(range, step);
        self.arithmetic.qparam(min, max, self.float, None)
    }

    /// An error that every finite one beats.
    pub(super) fn worst(&self) -> f32 {
        match self.error {
            Float::F32 => f32::MAX,
            Float::BF16 => f32::from_bits(0x7f7f_0000),
            Float::F16 => 65504.0,
        }
    }

    /// A sum in the type of errors.
    #[inline(always)]
    pub(super) fn error(&self, sum: f64) -> f32 {
        self.error.round(sum as f32)
    }

    /// Searches each run of `width` values; appends their ranges and improving steps.
    ///
    /// `extra` is a value that ranges take in beside their own.
    pub(super) fn runs(
        &self,
        values: &[f32],
        weights: Option<&[f32]>,
        width: usize,
        extra: Option<f32>,
        (ranges, found): (&mut Vec<Range>, &mut Improvements),
    ) {
        self.arch.dispatch(Runs { grid: self, values, weights, width, extra, ranges, found });
    }

    #[inline(always)]
    fn entry(&self, values: &[f32], weights: Option<&[f32]>, range: Range, found: &mut Improvements) {
        let rounding = self.rounding(range);
        let mut best = self.worst();
        let mut last = None;
        for step in 0..self.factors.len() {
            let qparam = self.qparam(range, step);
            // Equal scales have equal errors, and the last one was no worse than the best when it was tried.
            if last == Some(qparam) {
                continue;
            }
            last = Some(qparam);
            if let Some(sum) = self.sum(rounding, values, weights, qparam, f64::from(best)) {
                let error = self.error(sum);
                if error < best {
                    best = error;
                    found.mark(step);
                }
            }
        }
    }

    /// Sums of the errors of one row under each scale.
    pub(super) fn row_sums(&self, values: &[f32], range: Range, qparams: &[Qparam], sums: &mut [f64]) {
        let rounding = self.rounding(range);
        self.arch.dispatch(RowSums { grid: self, values, rounding, qparams, sums });
    }

    /// Values and candidates that are infinite or NaN take the defining functions.
    #[inline(always)]
    fn rounding(&self, (min, max): Range) -> Rounding {
        let (min, max) = (self.float.round(min * self.expand), self.float.round(max * self.expand));
        if min.is_finite() && max.is_finite() && (max - min).is_finite() { self.rounding } else { Rounding::Defined }
    }

    /// Sum of the errors; `None` once it is known to reach `limit`.
    #[inline(always)]
    fn sum(
        &self,
        rounding: Rounding,
        values: &[f32],
        weights: Option<&[f32]>,
        qparam: Qparam,
        limit: f64,
    ) -> Option<f64> {
        let mut lanes = [0.0; 8];
        let mut magnitudes = [[0.0; BLOCK]; BLOCKS];
        let (blocks, tail) = values.as_chunks::<BLOCK>();
        for (i, chunk) in blocks.chunks(BLOCKS).enumerate() {
            let magnitudes = &mut magnitudes[..chunk.len()];
            self.magnitudes(rounding, chunk, qparam, magnitudes);
            let from = i * BLOCK * BLOCKS;
            let weights = weights.map(|it| it[from..from + chunk.len() * BLOCK].as_chunks::<BLOCK>().0);
            self.add_shares(magnitudes, weights, &mut lanes);
            if total(&lanes) >= limit {
                return None;
            }
        }
        if !tail.is_empty() {
            self.add_tail(rounding, tail, weights.map(|it| &it[blocks.len() * BLOCK..]), qparam, &mut lanes);
        }
        Some(total(&lanes))
    }

    /// As a block that is filled up with zeros: their errors are zero, or NaN where a scale makes all errors NaN.
    #[inline(always)]
    fn add_tail(
        &self,
        rounding: Rounding,
        tail: &[f32],
        weights: Option<&[f32]>,
        qparam: Qparam,
        lanes: &mut [f64; 8],
    ) {
        let mut block = [[0.0; BLOCK]];
        block[0][..tail.len()].copy_from_slice(tail);
        let mut magnitudes = [[0.0; BLOCK]];
        self.magnitudes(rounding, &block, qparam, &mut magnitudes);
        let mut padded = [[0.0; BLOCK]];
        if let Some(weights) = weights {
            padded[0][..weights.len()].copy_from_slice(weights);
        }
        self.add_shares(&magnitudes, weights.is_some().then_some(&padded), lanes);
    }

    /// Magnitudes of the rounding errors, in the type of errors.
    #[inline(always)]
    fn magnitudes(&self, rounding: Rounding, blocks: &[[f32; BLOCK]], qparam: Qparam, out: &mut [[f32; BLOCK]]) {
        use Float::{BF16, F16, F32};
        let code = self.arithmetic.code;
        let (low, high) = (code.low(), code.high());
        let zero_point = qparam.zero_point;
        let Qparam { scale, .. } = qparam;
        macro_rules! loops {
            ($round:ident, $float:expr, $error:expr) => {
                for (block, out) in blocks.iter().zip(out) {
                    for (&x, out) in block.iter().zip(out) {
                        let quotient = $float.round($float.round(x / scale) + zero_point);
                        let value = $round(clamp(quotient, low, high)) - zero_point;
                        *out = $error.round($float.round(value * scale) - x).abs();
                    }
                }
            };
            ($round:ident) => {
                match (self.float, self.error) {
                    (BF16, BF16) => loops!($round, BF16, BF16),
                    (BF16, _) => loops!($round, BF16, F32),
                    (F16, F16) => loops!($round, F16, F16),
                    (F16, _) => loops!($round, F16, F32),
                    (F32, _) => loops!($round, F32, F32),
                }
            };
        }
        match rounding {
            Rounding::Int => loops!(round_int),
            Rounding::E4M3 => loops!(round_e4m3),
            Rounding::E2M1 => loops!(round_e2m1),
            Rounding::Defined => {
                for (block, out) in blocks.iter().zip(out) {
                    for (&x, out) in block.iter().zip(out) {
                        *out = magnitude(code, x, qparam, self.float, self.error);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn add_shares(&self, magnitudes: &[[f32; BLOCK]], weights: Option<&[[f32; BLOCK]]>, lanes: &mut [f64; 8]) {
        // Loops in place of closures, which would not be compiled for the instruction set at hand.
        macro_rules! add {
            (|$x:ident| $share:expr) => {
                for (i, block) in magnitudes.iter().enumerate() {
                    let mut shares = [0.0; BLOCK];
                    for (out, &$x) in shares.iter_mut().zip(block) {
                        *out = $share;
                    }
                    if let Some(weights) = weights {
                        // Weighted errors are f32, and so are their shares.
                        for (out, weight) in shares.iter_mut().zip(&weights[i]) {
                            *out = f64::from(*out as f32 * weight);
                        }
                    }
                    for (lane, sum) in lanes.iter_mut().enumerate() {
                        *sum = *sum + shares[lane] + shares[lane + 8];
                    }
                }
            };
        }
        match &self.measure {
            Measure::Table(table) if self.error == Float::F16 => add!(|x| table[index(x, Float::F16)]),
            Measure::Table(table) => add!(|x| table[index(x, Float::BF16)]),
            Measure::Square => add!(|x| f64::from(x * x)),
            Measure::Cube => add!(|x| f64::from(x * x * x)),
            Measure::Power(exponent) => add!(|x| f64::from(power_f32(x, *exponent))),
        }
    }
}

/// The work of [`GridSearch::runs`], compiled for each instruction set.
struct Runs<'a> {
    grid: &'a GridSearch,
    values: &'a [f32],
    weights: Option<&'a [f32]>,
    width: usize,
    extra: Option<f32>,
    ranges: &'a mut Vec<Range>,
    found: &'a mut Improvements,
}

impl NullaryFnOnce for Runs<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (i, values) in self.values.chunks(self.width).enumerate() {
            let weights = self.weights.map(|it| &it[i * self.width..i * self.width + values.len()]);
            let (mut min, mut max) = range(values);
            if let Some(extra) = self.extra {
                (min, max) = (propagating_min(min, extra), propagating_max(max, extra));
            }
            self.ranges.push((min, max));
            self.found.push();
            self.grid.entry(values, weights, (min, max), self.found);
        }
    }
}

/// The work of [`GridSearch::row_sums`], compiled for each instruction set.
struct RowSums<'a> {
    grid: &'a GridSearch,
    values: &'a [f32],
    rounding: Rounding,
    qparams: &'a [Qparam],
    sums: &'a mut [f64],
}

impl NullaryFnOnce for RowSums<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (idx, qparam) in self.qparams.iter().enumerate() {
            self.sums[idx] = match idx.checked_sub(1) {
                Some(last) if self.qparams[last] == *qparam => self.sums[last],
                _ => {
                    let sum = self.grid.sum(self.rounding, self.values, None, *qparam, f64::INFINITY);
                    sum.unwrap_or(f64::INFINITY)
                }
            };
        }
    }
}

/// The sum of the eight sums, in the one order that counts.
#[inline(always)]
pub(super) fn total(lanes: &[f64; 8]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The rounding error of one value by the functions that define it.
#[inline(always)]
pub(super) fn magnitude(code: Code, x: f32, qparam: Qparam, float: Float, error: Float) -> f32 {
    let zero_point = Some(qparam.zero_point);
    let quantized = quantize_value(code, x, qparam.scale, zero_point, [float; 2], Division::Eager);
    error.round(dequantize_value(quantized, qparam.scale, zero_point, float) - x).abs()
}

/// Nearest integer of a magnitude below 2^22, ties to even.
#[inline(always)]
fn round_int(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// Nearest e4m3 value of a magnitude up to 448.
#[inline(always)]
fn round_e4m3(value: f32) -> f32 {
    // Adding 2^20 times the value's power of two, at least 2^-6, rounds off all but three mantissa bits.
    round_mantissa(value, f32::from_bits(121 << 23), 20)
}

/// Nearest e2m1 value of a magnitude up to 6.
#[inline(always)]
fn round_e2m1(value: f32) -> f32 {
    // The ties of the table go to the even mantissa bit.
    round_mantissa(value, 1.0, 22)
}

#[inline(always)]
fn round_mantissa(value: f32, smallest: f32, shift: u32) -> f32 {
    let magnitude = value.abs();
    let bounded = if magnitude > smallest { magnitude } else { smallest };
    let anchor = f32::from_bits((bounded.to_bits() & 0x7f80_0000).wrapping_add(shift << 23));
    ((magnitude + anchor) - anchor).copysign(value)
}

/// Smallest and largest value, NaN if one is; `(0, 0)` of nothing.
#[inline(always)]
pub(super) fn range(values: &[f32]) -> Range {
    let Some(&first) = values.first() else { return (0.0, 0.0) };
    let (mut mins, mut maxs) = ([first; BLOCK], [first; BLOCK]);
    let (blocks, tail) = values.as_chunks::<BLOCK>();
    for block in blocks {
        for j in 0..BLOCK {
            mins[j] = propagating_min(mins[j], block[j]);
            maxs[j] = propagating_max(maxs[j], block[j]);
        }
    }
    for (j, &value) in tail.iter().enumerate() {
        mins[j] = propagating_min(mins[j], value);
        maxs[j] = propagating_max(maxs[j], value);
    }
    let (min, max) = (mins.into_iter().reduce(propagating_min), maxs.into_iter().reduce(propagating_max));
    (min.unwrap_or(first), max.unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use compressed_tensors::numbers::{e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3};

    use super::*;

    #[test]
    fn rounding_by_addition_is_the_defined_rounding() {
        for bits in (0..0x43e0_0000u32).step_by(997).chain([0x3f00_0000, 0x3e80_0000, 0x3f40_0000, 0x40a0_0000]) {
            for x in [f32::from_bits(bits), -f32::from_bits(bits)] {
                assert_eq!(round_e4m3(x), e4m3_to_f32(f32_to_e4m3(x)), "{x:e}");
                let small = x.clamp(-6.0, 6.0);
                assert_eq!(round_e2m1(small), e2m1_to_f32(f32_to_e2m1(small)), "{small:e}");
                assert_eq!(round_int(x), x.round_ties_even(), "{x:e}");
            }
        }
        for tie in [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0] {
            assert_eq!(round_e2m1(tie), e2m1_to_f32(f32_to_e2m1(tie)));
        }
    }
}
