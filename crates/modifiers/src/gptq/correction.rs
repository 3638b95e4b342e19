//! What earlier layers have done to a layer's inputs, and the weight that makes up for it.
#![expect(non_snake_case, reason = "matrices are capital letters")]

use kernels::{Element, Mat, MatMut, Profile, gemm, syrk};
use rayon::prelude::*;

use super::algorithm::{Factored, Hessian};
use crate::error::{Result, check_len};

/// How far inputs have moved, beside what they are: `D = sum_t (u_t - x_t) x_t^T`, f32, of inputs x and of what they were, u,
/// before anything was changed.
///
/// Of all weights, `W + W D H^-1` gives on x what is nearest to what W gave on u, where `H = sum_t x_t x_t^T`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CrossMoments {
    cols: usize,
    sum: Vec<f32>,
}

impl CrossMoments {
    /// Of inputs (N) that have not moved.
    pub(super) fn new(cols: usize) -> Self {
        Self { cols, sum: Vec::new() }
    }

    /// Adds tokens (T, N), as they are and as they were; differences are rounded to their type.
    ///
    /// # Errors
    /// Tokens of another width or number.
    pub(super) fn accumulate<I: Element>(&mut self, profile: Profile, x: &[I], u: &[I]) -> Result<()> {
        let N = self.cols;
        check_len("unchanged inputs", u.len(), &[x.len()])?;
        let T = x.len() / N.max(1);
        check_len("inputs", x.len(), &[T, N])?;
        let mut moved = vec![I::default(); x.len()];
        let tokens = moved.par_chunks_mut(N.max(1)).zip(x.par_chunks(N.max(1)).zip(u.par_chunks(N.max(1))));
        tokens.for_each(|(moved, (x, u))| {
            let differences = u.iter().zip(x).map(|(u, x)| I::from_f32(u.to_f32() - x.to_f32()));
            moved.iter_mut().zip(differences).for_each(|(to, it)| *to = it);
        });
        if moved.iter().all(|it| it.to_f32() == 0.0) {
            return Ok(());
        }
        self.sum.resize(N * N, 0.0);
        Ok(syrk::accumulate_cross(profile, Mat::new(&moved, T, N)?, Mat::new(x, T, N)?, &mut self.sum)?)
    }

    /// The moments after the inputs were divided by `scales` (N), as smoothing does: `diag(1/s) D diag(1/s)`.
    ///
    /// # Errors
    /// Scales of another number.
    pub(super) fn divide_inputs(&mut self, scales: &[f32]) -> Result<()> {
        check_len("scales", scales.len(), &[self.cols])?;
        for (row, s) in self.sum.chunks_exact_mut(self.cols.max(1)).zip(scales) {
            row.iter_mut().zip(scales).for_each(|(sum, t)| *sum = *sum / s / t);
        }
        Ok(())
    }

    /// Makes of each weight W (O, N) the weight `W + share W D H^-1` that is to be rounded in its place, H as it was damped and
    /// factored; nothing changes where no input has moved or there is no factor.
    ///
    /// # Errors
    /// A factor or weights of another width.
    pub(super) fn correct(
        &self,
        profile: Profile,
        factored: &Factored,
        hessian: &Hessian,
        share: f32,
        weights: &mut [&mut Vec<f32>],
    ) -> Result<()> {
        let N = self.cols;
        let Some(U) = factored.factor.as_ref().filter(|_| !self.sum.is_empty()) else { return Ok(()) };
        check_len("factor", U.len(), &[N, N])?;
        let unit = share * hessian.unit();
        let D: Vec<f32> = self.sum.par_iter().map(|it| unit * it).collect();
        let times_inverse = |X| times_inverse(profile, X, U, &factored.order);
        // D H^-1 once for all weights, unless they have fewer rows than it.
        let rows: usize = weights.iter().map(|it| it.len() / N).sum();
        let (M, is_whole) = if rows < N { (D, false) } else { (times_inverse(D)?, true) };
        for W in weights {
            let product = product(profile, W, &M, N)?;
            let change = if is_whole { product } else { times_inverse(product)? };
            W.par_iter_mut().zip(&change).for_each(|(to, it)| *to += it);
        }
        Ok(())
    }
}

/// `X H^-1` of X (R, N), where `H^-1 = U^T U` in order of visits.
fn times_inverse(profile: Profile, mut X: Vec<f32>, U: &[f32], order: &[u32]) -> Result<Vec<f32>> {
    let N = order.len();
    let R = X.len() / N;
    let mut visited = vec![0.0; X.len()];
    visited.par_chunks_mut(N).zip(X.par_chunks(N)).for_each(|(to, from)| {
        to.iter_mut().zip(order).for_each(|(to, j)| *to = from[*j as usize]);
    });
    gemm::linear(profile, Mat::new(&visited, R, N)?, Mat::new(U, N, N)?, None, MatMut::new(&mut X, R, N)?)?;
    gemm::matmul(profile, Mat::new(&X, R, N)?, Mat::new(U, N, N)?, None, MatMut::new(&mut visited, R, N)?)?;
    X.par_chunks_mut(N).zip(visited.par_chunks(N)).for_each(|(to, from)| {
        order.iter().zip(from).for_each(|(j, it)| to[*j as usize] = *it);
    });
    Ok(X)
}

/// `W M` of W (O, N) and M (N, N).
fn product(profile: Profile, W: &[f32], M: &[f32], N: usize) -> Result<Vec<f32>> {
    let O = W.len() / N;
    check_len("weight", W.len(), &[O, N])?;
    let mut product = vec![0.0; W.len()];
    gemm::matmul(profile, Mat::new(W, O, N)?, Mat::new(M, N, N)?, None, MatMut::new(&mut product, O, N)?)?;
    Ok(product)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::gptq::{Damping, Order, factorize};

    const N: usize = 6;
    const T: usize = 40;

    fn random(seed: u32, n: usize) -> Vec<f32> {
        let mut state = seed;
        let next = |_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(next).collect()
    }

    /// `sum_t |W u_t - V x_t|^2`.
    fn error(W: &[f32], u: &[f32], V: &[f32], x: &[f32]) -> f64 {
        let put_out = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>();
        let tokens = u.chunks(N).zip(x.chunks(N));
        tokens
            .map(|(u, x)| {
                W.chunks(N).zip(V.chunks(N)).map(|(w, v)| (put_out(w, u) - put_out(v, x)).powi(2)).sum::<f64>()
            })
            .sum()
    }

    /// Inputs, what they were (moved along what they are, and by noise), and their moments in two calls.
    fn scene() -> (Vec<f32>, Vec<f32>, Hessian, CrossMoments) {
        let x: Vec<f32> = random(1, T * N).iter().enumerate().map(|(i, it)| it * (1.0 + (i % N) as f32)).collect();
        let noise = random(2, T * N);
        let u: Vec<f32> = (0..T * N).map(|i| x[i] + 0.3 * x[i / N * N + (i + 1) % N] + 0.05 * noise[i]).collect();
        let profile = Profile::detect();
        let (mut hessian, mut cross) = (Hessian::new(N), CrossMoments::new(N));
        for part in [0..16 * N, 16 * N..T * N] {
            let n_tokens = part.len() / N;
            hessian.accumulate(profile, Mat::new(&x[part.clone()], n_tokens, N).unwrap(), 1).unwrap();
            cross.accumulate(profile, &x[part.clone()], &u[part]).unwrap();
        }
        (x, u, hessian, cross)
    }

    #[test]
    fn the_corrected_weight_is_nearest_to_what_the_weight_put_out_before_anything_was_changed() {
        let (x, u, hessian, cross) = scene();
        let profile = Profile::detect();
        let damping = Damping { frac: 0.0, ..Damping::default() };
        let factored = factorize(profile, &hessian, Order::Diagonal, &damping).unwrap();
        let W = random(3, 4 * N);
        let corrected = |share| {
            let mut V = W.clone();
            cross.correct(profile, &factored, &hessian, share, &mut [&mut V]).unwrap();
            V
        };
        let (best, half) = (corrected(1.0), corrected(0.5));
        let least = error(&W, &u, &best, &x);
        assert!(least < 0.05 * error(&W, &u, &W, &x));
        assert!(least < error(&W, &u, &half, &x) && error(&W, &u, &half, &x) < error(&W, &u, &W, &x));
        // At a minimum every step away costs.
        for i in 0..W.len() {
            for step in [-0.01, 0.01] {
                let mut beside = best.clone();
                beside[i] += step;
                assert!(error(&W, &u, &beside, &x) > least, "{i} {step}");
            }
        }
    }

    #[test]
    fn moments_that_are_divided_are_those_of_divided_inputs() {
        let (x, u, _, mut cross) = scene();
        // Powers of two divide without rounding, so that the bits agree.
        let by = [0.5f32, 2.0, 1.0, 4.0, 0.25, 8.0];
        cross.divide_inputs(&by).unwrap();
        let divided = |it: &[f32]| -> Vec<f32> { it.iter().enumerate().map(|(i, x)| x / by[i % N]).collect() };
        let mut of_divided = CrossMoments::new(N);
        for part in [0..16 * N, 16 * N..T * N] {
            of_divided.accumulate(Profile::detect(), &divided(&x[part.clone()]), &divided(&u[part])).unwrap();
        }
        assert_eq!(cross, of_divided);
        assert!(cross.divide_inputs(&by[1..]).is_err());
    }

    #[test]
    fn weights_with_fewer_rows_than_columns_are_corrected_as_those_with_more_are() {
        let (_, _, hessian, cross) = scene();
        let profile = Profile::detect();
        let factored = factorize(profile, &hessian, Order::Diagonal, &Damping::default()).unwrap();
        let (mut few, mut many) = (random(3, 2 * N), random(3, 2 * N));
        cross.correct(profile, &factored, &hessian, 0.5, &mut [&mut few]).unwrap();
        cross.correct(profile, &factored, &hessian, 0.5, &mut [&mut many, &mut random(4, 2 * N * N)]).unwrap();
        let furthest = few.iter().zip(&many).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(furthest < 1e-5 && few != random(3, 2 * N), "{furthest}");
    }

    #[test]
    fn inputs_that_have_not_moved_and_matrices_without_a_factor_correct_nothing() {
        let (x, _, hessian, cross) = scene();
        let profile = Profile::detect();
        let factored = factorize(profile, &hessian, Order::Stored, &Damping::default()).unwrap();
        let mut same = CrossMoments::new(N);
        same.accumulate(profile, &x, &x).unwrap();
        for (moments, factored) in [(&same, &factored), (&cross, &Factored::nearest(N, 0))] {
            let mut W = random(3, 4 * N);
            moments.correct(profile, factored, &hessian, 1.0, &mut [&mut W]).unwrap();
            assert!(W == random(3, 4 * N));
        }
        assert!(same.accumulate(profile, &x, &[0.0]).is_err());
    }
}
