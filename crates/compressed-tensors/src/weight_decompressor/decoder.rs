//! Rows of stored codes to dense rows: vector loops for what a byte or a dense stream holds, plain ones for the rest.

use crate::{
    DType, Result, bit_stream,
    numbers::{Float, write_f32},
    packing::{self, Layout},
    quantize::{code_values, dequantize_value},
    scales::Code,
    simd::{self, ByteCode, CodeRow, Isa},
};

use super::{Codes, WeightDecompressor};

/// Scales and zero points of one row, and the types of the arithmetic.
#[derive(Clone, Copy)]
pub(super) struct RowScales<'a> {
    pub(super) scales: &'a [f32],
    pub(super) zero_points: Option<&'a [f32]>,
    /// The group of each column where it is not its position that says so.
    pub(super) groups: Option<&'a [usize]>,
    pub(super) float: Float,
    pub(super) natural: Float,
}

/// Decodes rows, with what that needs made once per slab.
pub(super) struct Decoder<'a> {
    weight: &'a WeightDecompressor,
    isa: Isa,
    codes: Vec<u8>,
    values: Vec<f32>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(weight: &'a WeightDecompressor, isa: Isa) -> Self {
        Self { weight, isa, codes: Vec::new(), values: Vec::new() }
    }

    /// Writes one row as `dtype`.
    pub(super) fn row(&mut self, bytes: &[u8], row: RowScales<'_>, dtype: DType, out: &mut [u8]) -> Result<()> {
        let Ok(float) = Float::of(dtype, "weight") else { return self.plain_row(bytes, row, dtype, out) };
        let code = match (self.weight.codes, self.weight.code) {
            _ if row.groups.is_some() => return self.plain_row(bytes, row, dtype, out),
            (Codes::Nibbles, _) => ByteCode::E2M1Nibbles,
            (Codes::Plain, Code::E4M3) => ByteCode::E4M3,
            (Codes::Plain, Code::Int { bits: ..=8 }) => ByteCode::Int,
            // Both layouts agree where fields fill a word.
            (Codes::Words(4, _), _) => ByteCode::OffsetNibbles,
            (Codes::Words(8, _), _) => ByteCode::OffsetInt,
            (Codes::Words(bits, Layout::Dense), _) => {
                self.codes.resize(self.weight.cols, 0);
                bit_stream::unpack(bytes, bits, &mut self.codes);
                ByteCode::Int
            }
            _ => return self.plain_row(bytes, row, dtype, out),
        };
        let is_stream = matches!(self.weight.codes, Codes::Words(bits, _) if bits != 4 && bits != 8);
        let row = CodeRow {
            code,
            bytes: if is_stream { &self.codes } else { bytes },
            run: self.weight.tile[1],
            scales: row.scales,
            zero_points: row.zero_points,
            float: row.float,
            natural: row.natural,
        };
        simd::dense_row(self.isa, &row, float, out);
        Ok(())
    }

    /// As [`row`](Self::row), one column after the other.
    pub(super) fn plain_row(&mut self, bytes: &[u8], row: RowScales<'_>, dtype: DType, out: &mut [u8]) -> Result<()> {
        let weight = self.weight;
        self.values.resize(weight.cols, 0.0);
        match weight.codes {
            Codes::Plain => code_values(weight.code, bytes, &mut self.values)?,
            Codes::Nibbles => {
                self.codes.resize(weight.cols, 0);
                packing::unpack_nibbles(bytes, &mut self.codes);
                code_values(weight.code, &self.codes, &mut self.values)?;
            }
            Codes::Words(bits, layout) => {
                let words: Vec<i32> = bytes.as_chunks::<4>().0.iter().map(|word| i32::from_le_bytes(*word)).collect();
                let mut codes = vec![0; weight.cols];
                packing::unpack_row(&words, bits, layout, &mut codes);
                self.values.iter_mut().zip(codes).for_each(|(value, code)| *value = f32::from(code));
            }
        }
        for (col, value) in self.values.iter_mut().enumerate() {
            let idx = row.groups.map_or(col / weight.tile[1], |groups| groups[col]);
            let zero_point = row.zero_points.map(|it| it[idx]);
            *value = row.natural.round(dequantize_value(*value, row.scales[idx], zero_point, row.float));
        }
        write_f32(dtype, &self.values, out)
    }
}
