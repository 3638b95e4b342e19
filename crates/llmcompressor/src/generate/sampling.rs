//! The choice of the next token.

use compressed_tensors::transforms::MersenneTwister;
use tensor::elementary::exp_f64;

use crate::error::{ErrorKind, Result};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divisor of the scores; at 0 the likeliest token is taken, whatever the other fields say.
    pub temperature: f64,
    /// Only so many of the likeliest tokens are drawn from.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens that together have this probability are drawn from.
    pub top_p: f64,
    /// Of the draws.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: None, top_p: 1.0, seed: 0 }
    }
}

/// Chooses token after token.
pub(super) struct Sampler {
    sampling: Sampling,
    random: MersenneTwister,
}

impl Sampler {
    /// # Errors
    /// `Option` for numbers that make no choice.
    pub(super) fn new(sampling: Sampling) -> Result<Self> {
        let refuse = |option: &'static str, found: f64, expected: &str| {
            Err(ErrorKind::Option { option, found: found.to_string(), expected: expected.to_owned() }.into())
        };
        if !(sampling.temperature >= 0.0 && sampling.temperature.is_finite()) {
            return refuse("--temperature", sampling.temperature, "a number from 0 on");
        }
        if !(sampling.top_p > 0.0 && sampling.top_p <= 1.0) {
            return refuse("--top-p", sampling.top_p, "a share above 0 and up to 1");
        }
        if sampling.top_k == Some(0) {
            return refuse("--top-k", 0.0, "1 token or more");
        }
        Ok(Self { sampling, random: MersenneTwister::new(sampling.seed) })
    }

    /// A token for finite scores; equal ones go to the lower id.
    pub(super) fn choose(&mut self, scores: &[f32]) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if temperature == 0.0 {
            return likeliest(scores);
        }
        let mut order: Vec<u32> = (0..scores.len() as u32).collect();
        let score = |id: &u32| scores[*id as usize];
        let wanted = top_k.unwrap_or(order.len()).min(order.len());
        let by_score = |a: &u32, b: &u32| score(b).total_cmp(&score(a)).then(a.cmp(b));
        if wanted < order.len() {
            order.select_nth_unstable_by(wanted, by_score);
            order.truncate(wanted);
        }
        order.sort_unstable_by(by_score);
        let most = order.first().map_or(0.0, |it| f64::from(score(it)));
        let weights: Vec<f64> = order.iter().map(|it| exp_f64((f64::from(score(it)) - most) / temperature)).collect();
        let sum: f64 = weights.iter().sum();
        let mut taken = 0.0;
        let enough = weights.iter().position(|it| {
            taken += it;
            taken >= top_p * sum
        });
        let n = enough.map_or(weights.len(), |it| it + 1);
        let sum: f64 = weights[..n].iter().sum();
        // 53 bits fill the fraction of a number between 0 and 1.
        let drawn = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let mut passed = 0.0;
        let chosen = weights[..n].iter().position(|it| {
            passed += it;
            drawn < passed
        });
        order[chosen.unwrap_or(n - 1)]
    }
}

fn likeliest(scores: &[f32]) -> u32 {
    let best = scores.iter().enumerate().fold(
        (0, f32::NEG_INFINITY),
        |best, (id, &score)| {
            if score > best.1 { (id, score) } else { best }
        },
    );
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(sampling: Sampling, scores: &[f32]) -> Vec<usize> {
        let mut sampler = Sampler::new(sampling).unwrap();
        let mut counts = vec![0; scores.len()];
        (0..4000).for_each(|_| counts[sampler.choose(scores) as usize] += 1);
        counts
    }

    #[test]
    fn without_a_temperature_the_first_of_the_likeliest_is_taken() {
        assert_eq!(drawn(Sampling::default(), &[1.0, 3.0, 3.0, 2.0]), [0, 4000, 0, 0]);
    }

    #[test]
    fn tokens_are_drawn_as_often_as_they_are_likely() {
        let scores = [0.0f32, 0.5f32.ln(), 0.25f32.ln()];
        let counts = drawn(Sampling { temperature: 1.0, ..Sampling::default() }, &scores);
        for (count, share) in counts.into_iter().zip([4.0 / 7.0, 2.0 / 7.0, 1.0 / 7.0]) {
            assert!((count as f64 / 4000.0 - share).abs() < 0.03, "{count} for {share}");
        }
        let cold = drawn(Sampling { temperature: 0.5, ..Sampling::default() }, &scores);
        assert!((cold[0] as f64 / 4000.0 - 16.0 / 21.0).abs() < 0.03, "{cold:?}");
    }

    #[test]
    fn unlikely_tokens_are_left_out() {
        let scores = [0.25f32.ln(), 0.0, 0.5f32.ln()];
        let warm = Sampling { temperature: 1.0, ..Sampling::default() };
        assert_eq!(drawn(Sampling { top_k: Some(2), ..warm }, &scores)[0], 0);
        assert_eq!(drawn(Sampling { top_p: 0.8, ..warm }, &scores)[0], 0);
        assert!(drawn(Sampling { top_p: 0.9, ..warm }, &scores)[0] > 0);
        assert_eq!(drawn(Sampling { top_p: 0.5, ..warm }, &scores)[1], 4000);
    }

    #[test]
    fn the_seed_alone_decides_the_draws() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { temperature: 1.0, seed, ..Sampling::default() }).unwrap();
            (0..50).map(|_| sampler.choose(&[0.0, 0.1, 0.2, 0.3])).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }

    #[test]
    fn numbers_that_make_no_choice_are_refused() {
        let bad = [
            Sampling { temperature: -1.0, ..Sampling::default() },
            Sampling { temperature: f64::NAN, ..Sampling::default() },
            Sampling { top_p: 0.0, ..Sampling::default() },
            Sampling { top_k: Some(0), ..Sampling::default() },
        ];
        for sampling in bad {
            let Err(error) = Sampler::new(sampling) else { panic!("{sampling:?}") };
            assert!(matches!(error.kind(), ErrorKind::Option { .. }));
        }
    }
}
