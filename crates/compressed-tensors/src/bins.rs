//! Sharing items out to workers by weight.

/// Spreads items over `n_bins`, the heaviest first, each into the bin that is lightest so far.
///
/// Gives positions in `weights`: the order in which they were placed, and the content of every bin.
/// Equal weights keep their order; equally light bins fill from the first. Weights must not be NaN.
pub fn greedy_bin_packing(weights: &[f64], n_bins: usize) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut bins = vec![Vec::new(); n_bins];
    let mut loads = vec![0.0; n_bins];
    for &item in &order {
        let lightest = (0..n_bins).min_by(|&a, &b| f64::total_cmp(&loads[a], &loads[b]));
        if let Some(bin) = lightest {
            bins[bin].push(item);
            loads[bin] += weights[item];
        }
    }
    (order, bins)
}
