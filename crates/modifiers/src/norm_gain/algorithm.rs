//! How much of what a norm gave it gives still, and a norm that gives all of it.

use crate::{
    error::{ErrorKind, Result, check_len},
    smoothquant::Norm,
};

/// What a gain is at least: a stream of which less is left is noise, which a larger norm would only make louder.
pub const LEAST: f64 = 0.5;

/// Sums over tokens of what a norm gives beside what it gave: `x_c u_c` and `u_c u_c` of every channel, in f64.
#[derive(Clone, Debug, PartialEq)]
pub struct Gain {
    both: Vec<f64>,
    before: Vec<f64>,
    n_tokens: u64,
}

impl Gain {
    /// Of no token, for `channels` channels.
    pub fn new(channels: usize) -> Self {
        Self { both: vec![0.0; channels], before: vec![0.0; channels], n_tokens: 0 }
    }

    /// Takes tokens `(T, C)` as they are and as they were.
    ///
    /// # Errors
    /// Values that do not fill rows, or are not as many.
    pub fn observe(&mut self, x: &[f32], u: &[f32]) -> Result<()> {
        let channels = self.both.len();
        let n_tokens = x.len() / channels.max(1);
        check_len("an activation", x.len(), &[n_tokens, channels])?;
        check_len("an unchanged activation", u.len(), &[x.len()])?;
        for (x, u) in x.chunks_exact(channels.max(1)).zip(u.chunks_exact(channels.max(1))) {
            for ((both, before), (x, u)) in self.both.iter_mut().zip(&mut self.before).zip(x.iter().zip(u)) {
                *both += f64::from(*x) * f64::from(*u);
                *before += f64::from(*u) * f64::from(*u);
            }
        }
        self.n_tokens += n_tokens as u64;
        Ok(())
    }

    /// Tokens seen.
    pub fn n_tokens(&self) -> u64 {
        self.n_tokens
    }

    /// The share of what was given that is given still, at least [`LEAST`]; 1 of nothing.
    ///
    /// # Errors
    /// A share that is not finite.
    pub fn share(&self) -> Result<f64> {
        let [both, before]: [f64; 2] = [&self.both, &self.before].map(|it| it.iter().sum());
        if both == before {
            return Ok(1.0);
        }
        let share = both / before;
        if !share.is_finite() {
            return Err(ErrorKind::NonFinite { what: "gain", channel: 0, value: share }.into());
        }
        Ok(share.max(LEAST))
    }

    /// What each channel gives for one unit of what multiplies it; 0 of a channel that nothing multiplies.
    fn weights(&self, norm: Norm, weight: &[f32]) -> Vec<f64> {
        let one = |(both, weight): (&f64, &f32)| {
            let weight = both / (f64::from(norm.offset) + f64::from(*weight));
            if weight.is_finite() { weight } else { 0.0 }
        };
        self.both.iter().zip(weight).map(one).collect()
    }
}

/// Divides the weight of a norm by the share, `w' = (offset + w) / share - offset`.
///
/// Single weights hold such a factor badly: a bf16 has steps of 0.4 to 0.8 %. Each is rounded to the neighbour that leaves the
/// sum over channels, each counted as it adds to the share, nearest to what it is to be.
///
/// # Errors
/// Weights of another number than channels, and as [`Gain::share`].
pub fn divide_norm(norm: Norm, gain: &Gain, weight: &mut [f32]) -> Result<f64> {
    check_len("norm weight", weight.len(), &[gain.both.len()])?;
    let share = gain.share()?;
    let offset = f64::from(norm.offset);
    let mut missing = 0.0f64;
    let counts = gain.weights(norm, weight);
    for (value, counts) in weight.iter_mut().zip(counts) {
        let wanted = (offset + f64::from(*value)) / share - offset;
        let round = |it: f64| norm.float.round(it as f32);
        let nearest = round(wanted);
        // Seven tenths of the largest step lead to the next number, and never beyond it.
        let step = 0.7 * f64::from(nearest.abs()) * f64::from(norm.float.epsilon());
        let other = round(f64::from(nearest) + if wanted < f64::from(nearest) { -step } else { step });
        let left = |it: f32| missing + (wanted - f64::from(it)) * counts;
        let best = if left(other).abs() < left(nearest).abs() { other } else { nearest };
        missing = left(best);
        *value = best;
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use compressed_tensors::numbers::Float;

    use super::*;

    const CHANNELS: usize = 64;

    /// What a norm with this weight gives of directions, shrunk by `share` and with noise that has nothing to do with it.
    fn shrunk(share: f32, weight: &[f32], offset: f32) -> (Vec<f32>, Vec<f32>) {
        let number = |i: usize| ((i * 2_654_435_761) % 1009) as f32 / 504.5 - 1.0;
        let u: Vec<f32> = (0..50 * CHANNELS).map(|i| number(i) * (offset + weight[i % CHANNELS])).collect();
        let flip = |token: usize| if token.is_multiple_of(2) { 0.05 } else { -0.05 };
        // Each token comes twice, with noise of either sign.
        let twice = |u: &[f32]| [u, u].concat();
        let both: Vec<f32> = u.chunks(CHANNELS).flat_map(twice).collect();
        let x = both.iter().enumerate().map(|(i, u)| share * u + flip(i / CHANNELS) * number(i % CHANNELS)).collect();
        (x, both)
    }

    #[test]
    fn a_norm_gives_again_what_it_gave_whatever_its_type_and_offset() {
        for (float, offset) in [(Float::F32, 0.0), (Float::BF16, 0.0), (Float::BF16, 1.0), (Float::F16, 0.0)] {
            let weight: Vec<f32> = (0..CHANNELS).map(|i| float.round(0.4 + i as f32 / 40.0 - offset)).collect();
            let (x, u) = shrunk(0.9987, &weight, offset);
            let mut gain = Gain::new(CHANNELS);
            gain.observe(&x, &u).unwrap();
            assert!((gain.share().unwrap() - 0.9987).abs() < 1e-5, "{}", gain.share().unwrap());
            let mut after = weight.clone();
            let norm = Norm { offset, float };
            divide_norm(norm, &gain, &mut after).unwrap();
            assert!(after.iter().all(|it| float.round(*it) == *it));
            let factor = |c: usize| (offset + after[c]) / (offset + weight[c]);
            let x: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * factor(i % CHANNELS)).collect();
            let mut now = Gain::new(CHANNELS);
            now.observe(&x, &u).unwrap();
            assert!((now.share().unwrap() - 1.0).abs() < 5e-5, "{float:?} {offset}: {}", now.share().unwrap());
            // No weight is farther from its aim than the next number.
            let is_near = |(a, b): (&f32, &f32)| (a - b / 0.9987).abs() <= 1.01 * float.epsilon() * b.abs().max(1e-3);
            assert!(offset > 0.0 || after.iter().zip(&weight).all(is_near));
        }
    }

    #[test]
    fn what_has_not_moved_stays_and_what_is_lost_is_not_made_loud() {
        let weight: Vec<f32> = (0..CHANNELS).map(|i| i as f32 - 3.0).collect();
        let norm = Norm { offset: 0.0, float: Float::BF16 };
        let (_, u) = shrunk(1.0, &weight, 0.0);
        for x in [u.clone(), vec![0.0; u.len()]] {
            let (mut gain, mut after) = (Gain::new(CHANNELS), weight.clone());
            gain.observe(&x, &u).unwrap();
            let share = divide_norm(norm, &gain, &mut after).unwrap();
            let times = if x == u { 1.0 } else { 2.0 };
            assert_eq!(share, 1.0 / times);
            assert!(after.iter().zip(&weight).all(|(a, b)| f64::from(*a) == f64::from(*b) * times));
        }
        assert_eq!(Gain::new(CHANNELS).share().unwrap(), 1.0);
        let mut gain = Gain::new(1);
        gain.observe(&[f32::INFINITY], &[1.0]).unwrap();
        assert!(matches!(gain.share().unwrap_err().kind(), ErrorKind::NonFinite { what: "gain", .. }));
        assert!(gain.observe(&[1.0], &[]).is_err());
    }
}
