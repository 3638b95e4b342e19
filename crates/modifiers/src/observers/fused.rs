//! Weights that engines run as one and that share a global scale in the tensor_group strategy.

use compressed_tensors::{ErrorKind, Result, args::QuantizationStrategy, quantize::Qparams, scales::propagating_max};

use super::observer::{Observer, nothing_seen};

/// Names of linears of one module that are fused, first match first.
pub const FUSED_LINEARS: &[&[&str]] =
    &[&["gate_proj", "up_proj"], &["q_proj", "k_proj", "v_proj"], &["q_a_proj", "kv_a_proj_with_mqa"], &["w1", "w3"]];

/// The children of one module that share a global scale, group by group.
///
/// `children` are the names of its submodules with the strategy of their weight observers, `None` without one.
///
/// # Errors
/// [`ErrorKind::Unsupported`] where some linears of a group have the tensor_group strategy and others do not.
pub fn fused_groups(children: &[(&str, Option<QuantizationStrategy>)]) -> Result<Vec<&'static [&'static str]>> {
    let mut groups = Vec::new();
    for &names in FUSED_LINEARS {
        let strategies: Option<Vec<_>> =
            names.iter().map(|name| children.iter().find(|it| it.0 == *name).map(|it| it.1)).collect();
        let Some(strategies) = strategies else { continue };
        let n_grouped = strategies.iter().filter(|it| **it == Some(QuantizationStrategy::TensorGroup)).count();
        if n_grouped == names.len() {
            groups.push(names);
        } else if n_grouped > 0 {
            let what = format!(
                "a shared global scale of {}, of which {n_grouped} have strategy tensor_group",
                names.join(", ")
            );
            return Err(ErrorKind::Unsupported { what }.into());
        }
    }
    Ok(groups)
}

/// Indices of the names of modules that share a global scale: all linears of one group under one parent. Experts are parents of
/// their own.
pub fn fused_modules(names: &[&str]) -> Vec<Vec<usize>> {
    let mut groups = Vec::new();
    for (idx, name) in names.iter().enumerate() {
        let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
        // The first name of a group stands for all.
        for group in FUSED_LINEARS.iter().filter(|it| it[0] == last) {
            let others = group[1..]
                .iter()
                .map(|other| names.iter().position(|it| it.rsplit_once('.').unwrap_or(("", it)) == (parent, other)));
            if let Some(members) = std::iter::once(Some(idx)).chain(others).collect() {
                groups.push(members);
            }
        }
    }
    groups
}

/// Scales of weights that share a global scale, in their order; statistics are forgotten then.
///
/// # Errors
/// [`ErrorKind::MissingTensor`] where one has observed nothing.
pub fn fused_qparams(observers: &mut [&mut dyn Observer]) -> Result<Vec<Qparams>> {
    let mut shared = None;
    for observer in observers.iter() {
        let own = observer.amax().ok_or_else(|| nothing_seen(observer.name()))?;
        shared = Some(shared.map_or(own, |seen| propagating_max(seen, own)));
    }
    let qparams = observers.iter().map(|it| it.qparams(shared)).collect::<Result<Vec<_>>>()?;
    observers.iter_mut().for_each(|it| it.clear());
    Ok(qparams)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_fused_under_one_parent_and_only_as_whole_groups() {
        let names =
            ["l.attn.k_proj", "l.e.0.up_proj", "l.attn.q_proj", "l.e.0.gate_proj", "l.e.1.gate_proj", "l.attn.v_proj"];
        assert_eq!(fused_modules(&names), [vec![2, 0, 5], vec![3, 1]]);
    }
}
