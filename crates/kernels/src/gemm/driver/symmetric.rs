//! x^T @ x: the panels that are laid out are both operands.

use std::ops::Range;

use super::place::{At, Shared};
use super::{BLOCK_PANELS, COLUMN_TILES, Operand, PACKED_TOGETHER, Region, SERIAL_PRODUCTS, Sum, TASK_ROWS, each};
use crate::gemm::PANEL;
use crate::gemm::block_float;
use crate::gemm::pack::{Pack, Strip};
use crate::gemm::packed::Packed;
use crate::gemm::tile::{Pair, Tile, Write, f32_tile, f64_tile, pair_tile, panels};
use crate::{Mat, MatMut, Profile, bf16};

/// Bytes of x that are laid out at a time, unless one panel of k takes more.
const MOST_BYTES: usize = 16 << 20;

/// Adds x^T @ x to elements of `c` on the diagonal and above; operands that become f32.
pub(crate) fn add_square<S: Pack<f32> + Send + Sync>(profile: Profile, x: Mat<'_, S>, c: MatMut<'_, f32>) {
    add(profile, f32_tile(profile), PANEL, x, c, add_tile);
}

/// As [`add_square`], in f64: each element adds its products one by one.
pub(crate) fn add_square_f64(profile: Profile, x: Mat<'_, f32>, c: MatMut<'_, f64>) {
    add(profile, f64_tile(profile), PANEL, x, c, continue_tile);
}

/// As [`add_square`], where f32 sums of panels are added to f64; operands that become f32.
pub(crate) fn add_square_wide<S: Pack<f32> + Send + Sync>(profile: Profile, x: Mat<'_, S>, c: MatMut<'_, f64>) {
    add(profile, f32_tile(profile), PANEL, x, c, widen_tile);
}

/// As [`add_square_wide`], of bf16.
pub(crate) fn add_square_wide_bf16(profile: Profile, x: Mat<'_, bf16>, c: MatMut<'_, f64>) {
    match pair_tile(profile) {
        Some(tile) => add::<bf16, Pair, f32, f64>(profile, tile, 2 * PANEL, x, c, widen_tile),
        None => add_square_wide(profile, x, c),
    }
}

/// As [`add_square`], of bf16.
pub(crate) fn add_square_bf16(profile: Profile, x: Mat<'_, bf16>, c: MatMut<'_, f32>) {
    if let Some(tile) = pair_tile(profile) {
        add::<bf16, Pair, f32, f32>(profile, tile, 2 * PANEL, x, c, add_tile);
    } else if let Some(tile) = block_float::tile(profile) {
        add(profile, tile, block_float::RUN, x, c, add_tile);
    } else {
        add_square(profile, x, c);
    }
}

/// What becomes of a tile with sums of type C in a result of type D; as unsafe as [`Shared::tile`].
type Place<T, C, D> = unsafe fn(Shared<D>, Tile<T, C>, At<'_, T>);

unsafe fn add_tile<T, C: Sum>(c: Shared<C>, tile: Tile<T, C>, at: At<'_, T>) {
    // SAFETY: as the caller states.
    unsafe { c.tile(tile, at, Region::Upper, Write::Add) }
}

unsafe fn continue_tile<T, C: Sum>(c: Shared<C>, tile: Tile<T, C>, at: At<'_, T>) {
    // SAFETY: as the caller states.
    unsafe { c.tile(tile, at, Region::Upper, Write::Continue) }
}

unsafe fn widen_tile<T>(c: Shared<f64>, tile: Tile<T, f32>, at: At<'_, T>) {
    // SAFETY: as the caller states.
    unsafe { c.add_tile(tile, at, Region::Upper) }
}

fn add<S: Pack<T> + Send + Sync, T: Operand, C: Sum, D: Sum>(
    profile: Profile,
    tile: Tile<T, C>,
    panel: usize,
    x: Mat<'_, S>,
    mut c: MatMut<'_, D>,
    place: Place<T, C, D>,
) {
    let (depth, cols, width) = (x.rows(), x.cols(), tile.width);
    if depth == 0 || cols == 0 {
        return;
    }
    let products = depth.saturating_mul(cols).saturating_mul(cols) / 2;
    let is_serial = rayon::current_num_threads() == 1 || products < SERIAL_PRODUCTS;
    let panel_len = S::steps(panel) * width;
    let n_panels = cols.div_ceil(width);
    let at_once = (MOST_BYTES / (n_panels * panel_len * size_of::<T>())).clamp(1, BLOCK_PANELS) * panel;
    let mut laid_out = Packed::<T>::recycled(n_panels * width * S::steps(at_once.min(depth)));
    let tasks: Vec<_> = tasks(n_panels, (TASK_ROWS / width).max(1)).collect();
    let shared = Shared::new(&mut c);
    for k in (0..depth).step_by(at_once) {
        let k = (k, at_once.min(depth - k));
        let steps = S::steps(k.1);
        let laid_out = &mut laid_out.as_mut_slice()[..n_panels * width * steps];
        let pack = |(idx, to): (usize, &mut [T])| {
            let lanes = width.min(cols - idx * width);
            if lanes < width {
                to.fill(T::default());
            }
            S::pack(profile, Strip::of_rows(x.transposed(), (idx * width, lanes), k), width, to);
        };
        each(is_serial, PACKED_TOGETHER, laid_out.chunks_exact_mut(steps * width).enumerate(), pack);
        let square = Square { tile, panel_steps: S::steps(panel), steps, cols, panels: laid_out, place };
        each(is_serial, 1, tasks.iter().cloned(), |(rows, cols)| square.run(rows, cols, shared));
    }
    laid_out.recycle();
}

/// Panels of rows and of columns of parts of the result, up to `n_rows` panels of rows, that together cover the diagonal and what is
/// above it.
fn tasks(n_panels: usize, n_rows: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    (0..n_panels).step_by(n_rows).flat_map(move |row| {
        let rows = row..(row + n_rows).min(n_panels);
        (row..n_panels).step_by(COLUMN_TILES).map(move |col| (rows.clone(), col..(col + COLUMN_TILES).min(n_panels)))
    })
}

/// A stretch of k of all columns.
struct Square<'a, T, C, D> {
    tile: Tile<T, C>,
    /// Steps whose sums start anew.
    panel_steps: usize,
    /// Steps of each panel.
    steps: usize,
    cols: usize,
    panels: &'a [T],
    place: Place<T, C, D>,
}

impl<T: Operand, C: Sum, D: Sum> Square<'_, T, C, D> {
    /// The tiles of some panels of rows and of columns, which stay in the second cache over the panels of k.
    fn run(&self, rows: Range<usize>, cols: Range<usize>, c: Shared<D>) {
        let (width, len) = (self.tile.width, self.steps * self.tile.width);
        for start in (0..self.steps).step_by(self.panel_steps) {
            let steps = self.panel_steps.min(self.steps - start);
            let part = |panel: usize| &self.panels[panel * len + start * width..][..steps * width];
            let lanes = |panel: usize| width.min(self.cols - panel * width);
            for col in cols.clone() {
                for row in rows.start..rows.end.min(col + 1) {
                    for (first, n_rows) in panels(lanes(row), self.tile.max_rows) {
                        let at = At {
                            a: (&part(row)[first..], width),
                            b: part(col),
                            steps,
                            rows: (row * width + first, n_rows),
                            cols: (col * width, lanes(col)),
                        };
                        // SAFETY: panels lie within the square result, and no other task has this one's.
                        unsafe { (self.place)(c, self.tile, at) };
                    }
                }
            }
        }
    }
}
