//! The inner tile in plain loops: multiplication and addition rounded separately.

use super::tile::{Lines, Tile, Write};

macro_rules! portable {
    ($float:ident, $run:ident, $tile:ident, $constant:ident) => {
        /// Plain tile.
        pub(super) const $constant: Tile<$float, $float> = Tile { max_rows: 4, width: 8, run: $run };

        /// Four rows at most by eight columns.
        ///
        /// # Safety
        ///
        /// As [`Tile::run`].
        unsafe fn $run(
            steps: usize,
            a: Lines<*const $float>,
            b: *const $float,
            c: Lines<*mut $float>,
            rows: usize,
            write: Write,
        ) {
            // SAFETY: the caller's pointers cover the tile.
            unsafe {
                match rows {
                    1 => $tile::<1>(steps, a, b, c, write),
                    2 => $tile::<2>(steps, a, b, c, write),
                    3 => $tile::<3>(steps, a, b, c, write),
                    _ => $tile::<4>(steps, a, b, c, write),
                }
            }
        }

        unsafe fn $tile<const ROWS: usize>(
            steps: usize,
            a: Lines<*const $float>,
            b: *const $float,
            c: Lines<*mut $float>,
            write: Write,
        ) {
            let Lines { start: a, stride: a_stride } = a;
            let Lines { start: c, stride: c_stride } = c;
            let mut sums = [[0.0; 8]; ROWS];
            // SAFETY: `a` holds ROWS elements a step, `b` steps * 8, and each of the ROWS rows of `c` eight.
            unsafe {
                if write == Write::Continue {
                    for row in 0..ROWS {
                        sums[row] = *c.wrapping_add(row * c_stride).cast::<[$float; 8]>();
                    }
                }
                for step in 0..steps {
                    let b = *b.wrapping_add(step * 8).cast::<[$float; 8]>();
                    for row in 0..ROWS {
                        let a = *a.wrapping_add(step * a_stride + row);
                        for col in 0..8 {
                            sums[row][col] += a * b[col];
                        }
                    }
                }
                for row in 0..ROWS {
                    let c = c.wrapping_add(row * c_stride).cast::<[$float; 8]>();
                    if write == Write::Add {
                        for col in 0..8 {
                            sums[row][col] += (*c)[col];
                        }
                    }
                    *c = sums[row];
                }
            }
        }
    };
}

portable!(f32, run_f32, tile_f32, F32);
portable!(f64, run_f64, tile_f64, F64);
