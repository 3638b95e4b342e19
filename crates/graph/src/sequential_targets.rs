//! Which patterns name the sequential targets.

use crate::error::{ErrorKind, Result};

/// The patterns of the sequential targets: those of the one modifier that gives them, else those of the dataset arguments, else
/// the classes that the model does not split.
///
/// # Errors
/// [`ErrorKind::AmbiguousTargets`] where more than one modifier gives them, or a modifier and the arguments.
pub fn get_sequential_targets(
    modifiers: &[(&str, Option<&[String]>)],
    arguments: Option<&[String]>,
    no_split_modules: &[String],
) -> Result<Vec<String>> {
    let mut places: Vec<(&str, &[String])> =
        modifiers.iter().filter_map(|&(name, given)| Some((name, given?))).collect();
    places.extend(arguments.map(|given| ("sequential_targets", given)));
    match places.as_slice() {
        [] => Ok(no_split_modules.to_vec()),
        [(_, given)] => Ok(given.to_vec()),
        several => {
            let places = several.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" and ");
            Err(ErrorKind::AmbiguousTargets { places }.into())
        }
    }
}
