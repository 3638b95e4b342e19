//! Which pipeline a run takes: the user's choice, else what the modifiers need.

/// The pipelines that a run can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineKind {
    /// Whole forward passes of the whole model.
    Basic,
    /// One subgraph after the other.
    Sequential,
    /// No data.
    DataFree,
    /// One whole run for every modifier.
    Independent,
    /// One decoder layer after the other, heard by all modifiers at once.
    LayerSequential,
}

/// Every pipeline with its name and the reference's class name, in display order.
const NAMES: [(PipelineKind, &str, &str); 5] = [
    (PipelineKind::Basic, "basic", "BasicPipeline"),
    (PipelineKind::Sequential, "sequential", "SequentialPipeline"),
    (PipelineKind::DataFree, "datafree", "DataFreePipeline"),
    (PipelineKind::Independent, "independent", "IndependentPipeline"),
    (PipelineKind::LayerSequential, "layer-sequential", "LayerSequentialPipeline"),
];

impl PipelineKind {
    /// The name that a user gives.
    pub fn name(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// The reference's name of the class.
    pub fn class_name(self) -> &'static str {
        NAMES[self as usize].2
    }

    /// What modifiers need: a sequential run where one needs data, else none.
    pub fn infer(needs_data: impl IntoIterator<Item = bool>) -> Self {
        if needs_data.into_iter().any(|it| it) { Self::Sequential } else { Self::DataFree }
    }
}

/// A pipeline, and whether the modifiers would have asked for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The pipeline to run.
    pub pipeline: PipelineKind,
    /// What the modifiers ask for, where the user overrules it: something to warn of.
    pub overruled: Option<PipelineKind>,
}

/// A name that is no pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown pipeline `{name}`, known are basic, sequential, datafree, independent, layer_sequential")]
pub struct UnknownPipeline {
    /// The name as given.
    pub name: String,
}

/// Chooses the pipeline from what each modifier needs and what the user names, in any case and with `_`,
/// `-` or a space between words. An empty name is none.
///
/// `layer_sequential` is known, which the reference has left out since its release 0.9.
///
/// # Errors
/// A name that is no pipeline.
pub fn choose_pipeline(
    needs_data: impl IntoIterator<Item = bool>,
    user: Option<&str>,
) -> Result<Choice, UnknownPipeline> {
    let inferred = PipelineKind::infer(needs_data);
    let Some(user) = user.filter(|it| !it.is_empty()) else {
        return Ok(Choice { pipeline: inferred, overruled: None });
    };
    let standard = user.to_lowercase().replace(['_', ' '], "-");
    let found = NAMES.iter().find(|it| it.1 == standard);
    let pipeline = found.ok_or_else(|| UnknownPipeline { name: user.to_owned() })?.0;
    // To ask for independent runs is to let each infer its own.
    let overrules = pipeline != inferred && pipeline != PipelineKind::Independent;
    Ok(Choice { pipeline, overruled: overrules.then_some(inferred) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_declaration_order() {
        for (position, row) in NAMES.iter().enumerate() {
            assert_eq!(row.0 as usize, position);
            assert_eq!((row.0.name(), row.0.class_name()), (row.1, row.2));
        }
    }

    #[test]
    fn overruling_the_modifiers_is_told_and_asking_for_independent_runs_is_not() {
        let choice = |needs, user| choose_pipeline([needs], Some(user)).unwrap();
        assert_eq!(choice(true, "datafree").overruled, Some(PipelineKind::Sequential));
        assert_eq!(choice(false, "Basic").overruled, Some(PipelineKind::DataFree));
        assert_eq!(choice(true, "SEQUENTIAL").overruled, None);
        assert_eq!(choice(true, "independent").overruled, None);
        assert_eq!(choice(true, "layer_sequential").pipeline, PipelineKind::LayerSequential);
    }
}
