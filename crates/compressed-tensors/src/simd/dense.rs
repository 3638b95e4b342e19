//! Codes back to weights: plain loops that the compiler vectorises, compiled once per instruction set.

use crate::numbers::{Float, e4m3_to_f32, f32_to_bf16, f32_to_f16};

use super::{Isa, loops::per_isa};

/// What a byte of a row of codes holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ByteCode {
    /// A two's complement integer.
    Int,
    /// An integer offset by 128.
    OffsetInt,
    /// Two integers offset by 8, the low nibble first.
    OffsetNibbles,
    /// An e4m3 value.
    E4M3,
    /// Two e2m1 values, the low nibble first.
    E2M1Nibbles,
}

/// Codes of one row and what scales them.
#[derive(Clone, Copy)]
pub(crate) struct CodeRow<'a> {
    /// What a byte holds.
    pub(crate) code: ByteCode,
    /// Codes of all columns.
    pub(crate) bytes: &'a [u8],
    /// Columns under one scale; the last run may be shorter.
    pub(crate) run: usize,
    /// One scale per run.
    pub(crate) scales: &'a [f32],
    /// One zero point per run; none where symmetric.
    pub(crate) zero_points: Option<&'a [f32]>,
    /// The type of a code minus its zero point.
    pub(crate) float: Float,
    /// The type of the product: the same, or a narrower one.
    pub(crate) natural: Float,
}

/// Columns at a time, so that what lies between the loops stays in the nearest cache.
const BLOCK: usize = 1024;

per_isa! {
    /// Writes a row of weights as little-endian `dtype`; the length of `out` says how many.
    fn dense_row(row: &CodeRow<'_>, dtype: Float, out: &mut [u8]) {
        let width = dtype.dtype().bits() / 8;
        let run = row.run.max(1);
        // Whole runs where they are short, else pieces of one run.
        let step = if run <= BLOCK { BLOCK / run * run } else { BLOCK };
        let cols = out.len() / width;
        let mut values = [0.0; BLOCK];
        let mut start = 0;
        while start < cols {
            let run_end = if run <= BLOCK { cols } else { (start / run + 1) * run };
            let end = (start + step).min(run_end).min(cols);
            let values = &mut values[..end - start];
            decode(row.code, row.bytes, start, values);
            let first = start / run;
            let zero_points = row.zero_points.map(|it| it.get(first..).unwrap_or_default());
            scale(row.float, values, run, row.scales.get(first..).unwrap_or_default(), zero_points);
            if row.natural != dtype {
                values.iter_mut().for_each(|value| *value = row.natural.round(*value));
            }
            narrow(dtype, values, &mut out[start * width..end * width]);
            start = end;
        }
    }
}

/// Code values of the columns from `start`.
#[inline(always)]
fn decode(code: ByteCode, bytes: &[u8], start: usize, values: &mut [f32]) {
    #[inline(always)]
    fn each(bytes: &[u8], values: &mut [f32], value: impl Fn(u8) -> f32) {
        for (out, byte) in values.iter_mut().zip(bytes) {
            *out = value(*byte);
        }
    }
    #[inline(always)]
    fn pairs(bytes: &[u8], start: usize, values: &mut [f32], value: impl Fn(u8) -> f32) {
        let (high, values) = values.split_at_mut(start % 2);
        for (out, byte) in high.iter_mut().zip(&bytes[start / 2..]) {
            *out = value(byte >> 4);
        }
        let bytes = &bytes[start.div_ceil(2)..];
        let (whole, rest) = values.as_chunks_mut::<2>();
        for (pair, byte) in whole.iter_mut().zip(bytes) {
            *pair = [value(byte & 15), value(byte >> 4)];
        }
        if let ([last], Some(byte)) = (rest, bytes.get(whole.len())) {
            *last = value(byte & 15);
        }
    }
    match code {
        ByteCode::Int => each(&bytes[start..], values, |byte| f32::from(byte as i8)),
        ByteCode::OffsetInt => each(&bytes[start..], values, |byte| f32::from((byte ^ 0x80) as i8)),
        ByteCode::E4M3 => each(&bytes[start..], values, e4m3_to_f32),
        ByteCode::OffsetNibbles => pairs(bytes, start, values, |field| f32::from(field as i8 - 8)),
        ByteCode::E2M1Nibbles => pairs(bytes, start, values, e2m1),
    }
}

/// The value of an e2m1 code, for codes below 16, by arithmetic.
#[inline(always)]
fn e2m1(code: u8) -> f32 {
    let magnitude = u32::from(code & 7) << 22;
    let normal = f32::from_bits(magnitude + (126 << 23));
    let subnormal = f32::from_bits(magnitude | (127 << 23)) - 1.0;
    let value = if code & 7 < 2 { subnormal } else { normal };
    f32::from_bits(value.to_bits() | (u32::from(code & 8) << 28))
}

#[inline(always)]
fn scale(float: Float, values: &mut [f32], run: usize, scales: &[f32], zero_points: Option<&[f32]>) {
    match run {
        16 => scale_runs::<16>(float, values, scales, zero_points),
        32 => scale_runs::<32>(float, values, scales, zero_points),
        128 => scale_runs::<128>(float, values, scales, zero_points),
        _ => {
            for (idx, (values, scale)) in values.chunks_mut(run).zip(scales).enumerate() {
                scale_run(float, values, *scale, zero_points.map(|it| it[idx]));
            }
        }
    }
}

/// Runs of a constant length, so that their loops are unrolled.
#[inline(always)]
fn scale_runs<const RUN: usize>(float: Float, values: &mut [f32], scales: &[f32], zero_points: Option<&[f32]>) {
    let (whole, rest) = values.as_chunks_mut::<RUN>();
    for (idx, (values, scale)) in whole.iter_mut().zip(scales).enumerate() {
        scale_run(float, values, *scale, zero_points.map(|it| it[idx]));
    }
    if let Some(scale) = scales.get(whole.len()) {
        scale_run(float, rest, *scale, zero_points.map(|it| it[whole.len()]));
    }
}

#[inline(always)]
fn scale_run(float: Float, values: &mut [f32], scale: f32, zero_point: Option<f32>) {
    match zero_point {
        None => values.iter_mut().for_each(|value| *value *= scale),
        Some(zero_point) => {
            let zero_point = float.round(zero_point);
            // An integer minus an integer has at most 9 bits, and only its own type may round it.
            match float {
                Float::BF16 => values.iter_mut().for_each(|it| *it = Float::BF16.round(*it - zero_point) * scale),
                Float::F16 => values.iter_mut().for_each(|it| *it = Float::F16.round(*it - zero_point) * scale),
                Float::F32 => values.iter_mut().for_each(|it| *it = (*it - zero_point) * scale),
            }
        }
    }
}

#[inline(always)]
fn narrow(dtype: Float, values: &[f32], out: &mut [u8]) {
    match dtype {
        Float::BF16 => {
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = f32_to_bf16(*value).to_le_bytes();
            }
        }
        Float::F16 => {
            for (out, value) in out.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *out = f32_to_f16(*value).to_le_bytes();
            }
        }
        Float::F32 => {
            for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                *out = value.to_le_bytes();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::e2m1_to_f32;

    #[test]
    fn e2m1_by_arithmetic_is_the_table() {
        for code in 0..16 {
            assert_eq!(e2m1(code).to_bits(), e2m1_to_f32(code).to_bits(), "{code}");
        }
    }
}
