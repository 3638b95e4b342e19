//! The loops around tiles over 8-bit integers.

use super::{Operand, PANEL, Region, Sum, Update, Write, multiply};
use crate::gemm::int8::{Bytes, Words};
use crate::gemm::tile::Tile;
use crate::{Mat, MatMut, Profile};

impl Sum for i32 {}

impl Operand for Words {
    fn negate(panel: &mut [Self], _: usize) {
        let negated = |half: u32| u32::from((half as u16).wrapping_neg());
        panel.iter_mut().for_each(|it| *it = Self(negated(it.0) | negated(it.0 >> 16) << 16));
    }
}

impl Operand for Bytes {
    fn negate(panel: &mut [Self], _: usize) {
        panel.iter_mut().for_each(|it| *it = Self(u32::from_le_bytes(it.0.to_le_bytes().map(u8::wrapping_neg))));
    }
}

/// Operands that are widened to 16 bits.
pub(crate) fn multiply_words(
    profile: Profile,
    tile: Tile<Words, i32>,
    operands: (Mat<'_, i8>, Mat<'_, i8>),
    c: MatMut<'_, i32>,
    write: Write,
) {
    let update = Update { write, region: Region::All, negate: false };
    multiply::<i8, Words, i32, _>(profile, tile, 2 * PANEL, operands, c, update);
}

/// Operands of 8 bits, the left one without a sign.
pub(crate) fn multiply_bytes(
    profile: Profile,
    tile: Tile<Bytes, i32>,
    operands: (Mat<'_, i8>, Mat<'_, i8>),
    c: MatMut<'_, i32>,
    write: Write,
) {
    let update = Update { write, region: Region::All, negate: false };
    multiply::<i8, Bytes, i32, _>(profile, tile, 4 * PANEL, operands, c, update);
}
