//! Scales that are finite and not zero, and equal global scales where engines fuse.

use checkpoint::{Source, TensorEntry};
use compressed_tensors::{DType, numbers::read_f32};

use super::{FaultKind, Verdict};
use crate::{
    catalog::{Catalog, StoredModule},
    error::{InContext, Result},
    model_free::fused_groups,
    slabs::Slabs,
};

/// The first scale of a tensor that cannot be one.
struct Bad {
    index: usize,
    value: f32,
}

pub(super) fn check(output: &Source, catalog: &Catalog, slabs: &Slabs<'_>, verdict: &mut Verdict) -> Result<()> {
    for entry in output.tensors().filter(|it| it.name.ends_with("_scale")) {
        if let Some(bad) = first_bad(output, entry, slabs)? {
            let text = format!("element {} is {}, expected a finite value above zero", bad.index, bad.value);
            verdict.fault(FaultKind::Scale, entry.name.clone(), text);
        }
    }
    check_fused(output, catalog, verdict)
}

fn first_bad(output: &Source, entry: &TensorEntry, slabs: &Slabs<'_>) -> Result<Option<Bad>> {
    let Some(width) = entry.dtype.byte_len(1) else { return Ok(None) };
    let n = entry.shape.iter().product();
    let found = slabs.map(n, width, 1, |elements| {
        slabs.buffers.with(|bytes| {
            bytes.resize(elements.len() * width, 0);
            output.read_into(entry, (elements.start * width) as u64, bytes)?;
            let bad = |at: usize, value: f32| Bad { index: elements.start + at, value };
            // Exponent-only scales have no zero; their code 255 is no number.
            if matches!(entry.dtype, DType::U8 | DType::F8E8M0) {
                return Ok(bytes.iter().position(|it| *it == 255).map(|at| bad(at, f32::NAN)));
            }
            let mut values = vec![0.0; elements.len()];
            read_f32(entry.dtype, bytes, &mut values).context(&entry.name)?;
            let at = values.iter().position(|it| !(it.is_finite() && *it > 0.0));
            Ok(at.map(|at| bad(at, values[at])))
        })
    })?;
    Ok(found.into_iter().flatten().next())
}

fn check_fused(output: &Source, catalog: &Catalog, verdict: &mut Verdict) -> Result<()> {
    let with_global = |it: &&StoredModule| output.get(&format!("{}.weight_global_scale", it.name)).is_some();
    let modules: Vec<&StoredModule> = catalog.modules.iter().filter(with_global).collect();
    let names: Vec<&str> = modules.iter().map(|it| it.name.as_str()).collect();
    for group in fused_groups(&names).into_iter().filter(|it| it.len() > 1) {
        let mut scales = Vec::new();
        for idx in &group {
            let entry = output.require(&format!("{}.weight_global_scale", names[*idx]))?;
            scales.push(output.read(entry)?);
        }
        if scales.iter().any(|it| *it != scales[0]) {
            let members = group.iter().map(|idx| names[*idx]).collect::<Vec<_>>().join(", ");
            verdict.fault(FaultKind::FusedScale, members, "engines fuse them, and their global scales differ");
        }
    }
    Ok(())
}
