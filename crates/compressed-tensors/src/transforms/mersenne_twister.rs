//! The random generator whose draws fix every random transform: MT19937 as torch's CPU generator uses it.

use crate::{Error, ErrorKind, Result};

/// The seed that torch gives a generator which nobody seeded.
///
/// The reference passes no seed, so that its random transforms are the same in every run.
pub const DEFAULT_SEED: u64 = 67_280_421_310_721;

const WORDS: usize = 624;
const SHIFT: usize = 397;
const UPPER_BIT: u32 = 0x8000_0000;
const TWIST: u32 = 0x9908_b0df;

/// MT19937 with torch's ways of making signs, permutations and floats of its words.
#[derive(Clone)]
pub struct MersenneTwister {
    state: [u32; WORDS],
    next_idx: usize,
}

impl MersenneTwister {
    /// Seeds with the low 32 bits of `seed`, as torch does.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; WORDS];
        state[0] = (seed & 0xffff_ffff) as u32;
        for i in 1..WORDS {
            let before = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next_idx: WORDS }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next_idx == WORDS {
            self.refill();
        }
        let mut y = self.state[self.next_idx];
        self.next_idx += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next 64 bits: the first word drawn is the high half.
    pub fn next_u64(&mut self) -> u64 {
        let high = u64::from(self.next_u32());
        high << 32 | u64::from(self.next_u32())
    }

    /// 0 or 1, one word each, as `torch.randint(0, 2)`.
    pub fn bit(&mut self) -> u32 {
        self.next_u32() % 2
    }

    /// -1 or 1, one word each.
    pub fn sign(&mut self) -> i8 {
        if self.bit() == 1 { 1 } else { -1 }
    }

    /// A permutation of `0..n`, as `torch.randperm(n)`.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] where `n` does not fit 32 bits, because torch then draws differently.
    pub fn permutation(&mut self, n: usize) -> Result<Vec<usize>> {
        if u32::try_from(n).is_err() {
            return Err(Error::from(ErrorKind::Unsupported { what: format!("a permutation of {n} elements") }));
        }
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let step = self.next_u32() as usize % (n - i);
            order.swap(i, i + step);
        }
        Ok(order)
    }

    /// Uniform in `[0, 1)` with 24 bits, as `torch.rand(dtype=float32)`.
    pub fn uniform_f32(&mut self) -> f32 {
        (self.next_u32() & 0x00ff_ffff) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in `[0, 1)` with 53 bits, as `torch.rand(dtype=float64)`.
    pub fn uniform_f64(&mut self) -> f64 {
        (self.next_u64() & ((1 << 53) - 1)) as f64 * (1.0 / 9_007_199_254_740_992.0)
    }

    fn refill(&mut self) {
        for i in 0..WORDS {
            let y = (self.state[i] & UPPER_BIT) | (self.state[(i + 1) % WORDS] & !UPPER_BIT);
            let twist = if y & 1 == 1 { TWIST } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % WORDS] ^ (y >> 1) ^ twist;
        }
        self.next_idx = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_first_words_of_the_usual_seed_appear() {
        let mut rng = MersenneTwister::new(5489);
        let words: Vec<u32> = (0..5).map(|_| rng.next_u32()).collect();
        assert_eq!(words, [3_499_211_612, 581_869_302, 3_890_346_734, 3_586_334_585, 545_404_204]);
    }

    #[test]
    fn the_ten_thousandth_word_is_the_standards() {
        let mut rng = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| rng.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }
}
