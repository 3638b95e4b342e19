//! In which order samples are taken.

use compressed_tensors::transforms::MersenneTwister;

use crate::{Error, ErrorKind, Result};

/// How samples are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampler {
    /// Random, without repetition.
    Random {
        /// Seed of the generator.
        seed: u64,
    },
    /// The longest first; equal lengths in the order of the data.
    LengthAware,
}

/// Indices of `n` samples by descending length, the first `num_samples` of them; the sort is stable.
pub fn by_descending_length(lengths: &[usize], num_samples: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&i| std::cmp::Reverse(lengths[i]));
    order.truncate(num_samples.unwrap_or(usize::MAX));
    order
}

/// A permutation of `0..n` for a seed: what torch's random sampler draws first after `torch.manual_seed(seed)`.
///
/// # Errors
/// [`ErrorKind::TooLarge`] where `n` does not fit 32 bits.
pub fn shuffled(n: usize, seed: u64) -> Result<Vec<usize>> {
    let mut global = MersenneTwister::new(seed);
    permutation(n, &mut sampler_generator(&mut global))
}

/// Indices that torch's `RandomSampler(range(n), num_samples=..)` yields after `torch.manual_seed(seed)`.
///
/// More samples than `n` begin the data again, in a new order.
///
/// # Errors
/// [`ErrorKind::TooLarge`] where `n` does not fit 32 bits.
pub fn torch_random_sampler(n: usize, num_samples: Option<usize>, seed: u64) -> Result<Vec<usize>> {
    let mut global = MersenneTwister::new(seed);
    let mut generator = sampler_generator(&mut global);
    let wanted = if n == 0 { 0 } else { num_samples.unwrap_or(n) };
    let mut order = Vec::new();
    while order.len() < wanted {
        let round = permutation(n, &mut generator)?;
        let left = wanted - order.len();
        order.extend(round.into_iter().take(left));
    }
    Ok(order)
}

/// The sampler seeds a generator of its own with 63 bits of the global one.
fn sampler_generator(global: &mut MersenneTwister) -> MersenneTwister {
    MersenneTwister::new(global.next_u64() & (i64::MAX as u64))
}

fn permutation(n: usize, generator: &mut MersenneTwister) -> Result<Vec<usize>> {
    generator.permutation(n).map_err(|_| {
        let (found, limit) = (format!("{n} rows"), format!("{} rows", u32::MAX));
        Error::from(ErrorKind::TooLarge { what: "a shuffled data set", found, limit })
    })
}
