//! A run of products in block floating point, in plain loops.

use half::bf16;

use super::Scale;

/// The sum of a run's products, as tiles add it to what was there: `sum + (a . b)`.
pub(crate) fn add_run(len: usize, pair: impl Fn(usize) -> (f32, f32), sum: f32) -> f32 {
    let (a, of_a) = codes((0..len).map(|k| pair(k).0));
    let (b, of_b) = codes((0..len).map(|k| pair(k).1));
    let products: i32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    (products as f32 * of_b).mul_add(of_a, sum)
}

/// Codes of a run of bf16 numbers, and what they are multiplied with.
fn codes(run: impl Iterator<Item = f32> + Clone) -> (Vec<i32>, f32) {
    let largest = run.clone().map(|it| bf16::from_f32(it.abs()).to_bits()).max().unwrap_or(0);
    let scale = Scale::of(largest);
    let code = |it: f32| if scale.to_codes == 0.0 { 0 } else { (it * scale.to_codes).round_ties_even() as i32 };
    (run.map(code).collect(), scale.of_codes)
}
