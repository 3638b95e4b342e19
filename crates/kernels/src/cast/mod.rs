//! Conversions between f32, bf16 and f16.

pub mod reference;

use rayon::prelude::*;

use crate::error::check_len;
use crate::rows::twins;
use crate::{Element, Profile, Result};

/// Elements of a task.
const CHUNK: usize = 1 << 16;

/// `y = x` in another type: exact where it fits, else to nearest, ties to even; denormals are kept under every profile.
///
/// A NaN stays a NaN, quiet, of the same sign.
pub fn cast<A: Element, B: Element>(profile: Profile, x: &[A], y: &mut [B]) -> Result<()> {
    check_len("cast: y", y.len(), &[x.len()])?;
    if x.len() <= CHUNK {
        convert(profile, x, y);
    } else {
        x.par_chunks(CHUNK).zip(y.par_chunks_mut(CHUNK)).for_each(|(x, y)| convert(profile, x, y));
    }
    Ok(())
}

twins! {
    /// The loop on this thread; lengths agree.
    fn convert<A, B>(x: &[A], y: &mut [B]) = reference::cast;
}

/// To f32, on this thread.
pub(crate) fn widen<A: Element>(profile: Profile, x: &[A], y: &mut [f32]) {
    convert(profile, x, y);
}

/// From f32, on this thread.
pub(crate) fn narrow<B: Element>(profile: Profile, x: &[f32], y: &mut [B]) {
    convert(profile, x, y);
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn all_bf16_and_f16_come_back_and_f32_rounds_as_half_does_under_every_profile() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let (bf16s, f16s): (Vec<bf16>, Vec<f16>) = all.iter().map(|&x| (bf16::from_bits(x), f16::from_bits(x))).unzip();
        // Values around every bf16, among them all ties.
        let singles: Vec<f32> = all
            .iter()
            .flat_map(|&x| [0, 0x7fff, 0x8000, 0x8001, 0xffff].map(|low| f32::from_bits((u32::from(x) << 16) | low)))
            .collect();
        for profile in Profile::available() {
            let mut wide = vec![0.0f32; all.len()];
            cast(profile, &bf16s, &mut wide).unwrap();
            assert!(wide.iter().zip(&all).all(|(wide, bits)| wide.to_bits() == u32::from(*bits) << 16));
            cast(profile, &f16s, &mut wide).unwrap();
            let same = |(wide, x): (&f32, &f16)| wide.to_bits() == x.to_f32().to_bits() || wide.is_nan() && x.is_nan();
            assert!(wide.iter().zip(&f16s).all(same));
            let (mut narrow, mut halves) = (vec![bf16::ZERO; singles.len()], vec![f16::ZERO; singles.len()]);
            cast(profile, &singles, &mut narrow).unwrap();
            cast(profile, &singles, &mut halves).unwrap();
            for ((x, narrow), halves) in singles.iter().zip(&narrow).zip(&halves) {
                assert_eq!(narrow.to_bits(), bf16::from_f32(*x).to_bits(), "{profile:?} {x}");
                assert!(
                    halves.to_bits() == f16::from_f32(*x).to_bits() || x.is_nan() && halves.is_nan(),
                    "{profile:?} {x}"
                );
            }
        }
        assert_eq!(cast(Profile::PORTABLE, &[1.0f32], &mut [0.0f32; 2]).unwrap_err().place(), "cast: y");
    }
}
