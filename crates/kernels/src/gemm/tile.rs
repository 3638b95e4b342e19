//! The inner tile of a product: which kernels there are, and how they write.

use crate::{Isa, Profile};

/// How a tile's sums meet what `c` holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// c = sum.
    Store,
    /// c = c + sum.
    Add,
    /// The chain of additions starts at c.
    Continue,
}

/// Two bf16 of neighbouring k, the even one in the low half.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Pair(pub(crate) u32);

/// Lines of elements, so many of them from one to the next.
#[derive(Clone, Copy)]
pub(crate) struct Lines<P> {
    pub(crate) start: P,
    pub(crate) stride: usize,
}

impl<P> Lines<P> {
    pub(crate) fn new(start: P, stride: usize) -> Self {
        Self { start, stride }
    }
}

/// A kernel for tiles of up to `max_rows` rows by `width` columns; sums of type C over operands of type T.
#[derive(Clone, Copy)]
pub(crate) struct Tile<T, C> {
    pub(crate) max_rows: usize,
    pub(crate) width: usize,
    /// `run(steps, a, b, c, rows, write)`.
    ///
    /// # Safety
    ///
    /// `a` holds a line of `rows` elements for each step; `b` holds `steps * width`; `c` holds a line of `width` elements for each
    /// of the `rows` and nothing else reads or writes them; `rows` is 1 to `max_rows`; the processor has the instructions.
    pub(crate) run: unsafe fn(usize, Lines<*const T>, *const T, Lines<*mut C>, usize, Write),
}

/// The f32 kernel of a profile.
pub(crate) fn f32_tile(profile: Profile) -> Tile<f32, f32> {
    match profile.isa() {
        Isa::Portable => super::portable::F32,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::avx2::F32,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx512Vnni => super::avx512::F32,
        #[cfg(not(target_arch = "x86_64"))]
        _ => super::portable::F32,
    }
}

/// The f64 kernel of a profile.
pub(crate) fn f64_tile(profile: Profile) -> Tile<f64, f64> {
    match profile.isa() {
        Isa::Portable => super::portable::F64,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => super::avx2::F64,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Avx512Vnni => super::avx512::F64,
        #[cfg(not(target_arch = "x86_64"))]
        _ => super::portable::F64,
    }
}

/// The kernel for pairs of bf16, of the one profile that has it.
pub(crate) fn pair_tile(profile: Profile) -> Option<Tile<Pair, f32>> {
    match profile.isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 => Some(super::avx512::PAIR),
        _ => None,
    }
}

/// Rows of each panel when `rows` are cut into panels of at most `max_rows`, as evenly as can be: (start, rows).
pub(crate) fn panels(rows: usize, max_rows: usize) -> impl Iterator<Item = (usize, usize)> {
    let count = rows.div_ceil(max_rows);
    (0..count).map(move |idx| {
        let (start, end) = (rows * idx / count, rows * (idx + 1) / count);
        (start, end - start)
    })
}

/// Calls a const-generic tile function for a number of rows known at run time.
#[cfg(target_arch = "x86_64")]
macro_rules! by_rows {
    ($rows:expr, $tile:ident, $args:tt, $last:literal: $($n:literal)*) => {
        match $rows {
            $($n => $tile::<$n> $args,)*
            _ => $tile::<$last> $args,
        }
    };
}

/// Defines a tile kernel of two vectors' width from its vector operations.
#[cfg(target_arch = "x86_64")]
macro_rules! vector_tile {
    (
        $(#[$doc:meta])* $constant:ident, $run:ident, $tile:ident, features: $features:literal,
        operand: $in:ty, sum: $sum:ty, vector: $vec:ty, lanes: $lanes:literal, rows: $max:literal: $($n:literal)*,
        zero: $zero:path, load_b: $load_b:path, splat: $splat:path, fma: $fma:path, load: $load:path, add: $add:path,
        store: $store:path
    ) => {
        $(#[$doc])*
        pub(super) const $constant: Tile<$in, $sum> = Tile { max_rows: $max, width: 2 * $lanes, run: $run };

        unsafe fn $run(steps: usize, a: Lines<*const $in>, b: *const $in, c: Lines<*mut $sum>, rows: usize, write: Write) {
            // SAFETY: the caller states that the processor has the instructions and that the pointers cover the tile.
            unsafe { by_rows!(rows, $tile, (steps, a, b, c, write), $max: $($n)*) }
        }

        #[target_feature(enable = $features)]
        unsafe fn $tile<const ROWS: usize>(
            steps: usize, a: Lines<*const $in>, mut b: *const $in, c: Lines<*mut $sum>, write: Write,
        ) {
            let Lines { start: mut a, stride: a_stride } = a;
            let Lines { start: c, stride: c_stride } = c;
            let mut sums: [[$vec; 2]; ROWS] = [[$zero(); 2]; ROWS];
            // SAFETY: `a` holds ROWS elements a step, `b` steps * width, and each of the ROWS rows of `c` one width.
            unsafe {
                for row in 0..ROWS {
                    let c = c.wrapping_add(row * c_stride);
                    if write == Write::Continue {
                        sums[row] = [$load(c), $load(c.wrapping_add($lanes))];
                    } else {
                        _mm_prefetch::<_MM_HINT_T0>(c.cast());
                    }
                }
                for _ in 0..steps {
                    let columns = [$load_b(b), $load_b(b.wrapping_add($lanes))];
                    for row in 0..ROWS {
                        let x = $splat(*a.wrapping_add(row));
                        sums[row][0] = $fma(x, columns[0], sums[row][0]);
                        sums[row][1] = $fma(x, columns[1], sums[row][1]);
                    }
                    a = a.wrapping_add(a_stride);
                    b = b.wrapping_add(2 * $lanes);
                }
                for row in 0..ROWS {
                    let c = c.wrapping_add(row * c_stride);
                    let [mut left, mut right] = sums[row];
                    if write == Write::Add {
                        left = $add($load(c), left);
                        right = $add($load(c.wrapping_add($lanes)), right);
                    }
                    $store(c, left);
                    $store(c.wrapping_add($lanes), right);
                }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) use {by_rows, vector_tile};
