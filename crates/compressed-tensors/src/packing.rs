//! Bit packing: dense streams of 1 to 8 bits in int32 words, the older padded words, and fp4 nibbles.

use crate::{ErrorKind, Result};

/// Along which dimension of a `(rows, cols)` matrix codes share words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedDim {
    /// Down a column; used for zero points.
    Rows,
    /// Along a row; used for weights.
    Cols,
}

/// How codes are laid out inside words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// One bit stream without gaps; a code may straddle two words.
    Dense,
    /// `32 / bits` codes a word, the rest of the word unused; written before format version 0.15.
    Legacy,
}

impl Layout {
    /// Words that `n` codes of `bits` bits take.
    pub fn words(self, n: usize, bits: u32) -> usize {
        match self {
            // Widened so that no count overflows.
            Self::Dense => (n as u128 * u128::from(bits)).div_ceil(32) as usize,
            Self::Legacy => n.div_ceil((32 / bits.max(1)).max(1) as usize),
        }
    }

    /// The layout under which `n` codes take `words` words, dense where both do.
    ///
    /// # Errors
    /// [`ErrorKind::Shape`] naming `tensor` where neither layout gives that many words.
    pub fn of(tensor: &str, n: usize, bits: u32, words: usize) -> Result<Self> {
        [Self::Dense, Self::Legacy].into_iter().find(|layout| layout.words(n, bits) == words).ok_or_else(|| {
            let (dense, legacy) = (Self::Dense.words(n, bits), Self::Legacy.words(n, bits));
            let expected = format!("{dense} words (or {legacy} of the older layout) for {n} codes of {bits} bits");
            ErrorKind::Shape { tensor: tensor.to_owned(), found: vec![words], expected }.into()
        })
    }
}

/// Refuses widths outside 1 to 8 bits.
///
/// # Errors
/// [`ErrorKind::InvalidField`] on `num_bits`.
pub fn check_bits(bits: i64) -> Result<u32> {
    u32::try_from(bits).ok().filter(|b| (1..=8).contains(b)).ok_or_else(|| {
        ErrorKind::InvalidField {
            field: "num_bits".to_owned(),
            found: bits.to_string(),
            expected: "1 to 8 for packed integers".to_owned(),
        }
        .into()
    })
}

/// Packs signed codes of a `(rows, cols)` matrix; returns words of shape `(rows, words)` or `(words, cols)`.
///
/// # Errors
/// [`ErrorKind::InvalidField`] for a width outside 1 to 8, [`ErrorKind::Shape`] where `codes` does not have
/// `rows * cols` elements, [`ErrorKind::Unsupported`] for a code outside the width's range.
pub fn pack(codes: &[i8], rows: usize, cols: usize, bits: u32, dim: PackedDim) -> Result<Vec<i32>> {
    check_bits(i64::from(bits))?;
    check_len(codes.len(), rows, cols)?;
    match dim {
        PackedDim::Cols => {
            let words = Layout::Dense.words(cols, bits);
            let mut out = vec![0; rows * words];
            if cols > 0 {
                for (row, out) in codes.chunks_exact(cols).zip(out.chunks_exact_mut(words)) {
                    pack_row(row, bits, out)?;
                }
            }
            Ok(out)
        }
        PackedDim::Rows => {
            let packed = pack(&transpose(codes, rows, cols), cols, rows, bits, PackedDim::Cols)?;
            Ok(transpose(&packed, cols, Layout::Dense.words(rows, bits)))
        }
    }
}

/// Packs one row of signed codes into its dense words.
///
/// # Errors
/// [`ErrorKind::Unsupported`] naming the first code outside `[-2^(bits-1), 2^(bits-1))`.
pub fn pack_row(codes: &[i8], bits: u32, out: &mut [i32]) -> Result<()> {
    let half = 1i32 << (bits - 1);
    // One fold instead of a branch per code: the common case is that all fit.
    let outside = codes.iter().fold(0i32, |seen, &q| seen | (i32::from(q) + half));
    if outside >> bits != 0 {
        let (idx, code) =
            codes.iter().enumerate().find(|(_, q)| (i32::from(**q) + half) >> bits != 0).unwrap_or((0, &0));
        let what = format!(
            "packing code {code} at column {idx} into {bits} bits, where codes run from {} to {}",
            -half,
            half - 1
        );
        return Err(ErrorKind::Unsupported { what }.into());
    }
    let mut words = out.iter_mut();
    let (mut pending, mut filled) = (0u64, 0u32);
    for &code in codes {
        pending |= ((i32::from(code) + half) as u64) << filled;
        filled += bits;
        if filled >= 32 {
            if let Some(word) = words.next() {
                *word = pending as u32 as i32;
            }
            pending >>= 32;
            filled -= 32;
        }
    }
    if filled > 0
        && let Some(word) = words.next()
    {
        *word = pending as u32 as i32;
    }
    Ok(())
}

/// Unpacks words into the signed codes of a `(rows, cols)` matrix.
///
/// # Errors
/// [`ErrorKind::InvalidField`] for a width outside 1 to 8, [`ErrorKind::Shape`] where the words do not hold
/// exactly that matrix.
pub fn unpack(words: &[i32], rows: usize, cols: usize, bits: u32, dim: PackedDim, layout: Layout) -> Result<Vec<i8>> {
    check_bits(i64::from(bits))?;
    match dim {
        PackedDim::Cols => {
            let per_row = layout.words(cols, bits);
            check_len(words.len(), rows, per_row)?;
            let mut out = vec![0; checked_len(rows, cols)?];
            if cols > 0 {
                for (row, out) in words.chunks_exact(per_row).zip(out.chunks_exact_mut(cols)) {
                    unpack_row(row, bits, layout, out);
                }
            }
            Ok(out)
        }
        PackedDim::Rows => {
            let per_col = layout.words(rows, bits);
            check_len(words.len(), per_col, cols)?;
            let codes = unpack(&transpose(words, per_col, cols), cols, rows, bits, PackedDim::Cols, layout)?;
            Ok(transpose(&codes, cols, rows))
        }
    }
}

/// Unpacks the words of one row; `out` says how many codes there are.
pub fn unpack_row(words: &[i32], bits: u32, layout: Layout, out: &mut [i8]) {
    let (mask, half) = ((1u64 << bits) - 1, 1i32 << (bits - 1));
    let code = |field: u64| ((field & mask) as i32 - half) as i8;
    match layout {
        Layout::Legacy => {
            for (&word, codes) in words.iter().zip(out.chunks_mut((32 / bits) as usize)) {
                let mut word = u64::from(word as u32);
                for q in codes {
                    *q = code(word);
                    word >>= bits;
                }
            }
        }
        Layout::Dense => {
            let mut words = words.iter();
            let (mut pending, mut filled) = (0u64, 0u32);
            for q in out {
                if filled < bits {
                    pending |= u64::from(words.next().copied().unwrap_or_default() as u32) << filled;
                    filled += 32;
                }
                *q = code(pending);
                pending >>= bits;
                filled -= bits;
            }
        }
    }
}

/// Packs e2m1 codes of one row two to a byte, the even column in the low nibble.
///
/// `codes` has an even length and `out` half of it; see [`check_nibble_cols`].
pub fn pack_nibbles(codes: &[u8], out: &mut [u8]) {
    for (pair, out) in codes.as_chunks::<2>().0.iter().zip(out) {
        *out = (pair[0] & 0xf) | (pair[1] << 4);
    }
}

/// The inverse of [`pack_nibbles`].
pub fn unpack_nibbles(bytes: &[u8], out: &mut [u8]) {
    for (&byte, pair) in bytes.iter().zip(out.as_chunks_mut::<2>().0) {
        *pair = [byte & 0xf, byte >> 4];
    }
}

/// Refuses an odd number of columns, which nibbles cannot hold.
///
/// # Errors
/// [`ErrorKind::Shape`] naming `tensor`.
pub fn check_nibble_cols(tensor: &str, rows: usize, cols: usize) -> Result<()> {
    if cols.is_multiple_of(2) {
        return Ok(());
    }
    let expected = "an even number of columns, two 4-bit codes a byte".to_owned();
    Err(ErrorKind::Shape { tensor: tensor.to_owned(), found: vec![rows, cols], expected }.into())
}

/// Transposes a `(rows, cols)` matrix.
pub fn transpose<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

fn checked_len(rows: usize, cols: usize) -> Result<usize> {
    rows.checked_mul(cols).ok_or_else(|| {
        let expected = "a matrix that fits the address space".to_owned();
        ErrorKind::Shape { tensor: "codes".to_owned(), found: vec![rows, cols], expected }.into()
    })
}

fn check_len(found: usize, rows: usize, cols: usize) -> Result<()> {
    let expected = checked_len(rows, cols)?;
    if found == expected {
        return Ok(());
    }
    let expected = format!("{expected} elements ({rows} x {cols})");
    Err(ErrorKind::Shape { tensor: "codes".to_owned(), found: vec![found], expected }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_straddle_words_and_trailing_bits_stay_zero() {
        // Eleven 3-bit codes fill 33 bits: the last one lies across the word boundary.
        let codes = [3i8; 11];
        let words = pack(&codes, 1, 11, 3, PackedDim::Cols).unwrap();
        assert_eq!(words, [-1, 1]);
        assert_eq!(unpack(&words, 1, 11, 3, PackedDim::Cols, Layout::Dense).unwrap(), codes);
    }

    #[test]
    fn a_code_out_of_range_is_named() {
        let error = pack(&[0, 7, 8], 1, 3, 4, PackedDim::Cols).unwrap_err();
        assert!(error.to_string().contains("code 8 at column 2 into 4 bits"), "{error}");
        assert!(pack(&[-9], 1, 1, 4, PackedDim::Cols).is_err());
        assert!(pack(&[-128, 127], 1, 2, 8, PackedDim::Cols).is_ok());
    }

    #[test]
    fn a_word_count_of_neither_layout_is_refused() {
        assert_eq!(Layout::of("weight_packed", 128, 3, 12).unwrap(), Layout::Dense);
        assert_eq!(Layout::of("weight_packed", 128, 3, 13).unwrap(), Layout::Legacy);
        let error = Layout::of("weight_packed", 128, 3, 14).unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Shape { tensor, .. } if tensor == "weight_packed"));
    }

    #[test]
    fn widths_and_lengths_that_do_not_fit_are_refused() {
        assert!(check_bits(0).is_err() && check_bits(9).is_err() && check_bits(-1).is_err());
        assert!(pack(&[0; 5], 2, 3, 4, PackedDim::Cols).is_err());
        assert!(unpack(&[0; 2], 1, 3, 4, PackedDim::Cols, Layout::Dense).is_err());
        assert!(unpack(&[], usize::MAX, 2, 4, PackedDim::Rows, Layout::Dense).is_err());
        assert!(check_nibble_cols("weight", 4, 3).is_err());
    }
}
