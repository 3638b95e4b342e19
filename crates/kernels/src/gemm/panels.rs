//! Right operands that are laid out once for many products.

use rayon::prelude::*;

use super::block_float::{self, Codes};
use super::driver::{Right, panel_width};
use super::pack::{Pack, Strip, plain};
use super::packed::Packed;
use super::tile::pair_tile;
use crate::element::Kind;
use crate::{Element, Mat, Profile, bf16};

/// Steps of k that are laid out for all columns of a panel before the next.
const STRETCH: usize = 64;

/// The right operand b (K, O) of products, in the order in which the tiles of one profile read it.
///
/// A product with it has the bits of the product with `b` in the type of the left operand, and takes no time to lay `b` out. It may
/// be of a narrower type than the left operand; where both are bf16, [`BlockPanels`] come first.
#[derive(Debug)]
pub struct Panels<T> {
    elements: Packed<T>,
    depth: usize,
    cols: usize,
    width: usize,
}

impl<T: Element> Panels<T> {
    /// Lays `b` (K, O) out; none where the profile's products take pairs of elements, which lie otherwise.
    pub fn new(profile: Profile, b: Mat<'_, T>) -> Option<Self> {
        if T::KIND == Kind::Bf16 && pair_tile(profile).is_some() {
            return None;
        }
        let (depth, cols, width) = (b.rows(), b.cols(), panel_width(profile));
        let elements = lay_out((width, cols), depth, |lanes, to| {
            for start in (0..depth).step_by(STRETCH) {
                let steps = STRETCH.min(depth - start);
                let strip = Strip::of_rows(b.transposed(), lanes, (start, steps));
                plain(strip, width, &mut to[start * width..(start + steps) * width]);
            }
        });
        Some(Self { elements, depth, cols, width })
    }

    /// Bytes that the operand (K, O) takes when it is laid out, at most.
    pub fn bytes(depth: usize, cols: usize) -> usize {
        cols.next_multiple_of(PANEL_COLS).saturating_mul(depth).saturating_mul(size_of::<T>())
    }

    /// K.
    pub fn rows(&self) -> usize {
        self.depth
    }

    /// O.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn part(&self, first: usize, cols: usize) -> Part<'_, T> {
        Part { panels: self, first, cols }
    }
}

/// The right operand b (K, O) of bf16 products in block floating point.
///
/// As [`Panels`], for left operands of bf16 alone.
#[derive(Debug)]
pub struct BlockPanels {
    codes: Packed<Codes>,
    depth: usize,
    cols: usize,
    width: usize,
}

impl BlockPanels {
    /// Lays `b` (K, O) out; none where the profile's products take numbers as they are.
    pub fn new(profile: Profile, b: Mat<'_, bf16>) -> Option<Self> {
        let width = block_float::tile(profile)?.width;
        let (depth, cols) = (b.rows(), b.cols());
        let codes = lay_out((width, cols), block_float::steps(depth), |lanes, to| {
            bf16::pack(profile, Strip::of_rows(b.transposed(), lanes, (0, depth)), width, to);
        });
        Some(Self { codes, depth, cols, width })
    }

    /// Bytes that the operand (K, O) takes when it is laid out, at most.
    pub fn bytes(depth: usize, cols: usize) -> usize {
        cols.next_multiple_of(PANEL_COLS).saturating_mul(block_float::steps(depth)).saturating_mul(size_of::<Codes>())
    }

    /// K.
    pub fn rows(&self) -> usize {
        self.depth
    }

    /// O.
    pub fn cols(&self) -> usize {
        self.cols
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    pub(crate) fn part(&self, first: usize, cols: usize) -> BlockPart<'_> {
        BlockPart { panels: self, first, cols }
    }
}

/// Panels of `width` of the columns, each of so many steps, filled by lanes (first, number).
fn lay_out<E: Copy + Send>(
    (width, cols): (usize, usize),
    steps: usize,
    fill: impl Fn((usize, usize), &mut [E]) + Sync,
) -> Packed<E> {
    let mut elements = Packed::zeroed(cols.next_multiple_of(width) * steps);
    let panels = elements.as_mut_slice().par_chunks_exact_mut((width * steps).max(1));
    panels.enumerate().for_each(|(panel, to)| fill((panel * width, width.min(cols - panel * width)), to));
    elements
}

/// Columns of the widest panel of any profile, a multiple of those of the others.
pub const PANEL_COLS: usize = 32;

/// Columns of an operand that is laid out; the first is the first of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a, T> {
    panels: &'a Panels<T>,
    first: usize,
    cols: usize,
}

impl<T: Element> Right<f32> for Part<'_, T> {
    fn cols(&self) -> usize {
        self.cols
    }

    fn as_laid_out(&self, col: usize, k: usize) -> Option<(&[f32], usize)> {
        let Panels { elements, depth, width, .. } = self.panels;
        let elements = T::as_f32s(elements.as_slice())?;
        Some((&elements[((self.first + col) / width * depth + k) * width..], depth * width))
    }

    fn pack(
        &self,
        profile: Profile,
        (col, _): (usize, usize),
        (k, depth): (usize, usize),
        width: usize,
        to: &mut [f32],
    ) {
        let start = ((self.first + col) / width * self.panels.depth + k) * width;
        crate::cast::widen(
            profile,
            &self.panels.elements.as_slice()[start..][..depth * width],
            &mut to[..depth * width],
        );
    }
}

/// Columns of an operand in block floating point; the first is the first of a panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockPart<'a> {
    panels: &'a BlockPanels,
    first: usize,
    cols: usize,
}

impl Right<Codes> for BlockPart<'_> {
    fn cols(&self) -> usize {
        self.cols
    }

    fn as_laid_out(&self, col: usize, k: usize) -> Option<(&[Codes], usize)> {
        let BlockPanels { codes, depth, width, .. } = self.panels;
        let steps = block_float::steps(*depth);
        let start = ((self.first + col) / width * steps + block_float::steps(k)) * width;
        Some((&codes.as_slice()[start..], steps * width))
    }

    fn pack(&self, _: Profile, (col, _): (usize, usize), (k, depth): (usize, usize), width: usize, to: &mut [Codes]) {
        let len = block_float::steps(depth) * width;
        if let Some((codes, _)) = self.as_laid_out(col, k) {
            to[..len].copy_from_slice(&codes[..len]);
        }
    }
}

impl<S: Pack<T> + Send + Sync, T> Right<T> for Mat<'_, S> {
    fn cols(&self) -> usize {
        Mat::cols(self)
    }

    fn pack(&self, profile: Profile, cols: (usize, usize), k: (usize, usize), width: usize, to: &mut [T]) {
        S::pack(profile, Strip::of_rows(self.transposed(), cols, k), width, to);
    }
}
