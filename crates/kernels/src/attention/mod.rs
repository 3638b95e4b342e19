//! Scaled dot-product attention with grouped key-value heads, in memory that does not grow with T^2.

mod blocked;
pub mod reference;

use crate::error::{Error, ErrorKind, check_len};
use crate::{Element, Profile, Result};

/// Keys of a block of the running softmax; a numerics constant.
pub const KEY_BLOCK: usize = 128;

/// Which keys a query sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All of them.
    Full,
    /// Keys up to the query's own position; the last query stands at the last key.
    Causal,
    /// As causal, and at most this many keys, the query's own among them.
    Window(usize),
    /// As causal, and only keys of the query's own chunk of this many positions.
    Chunk(usize),
}

/// Numbers added to the scores: element (b, h, q, k) is `data[b * strides[0] + h * strides[1] + q * strides[2] + k]`.
///
/// A stride of 0 shares numbers along that dimension; minus infinity hides a key.
#[derive(Clone, Copy, Debug)]
pub struct Bias<'a> {
    /// The numbers.
    pub data: &'a [f32],
    /// Elements from one batch row, head and query to the next.
    pub strides: [usize; 3],
}

/// Shape and rule of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// B.
    pub batch: usize,
    /// Tq, queries of a batch row.
    pub queries: usize,
    /// Tk, keys of a batch row.
    pub keys: usize,
    /// H.
    pub heads: usize,
    /// K, a divisor of `heads`; head h reads key-value head `h / (heads / kv_heads)`.
    pub kv_heads: usize,
    /// D, width of a query and of a key.
    pub head_dim: usize,
    /// Width of a value.
    pub value_dim: usize,
    /// Factor on the dot products.
    pub scale: f32,
    /// Which keys a query sees.
    pub mask: Mask,
    /// `c * tanh(score / c)` in place of a score, before bias and mask.
    pub softcap: Option<f32>,
    /// Added to the scores.
    pub bias: Option<Bias<'a>>,
    /// A score per head (H) that takes part in the softmax's sum and has no value.
    pub sinks: Option<&'a [f32]>,
}

/// `out = softmax(scale * q @ k^T + ...) @ v`: q (B, Tq, H, D), k (B, Tk, K, D), v (B, Tk, K, Dv), out (B, Tq, H, Dv).
///
/// Per query a running maximum, sum and weighted sum go over blocks of [`KEY_BLOCK`] keys, counted from key 0, in order, in f32;
/// hidden keys have the weight zero (their values must be finite).
/// Inputs are widened to f32 exactly, the result is rounded once.
/// A query's result depends on its own inputs alone, not on the queries beside it.
/// A query that sees no key gives zeros.
pub fn attention<T: Element>(profile: Profile, plan: &Attention<'_>, qkv: [&[T]; 3], out: &mut [T]) -> Result<()> {
    check(plan, qkv.map(<[T]>::len), out.len())?;
    blocked::attention(profile, plan, qkv, out);
    Ok(())
}

fn check(plan: &Attention<'_>, lens: [usize; 3], out_len: usize) -> Result<()> {
    let &Attention { batch, queries, keys, heads, kv_heads, head_dim, value_dim, .. } = plan;
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of the {heads} heads");
        return Err(Error::new("attention: kv_heads", ErrorKind::Extent { found: kv_heads, expected }));
    }
    check_len("attention: q", lens[0], &[batch, queries, heads, head_dim])?;
    check_len("attention: k", lens[1], &[batch, keys, kv_heads, head_dim])?;
    check_len("attention: v", lens[2], &[batch, keys, kv_heads, value_dim])?;
    check_len("attention: out", out_len, &[batch, queries, heads, value_dim])?;
    if let Some(sinks) = plan.sinks {
        check_len("attention: sinks", sinks.len(), &[heads])?;
    }
    if let Some(bias) = plan.bias
        && batch * heads * queries * keys > 0
    {
        let extents = [batch - 1, heads - 1, queries - 1];
        let last = bias.strides.iter().zip(extents).try_fold(keys, |sum, (&stride, extent)| {
            stride.checked_mul(extent).and_then(|offset| offset.checked_add(sum))
        });
        let expected = last.unwrap_or(usize::MAX);
        if bias.data.len() < expected {
            let kind = ErrorKind::Length { found: bias.data.len(), expected };
            return Err(Error::new("attention: bias", kind));
        }
    }
    Ok(())
}

impl Attention<'_> {
    /// First and one past the last key that a query sees; empty where it sees none.
    pub(crate) fn visible(&self, query: usize) -> (usize, usize) {
        let end = match self.mask {
            Mask::Full => self.keys,
            Mask::Causal | Mask::Window(_) | Mask::Chunk(_) => {
                (query + 1 + self.keys).saturating_sub(self.queries).min(self.keys)
            }
        };
        let start = match self.mask {
            // Counted from the query's position, which may lie beyond the first key.
            Mask::Window(width) => end.saturating_sub(width),
            Mask::Chunk(size) => end.saturating_sub(1).checked_div(size).unwrap_or(0) * size,
            Mask::Full | Mask::Causal => 0,
        };
        (start, end)
    }
}

#[cfg(test)]
mod tests;
