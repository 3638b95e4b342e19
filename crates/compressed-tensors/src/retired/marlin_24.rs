//! `marlin-24`: 2:4-sparse 4- or 8-bit integers in the tile order of the sparse Marlin kernel.
//!
//! A weight (n, k) keeps K = k / 2 values a row. Engines that ran this format have dropped it.

use super::{
    bitmask::Dimensions,
    tensors::{matrix_of, typed},
};
use crate::{
    Array, DType, Error, ErrorKind, ModuleTensors, Result,
    args::{QuantizationArgs, QuantizationStrategy, QuantizationType},
    numbers::{Float, read_f32, write_f32},
    quantize::{Division, Qparams, ScaleMap, dequantize, quantize},
    scales::Arithmetic,
};

/// Elements that the kernel's permutation covers: four tiles of 16 x 16.
const TILE_RUN: usize = 1024;

/// Compresses a 2:4-sparse weight (n, k) with its scales to `weight_packed`, `scale_packed` and `meta`.
///
/// Weight and scales are cast to f16 and the weight is quantized there. n must be a multiple of 64 and k
/// one of 32, because the kernel's metadata is laid out in such blocks.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for anything but symmetric 4- or 8-bit integers per channel or group and for
/// four consecutive codes of which more than two are not zero; shapes and dtypes under the tensor's name.
pub fn compress_marlin_24(weight: &Array, scale: &Array, args: &QuantizationArgs) -> Result<ModuleTensors> {
    let bits = supported_bits(args)?;
    let extents = matrix_of(weight, "weight", Dimensions::Two)?;
    let (n, k) = (extents.n_rows, extents.n_cols);
    check_blocks("weight", &weight.shape, n, k)?;
    let map = ScaleMap::weight(args, &weight.shape)?;
    let groups = matrix_of(scale, "weight_scale", Dimensions::Two)?;
    if scale.shape != map.scale_shape() {
        return Err(bad_shape("weight_scale", scale, format!("{:?}", map.scale_shape())));
    }
    let weight = as_f16("weight", weight)?;
    let scales = as_f16("weight_scale", scale)?;

    let zero_points = Some(vec![0.0; scales.len()]);
    let qparams = Qparams { scales: scales.clone(), dtype: Float::F16, zero_points, global_scale: None };
    let mut codes = vec![0.0; weight.len()];
    quantize(&Arithmetic::of(args)?, (&weight, Float::F16), &map, &qparams, Division::Eager, &mut codes)?;

    let kept = n * k / 2;
    let mut values = vec![0u32; kept];
    let mut meta = vec![0u16; n * k / 16];
    let half = 1 << (bits - 1);
    for (quad_idx, quad) in codes.as_chunks::<4>().0.iter().enumerate() {
        let (row, quad_col) = (quad_idx / (k / 4), quad_idx % (k / 4));
        let [first, second] = kept_of(quad).ok_or_else(|| {
            let what = format!("a quad with more than two non-zero codes, at row {row}, column {},", quad_col * 4);
            Error::from(ErrorKind::Unsupported { what })
        })?;
        for (slot, idx) in [first, second].into_iter().enumerate() {
            // Transposed: (K, n).
            values[(quad_col * 2 + slot) * n + row] = (quad[idx] as i32 + half) as u32;
        }
        meta[meta_offset(row, quad_col / 4, n)] |= ((first | second << 2) as u16) << (quad_col % 4 * 4);
    }

    let tiles = permutation(bits);
    let per_word = 32 / bits as usize;
    let words = (0..kept / per_word).map(|word| {
        let value = |i: usize| values[tile_element(&tiles, word * per_word + i, n)];
        (0..per_word).fold(0, |packed, i| packed | value(i) << (bits as usize * i))
    });
    let packed = Array {
        dtype: DType::I32,
        shape: vec![k / 32, n * 16 / per_word],
        data: words.flat_map(u32::to_le_bytes).collect(),
    };
    let mut turned = vec![0.0; scales.len()];
    for (at, value) in turned.iter_mut().enumerate() {
        *value = scales[scale_source(args, at, n, k, groups.n_cols)];
    }
    let mut data = vec![0; turned.len() * 2];
    write_f32(DType::F16, &turned, &mut data)?;
    Ok(ModuleTensors::from_iter([
        ("weight_packed".to_owned(), packed),
        ("scale_packed".to_owned(), Array { dtype: DType::F16, shape: vec![groups.n_cols, n], data }),
        (
            "meta".to_owned(),
            Array {
                dtype: DType::I16,
                shape: vec![k / 32, n * 2],
                data: meta.into_iter().flat_map(u16::to_le_bytes).collect(),
            },
        ),
    ]))
}

/// The weight (n, k) in f16 that `weight_packed`, `scale_packed` and `meta` stand for.
///
/// # Errors
/// [`ErrorKind::MissingTensor`], [`ErrorKind::DType`] and [`ErrorKind::Shape`] for tensors that do not
/// agree, [`ErrorKind::InvalidField`] for metadata that names one element twice, and
/// [`ErrorKind::Unsupported`] as in [`compress_marlin_24`].
pub fn decompress_marlin_24(module: &ModuleTensors, args: &QuantizationArgs) -> Result<Array> {
    let bits = supported_bits(args)?;
    let per_word = 32 / bits as usize;
    let packed = typed(module, "weight_packed", DType::I32)?;
    let &[k_32nds, words] = packed.shape.as_slice() else {
        return Err(bad_shape("weight_packed", packed, "two dimensions".to_owned()));
    };
    let overflow = || bad_shape("weight_packed", packed, "a matrix that fits the address space".to_owned());
    let k = k_32nds.checked_mul(32).ok_or_else(overflow)?;
    let n = words.checked_mul(per_word).ok_or_else(overflow)? / 16;
    n.checked_mul(k).and_then(|it| it.checked_mul(4)).ok_or_else(overflow)?;
    check_blocks("weight_packed", &packed.shape, n, k)?;
    let shape = vec![n, k];
    let map = ScaleMap::weight(args, &shape)?;
    let n_groups = map.scale_shape()[1];
    let scale = typed(module, "scale_packed", DType::F16)?;
    if scale.shape != [n_groups, n] {
        return Err(bad_shape("scale_packed", scale, format!("[{n_groups}, {n}]")));
    }
    let meta = typed(module, "meta", DType::I16)?;
    if meta.shape != [k / 32, n * 2] {
        return Err(bad_shape("meta", meta, format!("[{}, {}]", k / 32, n * 2)));
    }

    let mut values = vec![0u32; n * k / 2];
    let tiles = permutation(bits);
    let mask = (1u32 << bits) - 1;
    for (word_idx, word) in packed.data.as_chunks().0.iter().enumerate() {
        for i in 0..per_word {
            values[tile_element(&tiles, word_idx * per_word + i, n)] =
                u32::from_le_bytes(*word) >> (bits as usize * i) & mask;
        }
    }
    let half = 1 << (bits - 1);
    let meta = meta.data.as_chunks().0;
    let mut codes = vec![0.0; n * k];
    for (quad_idx, quad) in codes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let (row, quad_col) = (quad_idx / (k / 4), quad_idx % (k / 4));
        let nibble = u16::from_le_bytes(meta[meta_offset(row, quad_col / 4, n)]) >> (quad_col % 4 * 4) & 15;
        let (first, second) = (usize::from(nibble & 3), usize::from(nibble >> 2));
        if first >= second {
            return Err(Error::from(ErrorKind::InvalidField {
                field: "meta".to_owned(),
                found: format!("elements {first} and {second} at row {row}, column {}", quad_col * 4),
                expected: "two elements in ascending order".to_owned(),
            }));
        }
        for (slot, idx) in [first, second].into_iter().enumerate() {
            quad[idx] = (values[(quad_col * 2 + slot) * n + row] as i32 - half) as f32;
        }
    }

    let mut turned = vec![0.0; scale.elements()];
    read_f32(DType::F16, &scale.data, &mut turned)?;
    let mut scales = vec![0.0; turned.len()];
    for (at, value) in turned.into_iter().enumerate() {
        scales[scale_source(args, at, n, k, n_groups)] = value;
    }
    let qparams = Qparams { scales, dtype: Float::F16, zero_points: None, global_scale: None };
    let mut weight = vec![0.0; codes.len()];
    dequantize(&codes, &map, &qparams, None, &mut weight)?;
    let mut data = vec![0; weight.len() * 2];
    write_f32(DType::F16, &weight, &mut data)?;
    Ok(Array { dtype: DType::F16, shape, data })
}

fn supported_bits(args: &QuantizationArgs) -> Result<u32> {
    let layout = matches!(args.strategy, QuantizationStrategy::Channel)
        || (args.strategy == QuantizationStrategy::Group && args.group_size == Some(128));
    match args.num_bits {
        4 | 8 if args.r#type == QuantizationType::Int && args.symmetric && layout => Ok(args.num_bits as u32),
        _ => Err(Error::from(ErrorKind::Unsupported {
            what: "marlin-24 for anything but symmetric 4- or 8-bit integers, per channel or in groups of 128,"
                .to_owned(),
        })),
    }
}

fn check_blocks(tensor: &str, found: &[usize], n: usize, k: usize) -> Result<()> {
    if n.is_multiple_of(64) && k.is_multiple_of(32) && n > 0 && k > 0 {
        return Ok(());
    }
    let expected = "rows in multiples of 64 and columns in multiples of 32 of the dense weight".to_owned();
    Err(Error::from(ErrorKind::Shape { tensor: tensor.to_owned(), found: found.to_vec(), expected }))
}

fn bad_shape(tensor: &str, array: &Array, expected: String) -> Error {
    ErrorKind::Shape { tensor: tensor.to_owned(), found: array.shape.clone(), expected }.into()
}

fn as_f16(tensor: &str, array: &Array) -> Result<Vec<f32>> {
    Float::of(array.dtype, tensor)?;
    let mut values = vec![0.0; array.elements()];
    read_f32(array.dtype, &array.data, &mut values)?;
    values.iter_mut().for_each(|it| *it = Float::F16.round(*it));
    Ok(values)
}

/// The two elements of a quad that are stored, or `None` where three or more are not zero.
fn kept_of(quad: &[f32; 4]) -> Option<[usize; 2]> {
    let [m0, m1, m2, m3] = quad.map(|it| it != 0.0);
    if [m0, m1, m2, m3].into_iter().filter(|it| *it).count() > 2 {
        return None;
    }
    let (both, second_only, neither) = (m0 && m1, !m0 && m1, !m0 && !m1);
    let first = usize::from(second_only) | usize::from(neither) << 1;
    let second = usize::from(both || neither || m3) | usize::from(second_only || !m1) << 1;
    Some([first, second])
}

/// Where the metadata of row `row` and columns `16 * col..` goes, in 16-bit words.
fn meta_offset(row: usize, col: usize, n: usize) -> usize {
    let r = row / 64 * 64 + row % 2 * 2 + row % 8 / 4 + row % 32 % 4 / 2 * 32 + row % 64 / 8 * 4;
    // The two by two blocks are transposed.
    let (r, col) = match (r % 2, col % 2) {
        (0, 1) => (r + 1, col - 1),
        (1, 0) => (r - 1, col + 1),
        _ => (r, col),
    };
    col / 2 * n * 2 + r * 2 + col % 2
}

/// The kernel's order of the elements of four tiles.
fn permutation(bits: u32) -> Vec<usize> {
    let mut order = Vec::with_capacity(TILE_RUN);
    for i in 0..32 {
        let col = i / 4;
        for step in 0..4 {
            for block in 0..2 {
                for row in [2 * (i % 4), 2 * (i % 4) + 1, 2 * (i % 4 + 4), 2 * (i % 4 + 4) + 1] {
                    order.push(16 * row + 256 * (col / 2) + 8 * (col % 2) + 4 * block + step);
                }
            }
        }
    }
    let interleave: &[usize] = if bits == 4 { &[0, 2, 4, 6, 1, 3, 5, 7] } else { &[0, 2, 1, 3] };
    order.chunks(interleave.len()).flat_map(|run| interleave.iter().map(|i| run[*i])).collect()
}

/// The element of the transposed values (K, n) that stands at place `at` of the packed stream.
fn tile_element(order: &[usize], at: usize, n: usize) -> usize {
    let at = at / TILE_RUN * TILE_RUN + order[at % TILE_RUN];
    let (tile_row, rest) = (at / (16 * n), at % (16 * n));
    let (tile_col, row, col) = (rest / 256, rest % 256 / 16, rest % 16);
    (tile_row * 16 + row) * n + tile_col * 16 + col
}

/// The element of `weight_scale` (n, groups) that stands at place `at` of `scale_packed` (groups, n).
fn scale_source(args: &QuantizationArgs, at: usize, n: usize, k: usize, n_groups: usize) -> usize {
    const RUN: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];
    // The reference compares the group size with the kept columns, so that k = 256 is not permuted.
    let permuted = args.strategy == QuantizationStrategy::Group && args.group_size.is_some_and(|g| g < (k / 2) as i64);
    let at = if permuted { at / 64 * 64 + at % 64 / 8 * 8 + RUN[at % 8] } else { at };
    at % n * n_groups + at / n
}
