//! The journal of an unfinished output: one line for each committed unit, each with its own checksum.

use std::{fs::File, path::PathBuf};

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::disk::Disk;
use crate::{
    error::{Error, ErrorKind, Result},
    regular,
};

/// Longest journal that is read.
const MAX_JOURNAL_BYTES: u64 = 4 << 30;
/// What separates a line's entry from its checksum.
const SEAL: &str = ",\"check\":\"";
/// Hex digits of a line's checksum.
const CHECK_DIGITS: usize = 32;

/// A unit to be committed: its bytes are written, and after the commit they are never lost.
#[derive(Clone, Debug, Default)]
pub struct UnitCommit {
    /// Name of the unit, such as a module path; unique in the output.
    pub name: String,
    /// The planned tensors that the unit wrote.
    pub tensors: Vec<String>,
    /// The files that [`Writer::write_unit_file`](super::Writer::write_unit_file) wrote for the unit.
    pub files: Vec<String>,
    /// State to find again when the run resumes.
    pub snapshot: Option<Value>,
}

/// A committed unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DoneUnit {
    /// Its name.
    #[serde(rename = "unit")]
    pub name: String,
    /// BLAKE3 of its tensors' bytes in hex, by tensor name.
    pub tensors: IndexMap<String, String>,
    /// BLAKE3 of its own files in hex, by file name.
    pub files: IndexMap<String, String>,
    /// The state that was handed in at the commit.
    pub snapshot: Option<Value>,
}

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    bytes: u64,
    pub(super) done: IndexMap<String, DoneUnit>,
}

impl Journal {
    /// Opens or creates the journal; a torn or foreign tail is left out and overwritten by the next line.
    pub(super) fn open(disk: &Disk, path: PathBuf) -> Result<Self> {
        let file = disk.open(&path)?;
        let text = regular::read_whole(&path, "the journal", MAX_JOURNAL_BYTES)?;
        let (mut bytes, mut done) = (0, IndexMap::new());
        for line in text.split_inclusive(|it| *it == b'\n') {
            let Some(unit) = parse_line(line) else { break };
            bytes += line.len() as u64;
            done.insert(unit.name.clone(), unit);
        }
        Ok(Self { path, file, bytes, done })
    }

    /// Appends the lines of these units and brings them to the disk.
    pub(super) fn append(&mut self, disk: &Disk, units: Vec<DoneUnit>) -> Result<()> {
        let lines = lines_of(&units).map_err(|e| e.at(&self.path))?;
        // What an earlier append left half-way must not follow a shorter line.
        disk.set_len(&self.file, &self.path, self.bytes)?;
        disk.write_at(&self.file, &self.path, lines.as_bytes(), self.bytes)?;
        disk.sync(&self.file, &self.path)?;
        self.bytes += lines.len() as u64;
        self.done.extend(units.into_iter().map(|it| (it.name.clone(), it)));
        Ok(())
    }

    /// Replaces the journal by one that holds only the units that `keep` accepts.
    pub(super) fn retain(
        &mut self,
        disk: &Disk,
        temp: &std::path::Path,
        keep: impl Fn(&DoneUnit) -> bool,
    ) -> Result<()> {
        self.done.retain(|_, unit| keep(unit));
        let lines = lines_of(self.done.values())?;
        disk.write_whole(temp, &self.path, lines.as_bytes())?;
        self.file = disk.open(&self.path)?;
        self.bytes = lines.len() as u64;
        Ok(())
    }
}

fn lines_of<'a>(units: impl IntoIterator<Item = &'a DoneUnit>) -> Result<String> {
    let mut lines = String::new();
    for unit in units {
        let text = serde_json::to_string(unit).map_err(|e| {
            Error::from(ErrorKind::Contract { reason: format!("the snapshot of {} is no JSON: {e}", unit.name) })
        })?;
        // An object's text ends with `}`, which moves behind the checksum.
        let entry = &text[..text.len() - 1];
        lines.push_str(&format!("{entry}{SEAL}{}\"}}\n", check_of(entry.as_bytes())));
    }
    Ok(lines)
}

fn parse_line(line: &[u8]) -> Option<DoneUnit> {
    let body = line.strip_suffix(b"\"}\n")?;
    let (rest, check) = body.split_at_checked(body.len().checked_sub(CHECK_DIGITS)?)?;
    let entry = rest.strip_suffix(SEAL.as_bytes())?;
    if check != check_of(entry).as_bytes() {
        return None;
    }
    let mut text = entry.to_vec();
    text.push(b'}');
    serde_json::from_slice(&text).ok()
}

fn check_of(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..CHECK_DIGITS].to_owned()
}
