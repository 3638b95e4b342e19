//! Vector twins of the row loops, chosen at run time; every one gives the bytes of the plain loops.
//!
//! The twins take finite weights and ordinary divisors; whatever else occurs goes to the plain loops.

mod dense;
mod kernels;
mod lanes;
mod loops;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod ranges;

pub(crate) use dense::{ByteCode, CodeRow, dense_row};
pub(crate) use kernels::{Row, codes, packed};
pub(crate) use loops::{
    amax_runs, are_divisors, are_finite, asymmetric_qparams, divide, e4m3_bytes, finite_bounds, mx_scales,
    nvfp4_scales, range_runs, reciprocals,
};

/// An instruction set, narrowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// What every CPU of the target has.
    Portable,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL beside AVX2's.
    Avx512,
}

impl Isa {
    /// The widest that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            use std::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c") && has!("bmi2");
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }
}
