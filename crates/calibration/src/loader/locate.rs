//! Finding the files that arguments name.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use crate::{
    Error, ErrorKind, Note, Result,
    arguments::DatasetArguments,
    datasets::{self, Dataset, local_copy},
    source::{FileGroup, Source, custom_files, open_groups, open_split},
};

/// The source and the data set whose preprocessing applies, or `None` if no data is named.
pub(super) type Located = Option<(Box<dyn Source>, &'static Dataset, Vec<Note>)>;

pub(super) fn locate(arguments: &DatasetArguments, hub_cache: Option<&Path>) -> Result<Located> {
    let is_dvc = |path: &Option<String>| path.as_ref().is_some_and(|path| path.starts_with("dvc://"));
    if arguments.dvc_data_repository.is_some() || is_dvc(&arguments.dataset_path) || is_dvc(&arguments.dataset) {
        let hint = "fetch the files with dvc and name them in dataset_path".to_owned();
        return Err(ErrorKind::Unsupported { what: "a DVC repository".to_owned(), hint }.into());
    }
    let (dataset, path) = match (&arguments.dataset, &arguments.dataset_path) {
        (None, None) => return Ok(None),
        (None, Some(path)) => (datasets::find("custom")?, PathBuf::from(path)),
        (Some(name), Some(path)) => (datasets::find(name)?, PathBuf::from(path)),
        (Some(name), None) => match datasets::find(name) {
            Ok(dataset) if dataset.hub_id.is_some() => (dataset, local_copy(dataset, hub_cache)?),
            Ok(dataset) if !Path::new(name).exists() => {
                let expected = "the file or folder of the custom data";
                return Err(
                    crate::arguments::invalid("dataset_path", "absent", expected).in_file(Path::new(dataset.name))
                );
            }
            Ok(dataset) => (dataset, PathBuf::from(name)),
            Err(unknown) => {
                let path = PathBuf::from(name);
                if !path.exists() {
                    // Something that looks like a path was meant as one.
                    let is_path = name.contains(['/', '\\']) || path.extension().is_some();
                    return Err(if is_path { Error::from(ErrorKind::Absent).in_file(&path) } else { unknown });
                }
                (datasets::find("custom")?, path)
            }
        },
    };
    let given = arguments.split()?.0;
    let split = given.map(|split| on_disk(dataset, split));
    let config = arguments.dataset_config_name.as_deref().or(dataset.config);
    let (source, notes) = match custom_groups(arguments.dataset.as_deref(), dataset, &path)? {
        Some(groups) => open_groups(&path, groups, split.as_deref())?,
        None => open_split(&path, config, split.as_deref())?,
    };
    Ok(Some((source, dataset, notes)))
}

/// The split expression with the name the data set has on disk; exactly the bare names are translated.
fn on_disk(dataset: &Dataset, split: &str) -> String {
    dataset.split(split).to_owned()
}

/// The reference's grouping of a folder for the data sets `json` and `csv`, where it finds anything.
fn custom_groups(name: Option<&str>, dataset: &Dataset, path: &Path) -> Result<Option<IndexMap<String, Vec<PathBuf>>>> {
    let extension = match name.map(datasets::lookup_name).as_deref() {
        Some(extension @ ("json" | "csv")) if dataset.hub_id.is_none() && path.is_dir() => extension.to_owned(),
        _ => return Ok(None),
    };
    let groups = custom_files(path, &extension)?;
    let files = |group| match group {
        FileGroup::One(file) => vec![file],
        FileGroup::Many(files) => files,
    };
    let groups: IndexMap<String, Vec<PathBuf>> = groups.into_iter().map(|(name, group)| (name, files(group))).collect();
    Ok((!groups.is_empty()).then_some(groups))
}
