//! Rotary position embedding.

pub mod reference;

use rayon::prelude::*;

use crate::error::{Error, ErrorKind, check_len};
use crate::rows::twins;
use crate::{Element, Profile, Result};

/// Which channels form a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Channel i and channel i + rotary / 2 (Llama).
    Half,
    /// Channels 2 i and 2 i + 1 (GPT-J).
    Interleaved,
}

/// Shape of a rotation.
#[derive(Clone, Copy, Debug)]
pub struct Rope<'a> {
    /// H, heads of a token.
    pub heads: usize,
    /// D, width of a head.
    pub head_dim: usize,
    /// Leading channels of a head that turn, even, at most D; the others are left alone.
    pub rotary_dim: usize,
    /// Which channels form a pair.
    pub pairing: Pairing,
    /// Cosines (T, rotary / 2), already rounded to the element type where the model does so.
    pub cos: &'a [f32],
    /// Sines, as `cos`.
    pub sin: &'a [f32],
}

/// Turns x (rows, H, D) in place; row r takes line `r % T` of the tables, so that x may be (B, T, H, D).
///
/// A pair (a, b) becomes (a cos - b sin, b cos + a sin); both products and the sum are rounded to the element type, as separate
/// operations would.
pub fn rope<T: Element>(profile: Profile, plan: &Rope<'_>, x: &mut [T]) -> Result<()> {
    let &Rope { heads, head_dim, rotary_dim, .. } = plan;
    if !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
        let expected = format!("an even number up to the head's width {head_dim}");
        return Err(Error::new("rope: rotary_dim", ErrorKind::Extent { found: rotary_dim, expected }));
    }
    let width = heads.saturating_mul(head_dim);
    let rows = crate::rows::check_rows("rope: x", x.len(), width)?;
    let tokens = plan.cos.len() / (rotary_dim / 2).max(1);
    check_len("rope: cos", plan.cos.len(), &[tokens, rotary_dim / 2])?;
    check_len("rope: sin", plan.sin.len(), &[tokens, rotary_dim / 2])?;
    if rotary_dim > 0 && (tokens == 0 && rows > 0 || tokens > 0 && !rows.is_multiple_of(tokens)) {
        let expected = format!("a multiple of the {tokens} lines of the tables");
        return Err(Error::new("rope: rows of x", ErrorKind::Extent { found: rows, expected }));
    }
    if width == 0 || rotary_dim == 0 {
        return Ok(());
    }
    // Every chunk of rows knows its first line of the tables.
    let chunk = (crate::rows::TASK_ELEMENTS / width).max(1);
    x.par_chunks_mut(chunk * width).enumerate().for_each(|(idx, x)| turn_rows(profile, plan, idx * chunk, x));
    Ok(())
}

twins! {
    /// The loop on this thread, from row `first`; arguments agree.
    fn turn_rows<T>(plan: &Rope<'_>, first: usize, x: &mut [T]) = reference::rope;
}

/// Cosines and sines (T, F) of `position * inverse_frequency`, times `scaling`: the angle is rounded to f32, its cosine is that
/// angle's nearest f32 but for one in 2^20 cases, then the product is rounded.
pub fn table(positions: &[u32], inverse_frequencies: &[f32], scaling: f32) -> (Vec<f32>, Vec<f32>) {
    let angles = positions
        .iter()
        .flat_map(|&position| inverse_frequencies.iter().map(move |&frequency| f64::from(position as f32 * frequency)));
    let pairs = angles.map(|angle| {
        let (sin, cos) = crate::elementary::sin_cos_f64(angle);
        (cos as f32 * scaling, sin as f32 * scaling)
    });
    pairs.unzip()
}

/// `1 / base^(2 i / rotary_dim)` for i below `rotary_dim / 2`: the exponent and the power are rounded to f32, then the quotient.
pub fn inverse_frequencies(base: f64, rotary_dim: usize) -> Vec<f32> {
    let power = |i: usize| {
        let exponent = (2 * i) as f32 / rotary_dim as f32;
        1.0 / (crate::elementary::pow_f64(base, f64::from(exponent)) as f32)
    };
    (0..rotary_dim / 2).map(power).collect()
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::gemm::tests::numbers;

    fn agree<T: Element>() {
        let positions: Vec<u32> = (0..37).collect();
        for (head_dim, rotary_dim) in [(2, 2), (16, 16), (20, 12), (128, 128), (8, 0)] {
            let (cos, sin) = table(&positions, &inverse_frequencies(1e4, rotary_dim), 1.0);
            for pairing in [Pairing::Half, Pairing::Interleaved] {
                let plan = Rope { heads: 3, head_dim, rotary_dim, pairing, cos: &cos, sin: &sin };
                let x = numbers::<T>(6 * 37 * 3 * head_dim, 1);
                let mut want = x.clone();
                reference::rope(&plan, 0, &mut want);
                for profile in Profile::available() {
                    let mut got = x.clone();
                    rope(profile, &plan, &mut got).unwrap();
                    assert_eq!(got, want, "{profile:?} {plan:?}");
                }
            }
        }
    }

    #[test]
    fn all_profiles_have_the_bits_of_the_reference() {
        agree::<f32>();
        agree::<bf16>();
    }

    #[test]
    fn pairs_turn_by_their_angle_and_the_rest_stays() {
        let (cos, sin) = table(&[3], &[0.5], 1.0);
        let half = Rope { heads: 1, head_dim: 3, rotary_dim: 2, pairing: Pairing::Half, cos: &cos, sin: &sin };
        let mut x = [1.0f32, 0.0, 7.0];
        rope(Profile::detect(), &half, &mut x).unwrap();
        assert_eq!(x, [1.5f64.cos() as f32, 1.5f64.sin() as f32, 7.0]);
        let (ones, zeros) = ([1.0; 2], [0.0; 2]);
        let (cos, sin) = ([0.0; 2], [1.0; 2]);
        let turned = |pairing| {
            let mut x = [1.0f32, 2.0, 3.0, 4.0];
            let plan = Rope { heads: 1, head_dim: 4, rotary_dim: 4, pairing, cos: &cos, sin: &sin };
            rope(Profile::detect(), &plan, &mut x).unwrap();
            x
        };
        assert_eq!(turned(Pairing::Half), [-3.0, -4.0, 1.0, 2.0]);
        assert_eq!(turned(Pairing::Interleaved), [-2.0, 1.0, -4.0, 3.0]);
        let odd = Rope { heads: 1, head_dim: 4, rotary_dim: 3, pairing: Pairing::Half, cos: &ones, sin: &zeros };
        assert_eq!(rope(Profile::detect(), &odd, &mut x).unwrap_err().place(), "rope: rotary_dim");
    }

    #[test]
    fn tables_are_cosines_of_f32_angles() {
        let frequencies = inverse_frequencies(500_000.0, 128);
        assert_eq!((frequencies.len(), frequencies[0]), (64, 1.0));
        let positions = [0, 1, 4095, 131_071];
        let (cos, sin) = table(&positions, &frequencies, 1.0);
        for (line, &position) in positions.iter().enumerate() {
            for (i, &frequency) in frequencies.iter().enumerate() {
                let exact = 1.0 / 500_000f64.powf(2.0 * i as f64 / 128.0);
                // The power is rounded once, the quotient once more.
                assert!((f64::from(frequency) / exact - 1.0).abs() < 1.3e-7, "{i}");
                let angle = f64::from(position as f32 * frequency);
                assert_eq!((cos[line * 64 + i], sin[line * 64 + i]), (angle.cos() as f32, angle.sin() as f32));
            }
        }
    }
}
