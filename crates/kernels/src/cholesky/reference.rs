//! Cholesky factor and triangular inverse in plain loops.

use crate::error::{Error, ErrorKind, Result};
use crate::{Isa, Profile};

macro_rules! plain {
    ($float:ident, $factor:ident, $invert:ident) => {
        /// The lower factor, row by row.
        pub fn $factor(profile: Profile, a: &mut [$float], n: usize) -> Result<()> {
            let fused = profile.isa() != Isa::Portable;
            for i in 0..n {
                for j in 0..=i {
                    let mut sum = a[i * n + j];
                    for k in 0..j {
                        let (x, y) = (-a[i * n + k], a[j * n + k]);
                        sum = if fused { x.mul_add(y, sum) } else { sum + x * y };
                    }
                    if i > j {
                        a[i * n + j] = sum / a[j * n + j];
                    } else if sum > 0.0 && sum < $float::INFINITY {
                        a[i * n + i] = sum.sqrt();
                    } else {
                        let kind = ErrorKind::NotPositiveDefinite { pivot: i, value: f64::from(sum) };
                        return Err(Error::new("cholesky: a", kind));
                    }
                }
            }
            Ok(())
        }

        /// The inverse of a lower triangle, row by row from the top; zeros above the diagonal.
        pub fn $invert(profile: Profile, l: &mut [$float], n: usize) {
            let fused = profile.isa() != Isa::Portable;
            for i in 0..n {
                l[i * n + i + 1..(i + 1) * n].fill(0.0);
                let inverse = 1.0 / l[i * n + i];
                for j in 0..i {
                    // Elements k < j of column j are zero, rows above i hold the inverse already.
                    let mut sum = 0.0;
                    for k in j..i {
                        let (x, y) = (l[i * n + k], l[k * n + j]);
                        sum = if fused { x.mul_add(y, sum) } else { sum + x * y };
                    }
                    // Row i of L is still needed right of j; the sum replaces only column j.
                    l[i * n + j] = sum;
                }
                for j in 0..i {
                    l[i * n + j] *= -inverse;
                }
                l[i * n + i] = inverse;
            }
        }
    };
}

plain!(f32, factor_f32, invert_lower_f32);
plain!(f64, factor_f64, invert_lower_f64);
