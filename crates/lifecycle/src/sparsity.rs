//! How many zeros a tensor has, and whether they follow a structure.

use std::collections::BTreeMap;

use crate::{
    Result,
    error::{Error, ErrorKind},
};

/// The share of zeros, for every index of the dimensions `dims`, in that order; over everything where
/// `dims` is empty. Counts are exact.
///
/// # Errors
/// A dimension that the shape lacks or that is named twice, and values that do not fill the shape.
pub fn tensor_sparsity(values: &[f32], shape: &[usize], dims: &[usize]) -> Result<Vec<f64>> {
    for (position, dim) in dims.iter().enumerate() {
        if *dim >= shape.len() || dims[..position].contains(dim) {
            let expected = format!("different dimensions below {}", shape.len());
            return Err(ErrorKind::OutOfRange { argument: "dim", found: format!("{dims:?}"), expected }.into());
        }
    }
    if shape.iter().try_fold(1usize, |product, it| product.checked_mul(*it)) != Some(values.len()) {
        return Err(Error::failed(format_args!("{} values do not fill the shape {shape:?}", values.len())));
    }
    let groups: usize = dims.iter().map(|it| shape[*it]).product();
    let mut zeros = vec![0usize; groups];
    for (position, value) in values.iter().enumerate() {
        let index = |dim: &usize| (position / shape[dim + 1..].iter().product::<usize>()) % shape[*dim];
        let group = dims.iter().fold(0, |group, dim| group * shape[*dim] + index(dim));
        zeros[group] += usize::from(*value == 0.0);
    }
    let group_len = values.len().checked_div(groups).unwrap_or(0);
    Ok(zeros.into_iter().map(|it| it as f64 / group_len as f64).collect())
}

/// Whether every `m` successive values have at least `n` zeros, for a mask `n:m`. `0:0` and
/// `unstructured` ask for nothing.
///
/// # Errors
/// A mask of another form, and values that do not fill groups.
pub fn tensor_follows_mask_structure(values: &[f32], mask: &str) -> Result<bool> {
    if mask == "unstructured" {
        return Ok(true);
    }
    let parts = mask.split_once(':').and_then(|(n, m)| Some((n.parse().ok()?, m.parse().ok()?)));
    let Some((n, m)) = parts else {
        let expected = "`unstructured`, or two numbers as in `2:4`".to_owned();
        return Err(ErrorKind::OutOfRange { argument: "mask", found: format!("`{mask}`"), expected }.into());
    };
    let (n, m): (usize, usize) = (n, m);
    if m == 0 {
        return Ok(true);
    }
    if !values.len().is_multiple_of(m) {
        return Err(ErrorKind::Indivisible { found: values.len(), group: m }.into());
    }
    Ok(values.chunks(m).all(|group| group.iter().filter(|it| **it == 0.0).count() >= n))
}

/// Short lists of targets and ignores from the names of modules of each class: a class stands for its
/// modules where more of them are targets than are ignored.
pub fn reduce_targets_and_ignores(
    targets: &BTreeMap<String, Vec<String>>,
    ignores: &BTreeMap<String, Vec<String>>,
) -> (Vec<String>, Vec<String>) {
    let (mut all_targets, mut all_ignores) = (Vec::new(), Vec::new());
    for (class, names) in targets {
        let ignored = ignores.get(class).map_or(&[][..], Vec::as_slice);
        if names.len() > ignored.len() {
            all_targets.push(class.clone());
        } else {
            all_targets.extend(names.iter().cloned());
        }
        all_ignores.extend(ignored.iter().cloned());
    }
    (all_targets, all_ignores)
}
