//! The one owner of memory: every buffer above 1 MiB is accounted here, and refused where the limit would be passed.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buffer::{Data, Scalar};
use crate::elements::Elements;
use crate::error::{ErrorKind, Result};
use crate::{DType, Tensor};

/// Buffers up to this size are neither accounted nor pooled.
pub const ACCOUNTED_BYTES: u64 = 1 << 16;

/// A limit on memory, shared by everybody who allocates.
///
/// Clones are handles to the same budget.
/// Buffers that were dropped wait in a pool for the next one of their type and size, while there is room; those that have waited
/// longest make way for what is asked for. Without a limit there is room for as much as has been in use at once: the pool does not
/// raise the peak.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit_bytes: Option<u64>,
    /// What buffers in use and waiting ones may hold together; none for the most that was in use.
    pool_bytes: Option<u64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_use_bytes: u64,
    most_in_use_bytes: u64,
    peak_bytes: u64,
    pooled_bytes: u64,
    pool: BTreeMap<(DType, u64), VecDeque<Waiting>>,
    n_given_back: u64,
}

/// A buffer in the pool.
#[derive(Debug)]
struct Waiting {
    data: Data,
    /// How many were given back before it.
    number: u64,
}

/// Bytes taken from a budget until this is dropped.
#[derive(Debug)]
pub struct Lease {
    budget: Budget,
    bytes: u64,
}

impl Budget {
    /// A budget that refuses nothing and still counts.
    pub fn unlimited() -> Self {
        Self::with(None, None)
    }

    /// A budget of `limit_bytes`.
    pub fn limited(limit_bytes: u64) -> Self {
        Self::with(Some(limit_bytes), Some(limit_bytes))
    }

    /// A budget of `limit_bytes` in which buffers wait for their next use only while all hold at most `pool_bytes`.
    pub fn limited_with_pool(limit_bytes: u64, pool_bytes: u64) -> Self {
        Self::with(Some(limit_bytes), Some(pool_bytes.min(limit_bytes)))
    }

    fn with(limit_bytes: Option<u64>, pool_bytes: Option<u64>) -> Self {
        Self(Arc::new(Inner { limit_bytes, pool_bytes, state: Mutex::default() }))
    }

    /// Accounts `bytes` that the caller allocates itself; up to [`ACCOUNTED_BYTES`] cost nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Budget`] with the bytes needed where the limit would be passed.
    pub fn reserve(&self, bytes: u64) -> Result<Lease> {
        let bytes = if bytes > ACCOUNTED_BYTES { bytes } else { 0 };
        let mut state = self.lock();
        self.charge(&mut state, bytes)?;
        Ok(Lease { budget: self.clone(), bytes })
    }

    /// A tensor of `shape` that owns `elements`.
    ///
    /// # Errors
    /// [`ErrorKind::Length`] where the shape asks for another number of elements, [`ErrorKind::Budget`].
    pub fn tensor<T: Scalar>(&self, elements: Vec<T>, shape: &[usize]) -> Result<Tensor> {
        let lease = self.reserve((elements.capacity() * size_of::<T>()) as u64)?;
        Tensor::own(T::wrap(elements.into()), lease, shape)
    }

    /// Elements with contents of no meaning, and their lease.
    pub(crate) fn buffer<T: Scalar>(&self, len: usize) -> Result<(Elements<T>, Lease)> {
        let bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
        if bytes <= ACCOUNTED_BYTES {
            return Ok((Elements::zeros(len), Lease { budget: self.clone(), bytes: 0 }));
        }
        let bytes = self.size_class(bytes);
        let mut state = self.lock();
        // A pooled buffer serves if it is at most an eighth larger than asked; where there is no limit, if it is at most half
        // as large again: buffers of longer rows serve shorter ones.
        let most = bytes + bytes / if self.0.limit_bytes.is_some() { 8 } else { 2 };
        let slot = state.pool.range((T::DTYPE, bytes)..=(T::DTYPE, most)).next().map(|(key, _)| *key);
        if let Some(key) = slot
            && let Some(mut elements) =
                state.pool.get_mut(&key).and_then(VecDeque::pop_back).and_then(|it| T::take(it.data))
        {
            if state.pool.get(&key).is_some_and(VecDeque::is_empty) {
                state.pool.remove(&key);
            }
            state.pooled_bytes -= key.1;
            self.charge(&mut state, key.1)?;
            drop(state);
            elements.set_len(len);
            return Ok((elements, Lease { budget: self.clone(), bytes: key.1 }));
        }
        self.charge(&mut state, bytes)?;
        drop(state);
        let mut elements = Elements::zeros((bytes / size_of::<T>() as u64) as usize);
        elements.set_len(len);
        Ok((elements, Lease { budget: self.clone(), bytes }))
    }

    /// Where there is no limit, sizes are rounded up to an eighth of their power of two: rows of a text differ a little in
    /// length, and each would else leave buffers in the pool that no other can use.
    fn size_class(&self, bytes: u64) -> u64 {
        match self.0.limit_bytes {
            Some(_) => bytes,
            None => bytes.next_multiple_of((bytes.next_power_of_two() / 16).max(8)),
        }
    }

    fn charge(&self, state: &mut State, bytes: u64) -> Result<()> {
        let needed_bytes = state.in_use_bytes.saturating_add(bytes);
        if let Some(limit_bytes) = self.0.limit_bytes.filter(|it| needed_bytes > *it) {
            let in_use_bytes = state.in_use_bytes;
            return Err(ErrorKind::Budget { needed_bytes, limit_bytes, in_use_bytes }.into());
        }
        state.most_in_use_bytes = state.most_in_use_bytes.max(needed_bytes);
        let pool_bytes = self.pool_bytes(state);
        while needed_bytes.saturating_add(state.pooled_bytes) > pool_bytes && state.drop_pooled() {}
        state.in_use_bytes = needed_bytes;
        state.peak_bytes = state.peak_bytes.max(needed_bytes + state.pooled_bytes);
        Ok(())
    }

    /// Gives back to the system what waits in the pool beyond the room that is left beside `bytes`, which the caller allocates itself
    /// for a while.
    pub fn make_room(&self, bytes: u64) {
        let mut state = self.lock();
        let room = self.pool_bytes(&state).saturating_sub(state.in_use_bytes.saturating_add(bytes));
        while state.pooled_bytes > room && state.drop_pooled() {}
    }

    /// What buffers in use and waiting ones may hold together.
    fn pool_bytes(&self, state: &State) -> u64 {
        self.0.pool_bytes.unwrap_or(state.most_in_use_bytes)
    }

    /// Gives the pool's memory back to the system.
    pub fn trim(&self) {
        let mut state = self.lock();
        while state.drop_pooled() {}
    }

    /// The limit, none where there is no limit.
    pub fn limit_bytes(&self) -> Option<u64> {
        self.0.limit_bytes
    }

    /// Bytes that tensors and reservations hold now.
    pub fn in_use_bytes(&self) -> u64 {
        self.lock().in_use_bytes
    }

    /// Bytes of buffers that wait for their next use.
    pub fn waiting_bytes(&self) -> u64 {
        self.lock().pooled_bytes
    }

    /// The most that was held at any time, the pool included.
    pub fn peak_bytes(&self) -> u64 {
        self.lock().peak_bytes
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters stay whole under a panic elsewhere: no code runs between their changes.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Drops the buffer that has waited longest; false where the pool is empty.
    fn drop_pooled(&mut self) -> bool {
        let oldest = self.pool.iter().min_by_key(|(_, waiting)| waiting.front().map(|it| it.number));
        let Some(key) = oldest.map(|it| *it.0) else { return false };
        if let Some(waiting) = self.pool.get_mut(&key) {
            waiting.pop_front();
            if waiting.is_empty() {
                self.pool.remove(&key);
            }
        }
        self.pooled_bytes -= key.1;
        true
    }
}

impl Lease {
    /// Ends the lease and keeps the buffer for the next who asks.
    pub(crate) fn give_back(mut self, data: Data) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = self.budget.lock();
        state.in_use_bytes -= bytes;
        if bytes > 0 && data.capacity_bytes() == bytes {
            state.pooled_bytes += bytes;
            let number = state.n_given_back;
            state.n_given_back += 1;
            state.pool.entry((data.dtype(), bytes)).or_default().push_back(Waiting { data, number });
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.budget.lock().in_use_bytes -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_buffer_beyond_the_limit_is_refused_with_the_number() {
        let budget = Budget::limited(3 * MIB as u64);
        let held = budget.tensor(vec![0u8; 2 * MIB], &[2 * MIB]).unwrap();
        let error = budget.tensor(vec![0u8; 2 * MIB], &[2 * MIB]).unwrap_err();
        let expected = ErrorKind::Budget {
            needed_bytes: 4 * MIB as u64,
            limit_bytes: 3 * MIB as u64,
            in_use_bytes: 2 * MIB as u64,
        };
        assert_eq!(error.kind(), &expected);
        drop(held);
        assert_eq!(budget.in_use_bytes(), 0);
        assert!(budget.reserve(3 * MIB as u64).is_ok());
    }

    #[test]
    fn a_dropped_buffer_is_handed_out_again_and_never_counts_twice() {
        let budget = Budget::limited(5 * MIB as u64);
        let (data, lease) = budget.buffer::<f32>(MIB).unwrap();
        lease.give_back(f32_data(data));
        assert_eq!(budget.lock().pooled_bytes, 4 * MIB as u64);
        let (data, lease) = budget.buffer::<f32>(MIB - 100).unwrap();
        assert_eq!((data.len(), lease.bytes), (MIB - 100, 4 * MIB as u64));
        assert_eq!(budget.lock().pooled_bytes, 0);
        lease.give_back(f32_data(data));
        let other = budget.buffer::<u8>(3 * MIB).unwrap();
        assert_eq!(budget.lock().pooled_bytes, 0);
        drop(other);
        assert!(budget.peak_bytes() <= 5 * MIB as u64);
    }

    #[test]
    fn buffers_wait_only_while_all_fit_into_the_pool() {
        let budget = Budget::limited_with_pool(8 * MIB as u64, 3 * MIB as u64);
        let (data, lease) = budget.buffer::<f32>(MIB / 2).unwrap();
        lease.give_back(f32_data(data));
        assert_eq!(budget.lock().pooled_bytes, 2 * MIB as u64);
        let _held = budget.buffer::<u8>(2 * MIB).unwrap();
        assert_eq!(budget.lock().pooled_bytes, 0);
        assert!(budget.reserve(6 * MIB as u64).is_ok());
    }

    #[test]
    fn without_a_limit_waiting_buffers_fill_what_was_in_use_and_the_longest_waiting_goes_first() {
        let budget = Budget::unlimited();
        let held: Vec<_> = [MIB, 2 * MIB].into_iter().map(|it| budget.buffer::<u8>(it).unwrap()).collect();
        held.into_iter().for_each(|(data, lease)| lease.give_back(Data::U8(data)));
        let waiting = |budget: &Budget| budget.lock().pool.keys().map(|it| it.1 as usize / MIB).collect::<Vec<_>>();
        assert_eq!(waiting(&budget), [1, 2]);
        let (data, lease) = budget.buffer::<f32>(MIB / 4).unwrap();
        assert_eq!(waiting(&budget), [2]);
        lease.give_back(f32_data(data));
        assert_eq!(budget.lock().pooled_bytes, 3 * MIB as u64);
        budget.make_room(2 * MIB as u64);
        assert_eq!(budget.lock().pooled_bytes, MIB as u64);
        assert_eq!(budget.peak_bytes(), 3 * MIB as u64);
    }

    #[test]
    fn small_buffers_cost_nothing() {
        let budget = Budget::limited(0);
        assert!(budget.tensor(vec![1.0f32; 1000], &[1000]).is_ok());
    }

    fn f32_data(data: Elements<f32>) -> Data {
        Data::F32(data)
    }

    #[test]
    fn without_a_limit_a_slightly_longer_row_takes_the_buffer_of_a_shorter_one() {
        let budget = Budget::unlimited();
        for rows in [433, 440, 447] {
            let (elements, lease) = budget.buffer::<f32>(rows * 1536).unwrap();
            assert_eq!(elements.len(), rows * 1536);
            lease.give_back(<f32 as crate::buffer::sealed::Typed>::wrap(elements));
        }
        let state = budget.lock();
        assert_eq!(state.pool.values().map(VecDeque::len).sum::<usize>(), 1);
        assert_eq!(state.in_use_bytes, 0);
    }
}
