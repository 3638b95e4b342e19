//! A right operand that is laid out once for many products.

use rayon::prelude::*;

use super::driver::{Right, panel_width};
use super::pack::{Pack, Strip, plain};
use super::packed::Packed;
use super::tile::pair_tile;
use crate::element::Kind;
use crate::{Element, Mat, Profile};

/// Steps of k that are laid out for all columns of a panel before the next.
const STRETCH: usize = 64;

/// The right operand b (K, O) of products, in the order in which the tiles of one profile read it.
///
/// A product with it has the bits of the product with `b`, and takes no time to lay `b` out. It may be of a narrower type than the
/// left operand.
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
        let mut elements = Packed::zeroed(cols.next_multiple_of(width) * depth);
        let lay_out = |(panel, to): (usize, &mut [T])| {
            let (first, lanes) = (panel * width, width.min(cols - panel * width));
            for start in (0..depth).step_by(STRETCH) {
                let steps = STRETCH.min(depth - start);
                let strip = Strip::of_rows(b.transposed(), (first, lanes), (start, steps));
                plain(strip, width, &mut to[start * width..(start + steps) * width]);
            }
        };
        let all = elements.as_mut_slice();
        all.par_chunks_exact_mut((width * depth).max(1)).enumerate().for_each(lay_out);
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

impl<S: Pack<T> + Send + Sync, T> Right<T> for Mat<'_, S> {
    fn cols(&self) -> usize {
        Mat::cols(self)
    }

    fn pack(&self, profile: Profile, cols: (usize, usize), k: (usize, usize), width: usize, to: &mut [T]) {
        S::pack(profile, Strip::of_rows(self.transposed(), cols, k), width, to);
    }
}
