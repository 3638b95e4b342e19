//! Dense bit streams of codes that are known to fit, eight at a time.

/// Writes the low `bits` bits of two's complement codes, offset by half their range, one after the other.
///
/// `out` holds whole 32-bit words; what the codes leave of it becomes zero. `bits` is 1 to 8.
pub(crate) fn pack(codes: &[u8], bits: u32, out: &mut [u8]) {
    match bits {
        1 => pack_bits::<1>(codes, out),
        2 => pack_bits::<2>(codes, out),
        3 => pack_bits::<3>(codes, out),
        4 => pack_bits::<4>(codes, out),
        5 => pack_bits::<5>(codes, out),
        6 => pack_bits::<6>(codes, out),
        7 => pack_bits::<7>(codes, out),
        _ => pack_bits::<8>(codes, out),
    }
}

fn pack_bits<const BITS: usize>(codes: &[u8], out: &mut [u8]) {
    let (eights, rest) = codes.as_chunks::<8>();
    let (whole, end) = out.split_at_mut(eights.len() * BITS);
    // Eight codes are `BITS` whole bytes.
    for (codes, out) in eights.iter().zip(whole.as_chunks_mut::<BITS>().0) {
        out.copy_from_slice(&join::<BITS>(*codes).to_le_bytes()[..BITS]);
    }
    end.fill(0);
    if !rest.is_empty() {
        // Minus half the range is the field 0, so that nothing is set beyond the last code.
        let mut codes = [(1u8 << (BITS - 1)).wrapping_neg(); 8];
        codes[..rest.len()].copy_from_slice(rest);
        let bytes = join::<BITS>(codes).to_le_bytes();
        let n = (rest.len() * BITS).div_ceil(8);
        end[..n].copy_from_slice(&bytes[..n]);
    }
}

/// Reads codes that [`pack`] has written, as many as `codes` holds; absent bytes count as zero.
pub(crate) fn unpack(bytes: &[u8], bits: u32, codes: &mut [u8]) {
    match bits {
        1 => unpack_bits::<1>(bytes, codes),
        2 => unpack_bits::<2>(bytes, codes),
        3 => unpack_bits::<3>(bytes, codes),
        4 => unpack_bits::<4>(bytes, codes),
        5 => unpack_bits::<5>(bytes, codes),
        6 => unpack_bits::<6>(bytes, codes),
        7 => unpack_bits::<7>(bytes, codes),
        _ => unpack_bits::<8>(bytes, codes),
    }
}

fn unpack_bits<const BITS: usize>(bytes: &[u8], codes: &mut [u8]) {
    let fields = |bytes: &[u8]| {
        let mut padded = [0; 8];
        let n = bytes.len().min(BITS);
        padded[..n].copy_from_slice(&bytes[..n]);
        u64::from_le_bytes(padded)
    };
    let (eights, rest) = codes.as_chunks_mut::<8>();
    let (chunks, _) = bytes.as_chunks::<BITS>();
    for (codes, bytes) in eights.iter_mut().zip(chunks) {
        *codes = split::<BITS>(fields(bytes));
    }
    for (idx, codes) in eights.iter_mut().enumerate().skip(chunks.len()) {
        *codes = split::<BITS>(fields(bytes.get(idx * BITS..).unwrap_or_default()));
    }
    let last = split::<BITS>(fields(bytes.get(eights.len() * BITS..).unwrap_or_default()));
    rest.copy_from_slice(&last[..rest.len()]);
}

/// Eight codes from fields in the low `8 * BITS` bits.
#[inline(always)]
fn split<const BITS: usize>(fields: u64) -> [u8; 8] {
    let fours = (fields & low_bits(4 * BITS)) | (fields >> (4 * BITS)) << 32;
    let pairs = (fours & (low_bits(2 * BITS) * 0x0000_0001_0000_0001))
        | (fours << (16 - 2 * BITS)) & ((low_bits(2 * BITS) << 16) * 0x0000_0001_0000_0001);
    let bytes = (pairs & (low_bits(BITS) * 0x0001_0001_0001_0001))
        | (pairs << (8 - BITS)) & ((low_bits(BITS) << 8) * 0x0001_0001_0001_0001);
    bytes.to_le_bytes().map(|field| field.wrapping_sub(1 << (BITS - 1)))
}

/// Eight fields in the low `8 * BITS` bits.
#[inline(always)]
fn join<const BITS: usize>(codes: [u8; 8]) -> u64 {
    let half = u64::from_le_bytes([1 << (BITS - 1); 8]);
    // Flipping the top bit adds half the range.
    let bytes = u64::from_le_bytes(codes) ^ half;
    // Neighbours move together: two fields in 16 bits, four in 32, eight.
    let pairs = (bytes & (low_bits(BITS) * 0x0001_0001_0001_0001))
        | (bytes >> (8 - BITS)) & ((low_bits(BITS) << BITS) * 0x0001_0001_0001_0001);
    let fours = (pairs & (low_bits(2 * BITS) * 0x0000_0001_0000_0001))
        | (pairs >> (16 - 2 * BITS)) & ((low_bits(2 * BITS) << (2 * BITS)) * 0x0000_0001_0000_0001);
    (fours & low_bits(4 * BITS)) | (fours >> 32) << (4 * BITS)
}

const fn low_bits(n: usize) -> u64 {
    (1 << n) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packing::{Layout, pack_row};

    #[test]
    fn streams_of_every_width_and_length_are_those_of_the_plain_packer() {
        for bits in 1..=8u32 {
            for n in 1..70 {
                let codes: Vec<i8> = (0..n).map(|i: i32| ((i * 37 % 251) as i8) >> (8 - bits)).collect();
                let mut words = vec![0; Layout::Dense.words(codes.len(), bits)];
                pack_row(&codes, bits, &mut words).unwrap();
                let expected: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                let mut found = vec![0xa5; expected.len()];
                pack(&codes.iter().map(|code| *code as u8).collect::<Vec<_>>(), bits, &mut found);
                assert_eq!(found, expected, "{n} codes of {bits} bits");
                let mut back = vec![0xa5; codes.len()];
                unpack(&found, bits, &mut back);
                assert!(back.iter().zip(&codes).all(|(a, b)| *a as i8 == *b), "{n} codes of {bits} bits");
            }
        }
    }
}
