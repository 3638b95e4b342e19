//! Attention by blocks of queries and keys; scores and weighted sums are tiles of the matrix product.

use rayon::prelude::*;

use super::{Attention, KEY_BLOCK};
use crate::elementary::{exp, tanh};
use crate::gemm::pack::{Pack, Strip};
use crate::gemm::packed::Packed;
use crate::gemm::tile::{Lines, Tile, Write, f32_tile, panels};
use crate::rows::{lane_max, lane_sum, twins};
use crate::{Element, Mat, Profile};

/// Queries of a block.
const QUERY_BLOCK: usize = 56;

/// The result, whose rows tasks share out.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T, usize);

// SAFETY: tasks write disjoint rows, and the borrow of the result outlives them.
unsafe impl<T> Sync for Shared<T> {}
// SAFETY: as above.
unsafe impl<T> Send for Shared<T> {}

impl<T> Shared<T> {
    /// The elements of one row.
    ///
    /// # Safety
    ///
    /// No other task asks for an overlapping row.
    #[expect(clippy::mut_from_ref, reason = "rows are disjoint, as the caller states")]
    unsafe fn row(&self, start: usize, len: usize) -> &mut [T] {
        debug_assert!(start + len <= self.1);
        // SAFETY: the row lies within the result, and the caller has it alone.
        unsafe { std::slice::from_raw_parts_mut(self.0.wrapping_add(start), len) }
    }
}

/// All batch rows and heads; arguments agree.
pub(super) fn attention<T: Element>(profile: Profile, plan: &Attention<'_>, [q, k, v]: [&[T]; 3], out: &mut [T]) {
    if plan.keys == 0 {
        out.fill(T::default());
    }
    if out.is_empty() || plan.keys == 0 {
        return;
    }
    let shared = Shared(out.as_mut_ptr(), out.len());
    (0..plan.batch * plan.kv_heads).into_par_iter().with_max_len(1).for_each(|idx| {
        let (b, kv_head) = (idx / plan.kv_heads, idx % plan.kv_heads);
        let Some(keys) = KeyValues::pack(profile, plan, k, v, b, kv_head) else {
            return;
        };
        let group = plan.heads / plan.kv_heads;
        let blocks = plan.queries.div_ceil(QUERY_BLOCK);
        (0..group * blocks).into_par_iter().with_max_len(1).for_each(|idx| {
            let head = kv_head * group + idx / blocks;
            let first = idx % blocks * QUERY_BLOCK;
            let rows = QUERY_BLOCK.min(plan.queries - first);
            let task = Task { profile, plan, keys: &keys, b, head, first, rows };
            task.run(q, shared);
        });
    });
}

/// Keys and values of one head in the order in which tiles read them.
struct KeyValues {
    tile: Tile<f32, f32>,
    keys: Packed<f32>,
    values: Packed<f32>,
    /// Value width, rounded up to whole tiles.
    value_width: usize,
}

impl KeyValues {
    fn pack<T: Element>(
        profile: Profile,
        plan: &Attention<'_>,
        k: &[T],
        v: &[T],
        b: usize,
        kv_head: usize,
    ) -> Option<Self> {
        let &Attention { keys, kv_heads, head_dim, value_dim, .. } = plan;
        let tile = f32_tile(profile);
        let k = Mat::strided(
            k.get(b * keys * kv_heads * head_dim + kv_head * head_dim..)?,
            keys,
            head_dim,
            kv_heads * head_dim,
        );
        let v = Mat::strided(
            v.get(b * keys * kv_heads * value_dim + kv_head * value_dim..)?,
            keys,
            value_dim,
            kv_heads * value_dim,
        );
        let (k, v) = (k.ok()?, v.ok()?.transposed());
        let value_width = value_dim.next_multiple_of(tile.width);
        let mut packed = Self {
            tile,
            keys: Packed::zeroed(keys.next_multiple_of(tile.width) * head_dim),
            values: Packed::zeroed(keys * value_width),
            value_width,
        };
        for (idx, to) in packed.keys.as_mut_slice().chunks_mut((tile.width * head_dim).max(1)).enumerate() {
            let start = idx * tile.width;
            let lanes = (start, tile.width.min(keys - start));
            T::pack(profile, Strip::of_rows(k, lanes, (0, head_dim)), tile.width, to);
        }
        let blocks = packed.values.as_mut_slice().chunks_mut((KEY_BLOCK * value_width).max(1));
        for (idx, to) in blocks.enumerate() {
            let depth = (idx * KEY_BLOCK, KEY_BLOCK.min(keys - idx * KEY_BLOCK));
            for (panel, to) in to.chunks_mut(tile.width * depth.1).enumerate() {
                let start = panel * tile.width;
                let lanes = (start, tile.width.min(value_dim - start));
                T::pack(profile, Strip::of_rows(v, lanes, depth), tile.width, to);
            }
        }
        Some(packed)
    }
}

/// A block of queries of one head.
struct Task<'a> {
    profile: Profile,
    plan: &'a Attention<'a>,
    keys: &'a KeyValues,
    b: usize,
    head: usize,
    first: usize,
    rows: usize,
}

/// The running softmax of a block of queries.
struct State {
    max: [f32; QUERY_BLOCK],
    sum: [f32; QUERY_BLOCK],
    decay: [f32; QUERY_BLOCK],
}

impl Task<'_> {
    fn run<T: Element>(&self, q: &[T], out: Shared<T>) {
        let &Attention { queries, heads, head_dim, value_dim, .. } = self.plan;
        let (tile, value_width) = (self.keys.tile, self.keys.value_width);
        let q_start = (self.b * queries * heads + self.head) * head_dim;
        let q = Mat::strided(q.get(q_start..).unwrap_or_default(), queries, head_dim, heads * head_dim);
        let mut packed_q = Packed::<f32>::zeroed(self.rows * head_dim);
        if let Ok(q) = q {
            for (start, rows) in panels(self.rows, tile.max_rows) {
                let to = &mut packed_q.as_mut_slice()[start * head_dim..(start + rows) * head_dim];
                let strip = Strip::of_rows(q, (self.first + start, rows), (0, head_dim));
                T::pack(self.profile, strip, rows, to);
            }
        }
        let mut scores = Packed::<f32>::zeroed(QUERY_BLOCK * KEY_BLOCK);
        let mut weights = Packed::<f32>::zeroed(QUERY_BLOCK * KEY_BLOCK);
        let mut sums = Packed::<f32>::zeroed(self.rows * value_width);
        let sink = self.plan.sinks.map(|sinks| sinks[self.head]);
        let (max, sum) = sink.map_or((f32::NEG_INFINITY, 0.0), |sink| (sink, 1.0));
        let mut state = State { max: [max; QUERY_BLOCK], sum: [sum; QUERY_BLOCK], decay: [1.0; QUERY_BLOCK] };
        let visible = |row: usize| self.plan.visible(self.first + row);
        let end = (0..self.rows).map(|row| visible(row).1).max().unwrap_or(0);
        let begin = (0..self.rows).map(|row| visible(row).0).min().unwrap_or(0);
        for start in (begin / KEY_BLOCK * KEY_BLOCK..end).step_by(KEY_BLOCK) {
            // Keys that no query of the block sees have no weight.
            let n_keys = KEY_BLOCK.min(end - start);
            self.score(packed_q.as_slice(), start, n_keys, scores.as_mut_slice());
            soften(self.profile, self, start, n_keys, &mut state, scores.as_mut_slice());
            for (row, sums) in sums.as_mut_slice().chunks_exact_mut(value_width.max(1)).enumerate() {
                let decay = state.decay[row];
                sums.iter_mut().for_each(|sum| *sum *= decay);
            }
            self.weigh(scores.as_slice(), start, n_keys, weights.as_mut_slice(), sums.as_mut_slice());
        }
        let mut line = vec![0.0f32; value_dim];
        for (row, sums) in sums.as_slice().chunks_exact(value_width.max(1)).enumerate() {
            let sum = state.sum[row];
            for (line, x) in line.iter_mut().zip(sums) {
                // Only a sum that is no number is neither zero nor above it: it must be seen behind.
                *line = if sum == 0.0 { 0.0 } else { x / sum };
            }
            let place = ((self.b * queries + self.first + row) * heads + self.head) * value_dim;
            // SAFETY: this task alone has these queries of this head.
            crate::cast::narrow(self.profile, &line, unsafe { out.row(place, value_dim) });
        }
    }

    /// Dot products of the block's queries and a block of keys.
    fn score(&self, q: &[f32], start: usize, n_keys: usize, scores: &mut [f32]) {
        let (tile, depth) = (self.keys.tile, self.plan.head_dim);
        let keys = self.keys.keys.as_slice();
        for col in (0..n_keys).step_by(tile.width) {
            let keys = &keys[(start + col) * depth..(start + col + tile.width) * depth];
            for (row, rows) in panels(self.rows, tile.max_rows) {
                let q = &q[row * depth..(row + rows) * depth];
                let to = &mut scores[row * KEY_BLOCK + col..(row + rows - 1) * KEY_BLOCK + col + tile.width];
                let (q, to) = (Lines::new(q.as_ptr(), rows), Lines::new(to.as_mut_ptr(), KEY_BLOCK));
                // SAFETY: `q` and `keys` are one panel each, `to` covers the tile, which is only this task's.
                unsafe { (tile.run)(depth, q, keys.as_ptr(), to, rows, Write::Store) };
            }
        }
    }

    /// Adds the values of a block of keys, weighted.
    fn weigh(&self, weights: &[f32], start: usize, n_keys: usize, packed: &mut [f32], sums: &mut [f32]) {
        let (tile, width) = (self.keys.tile, self.keys.value_width);
        let depth = KEY_BLOCK.min(self.plan.keys - start);
        let values = &self.keys.values.as_slice()[start * width..(start + depth) * width];
        let Ok(weights) = Mat::strided(weights, self.rows, n_keys, KEY_BLOCK) else {
            return;
        };
        for (row, rows) in panels(self.rows, tile.max_rows) {
            let packed = &mut packed[..rows * n_keys];
            <f32 as Pack<f32>>::pack(self.profile, Strip::of_rows(weights, (row, rows), (0, n_keys)), rows, packed);
            for col in (0..width).step_by(tile.width) {
                let values = &values[col * depth..col * depth + tile.width * n_keys];
                let to = &mut sums[row * width + col..(row + rows - 1) * width + col + tile.width];
                let (packed, to) = (Lines::new(packed.as_ptr(), rows), Lines::new(to.as_mut_ptr(), width));
                // SAFETY: `packed` and `values` are one panel each, `to` covers the tile, which is only this task's.
                unsafe { (tile.run)(n_keys, packed, values.as_ptr(), to, rows, Write::Add) };
            }
        }
    }
}

twins! {
    /// Turns a block of scores into weights, and moves the running maximum and sum on.
    fn soften(task: &Task<'_>, start: usize, n_keys: usize, state: &mut State, scores: &mut [f32]) = soften_rows;
}

#[inline(always)]
fn soften_rows(task: &Task<'_>, start: usize, n_keys: usize, state: &mut State, scores: &mut [f32]) {
    let plan = task.plan;
    for (row, line) in scores.chunks_exact_mut(KEY_BLOCK).take(task.rows).enumerate() {
        let (first, end) = plan.visible(task.first + row);
        let line = &mut line[..n_keys];
        for score in line.iter_mut() {
            *score *= plan.scale;
        }
        if let Some(cap) = plan.softcap {
            for score in line.iter_mut() {
                *score = cap * tanh(*score / cap);
            }
        }
        if let Some(bias) = plan.bias {
            let place = task.b * bias.strides[0] + task.head * bias.strides[1] + (task.first + row) * bias.strides[2];
            for (score, bias) in line.iter_mut().zip(&bias.data[place + start..]) {
                *score += bias;
            }
        }
        let first = first.saturating_sub(start).min(n_keys);
        let end = end.saturating_sub(start).clamp(first, n_keys);
        line[..first].fill(f32::NEG_INFINITY);
        line[end..].fill(f32::NEG_INFINITY);
        let old = state.max[row];
        let max = lane_max(line);
        let max = if max > old { max } else { old };
        // Where nothing is visible yet, every weight is e^-inf.
        let shift = if max == f32::NEG_INFINITY { 0.0 } else { max };
        for score in line.iter_mut() {
            *score = exp(*score - shift);
        }
        let decay = exp(old - shift);
        state.decay[row] = decay;
        state.sum[row] = state.sum[row] * decay + lane_sum(line, |x| x);
        state.max[row] = max;
    }
}
