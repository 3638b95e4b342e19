//! Factor and inverse by blocks: a narrow part in lanes, the wide part by the matrix product.

/// Rows and columns of a diagonal block.
const BLOCK: usize = 64;

macro_rules! blocked {
    ($float:ident, $multiply:ident) => {
        pub(super) mod $float {
            use super::BLOCK;
            use crate::error::{Error, ErrorKind, Result};
            use crate::gemm::tile::Write;
            use crate::gemm::{
                driver::$multiply,
                update::{Region, Update},
            };
            use crate::rows::{Fused, fused_twins};
            use crate::{Mat, MatMut, Profile};
            use rayon::prelude::*;

            /// Elements (k, i) of a block of columns, column k in line k, one row of the matrix in each lane.
            type Lanes = [[$float; BLOCK]; BLOCK];

            /// The lower factor in place; right-looking.
            pub(in super::super) fn factor(profile: Profile, a: &mut [$float], n: usize) -> Result<()> {
                let mut panel = vec![0.0; n.saturating_sub(BLOCK) * BLOCK];
                for start in (0..n).step_by(BLOCK) {
                    let width = BLOCK.min(n - start);
                    let (top, below) = a[start * n..].split_at_mut(width * n);
                    let mut diagonal = [[0.0; BLOCK]; BLOCK];
                    gather(top, n, start, width, &mut diagonal);
                    factor_block(profile, &mut diagonal, width).map_err(|(pivot, value)| {
                        let kind = ErrorKind::NotPositiveDefinite { pivot: start + pivot, value: f64::from(value) };
                        Error::new("cholesky: a", kind)
                    })?;
                    for (i, row) in top.chunks_exact_mut(n).enumerate() {
                        for (j, line) in diagonal.iter().enumerate().take(i + 1) {
                            row[start + j] = line[i];
                        }
                    }
                    let rows = n - start - width;
                    if rows == 0 {
                        break;
                    }
                    let panel = &mut panel[..rows * width];
                    let below_chunks = below.par_chunks_mut(BLOCK * n).zip(panel.par_chunks_mut(BLOCK * width));
                    below_chunks.for_each(|(rows, panel)| {
                        let mut lanes = [[0.0; BLOCK]; BLOCK];
                        gather(rows, n, start, width, &mut lanes);
                        solve(profile, &diagonal, width, &mut lanes);
                        let lines = rows.chunks_exact_mut(n).zip(panel.chunks_exact_mut(width));
                        for (i, (row, panel)) in lines.enumerate() {
                            for (j, x) in panel.iter_mut().enumerate() {
                                *x = lanes[j][i];
                            }
                            row[start..start + width].copy_from_slice(panel);
                        }
                    });
                    let left = Mat::new(panel, rows, width)?;
                    let rest = MatMut::strided(&mut below[start + width..], rows, rows, n)?;
                    let update = Update { write: Write::Continue, region: Region::Lower, negate: true };
                    $multiply(profile, left, left.transposed(), rest, update);
                }
                Ok(())
            }

            fn gather(rows: &[$float], n: usize, start: usize, width: usize, lanes: &mut Lanes) {
                for (i, row) in rows.chunks_exact(n).enumerate() {
                    for (line, &x) in lanes.iter_mut().zip(&row[start..start + width]) {
                        line[i] = x;
                    }
                }
            }

            fused_twins! {
                /// Factors a diagonal block; the error is the pivot and its value.
                fn factor_block(block: &mut Lanes, width: usize) -> Result<(), (usize, $float)> = factor_lanes;
            }

            #[inline(always)]
            fn factor_lanes<const FUSED: bool>(
                fused: Fused<FUSED>,
                block: &mut Lanes,
                width: usize,
            ) -> Result<(), (usize, $float)> {
                for j in 0..width {
                    let mut column = block[j];
                    for line in &block[..j] {
                        let factor = -line[j];
                        for (sum, &x) in column.iter_mut().zip(line) {
                            *sum = fused.$float(x, factor, *sum);
                        }
                    }
                    let pivot = column[j];
                    if !(pivot > 0.0 && pivot < $float::INFINITY) {
                        return Err((j, pivot));
                    }
                    let root = pivot.sqrt();
                    for x in &mut column {
                        *x /= root;
                    }
                    column[j] = root;
                    block[j] = column;
                }
                Ok(())
            }

            fused_twins! {
                /// Divides rows below by the transpose of the factored diagonal block.
                fn solve(diagonal: &Lanes, width: usize, rows: &mut Lanes) = solve_lanes;
            }

            #[inline(always)]
            fn solve_lanes<const FUSED: bool>(fused: Fused<FUSED>, diagonal: &Lanes, width: usize, rows: &mut Lanes) {
                for j in 0..width {
                    let mut column = rows[j];
                    for (line, factors) in rows[..j].iter().zip(diagonal) {
                        let factor = -factors[j];
                        for (sum, &x) in column.iter_mut().zip(line) {
                            *sum = fused.$float(x, factor, *sum);
                        }
                    }
                    for x in &mut column {
                        *x /= diagonal[j][j];
                    }
                    rows[j] = column;
                }
            }

            /// The inverse of a lower triangle in place, a block of rows at a time.
            pub(in super::super) fn invert(profile: Profile, l: &mut [$float], n: usize) {
                for row in 0..n {
                    l[row * n + row + 1..(row + 1) * n].fill(0.0);
                }
                let mut left = vec![0.0; BLOCK * n];
                let mut sums = vec![0.0; BLOCK * n];
                for start in (0..n).step_by(BLOCK) {
                    let height = BLOCK.min(n - start);
                    let (above, rest) = l.split_at_mut(start * n);
                    let rows = &mut rest[..height * n];
                    left[..height * n].copy_from_slice(rows);
                    sums[..height * n].fill(0.0);
                    let update = Update { write: Write::Continue, region: Region::All, negate: false };
                    // Rows of the inverse above column c are zero in column c: the product starts at the columns' own row.
                    for col in (0..start).step_by(4 * BLOCK) {
                        let cols = (4 * BLOCK).min(start - col);
                        let (Ok(left), Ok(right), Ok(sums)) = (
                            Mat::strided(&left[col..], height, start - col, n),
                            Mat::strided(&above[col * n + col..], start - col, cols, n),
                            MatMut::strided(&mut sums[col..], height, cols, n),
                        ) else {
                            return;
                        };
                        $multiply(profile, left, right, sums, update);
                    }
                    finish(profile, &left, &mut sums, n, start, height);
                    rows.copy_from_slice(&sums[..height * n]);
                }
            }

            fused_twins! {
                /// Adds the products within a block of rows and divides by the diagonal.
                fn finish(left: &[$float], sums: &mut [$float], n: usize, start: usize, height: usize) = finish_rows;
            }

            #[inline(always)]
            fn finish_rows<const FUSED: bool>(
                fused: Fused<FUSED>,
                left: &[$float],
                sums: &mut [$float],
                n: usize,
                start: usize,
                height: usize,
            ) {
                for i in 0..height {
                    let (done, row) = sums.split_at_mut(i * n);
                    let row = &mut row[..start + i + 1];
                    for (k, above) in done.chunks_exact(n).enumerate() {
                        let factor = left[i * n + start + k];
                        // Row k of the inverse ends at its own diagonal.
                        for (sum, &x) in row.iter_mut().zip(&above[..start + k + 1]) {
                            *sum = fused.$float(factor, x, *sum);
                        }
                    }
                    let inverse = 1.0 / left[i * n + start + i];
                    for sum in row.iter_mut() {
                        *sum *= -inverse;
                    }
                    row[start + i] = inverse;
                }
            }
        }
    };
}

blocked!(f32, multiply_f32);
blocked!(f64, multiply_f64);
