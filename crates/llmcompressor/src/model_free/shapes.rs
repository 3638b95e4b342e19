//! Refuses schemes whose groups do not fit the modules, before anything is read.

use compressed_tensors::{
    args::{Dynamic, QuantizationArgs, QuantizationStrategy},
    presets::PRESETS,
    scheme::QuantizationScheme,
};

use super::options::Tolerance;
use crate::{
    catalog::StoredModule,
    error::{Columns, ErrorKind, Result},
};

/// Checks the groups of one scheme against the modules that it gets; the answer is a warning.
///
/// # Errors
/// `Indivisible` for weight groups that do not divide columns, `Unservable` for activation groups that do not, unless
/// that is allowed.
pub(crate) fn check_groups(
    group_name: &str,
    scheme: &QuantizationScheme,
    modules: &[&StoredModule],
    unservable: Tolerance,
) -> Result<Option<String>> {
    if let Some((size, misfits)) = scheme.weights.as_ref().and_then(|it| misfits(it, modules)) {
        let is_choosable = scheme.weights.as_ref().is_some_and(|it| it.r#type.name() == "int");
        let fitting = if is_choosable { fitting_sizes(modules) } else { Vec::new() };
        return Err(ErrorKind::Indivisible { group_size: size, modules: misfits, fitting }.into());
    }
    let Some((size, misfits)) = scheme.input_activations.as_ref().and_then(|it| misfits(it, modules)) else {
        return Ok(None);
    };
    let error = ErrorKind::Unservable {
        scheme: group_name.to_owned(),
        group_size: size,
        modules: misfits,
        schemes: fitting_presets(modules),
    };
    match unservable {
        Tolerance::Refuse => Err(error.into()),
        Tolerance::Allow => Ok(Some(error.to_string())),
    }
}

/// Group size and the modules whose columns it does not divide.
fn misfits(args: &QuantizationArgs, modules: &[&StoredModule]) -> Option<(usize, Vec<Columns>)> {
    if !matches!(args.strategy, QuantizationStrategy::Group | QuantizationStrategy::TensorGroup) {
        return None;
    }
    let size = usize::try_from(args.group_size?).ok().filter(|it| *it > 0)?;
    let misfits: Vec<_> = modules
        .iter()
        .filter(|it| !it.matrix.cols.is_multiple_of(size))
        .map(|it| Columns { module: it.name.clone(), columns: it.matrix.cols })
        .collect();
    (!misfits.is_empty()).then_some((size, misfits))
}

/// Group sizes that kernels know and that divide the columns of every module, ascending.
fn fitting_sizes(modules: &[&StoredModule]) -> Vec<usize> {
    [16, 32, 64, 128, 256]
        .into_iter()
        .filter(|size| modules.iter().all(|it| it.matrix.cols.is_multiple_of(*size)))
        .collect()
}

/// Presets that need no data and whose groups divide the columns of every module.
fn fitting_presets(modules: &[&StoredModule]) -> Vec<String> {
    let needs_no_data = |args: &Option<QuantizationArgs>| args.as_ref().is_none_or(|it| it.dynamic == Dynamic::Yes);
    PRESETS
        .iter()
        .map(|it| (it.name, it.scheme(vec!["Linear".to_owned()])))
        .filter(|(_, scheme)| scheme.weights.is_some() && needs_no_data(&scheme.input_activations))
        .filter(|(_, scheme)| {
            [&scheme.weights, &scheme.input_activations].into_iter().flatten().all(|it| misfits(it, modules).is_none())
        })
        .map(|(name, _)| name.to_owned())
        .collect()
}
