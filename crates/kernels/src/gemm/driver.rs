//! The loops around the inner tile: blocks of k in order, blocks of rows and columns over threads.
//!
//! Only the order of k matters to the bits; where rows and columns are cut does not.

mod int8;
mod place;
mod symmetric;

use std::ops::Range;

use rayon::prelude::*;

pub(crate) use int8::{multiply_bytes, multiply_words};
use place::{At, Shared};
pub(crate) use symmetric::{add_square, add_square_bf16, add_square_f64, add_square_wide, add_square_wide_bf16};

use super::PANEL;
use super::block_float::{self, Codes};
use super::pack::{Pack, Strip};
use super::packed::Packed;
use super::tile::{Pair, Tile, Write, f32_tile, f64_tile, pair_tile, panels};
use super::update::{Region, Update};
use crate::{Mat, MatMut, Profile, bf16, f16};

/// Rows of a block: its left operand takes 8 MiB.
const BLOCK_ROWS: usize = 2048;
/// Columns of a block: its right operand takes 4 MiB.
const BLOCK_COLS: usize = 1024;
/// Panels of k of a block, over which a part of the result stays in the second cache.
const BLOCK_PANELS: usize = 4;
/// Columns of that part, in tiles.
const COLUMN_TILES: usize = 8;
/// Products of a call below which it stays on its thread.
const SERIAL_PRODUCTS: usize = 1 << 19;
/// Tasks of a block for each thread, so that a thread that comes late costs little.
const TASKS_PER_THREAD: usize = 8;
/// Most threads of which each computes a part of the result by itself: what two of them need is laid out twice, but none waits for
/// another between blocks.
pub(super) const MOST_PARTS: usize = 4;
/// Rows or columns of the result for each of these threads, so that laying out twice costs little beside the products.
const LEAST_SHARE: usize = 512;
/// Panels that a thread lays out together.
const PACKED_TOGETHER: usize = 4;
/// Most rows of a task, a multiple of every kernel's rows; its part of the left operand stays in the second cache.
const TASK_ROWS: usize = 168;

/// The right operand of a product, however it lies.
pub(crate) trait Right<T>: Copy + Send + Sync {
    /// Its columns.
    fn cols(&self) -> usize;

    /// Its panels from column `col` and step `k` on, where they lie as tiles read them: elements, and how many there are from one
    /// panel to the next. `col` is the first column of a panel.
    fn as_laid_out(&self, _col: usize, _k: usize) -> Option<(&[T], usize)> {
        None
    }

    /// Lays a run of columns of one panel and a run of k out, `width` elements a step.
    fn pack(&self, profile: Profile, cols: (usize, usize), k: (usize, usize), width: usize, to: &mut [T]);
}

/// f32 operands.
pub(crate) fn multiply_f32(profile: Profile, a: Mat<'_, f32>, b: Mat<'_, f32>, c: MatMut<'_, f32>, update: Update) {
    multiply(profile, f32_tile(profile), PANEL, (a, b), c, update);
}

/// Columns of a panel of f32.
pub(crate) fn panel_width(profile: Profile) -> usize {
    f32_tile(profile).width
}

/// A left operand of any type and a right one that yields f32.
pub(crate) fn multiply_laid_out<S: Pack<f32> + Send + Sync>(
    profile: Profile,
    a: Mat<'_, S>,
    b: impl Right<f32>,
    c: MatMut<'_, f32>,
    update: Update,
) {
    multiply(profile, f32_tile(profile), PANEL, (a, b), c, update);
}

/// f64 operands and sums.
pub(crate) fn multiply_f64(profile: Profile, a: Mat<'_, f64>, b: Mat<'_, f64>, c: MatMut<'_, f64>, update: Update) {
    multiply(profile, f64_tile(profile), PANEL, (a, b), c, update);
}

/// bf16 operands, f32 sums.
pub(crate) fn multiply_bf16(profile: Profile, a: Mat<'_, bf16>, b: Mat<'_, bf16>, c: MatMut<'_, f32>, update: Update) {
    if let Some(tile) = pair_tile(profile) {
        multiply::<bf16, Pair, f32, _>(profile, tile, 2 * PANEL, (a, b), c, update);
    } else if block_float::tile(profile).is_some() {
        multiply_codes(profile, a, b, c, update);
    } else {
        multiply::<bf16, f32, f32, _>(profile, f32_tile(profile), PANEL, (a, b), c, update);
    }
}

/// A left operand of bf16 and a right one that yields codes; of profiles that have a tile for them.
pub(crate) fn multiply_codes(
    profile: Profile,
    a: Mat<'_, bf16>,
    b: impl Right<Codes>,
    c: MatMut<'_, f32>,
    update: Update,
) {
    if let Some(tile) = block_float::tile(profile) {
        multiply(profile, tile, block_float::RUN, (a, b), c, update);
    }
}

/// f16 operands, f32 sums.
pub(crate) fn multiply_f16(profile: Profile, a: Mat<'_, f16>, b: Mat<'_, f16>, c: MatMut<'_, f32>, update: Update) {
    multiply::<f16, f32, f32, _>(profile, f32_tile(profile), PANEL, (a, b), c, update);
}

trait Sum: Copy + Send + Sync + Default + std::ops::Add<Output = Self> + 'static {}
impl Sum for f32 {}
impl Sum for f64 {}

trait Operand: Copy + Send + Sync + Default + 'static {
    /// Changes the signs of a panel of `lanes` elements a step.
    fn negate(panel: &mut [Self], lanes: usize);
}
impl Operand for f32 {
    fn negate(panel: &mut [Self], _: usize) {
        panel.iter_mut().for_each(|it| *it = -*it);
    }
}
impl Operand for f64 {
    fn negate(panel: &mut [Self], _: usize) {
        panel.iter_mut().for_each(|it| *it = -*it);
    }
}
impl Operand for Pair {
    fn negate(panel: &mut [Self], _: usize) {
        panel.iter_mut().for_each(|it| it.0 ^= 0x8000_8000);
    }
}
impl Operand for Codes {
    fn negate(panel: &mut [Self], lanes: usize) {
        for run in panel.chunks_mut(block_float::RUN_STEPS * lanes) {
            let scales = run.len() - lanes;
            run[scales..].iter_mut().for_each(|it| it.0 ^= 0x8000_0000);
        }
    }
}

fn multiply<S: Pack<T> + Send + Sync, T: Operand, C: Sum, B: Right<T>>(
    profile: Profile,
    tile: Tile<T, C>,
    panel: usize,
    (a, b): (Mat<'_, S>, B),
    mut c: MatMut<'_, C>,
    update: Update,
) {
    let (rows, depth, cols) = (a.rows(), a.cols(), b.cols());
    if rows == 0 || cols == 0 {
        return;
    }
    if depth == 0 {
        if update.write == Write::Store {
            (0..rows).for_each(|row| c.row_mut(row).fill(C::default()));
        }
        return;
    }
    let shared = Shared::new(&mut c);
    let threads = rayon::current_num_threads();
    let is_serial = threads == 1 || rows.saturating_mul(depth).saturating_mul(cols) < SERIAL_PRODUCTS;
    let run = |(rows, cols), is_serial, block_rows| {
        Part { profile, tile, panel, rows, cols, block_rows, is_serial }.run((a, b), shared, update);
    };
    if !is_serial && threads <= MOST_PARTS && rows.max(cols) >= threads * LEAST_SHARE {
        let parts = parts((rows, cols), (tile.max_rows, tile.width), update.region, threads);
        return parts.into_par_iter().with_max_len(1).for_each(|part| run(part, true, BLOCK_ROWS / threads));
    }
    run((0..rows, 0..cols), is_serial, BLOCK_ROWS);
}

/// Parts of equal work, rows and columns of each.
fn parts(
    (rows, cols): (usize, usize),
    (max_rows, width): (usize, usize),
    region: Region,
    n: usize,
) -> Vec<(Range<usize>, Range<usize>)> {
    let cut = |whole: usize, step: usize, idx: usize, share: f64| {
        if idx == n { whole } else { whole.min((whole as f64 * share) as usize / step * step) }
    };
    let part = |idx: usize| {
        let share = |idx: usize| idx as f64 / n as f64;
        match region {
            Region::All if rows >= cols => {
                (cut(rows, max_rows, idx, share(idx))..cut(rows, max_rows, idx + 1, share(idx + 1)), 0..cols)
            }
            Region::All => (0..rows, cut(cols, width, idx, share(idx))..cut(cols, width, idx + 1, share(idx + 1))),
            // Rows of a triangle: those before a share of it.
            Region::Upper => {
                let before = |idx: usize| cut(rows, max_rows, idx, 1.0 - (1.0 - share(idx)).sqrt());
                (before(idx)..before(idx + 1), before(idx) / width * width..cols)
            }
            Region::Lower => {
                let before = |idx: usize| cut(rows, max_rows, idx, share(idx).sqrt());
                (before(idx)..before(idx + 1), 0..cols.min(before(idx + 1)))
            }
        }
    };
    (0..n).map(part).collect()
}

/// One after the other, or spread over threads, so many together.
fn each<I: Send>(is_serial: bool, together: usize, items: impl Iterator<Item = I>, work: impl Fn(I) + Send + Sync) {
    if is_serial {
        items.for_each(work);
    } else {
        let items = items.collect::<Vec<_>>().into_par_iter();
        items.with_min_len(together).with_max_len(together).for_each(work);
    }
}

/// Rows and columns of a product, and how they are computed.
struct Part<T, C> {
    profile: Profile,
    tile: Tile<T, C>,
    /// Elements of k whose sum starts anew.
    panel: usize,
    rows: Range<usize>,
    /// The first is the first of a panel.
    cols: Range<usize>,
    /// Rows of a block; those of all parts take as much as one of [`BLOCK_ROWS`].
    block_rows: usize,
    is_serial: bool,
}

impl<T: Operand, C: Sum> Part<T, C> {
    fn run<S: Pack<T> + Send + Sync>(self, (a, b): (Mat<'_, S>, impl Right<T>), shared: Shared<C>, update: Update) {
        let Self { profile, tile, panel, rows, cols, block_rows, is_serial } = self;
        let depth = a.cols();
        let block_depth = panel * BLOCK_PANELS;
        let max_steps = S::steps(block_depth.min(depth));
        // The left operand is laid out once for all columns where it fits into its buffer with all of k.
        let n_depths = depth.div_ceil(block_depth);
        let slots = if rows.len().min(block_rows) * n_depths <= block_rows { n_depths } else { 1 };
        let slot_len = rows.len().min(block_rows) * max_steps;
        let is_laid_out = b.as_laid_out(0, 0).is_some();
        let block_cols = if is_laid_out { 0 } else { cols.len().min(BLOCK_COLS).next_multiple_of(tile.width) };
        let mut packed_a = Packed::<T>::recycled(slots * slot_len);
        let mut packed_b = Packed::<T>::recycled(block_cols * max_steps);
        let (mut held_a, mut held_b) = (vec![None; slots], None);
        for row in rows.clone().step_by(block_rows) {
            let n_rows = block_rows.min(rows.end - row);
            for col in cols.clone().step_by(BLOCK_COLS) {
                let n_cols = BLOCK_COLS.min(cols.end - col);
                if !update.region.meets((row, n_rows), (col, n_cols)) {
                    continue;
                }
                for (idx, k) in (0..depth).step_by(block_depth).enumerate() {
                    let k_range = (k, block_depth.min(depth - k));
                    let block = Block {
                        profile,
                        tile,
                        steps: S::steps(k_range.1),
                        panel_steps: S::steps(panel),
                        rows: (row, n_rows),
                        task_rows: n_rows.div_ceil(n_rows.div_ceil(TASK_ROWS)).next_multiple_of(tile.max_rows),
                        cols: (col, n_cols),
                        serial: is_serial,
                    };
                    let slot = idx % slots;
                    let part_a = &mut packed_a.as_mut_slice()[slot * slot_len..(slot + 1) * slot_len];
                    let wanted_a = held_a[slot].replace((row, k)) != Some((row, k));
                    let wanted_b = !is_laid_out && held_b.replace((col, k)) != Some((col, k));
                    block.pack(
                        wanted_a.then_some((a, update.negate, &mut *part_a)),
                        wanted_b.then_some((b, packed_b.as_mut_slice())),
                        k_range,
                    );
                    let write = if k > 0 && update.write == Write::Store { Write::Add } else { update.write };
                    let part_b = b.as_laid_out(col, k).unwrap_or((packed_b.as_slice(), block.steps * tile.width));
                    block.run(part_a, part_b, shared, write, update.region);
                }
            }
        }
        packed_b.recycle();
        packed_a.recycle();
    }
}

/// One block of rows, columns and k.
struct Block<T, C> {
    profile: Profile,
    tile: Tile<T, C>,
    /// Steps of the block.
    steps: usize,
    /// Steps of a panel, whose sums start anew.
    panel_steps: usize,
    rows: (usize, usize),
    /// Rows of a task.
    task_rows: usize,
    cols: (usize, usize),
    serial: bool,
}

/// One panel of an operand: its rows or columns, and where they go.
type PanelTo<'a, T> = ((usize, usize), &'a mut [T]);

/// One column panel, one panel of k and the rows of a task, within a block.
struct Column {
    row: usize,
    rows: usize,
    col: usize,
    steps: std::ops::Range<usize>,
    write: Write,
    region: Region,
}

impl<T: Operand, C: Sum> Block<T, C> {
    /// Lays out what of the operands is not there yet.
    fn pack<S: Pack<T> + Send + Sync>(
        &self,
        a: Option<(Mat<'_, S>, bool, &mut [T])>,
        b: Option<(impl Right<T>, &mut [T])>,
        k: (usize, usize),
    ) {
        let pack_a = || {
            let Some((a, negate, to)) = a else { return };
            let pack = |((start, lanes), to): PanelTo<'_, T>| {
                S::pack(self.profile, Strip::of_rows(a, (self.rows.0 + start, lanes), k), lanes, to);
                if negate {
                    T::negate(to, lanes);
                }
            };
            each(self.serial, PACKED_TOGETHER, self.panels_of_a(to), pack);
        };
        let pack_b = || {
            let Some((b, to)) = b else { return };
            let width = self.tile.width;
            let pack = |((start, lanes), to): PanelTo<'_, T>| {
                if lanes < width {
                    to.fill(T::default());
                }
                b.pack(self.profile, (self.cols.0 + start, lanes), k, width, to);
            };
            let starts = (0..self.cols.1).step_by(width).map(|start| (start, width.min(self.cols.1 - start)));
            each(self.serial, PACKED_TOGETHER, starts.zip(to.chunks_exact_mut(width * self.steps)), pack);
        };
        if self.serial {
            pack_a();
            pack_b();
        } else {
            rayon::join(pack_a, pack_b);
        }
    }

    fn panels_of_a<'a>(&self, mut to: &'a mut [T]) -> impl Iterator<Item = PanelTo<'a, T>> + use<'a, T, C> {
        let (rows, task_rows, steps, max_rows) = (self.rows.1, self.task_rows, self.steps, self.tile.max_rows);
        let all = (0..rows).step_by(task_rows).flat_map(move |first| {
            panels(task_rows.min(rows - first), max_rows).map(move |(start, lanes)| (first + start, lanes))
        });
        all.map(move |(start, lanes)| {
            let (part, rest) = std::mem::take(&mut to).split_at_mut(lanes * steps);
            to = rest;
            ((start, lanes), part)
        })
    }

    /// Tasks over the block; `b` holds its panels, the second number of elements apart.
    fn run(&self, a: &[T], (b, panel_len): (&[T], usize), c: Shared<C>, write: Write, region: Region) {
        let row_tasks = self.rows.1.div_ceil(self.task_rows);
        let col_panels = self.cols.1.div_ceil(self.tile.width);
        // Columns are cut further where rows alone do not feed all threads.
        let wanted = if self.serial { 1 } else { TASKS_PER_THREAD * rayon::current_num_threads() };
        let col_tasks = wanted.div_ceil(row_tasks).clamp(1, col_panels);
        let task = |idx: usize| {
            let (row_task, col_task) = (idx / col_tasks, idx % col_tasks);
            let first = row_task * self.task_rows;
            let rows = self.task_rows.min(self.rows.1 - first);
            let a = &a[first * self.steps..(first + rows) * self.steps];
            let cols = col_panels * col_task / col_tasks..col_panels * (col_task + 1) / col_tasks;
            let width = self.tile.width;
            for start in cols.clone().step_by(COLUMN_TILES) {
                for step in (0..self.steps).step_by(self.panel_steps) {
                    let write = if step > 0 && write == Write::Store { Write::Add } else { write };
                    let steps = step..(step + self.panel_steps).min(self.steps);
                    for panel in start..(start + COLUMN_TILES).min(cols.end) {
                        let b = &b[panel * panel_len..][steps.start * width..steps.end * width];
                        let strip =
                            Column { row: first, rows, col: panel * width, steps: steps.clone(), write, region };
                        self.column(a, b, strip, c);
                    }
                }
            }
        };
        each(self.serial, 1, 0..row_tasks * col_tasks, task);
    }

    /// All tiles of one column panel, one panel of k and one task's rows.
    fn column(&self, a: &[T], b: &[T], column: Column, c: Shared<C>) {
        let Column { row: first, rows, col, steps, write, region } = column;
        let (width, n_steps) = (self.tile.width, steps.len());
        let n_cols = width.min(self.cols.1 - col);
        let col = self.cols.0 + col;
        for (start, n_rows) in panels(rows, self.tile.max_rows) {
            let row = self.rows.0 + first + start;
            if !region.meets((row, n_rows), (col, n_cols)) {
                continue;
            }
            let a = &a[start * self.steps + steps.start * n_rows..][..n_steps * n_rows];
            let at = At { a: (a, n_rows), b, steps: n_steps, rows: (row, n_rows), cols: (col, n_cols) };
            // SAFETY: rows and columns lie within the result, and no other task has this tile.
            unsafe { c.tile(self.tile, at, region, write) };
        }
    }
}
