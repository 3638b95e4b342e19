//! bf16 products in block floating point: runs of k share a power of two, and their codes are multiplied as integers.
//!
//! A run of [`RUN`] numbers of one row or column has codes of 12 bits and a sign: numbers of at least a sixteenth of the largest
//! are exact, the others are off by at most 2^-12 of the largest, a sixteenth of what the largest may have lost when it became a
//! bf16. Sums of a run are exact.

pub(crate) mod reference;
mod tiles;

pub(crate) use tiles::tile;

/// Numbers of k that share a power of two; the sum of as many products of codes fits into 32 bits.
pub(crate) const RUN: usize = 128;

/// Steps of a panel of [`RUN`] numbers: pairs of codes, and the powers of two.
pub(crate) const RUN_STEPS: usize = RUN / 2 + 1;

/// Two codes of neighbouring k, the even one in the low half; or, as the last step of a run, the bits of the f32 that its codes
/// are multiplied with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(crate) struct Codes(pub(crate) u32);

/// Steps that `depth` numbers take.
pub(crate) fn steps(depth: usize) -> usize {
    let rest = depth % RUN;
    depth / RUN * RUN_STEPS + if rest == 0 { 0 } else { rest.div_ceil(2) + 1 }
}

/// What a run is multiplied with to become codes, and what its codes are multiplied with to become the run again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    pub(crate) to_codes: f32,
    pub(crate) of_codes: f32,
}

impl Scale {
    /// The scale of a run by the largest of its numbers' bits without their signs.
    ///
    /// Below 2^-115 all are taken for zero; where one is not finite, the run becomes NaN.
    pub(crate) fn of(largest: u16) -> Self {
        /// Of the largest number in codes of 12 bits and a sign: 2^(127 + 11).
        const BIAS: u32 = 138;
        match u32::from(largest >> 7) {
            255 => Self { to_codes: 0.0, of_codes: f32::NAN },
            exponent @ 12.. => {
                let power = |biased: u32| f32::from_bits(biased << 23);
                Self { to_codes: power(127 + BIAS - exponent), of_codes: power(127 + exponent - BIAS) }
            }
            _ => Self { to_codes: 0.0, of_codes: 0.0 },
        }
    }
}
