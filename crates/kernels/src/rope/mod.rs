//! Rotary position embedding.

pub mod reference;

use crate::error::{Error, ErrorKind, check_len};
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
    let _ = profile;
    reference::rope(plan, x);
    Ok(())
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
