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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_place_wins_and_two_are_refused_by_name() {
        let (a, b) = (vec!["Linear".to_owned()], vec!["DecoderLayer".to_owned()]);
        let no_split = ["LlamaDecoderLayer".to_owned()];
        assert_eq!(get_sequential_targets(&[("gptq", None)], None, &no_split).unwrap(), no_split);
        assert_eq!(get_sequential_targets(&[("gptq", Some(&a)), ("awq", None)], None, &no_split).unwrap(), a);
        assert_eq!(get_sequential_targets(&[("gptq", None)], Some(&b), &no_split).unwrap(), b);
        let error = get_sequential_targets(&[("gptq", Some(&a))], Some(&b), &no_split).unwrap_err();
        assert_eq!(error.kind(), &ErrorKind::AmbiguousTargets { places: "gptq and sequential_targets".to_owned() });
        assert!(get_sequential_targets(&[("gptq", Some(&a)), ("awq", Some(&b))], None, &no_split).is_err());
    }
}
