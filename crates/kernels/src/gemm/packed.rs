//! Memory of operands that are laid out.

use std::cell::RefCell;

thread_local! {
    /// Buffers of finished products, for the next ones: fresh memory would cost more than packing does.
    static SPARE: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Buffers that a thread keeps: both operands of a product, and its sums.
const SPARE_BUFFERS: usize = 3;

/// A packed operand: 64 bytes aligned, panel after panel.
#[derive(Debug)]
pub(crate) struct Packed<T> {
    lines: Vec<Line>,
    len: usize,
    element: std::marker::PhantomData<T>,
}

#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([u8; 64]);

impl<T: Copy> Packed<T> {
    pub(crate) fn zeroed(len: usize) -> Self {
        Self { lines: vec![Line([0; 64]); (len * size_of::<T>()).div_ceil(64)], len, element: std::marker::PhantomData }
    }

    /// With contents of no meaning.
    pub(crate) fn recycled(len: usize) -> Self {
        let mut lines = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        let wanted = (len * size_of::<T>()).div_ceil(64);
        if lines.len() < wanted {
            lines.resize(wanted, Line([0; 64]));
        }
        Self { lines, len, element: std::marker::PhantomData }
    }

    /// Leaves the memory to the next product of this thread.
    pub(crate) fn recycle(self) {
        SPARE.with_borrow_mut(|spare| {
            if spare.len() < SPARE_BUFFERS {
                spare.push(self.lines);
            }
        });
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: the lines hold at least `len` elements, are aligned for T, and T is a number for which zero bytes are valid.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }

    pub(crate) fn as_slice(&self) -> &[T] {
        // SAFETY: as in `as_mut_slice`.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}
