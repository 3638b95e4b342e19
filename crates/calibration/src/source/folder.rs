//! Which files of a folder belong to which split.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use indexmap::IndexMap;
use regex::Regex;

use crate::{Error, ErrorKind, Result, arguments::invalid};

/// The files of one split of a custom data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileGroup {
    /// A file that lies in the folder itself.
    One(PathBuf),
    /// The files of a sub folder.
    Many(Vec<PathBuf>),
}

/// Splits of a custom data set: files whose name ends with `extension`, else sub folders that have such files.
///
/// # Errors
/// [`ErrorKind::Absent`] or [`ErrorKind::Io`] for a folder that cannot be listed.
pub fn custom_files(folder: &Path, extension: &str) -> Result<IndexMap<String, FileGroup>> {
    let fits =
        |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.ends_with(extension));
    let entries = list(folder)?;
    let files: Vec<PathBuf> = entries.iter().filter(|path| path.is_file() && fits(path)).cloned().collect();
    let groups = if files.is_empty() {
        let mut groups = IndexMap::new();
        for sub_folder in entries.iter().filter(|path| path.is_dir()) {
            let files: Vec<PathBuf> =
                list(sub_folder)?.into_iter().filter(|path| path.is_file() && fits(path)).collect();
            if !files.is_empty() {
                groups.insert(stem(sub_folder), FileGroup::Many(files));
            }
        }
        groups
    } else {
        files.into_iter().map(|file| (stem(&file), FileGroup::One(file))).collect()
    };
    rename_splits(groups)
}

/// Renames the one key that contains `train`, `val` or `test` to that word; several such keys stay as they are.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`] for a key that could be two of them.
pub fn rename_splits<T>(groups: IndexMap<String, T>) -> Result<IndexMap<String, T>> {
    const WORDS: [&str; 3] = ["train", "val", "test"];
    let mut groups: Vec<(String, T)> = groups.into_iter().collect();
    let names: Vec<String> = groups.iter().map(|(name, _)| name.clone()).collect();
    let mut renamed: Vec<Option<&str>> = vec![None; names.len()];
    for word in WORDS {
        let mut having = names.iter().enumerate().filter(|(_, name)| name.contains(word));
        if let (Some((i, name)), None) = (having.next(), having.next())
            && let Some(other) = renamed[i].replace(word)
        {
            let expected = format!("`{other}` or `{word}` in a name");
            return Err(invalid("dataset_path", &format!("a file `{name}`"), &expected));
        }
    }
    for ((name, _), word) in groups.iter_mut().zip(renamed) {
        if let Some(word) = word {
            *name = word.to_owned();
        }
    }
    Ok(groups.into_iter().collect())
}

static SHARD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"[-_.]\d+-of-\d+.*$").expect("the pattern is constant and tested"));
static WORD: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?:^|[-._ ])((train|test|validation|valid|val|dev|eval)(?:ing)?(?:$|[-._ 0-9]).*|train|test)$")
        .expect("the pattern is constant and tested")
});

/// The data files below a folder by split, at any depth, in path order.
///
/// A file belongs to the split that its name says, else that a folder on its way says, else to `train`.
///
/// # Errors
/// [`ErrorKind::Absent`], [`ErrorKind::Io`], or [`ErrorKind::Empty`] if there is no file that can be read.
pub fn split_files(folder: &Path, config: Option<&str>) -> Result<IndexMap<String, Vec<PathBuf>>> {
    let mut files = Vec::new();
    collect(folder, 0, &mut files)?;
    if let Some(config) = config {
        let inside =
            |file: &PathBuf| file.strip_prefix(folder).is_ok_and(|path| path.iter().any(|part| part == config));
        if files.iter().any(inside) {
            files.retain(inside);
        }
    }
    if files.is_empty() {
        let reason = format!("the folder has no file of a known type ({})", super::open::EXTENSIONS.join(", "));
        return Err(Error::from(ErrorKind::Empty { reason }).in_file(folder));
    }
    let mut groups: IndexMap<String, Vec<PathBuf>> = IndexMap::new();
    for file in files {
        let from_folder = || {
            let way = file.strip_prefix(folder).ok().and_then(Path::parent)?;
            way.iter().rev().find_map(|part| split_word(part.to_str()?, false))
        };
        let split = split_word(&stem(&file), true).or_else(from_folder).unwrap_or_else(|| "train".to_owned());
        groups.entry(split).or_default().push(file);
    }
    Ok(groups)
}

/// The split that a file or folder name says; `train_sft-00000-of-00003` says `train_sft`.
fn split_word(name: &str, is_file: bool) -> Option<String> {
    let lower = name.to_lowercase();
    let cut = SHARD.replace(&lower, "");
    let found = WORD.captures(&cut)?;
    if is_file && cut.len() < lower.len() {
        return Some(found[1].to_owned());
    }
    let word = found.get(2).map_or(&found[1], |word| word.as_str());
    Some(if ["valid", "val", "dev"].contains(&word) { "validation" } else { word }.to_owned())
}

/// Deep enough for every known layout, and the end of a folder that links to itself.
const MAX_DEPTH: usize = 6;

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in list(folder)? {
        let hidden = entry.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with(['.', '_']));
        if hidden {
            continue;
        }
        if entry.is_dir() {
            if depth < MAX_DEPTH {
                collect(&entry, depth + 1, files)?;
            }
        } else if entry.is_file() && super::open::is_data_file(&entry) {
            files.push(entry);
        }
    }
    Ok(())
}

/// The entries of a folder in name order, so that nothing depends on the file system.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io("listing", folder, e))?;
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(|e| Error::io("listing", folder, e))?.path());
    }
    paths.sort();
    Ok(paths)
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_name_says_its_split() {
        for (name, split) in [
            ("train_sft-00000-of-00003-a3ecf92756993583", Some("train_sft")),
            ("c4-train.00000-of-01024", Some("train")),
            ("train", Some("train")),
            ("val", Some("validation")),
            ("validation-00000-of-00001", Some("validation")),
            ("test_foo", Some("test")),
            ("training-data", Some("train")),
            ("latest", None),
            ("data", None),
        ] {
            assert_eq!(split_word(name, true).as_deref(), split, "{name}");
        }
    }
}
