//! Opening files and folders by what their names say.

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::{Csv, JsonArray, Jsonl, Row, Sliced, Source, Split, Text, lines::open_regular, split_files, split_name};
use crate::{Error, ErrorKind, Note, Place, Result};

/// Extensions of files that can be read.
pub(crate) const EXTENSIONS: &[&str] = &["jsonl", "ndjson", "json", "csv", "tsv", "txt", "text", "parquet", "arrow"];

/// Files that libraries put beside data.
const DESCRIPTIONS: &[&str] = &["dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"];

pub(crate) fn is_data_file(path: &Path) -> bool {
    let is_description =
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| DESCRIPTIONS.contains(&name));
    !is_description && extension(path).is_some_and(|extension| EXTENSIONS.contains(&extension.as_str()))
}

/// Opens one data file by its extension.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for an extension that no reader knows, and what the reader refuses.
pub fn open(path: &Path) -> Result<Box<dyn Source>> {
    let refused = |what: &str, hint: &str| {
        let (what, hint) = (what.to_owned(), hint.to_owned());
        Err(Error::from(ErrorKind::Unsupported { what, hint }).in_file(path))
    };
    match extension(path).as_deref() {
        Some("jsonl" | "ndjson") => Ok(Box::new(Jsonl::open(path)?)),
        Some("json") if starts_with_bracket(path)? => Ok(Box::new(JsonArray::open(path)?)),
        Some("json") => Ok(Box::new(Jsonl::open(path)?)),
        Some("csv" | "tsv") => Ok(Box::new(Csv::open(path)?)),
        Some("txt" | "text") => Ok(Box::new(Text::open(path)?)),
        #[cfg(feature = "parquet")]
        Some("parquet") => Ok(Box::new(super::Parquet::open(path)?)),
        #[cfg(feature = "parquet")]
        Some("arrow") => Ok(Box::new(super::Arrow::open(path)?)),
        #[cfg(not(feature = "parquet"))]
        Some("parquet" | "arrow") => {
            refused("a Parquet or Arrow file", "this build lacks the feature `parquet`, save the data as JSON lines")
        }
        Some("gz" | "zst" | "xz" | "bz2" | "zip") => refused("a compressed file", "decompress it first"),
        Some("pkl" | "pickle" | "pt" | "bin") => {
            refused("a pickle file", "save the data as JSON lines; pickles run code")
        }
        _ => refused("a file of this type", &format!("known are {}", EXTENSIONS.join(", "))),
    }
}

/// Opens a file or folder and takes a split of it.
///
/// A lone file is the split `train`; in a folder, names say the splits (see [`split_files`]).
///
/// # Errors
/// [`ErrorKind::UnknownName`] for a split that is not there, and what readers refuse.
pub fn open_split(path: &Path, config: Option<&str>, split: Option<&str>) -> Result<(Box<dyn Source>, Vec<Note>)> {
    let metadata = std::fs::metadata(path).map_err(|e| Error::io("opening", path, e))?;
    let groups = if metadata.is_dir() {
        split_files(path, config)?
    } else {
        IndexMap::from([("train".to_owned(), vec![path.to_owned()])])
    };
    open_groups(path, groups, split)
}

/// Takes a split of files that are grouped by split already.
///
/// # Errors
/// [`ErrorKind::UnknownName`] for a split that is not there, and what readers refuse.
pub fn open_groups(
    folder: &Path,
    mut groups: IndexMap<String, Vec<PathBuf>>,
    split: Option<&str>,
) -> Result<(Box<dyn Source>, Vec<Note>)> {
    let parts = split.map(Split::parse).transpose()?;
    let name = parts.as_deref().map(split_name).transpose()?;
    let found: Vec<String> = groups.keys().cloned().collect();
    let mut notes = Vec::new();
    let chosen = match (name, &found[..]) {
        (Some("val" | "valid" | "dev"), _) if groups.contains_key("validation") => "validation".to_owned(),
        (Some(name), _) => name.to_owned(),
        (None, [only]) => only.clone(),
        (None, _) => {
            let split = "train".to_owned();
            notes.push(Note::SplitChosen { split: split.clone(), found: found.clone() });
            split
        }
    };
    let Some(files) = groups.shift_remove(&chosen) else {
        return Err(Error::from(ErrorKind::UnknownName { what: "split", name: chosen, known: found }).in_file(folder));
    };
    let source = joined(folder, files)?;
    match parts {
        Some(parts) if !matches!(&parts[..], [whole] if whole.is_whole()) => {
            Ok((Box::new(Sliced::new(source, &parts)?), notes))
        }
        _ => Ok((source, notes)),
    }
}

pub(crate) fn joined(folder: &Path, files: Vec<PathBuf>) -> Result<Box<dyn Source>> {
    match &files[..] {
        [file] => open(file),
        _ => Ok(Box::new(Joined::new(folder, files))),
    }
}

/// Several files as one source, opened when they are reached.
pub struct Joined {
    folder: PathBuf,
    files: Vec<PathBuf>,
    opened: Vec<Box<dyn Source>>,
    /// Index of the first row of each counted file, and of the first after them.
    starts: Vec<usize>,
}

impl Joined {
    /// Joins files in the order given.
    pub fn new(folder: &Path, files: Vec<PathBuf>) -> Self {
        Self { folder: folder.to_owned(), files, opened: Vec::new(), starts: vec![0] }
    }

    fn ensure_open(&mut self, file: usize) -> Result<()> {
        while self.opened.len() <= file {
            let source = open(&self.files[self.opened.len()])?;
            self.opened.push(source);
        }
        Ok(())
    }

    /// Counts one more file; false if there is none.
    fn count_next(&mut self) -> Result<bool> {
        let file = self.starts.len() - 1;
        if file == self.files.len() {
            return Ok(false);
        }
        self.ensure_open(file)?;
        let n = self.opened[file].count()?;
        self.starts.push(self.starts[file] + n);
        Ok(true)
    }

    /// The file of a row that lies in a counted file, and its index there.
    fn locate(&self, index: usize) -> Option<(usize, usize)> {
        let file = self.starts.partition_point(|&start| start <= index) - 1;
        (file + 1 < self.starts.len()).then(|| (file, index - self.starts[file]))
    }
}

impl Source for Joined {
    fn path(&self) -> &Path {
        &self.folder
    }

    fn row(&mut self, index: usize) -> Result<Option<Row>> {
        loop {
            if let Some((file, inner)) = self.locate(index) {
                return self.opened[file].row(inner);
            }
            // The file that comes next is read only as far as this row, and counted once it ends before it.
            let file = self.starts.len() - 1;
            if file == self.files.len() {
                return Ok(None);
            }
            self.ensure_open(file)?;
            let inner = index - self.starts[file];
            if let Some(row) = self.opened[file].row(inner)? {
                return Ok(Some(row));
            }
            self.count_next()?;
        }
    }

    fn count(&mut self) -> Result<usize> {
        while self.count_next()? {}
        Ok(self.starts.last().copied().unwrap_or(0))
    }

    fn expect_rows(&mut self, rows: &[usize]) -> Result<()> {
        let located: Vec<(usize, usize)> = rows.iter().filter_map(|&row| self.locate(row)).collect();
        for (file, source) in self.opened.iter_mut().enumerate() {
            let inner: Vec<usize> = located.iter().filter(|(of, _)| *of == file).map(|(_, inner)| *inner).collect();
            source.expect_rows(&inner)?;
        }
        Ok(())
    }

    fn place(&self, index: usize) -> Place {
        let file = self.starts.len() - 1;
        let (file, inner) = self.locate(index).unwrap_or((file, index - self.starts[file].min(index)));
        match self.opened.get(file) {
            Some(source) => source.place(inner),
            None => Place { path: self.folder.clone(), line: None },
        }
    }
}

fn extension(path: &Path) -> Option<String> {
    path.extension().and_then(|extension| extension.to_str()).map(str::to_lowercase)
}

/// Whether the first byte that is no space opens an array.
fn starts_with_bracket(path: &Path) -> Result<bool> {
    use std::io::{BufReader, Read};
    for byte in BufReader::new(open_regular(path)?).bytes() {
        let byte = byte.map_err(|e| Error::io("reading", path, e))?;
        if !byte.is_ascii_whitespace() && !b"\xef\xbb\xbf".contains(&byte) {
            return Ok(byte == b'[');
        }
    }
    Ok(false)
}
