//! A model directory that is read: its shards, its tensors by name, its config.

mod companions;
mod handles;
mod index;
mod listing;

use std::{
    fs,
    num::NonZeroU64,
    ops::Range,
    path::{Path, PathBuf},
};

use compressed_tensors::DType;
use indexmap::IndexMap;
use rustix::fs::Advice;
use serde_json::Value;

pub use companions::{Companion, Treatment};
pub use listing::Links;

use crate::{
    error::{Error, ErrorKind, Result},
    header::{Header, MAX_HEADER_BYTES, PREFIX_BYTES},
    json,
    regular::{self, Stamp},
};
#[cfg(feature = "hub")]
pub(crate) use companions::treatment_of;
use handles::Handles;
pub(crate) use index::is_foreign_weights;
#[cfg(feature = "hub")]
pub(crate) use index::{is_index, is_safetensors};
use listing::Listing;
pub(crate) use listing::check_file_name;

/// An opened checkpoint.
///
/// Opening reads and checks every header and no tensor data.
/// Reads are positional, take `&self` and may come from many threads at once.
#[derive(Debug)]
pub struct Source {
    dir: PathBuf,
    shards: Vec<Shard>,
    tensors: Vec<TensorEntry>,
    /// Positions in `tensors`, sorted by name.
    by_name: Vec<usize>,
    index: Option<IndexFacts>,
    config: Option<Config>,
    companions: Vec<Companion>,
    warnings: Vec<String>,
    fingerprint: String,
    handles: Handles,
}

/// One safetensors file of a checkpoint.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Its name in the directory.
    pub file_name: String,
    /// Where its bytes are, links resolved.
    pub path: PathBuf,
    /// Length of the file in bytes.
    pub file_bytes: u64,
    /// Its `__metadata__` strings.
    pub metadata: IndexMap<String, String>,
    stamp: Stamp,
}

/// Where one tensor lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Its name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// Index into [`Source::shards`].
    pub shard_idx: usize,
    /// Its bytes, from the start of the file.
    pub range: Range<u64>,
}

impl TensorEntry {
    /// Bytes that the tensor takes.
    pub fn n_bytes(&self) -> u64 {
        self.range.end - self.range.start
    }
}

/// What an index says beside the names.
#[derive(Clone, Debug)]
pub struct IndexFacts {
    /// File name of the index.
    pub file_name: String,
    /// Its `metadata`, in order.
    pub metadata: serde_json::Map<String, Value>,
}

#[derive(Debug)]
struct Config {
    path: PathBuf,
    text: Vec<u8>,
    value: Value,
}

impl Source {
    /// Opens a model directory; links are accepted within it and as the Hugging Face cache lays them out.
    ///
    /// # Errors
    /// Every fault of a header, of the index, of the config and of the links, with file and tensor.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self> {
        Self::open_with(dir, Links::Confined)
    }

    /// Opens a model directory under a rule for links.
    ///
    /// # Errors
    /// As [`Source::open`].
    pub fn open_with(dir: impl AsRef<Path>, links: Links) -> Result<Self> {
        let listing = Listing::read(dir.as_ref(), links)?;
        let config = read_config(&listing)?;
        let chosen = index::choose_shards(&listing)?;
        let mut source = Self {
            dir: listing.dir.clone(),
            shards: Vec::with_capacity(chosen.file_names.len()),
            tensors: Vec::new(),
            by_name: Vec::new(),
            index: None,
            config,
            companions: companions::list(&listing)?,
            warnings: chosen.warnings,
            fingerprint: String::new(),
            handles: Handles::default(),
        };
        let mut digest = blake3::Hasher::new();
        for file_name in chosen.file_names {
            source.add_shard(&listing, file_name, &mut digest)?;
        }
        source.by_name = index::unique_names(&source.shards, &source.tensors)?;
        if let Some(index) = chosen.index {
            source.warnings.extend(index.check(&source)?);
            source.index = Some(index.facts);
        }
        for companion in source.companions.iter().filter(|it| it.treatment.is_copied()) {
            let meta = fs::metadata(&companion.path).map_err(|e| Error::io("look at", &companion.path, e))?;
            let stamp = Stamp::of(&meta);
            digest.update(companion.name.as_bytes()).update(b"\0");
            digest.update(&stamp.bytes.to_le_bytes()).update(&stamp.modified_ns.to_le_bytes());
        }
        if let Some(config) = &source.config {
            digest.update(b"config\0").update(&config.text);
        }
        source.fingerprint = digest.finalize().to_hex().to_string();
        Ok(source)
    }

    fn add_shard(&mut self, listing: &Listing, file_name: String, digest: &mut blake3::Hasher) -> Result<()> {
        let path = listing.resolve(&file_name)?;
        let (file, stamp) = regular::open(&path, "the shard")?;
        let text = read_header(&file, stamp.bytes).map_err(|e| e.at(&path))?;
        let data_start = PREFIX_BYTES + text.len() as u64;
        let header =
            Header::parse(&text, stamp.bytes - data_start).map_err(|e| cut_or(e, data_start, stamp.bytes).at(&path))?;
        digest.update(file_name.as_bytes()).update(b"\0");
        digest.update(&stamp.bytes.to_le_bytes()).update(&stamp.modified_ns.to_le_bytes()).update(&text);
        let shard_idx = self.shards.len();
        self.tensors.extend(header.tensors.into_iter().map(|it| TensorEntry {
            name: it.name,
            dtype: it.dtype,
            shape: it.shape,
            shard_idx,
            range: data_start + it.start..data_start + it.end,
        }));
        self.shards.push(Shard { file_name, path, file_bytes: stamp.bytes, metadata: header.metadata, stamp });
        Ok(())
    }

    /// The directory, links resolved.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The shards; with an index in the order of their names.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// All tensors, shard after shard, each in the order of its bytes.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorEntry> {
        self.tensors.iter()
    }

    /// Looks a tensor up by name.
    pub fn get(&self, name: &str) -> Option<&TensorEntry> {
        let found = self.by_name.binary_search_by(|it| self.tensors[*it].name.as_str().cmp(name)).ok()?;
        Some(&self.tensors[self.by_name[found]])
    }

    /// Looks a tensor up that must be there.
    ///
    /// # Errors
    /// `NoSuchTensor`, placed at the directory and the name.
    pub fn require(&self, name: &str) -> Result<&TensorEntry> {
        self.get(name).ok_or_else(|| ErrorKind::NoSuchTensor.at(&self.dir).tensor(name))
    }

    /// Fills `out` with the tensor's bytes from `offset_bytes` on.
    ///
    /// # Errors
    /// `Changed` where the file was cut, replaced or touched since it was opened, `Io`, and `Contract` where
    /// the range leaves the tensor; placed at file and tensor.
    pub fn read_into(&self, entry: &TensorEntry, offset_bytes: u64, out: &mut [u8]) -> Result<()> {
        let Some(shard) = self.shards.get(entry.shard_idx) else {
            return Err(ErrorKind::NoSuchTensor.at(&self.dir).tensor(&entry.name));
        };
        let end = offset_bytes.checked_add(out.len() as u64);
        if end.is_none_or(|it| it > entry.n_bytes()) {
            let reason = format!("a read of {} bytes at {offset_bytes} leaves the tensor", out.len());
            return Err(ErrorKind::Contract { reason }.at(&shard.path).tensor(&entry.name));
        }
        let mut read = || {
            let file = self.handles.get(entry.shard_idx, shard)?;
            regular::read_exact_at(&file, out, entry.range.start + offset_bytes)
        };
        read().map_err(|e| e.at(&shard.path).tensor(&entry.name))
    }

    /// Tells the system that these bytes of the tensor are about to be read in pieces; it fetches them ahead.
    ///
    /// # Errors
    /// `Changed` and `Io` where the file cannot be opened; that the system takes no advice is no fault.
    pub fn will_read(&self, entry: &TensorEntry, offset_bytes: u64, n_bytes: u64) -> Result<()> {
        let Some(shard) = self.shards.get(entry.shard_idx) else {
            return Err(ErrorKind::NoSuchTensor.at(&self.dir).tensor(&entry.name));
        };
        let file = self.handles.get(entry.shard_idx, shard).map_err(|e| e.at(&shard.path).tensor(&entry.name))?;
        let offset = entry.range.start.saturating_add(offset_bytes);
        let _ = rustix::fs::fadvise(&*file, offset, NonZeroU64::new(n_bytes), Advice::WillNeed);
        Ok(())
    }

    /// Reads a whole tensor.
    ///
    /// # Errors
    /// As [`Source::read_into`].
    pub fn read(&self, entry: &TensorEntry) -> Result<Vec<u8>> {
        // The range lies inside a file that was there, so its length fits memory addresses.
        let mut out = vec![0; entry.n_bytes() as usize];
        self.read_into(entry, 0, &mut out)?;
        Ok(out)
    }

    /// Checks that no shard and no config was touched since they were opened; costs one `stat` a file.
    ///
    /// # Errors
    /// `Changed`, placed at the file.
    pub fn check_unchanged(&self) -> Result<()> {
        for shard in &self.shards {
            shard.check_unchanged()?;
        }
        if let Some(config) = &self.config
            && fs::read(&config.path).ok().as_ref() != Some(&config.text)
        {
            return Err(ErrorKind::Changed { reason: "the config has other bytes".to_owned() }.at(&config.path));
        }
        Ok(())
    }

    /// The `config.json` (else `params.json`), keys in their order.
    ///
    /// # Errors
    /// `Absent` where there is neither.
    pub fn config(&self) -> Result<&Value> {
        match &self.config {
            Some(config) => Ok(&config.value),
            None => Err(ErrorKind::Absent { what: "config.json".to_owned(), hint: "" }.at(&self.dir)),
        }
    }

    /// What the index says beside the names; none where the directory has no index.
    pub fn index(&self) -> Option<&IndexFacts> {
        self.index.as_ref()
    }

    /// Every file that is neither shard, index nor config, with what happens to it, sorted by name.
    pub fn companions(&self) -> &[Companion] {
        &self.companions
    }

    /// What is odd and yet accepted, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Hash over names, sizes and modification times of all shards and copied companions, the headers, and the config.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The directory and every file that is read from elsewhere: what an output must not touch.
    pub fn paths(&self) -> Vec<PathBuf> {
        let outside = self.shards.iter().filter(|it| !it.path.starts_with(&self.dir)).map(|it| it.path.clone());
        std::iter::once(self.dir.clone()).chain(outside).collect()
    }
}

impl Shard {
    fn check_unchanged(&self) -> Result<()> {
        let now = fs::metadata(&self.path).map_err(|e| Error::io("look at", &self.path, e))?;
        self.check_stamp(&Stamp::of(&now)).map_err(|e| e.at(&self.path))
    }

    fn check_stamp(&self, now: &Stamp) -> Result<()> {
        let reason = if now.bytes != self.stamp.bytes {
            format!("the file had {} bytes and has {}", self.stamp.bytes, now.bytes)
        } else if now != &self.stamp {
            "the file was written to or replaced".to_owned()
        } else {
            return Ok(());
        };
        Err(ErrorKind::Changed { reason }.into())
    }
}

/// The header's text; the length field is checked against the file before anything is allocated.
pub(crate) fn read_header(file: &fs::File, file_bytes: u64) -> Result<Vec<u8>> {
    if file_bytes < PREFIX_BYTES {
        return Err(ErrorKind::Truncated { needed: PREFIX_BYTES, actual: file_bytes }.into());
    }
    let mut prefix = [0; PREFIX_BYTES as usize];
    regular::read_exact_at(file, &mut prefix, 0)?;
    let header_bytes = u64::from_le_bytes(prefix);
    if header_bytes > MAX_HEADER_BYTES {
        let limit = MAX_HEADER_BYTES;
        return Err(ErrorKind::TooLarge { what: "the header length", found: header_bytes, limit }.into());
    }
    let needed = PREFIX_BYTES + header_bytes;
    if needed > file_bytes {
        return Err(ErrorKind::Truncated { needed, actual: file_bytes }.into());
    }
    let mut text = vec![0; header_bytes as usize];
    regular::read_exact_at(file, &mut text, PREFIX_BYTES)?;
    Ok(text)
}

/// A range that ends past the data is a cut file if it is the file that is too short.
fn cut_or(error: Error, data_start: u64, file_bytes: u64) -> Error {
    match error.kind() {
        ErrorKind::Offsets { found, .. } if found.1 > file_bytes - data_start => {
            let needed = data_start.saturating_add(found.1);
            let kind = ErrorKind::Truncated { needed, actual: file_bytes };
            match &error.place().tensor {
                Some(name) => Error::from(kind).tensor(name),
                None => kind.into(),
            }
        }
        _ => error,
    }
}

fn read_config(listing: &Listing) -> Result<Option<Config>> {
    const WHAT: &str = "the config";
    let Some(name) = ["config.json", "params.json"].into_iter().find(|it| listing.has(it)) else {
        return Ok(None);
    };
    let path = listing.resolve(name)?;
    let text = regular::read_whole(&path, WHAT, json::MAX_CONFIG_BYTES)?;
    let value = json::parse_json(&text, WHAT).map_err(|e| e.at(&path))?;
    if !value.is_object() {
        let reason = "the top level is not an object".to_owned();
        return Err(ErrorKind::Syntax { what: WHAT, reason }.at(&path).line_column(1, 1));
    }
    Ok(Some(Config { path, text, value }))
}
