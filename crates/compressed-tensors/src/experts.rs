//! Experts that a checkpoint stores in one tensor: names, shapes and bytes of each expert's own linears.

use std::ops::Range;

use crate::{DType, Error, ErrorKind, Result};

/// How the linears of all experts lie in one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// `gate_up_proj` (E, 2I, C), gate rows before up rows; `down_proj` (E, C, I).
    Rows,
    /// `gate_up_proj` (E, C, 2I), gate columns before up columns; `down_proj` (E, I, C). Llama 4.
    Columns,
    /// `gate_up_proj` (E, C, 2I), gate in even and up in odd columns; `down_proj` (E, I, C). gpt-oss.
    InterleavedColumns,
}

impl ExpertLayout {
    /// The layout that a model type is known to use.
    pub fn of_model_type(model_type: &str) -> Self {
        match model_type {
            "gpt_oss" | "openai_privacy_filter" => Self::InterleavedColumns,
            "llama4" | "llama4_text" => Self::Columns,
            _ => Self::Rows,
        }
    }

    /// The layout that both shapes allow; where they allow both orientations the model type decides, as
    /// it does about interleaving.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] naming `gate_up_proj` where the shapes fit no layout.
    pub fn infer(model_type: &str, gate_up: &[usize], down: &[usize]) -> Result<Self> {
        let known = Self::of_model_type(model_type);
        let (rows, columns) = match (gate_up, down) {
            (&[e, a, b], &[n_experts, c, d]) if e == n_experts => {
                let is_double = |two: usize, one: usize| one.checked_mul(2) == Some(two);
                (b == c && is_double(a, d), a == d && is_double(b, c))
            }
            _ => (false, false),
        };
        match (rows, columns) {
            (true, true) => Ok(known),
            (true, false) => Ok(Self::Rows),
            (false, true) if known == Self::Rows => Ok(Self::Columns),
            (false, true) => Ok(known),
            (false, false) => Err(Error::from(ErrorKind::Shape {
                tensor: "gate_up_proj".to_owned(),
                found: gate_up.to_vec(),
                expected: format!("(E, 2I, C) or (E, C, 2I) beside a down_proj of shape {down:?}"),
            })),
        }
    }
}

/// One expert's own tensor, and how to make it of the fused one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpertPart {
    /// Full name, e.g. `model.layers.0.mlp.experts.3.gate_proj.weight`.
    pub name: String,
    /// (out, in) of a weight, (out) of a bias.
    pub shape: Vec<usize>,
    /// Bytes of the fused tensor's data that the part is made of.
    pub source: Range<usize>,
    selection: Selection,
}

/// Where some rows of a part lie in the fused tensor: one span of bytes in each of several lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spans {
    /// Offset of the first span in the fused tensor's data.
    pub first_byte: usize,
    /// From the begin of one span to that of the next.
    pub stride_bytes: usize,
    /// Length of each span.
    pub span_bytes: usize,
    /// How many there are.
    pub n_spans: usize,
}

impl Spans {
    /// Bytes of all spans.
    pub fn n_bytes(&self) -> usize {
        self.span_bytes * self.n_spans
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Selection {
    /// The source is the part.
    Whole,
    /// The source is a matrix of rows of `n_cols` elements; the part is its columns `first`,
    /// `first + step`, ..., each of which is a row of the part.
    Columns { n_cols: usize, first: usize, step: usize, element_bytes: usize },
}

impl ExpertPart {
    /// Whether the source bytes are the part as they lie.
    pub fn is_contiguous(&self) -> bool {
        self.selection == Selection::Whole
    }

    /// The part's bytes, row-major, out of the bytes of `source`.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] where `source_bytes` has not the length of `source`.
    pub fn extract(&self, source_bytes: &[u8]) -> Result<Vec<u8>> {
        if source_bytes.len() != self.source.len() {
            return Err(Error::from(ErrorKind::Shape {
                tensor: self.name.clone(),
                found: vec![source_bytes.len()],
                expected: format!("{} bytes", self.source.len()),
            }));
        }
        let Selection::Columns { n_cols, first, step, element_bytes } = self.selection else {
            return Ok(source_bytes.to_vec());
        };
        let n_rows = self.n_rows();
        let line_bytes = (n_cols * element_bytes).max(1);
        let mut bytes = vec![0; n_rows * (source_bytes.len() / line_bytes) * element_bytes];
        gather(source_bytes, line_bytes, first * element_bytes, step * element_bytes, element_bytes, &mut bytes);
        Ok(bytes)
    }

    /// Where `rows` of the part lie.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for rows that it does not have.
    pub fn spans(&self, rows: Range<usize>) -> Result<Spans> {
        let n_rows = self.n_rows();
        if rows.is_empty() || rows.end > n_rows {
            return Err(Error::from(ErrorKind::Shape {
                tensor: self.name.clone(),
                found: self.shape.clone(),
                expected: format!("rows {rows:?}"),
            }));
        }
        Ok(match self.selection {
            Selection::Whole => {
                let row_bytes = self.source.len() / n_rows;
                let span_bytes = rows.len() * row_bytes;
                Spans {
                    first_byte: self.source.start + rows.start * row_bytes,
                    stride_bytes: span_bytes,
                    span_bytes,
                    n_spans: 1,
                }
            }
            Selection::Columns { n_cols, first, step, element_bytes } => Spans {
                first_byte: self.source.start + (first + rows.start * step) * element_bytes,
                stride_bytes: n_cols * element_bytes,
                span_bytes: ((rows.len() - 1) * step + 1) * element_bytes,
                n_spans: self.source.len() / (n_cols * element_bytes).max(1),
            },
        })
    }

    /// The bytes of `rows`, row-major, out of the bytes of their [`spans`](Self::spans) one after the other.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] for rows that it does not have, and where `span_bytes` has another length.
    pub fn extract_rows(&self, rows: Range<usize>, span_bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
        let spans = self.spans(rows.clone())?;
        if span_bytes.len() != spans.n_bytes() {
            return Err(Error::from(ErrorKind::Shape {
                tensor: self.name.clone(),
                found: vec![span_bytes.len()],
                expected: format!("{} bytes", spans.n_bytes()),
            }));
        }
        out.clear();
        match self.selection {
            Selection::Whole => out.extend_from_slice(span_bytes),
            Selection::Columns { step, element_bytes, .. } => {
                out.resize(rows.len() * spans.n_spans * element_bytes, 0);
                gather(span_bytes, spans.span_bytes.max(1), 0, step * element_bytes, element_bytes, out);
            }
        }
        Ok(())
    }

    fn n_rows(&self) -> usize {
        self.shape.first().copied().unwrap_or_default()
    }
}

/// Turns columns of `lines` into rows of `out`: row `r` is the element at `first_byte + r * step_bytes` of every line.
fn gather(lines: &[u8], line_bytes: usize, first_byte: usize, step_bytes: usize, element_bytes: usize, out: &mut [u8]) {
    /// Lines that are read side by side: their current cache lines fit the first-level cache.
    const TILE: usize = 64;
    let n_lines = lines.len() / line_bytes;
    for (tile_idx, tile) in lines.chunks(TILE * line_bytes).enumerate() {
        for (row, out) in out.chunks_exact_mut((n_lines * element_bytes).max(1)).enumerate() {
            let at = first_byte + row * step_bytes;
            let out = &mut out[tile_idx * TILE * element_bytes..];
            for (line, out) in tile.chunks_exact(line_bytes).zip(out.chunks_exact_mut(element_bytes)) {
                out.copy_from_slice(&line[at..at + element_bytes]);
            }
        }
    }
}

/// The parts of a tensor that holds all experts of a layer, or `None` for any other tensor.
///
/// Fused are tensors with three dimensions whose name has `gate_up_proj` or `down_proj` as its last
/// segment before an optional `.weight`, and two-dimensional `gate_up_proj_bias` and `down_proj_bias`.
///
/// # Errors
/// [`ErrorKind::UnexpectedTensor`] where a three-dimensional tensor's name has both words,
/// [`ErrorKind::Shape`] where gate and up are not halves, [`ErrorKind::DType`] for elements that do not
/// fill bytes.
pub fn split_fused_experts(
    name: &str,
    dtype: DType,
    shape: &[usize],
    layout: ExpertLayout,
) -> Result<Option<Vec<ExpertPart>>> {
    if shape.len() == 3 && name.contains("gate_up_proj") && name.contains("down_proj") {
        let reason = "its name has both `gate_up_proj` and `down_proj`".to_owned();
        return Err(Error::from(ErrorKind::UnexpectedTensor { tensor: name.to_owned(), reason }));
    }
    let plain = name.strip_suffix(".weight").unwrap_or(name);
    let (prefix, last) = plain.rsplit_once('.').map_or(("", plain), |(prefix, last)| (prefix, last));
    let (gated, suffix) = match (last, shape.len()) {
        ("gate_up_proj", 3) => (true, "weight"),
        ("down_proj", 3) => (false, "weight"),
        ("gate_up_proj_bias", 2) if plain == name => (true, "bias"),
        ("down_proj_bias", 2) if plain == name => (false, "bias"),
        _ => return Ok(None),
    };
    let element_bytes = dtype.byte_len(1).ok_or_else(|| {
        Error::from(ErrorKind::DType { tensor: name.to_owned(), found: dtype, expected: "whole bytes".to_owned() })
    })?;
    let fault = |expected: &str| {
        Error::from(ErrorKind::Shape { tensor: name.to_owned(), found: shape.to_vec(), expected: expected.to_owned() })
    };
    let n_elements = shape.iter().try_fold(element_bytes, |n, d| n.checked_mul(*d));
    n_elements.ok_or_else(|| fault("a tensor that fits the address space"))?;

    let expert = &shape[1..];
    let transposed = layout != ExpertLayout::Rows;
    // A bias has outputs only; a weight has them in its rows, or in its columns if it lies transposed.
    let n_out = if transposed { expert[expert.len() - 1] } else { expert[0] };
    let n_in = if transposed { expert[0] } else { expert[expert.len() - 1] };
    if gated && !n_out.is_multiple_of(2) {
        return Err(fault("an even number of gate and up outputs"));
    }
    let expert_bytes = expert.iter().product::<usize>() * element_bytes;
    let linears: &[&str] = if gated { &["gate_proj", "up_proj"] } else { &["down_proj"] };
    let n_rows = n_out / linears.len();
    let dot = if prefix.is_empty() { "" } else { "." };
    let mut parts = Vec::with_capacity(shape[0] * linears.len());
    for idx in 0..shape[0] {
        let base = idx * expert_bytes;
        for (half, linear) in linears.iter().enumerate() {
            let interleaved = gated && layout == ExpertLayout::InterleavedColumns;
            let as_it_lies = if suffix == "bias" { !interleaved } else { !transposed };
            let (source, selection) = if as_it_lies {
                let part_bytes = expert_bytes / linears.len();
                (base + half * part_bytes..base + (half + 1) * part_bytes, Selection::Whole)
            } else {
                let (first, step) = if interleaved { (half, 2) } else { (half * n_rows, 1) };
                let selection = Selection::Columns { n_cols: n_out, first, step, element_bytes };
                (base..base + expert_bytes, selection)
            };
            parts.push(ExpertPart {
                name: format!("{prefix}{dot}{idx}.{linear}.{suffix}"),
                shape: if suffix == "bias" { vec![n_rows] } else { vec![n_rows, n_in] },
                source,
                selection,
            });
        }
    }
    Ok(Some(parts))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(name: &str, shape: &[usize], layout: ExpertLayout) -> Vec<(String, Vec<usize>, Vec<u8>)> {
        let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|it| it as u8).collect();
        let parts = split_fused_experts(name, DType::U8, shape, layout).unwrap().unwrap();
        parts
            .into_iter()
            .map(|it| {
                let data = it.extract(&bytes[it.source.clone()]).unwrap();
                (it.name, it.shape, data)
            })
            .collect()
    }

    #[test]
    fn halves_of_transposed_experts_are_turned() {
        let split = parts("m.experts.gate_up_proj", &[2, 2, 4], ExpertLayout::Columns);
        assert_eq!(split[0], ("m.experts.0.gate_proj.weight".into(), vec![2, 2], vec![0, 4, 1, 5]));
        assert_eq!(split[3], ("m.experts.1.up_proj.weight".into(), vec![2, 2], vec![10, 14, 11, 15]));
        let down = parts("m.experts.down_proj", &[1, 2, 3], ExpertLayout::Columns);
        assert_eq!(down, [("m.experts.0.down_proj.weight".into(), vec![3, 2], vec![0, 3, 1, 4, 2, 5])]);
    }

    #[test]
    fn interleaved_experts_take_even_columns_as_gate() {
        let split = parts("experts.gate_up_proj", &[1, 2, 4], ExpertLayout::InterleavedColumns);
        assert_eq!(split[0], ("experts.0.gate_proj.weight".into(), vec![2, 2], vec![0, 4, 2, 6]));
        assert_eq!(split[1], ("experts.0.up_proj.weight".into(), vec![2, 2], vec![1, 5, 3, 7]));
        let bias = parts("experts.gate_up_proj_bias", &[2, 4], ExpertLayout::InterleavedColumns);
        assert_eq!(bias[2], ("experts.1.gate_proj.bias".into(), vec![2], vec![4, 6]));
        let down = parts("experts.down_proj_bias", &[2, 3], ExpertLayout::InterleavedColumns);
        assert_eq!(down[1], ("experts.1.down_proj.bias".into(), vec![3], vec![3, 4, 5]));
        let half = parts("experts.gate_up_proj_bias", &[1, 4], ExpertLayout::Columns);
        assert_eq!(half[1], ("experts.0.up_proj.bias".into(), vec![2], vec![2, 3]));
    }

    #[test]
    fn rows_come_out_of_their_spans_alone() {
        // More lines than are read side by side, in elements of 1, 2 and 4 bytes.
        let (n_in, n_out) = (150, 12);
        for dtype in [DType::U8, DType::BF16, DType::F32] {
            let width = dtype.byte_len(1).unwrap();
            let bytes: Vec<u8> = (0..2 * n_in * n_out * width).map(|it| (it * 7 % 251) as u8).collect();
            for layout in [ExpertLayout::Rows, ExpertLayout::Columns, ExpertLayout::InterleavedColumns] {
                let shape = if layout == ExpertLayout::Rows { [2, n_out, n_in] } else { [2, n_in, n_out] };
                for name in ["experts.gate_up_proj", "experts.down_proj"] {
                    for part in split_fused_experts(name, dtype, &shape, layout).unwrap().unwrap() {
                        let whole = part.extract(&bytes[part.source.clone()]).unwrap();
                        let row_bytes = n_in * width;
                        for rows in [0..1, 2..5, 0..part.shape[0], part.shape[0] - 1..part.shape[0]] {
                            let spans = part.spans(rows.clone()).unwrap();
                            let begins = (0..spans.n_spans).map(|it| spans.first_byte + it * spans.stride_bytes);
                            let lying: Vec<u8> =
                                begins.flat_map(|it| bytes[it..it + spans.span_bytes].to_vec()).collect();
                            let mut out = vec![1; 3];
                            part.extract_rows(rows.clone(), &lying, &mut out).unwrap();
                            assert_eq!(out, whole[rows.start * row_bytes..rows.end * row_bytes], "{layout:?} {rows:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn rows_that_a_part_lacks_are_refused() {
        let parts = split_fused_experts("e.down_proj", DType::U8, &[1, 2, 3], ExpertLayout::Columns).unwrap().unwrap();
        for rows in [0..4, 3..4, 1..1] {
            assert!(matches!(parts[0].spans(rows).unwrap_err().kind(), ErrorKind::Shape { .. }));
        }
        let error = parts[0].extract_rows(0..2, &[0; 3], &mut Vec::new()).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { .. }));
    }

    #[test]
    fn shapes_tell_the_orientation() {
        use ExpertLayout as L;
        assert_eq!(L::infer("qwen3_moe", &[4, 16, 3], &[4, 3, 8]).unwrap(), L::Rows);
        assert_eq!(L::infer("qwen3_vl_moe", &[4, 3, 16], &[4, 8, 3]).unwrap(), L::Columns);
        assert_eq!(L::infer("gpt_oss", &[4, 3, 16], &[4, 8, 3]).unwrap(), L::InterleavedColumns);
        assert_eq!(L::infer("llama4_text", &[4, 8, 8], &[4, 4, 8]).unwrap(), L::Columns);
        let error = L::infer("x", &[4, 8, 8], &[4, 3, 8]).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { tensor, .. } if tensor == "gate_up_proj"));
    }

    #[test]
    fn lengths_and_dtypes_that_do_not_fit_are_refused() {
        let part = &split_fused_experts("e.down_proj", DType::U8, &[1, 2, 3], ExpertLayout::Rows).unwrap().unwrap()[0];
        assert!(part.is_contiguous());
        assert!(matches!(part.extract(&[0; 5]).unwrap_err().kind(), ErrorKind::Shape { .. }));
        let packed = split_fused_experts("e.down_proj", DType::F4, &[1, 2, 2], ExpertLayout::Rows).unwrap_err();
        assert!(matches!(packed.kind(), ErrorKind::DType { found: DType::F4, .. }));
        let huge = split_fused_experts("e.down_proj", DType::F32, &[usize::MAX, 2, 2], ExpertLayout::Rows);
        assert!(matches!(huge.unwrap_err().kind(), ErrorKind::Shape { .. }));
    }
}
