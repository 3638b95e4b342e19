//! Elements of a buffer: on the heap, or mapped from the system, which takes large ones back at once.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::buffer::Scalar;

/// Buffers of at least this size are mapped: an allocator would keep their pages for a while.
const MAPPED_BYTES: usize = 1 << 20;

/// A number of elements within a capacity.
#[derive(Debug)]
pub struct Elements<T> {
    memory: Memory<T>,
    len: usize,
}

#[derive(Debug)]
enum Memory<T> {
    Heap(Vec<T>),
    Mapped(MmapMut),
}

impl<T: Scalar> Elements<T> {
    /// As many elements of 0.
    pub(crate) fn zeros(len: usize) -> Self {
        let bytes = len.saturating_mul(size_of::<T>());
        let mapped = (bytes >= MAPPED_BYTES).then(|| MmapMut::map_anon(bytes).ok()).flatten();
        Self { memory: mapped.map_or_else(|| Memory::Heap(vec![T::default(); len]), Memory::Mapped), len }
    }

    /// Elements that there is memory for.
    pub(crate) fn capacity(&self) -> usize {
        match &self.memory {
            Memory::Heap(elements) => elements.len(),
            Memory::Mapped(map) => map.len() / size_of::<T>(),
        }
    }

    /// Shows the first `len` elements, of those that there is memory for.
    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = len.min(self.capacity());
    }
}

impl<T: Scalar> From<Vec<T>> for Elements<T> {
    fn from(mut elements: Vec<T>) -> Self {
        let len = elements.len();
        elements.resize(elements.capacity(), T::default());
        Self { memory: Memory::Heap(elements), len }
    }
}

impl<T: Scalar> Deref for Elements<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let all: &[T] = match &self.memory {
            Memory::Heap(elements) => elements,
            Memory::Mapped(map) => bytemuck::cast_slice(map),
        };
        &all[..self.len]
    }
}

impl<T: Scalar> DerefMut for Elements<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let all: &mut [T] = match &mut self.memory {
            Memory::Heap(elements) => elements,
            Memory::Mapped(map) => bytemuck::cast_slice_mut(map),
        };
        &mut all[..self.len]
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use half::bf16;

    use super::*;

    #[test]
    fn large_elements_are_mapped_small_ones_are_not_and_both_are_alike() {
        for (len, is_mapped) in [(0, false), (1000, false), (MAPPED_BYTES / 2 - 1, false), (MAPPED_BYTES / 2, true)] {
            let mut elements = Elements::<bf16>::zeros(len);
            assert_eq!(matches!(elements.memory, Memory::Mapped(_)), is_mapped);
            assert_eq!((elements.len(), elements.capacity()), (len, len));
            assert!(elements.iter().all(|it| *it == bf16::ZERO));
            elements.fill(bf16::ONE);
            elements.set_len(len / 2);
            assert_eq!(elements.len(), len / 2);
            elements.set_len(len + 1);
            assert!(elements.len() == len && elements.iter().all(|it| *it == bf16::ONE));
        }
    }

    #[test]
    fn a_vector_keeps_its_length_and_its_memory() {
        let mut vector = Vec::with_capacity(100);
        vector.extend([1.0f32, 2.0]);
        let capacity = vector.capacity();
        let elements = Elements::from(vector);
        assert_eq!((&*elements, elements.capacity()), (&[1.0, 2.0][..], capacity));
    }
}
