//! Download of a snapshot into the local cache, over the hub's HTTP interface.
//!
//! Files lie in `snapshots/COMMIT/` themselves, as the reference's tools place them where links are unavailable.
//! The revision's name is written last: until then the cache has no such model.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::Value;
use ureq::{Agent, Body, http::Response};

use super::{HubEnvironment, check_relative};
use crate::{
    error::{Error, ErrorKind, Result},
    json,
    source::{is_index, is_safetensors, treatment_of},
};

const PUBLIC_HUB: &str = "https://huggingface.co";
/// Longest description of a model that is read.
const MAX_LISTING_BYTES: u64 = 64 << 20;
/// Largest file that is not a shard.
const MAX_SIDE_BYTES: u64 = 1 << 30;
/// Most files of a model.
const MAX_FILES: usize = 20_000;
/// Tries of one file; each goes on where the one before broke off.
const N_TRIES: usize = 4;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const READ_TIMEOUT: Duration = Duration::from_secs(60);

struct Client<'a> {
    agent: Agent,
    endpoint: String,
    token: Option<&'a str>,
}

/// A file of the snapshot, with its size where the hub tells it.
struct Wanted {
    name: String,
    bytes: Option<u64>,
}

/// Downloads what a model needs; returns the snapshot's directory and commit.
pub(super) fn snapshot(
    id: &str,
    revision: &str,
    model_dir: &Path,
    environment: &HubEnvironment,
) -> Result<(PathBuf, String)> {
    let client = Client::new(environment);
    let listing = client.listing(id, revision)?;
    let malformed = |what: &str| download_fault(format!("the hub's description of `{id}` has no {what}"));
    let commit = listing.get("sha").and_then(Value::as_str).ok_or_else(|| malformed("commit"))?.to_owned();
    if commit.len() < 7 || !commit.chars().all(|it| it.is_ascii_alphanumeric()) {
        return Err(ErrorKind::Unsafe { name: commit, reason: "it is no name of a commit" }.into());
    }
    let siblings = listing.get("siblings").and_then(Value::as_array).ok_or_else(|| malformed("files"))?;
    let dir = model_dir.join("snapshots").join(&commit);
    let mut wanted = wanted_files(siblings)?;
    // The index goes first, since it tells which shards belong to the model.
    wanted.sort_by_key(|it| (!is_index(&it.name), is_safetensors(&it.name)));
    let mut shards = None;
    for file in &wanted {
        let is_left =
            is_safetensors(&file.name) && shards.as_ref().is_some_and(|it: &Vec<String>| !it.contains(&file.name));
        if is_left {
            continue;
        }
        let path = dir.join(&file.name);
        client.fetch(id, &commit, file, &path)?;
        if is_index(&file.name) && shards.is_none() {
            shards = named_shards(&path);
        }
    }
    let name = model_dir.join("refs").join(revision);
    create_parent(&name)?;
    let temp = name.with_extension("new");
    fs::write(&temp, &commit).and_then(|()| fs::rename(&temp, &name)).map_err(|e| Error::io("write", &name, e))?;
    Ok((dir, commit))
}

/// The files that a run reads or copies; weights in other forms are left on the hub.
fn wanted_files(siblings: &[Value]) -> Result<Vec<Wanted>> {
    if siblings.len() > MAX_FILES {
        let (found, limit) = (siblings.len() as u64, MAX_FILES as u64);
        return Err(ErrorKind::TooLarge { what: "the number of files", found, limit }.into());
    }
    let mut wanted = Vec::new();
    for sibling in siblings {
        let Some(name) = sibling.get("rfilename").and_then(Value::as_str) else { continue };
        check_relative(name)?;
        let is_top = !name.contains('/');
        let is_read = is_top && (is_safetensors(name) || is_index(name));
        if !name.starts_with('.') && (is_read || treatment_of(name).is_copied()) {
            wanted.push(Wanted { name: name.to_owned(), bytes: sibling.get("size").and_then(Value::as_u64) });
        }
    }
    Ok(wanted)
}

fn named_shards(index: &Path) -> Option<Vec<String>> {
    let value = json::read_json(index, "the index", json::MAX_INDEX_BYTES).ok()?;
    let map = value.get("weight_map")?.as_object()?;
    Some(map.values().filter_map(Value::as_str).map(str::to_owned).collect())
}

impl<'a> Client<'a> {
    fn new(environment: &'a HubEnvironment) -> Self {
        let endpoint = environment.endpoint.as_deref().unwrap_or(PUBLIC_HUB).trim_end_matches('/').to_owned();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(READ_TIMEOUT))
            .timeout_per_read(Some(READ_TIMEOUT))
            .user_agent(concat!("llmcompressor/", env!("CARGO_PKG_VERSION")));
        // A server on this very machine is never behind a proxy.
        let is_local =
            ["http://127.0.0.1", "http://localhost", "http://[::1]"].iter().any(|it| endpoint.starts_with(it));
        let config = if is_local { config.proxy(None) } else { config };
        Self { agent: config.build().new_agent(), endpoint, token: environment.token.as_deref() }
    }

    /// Sends a request; the token goes to the endpoint and to no server that it redirects to.
    fn get(&self, url: &str, from_byte: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url);
        if let Some(token) = self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        if from_byte > 0 {
            request = request.header("range", format!("bytes={from_byte}-"));
        }
        let response = request.call().map_err(|e| download_fault(format!("{url}: {e}")))?;
        match response.status().as_u16() {
            200 | 206 => Ok(response),
            404 => {
                Err(ErrorKind::Absent { what: format!("{url} (HTTP 404)"), hint: "check the name and the revision" }
                    .into())
            }
            status @ (401 | 403) => {
                let advice =
                    if self.token.is_some() { "HF_TOKEN has no access" } else { "set HF_TOKEN if the model is gated" };
                Err(download_fault(format!("{url}: access denied (HTTP {status}); {advice}")))
            }
            status => Err(download_fault(format!("{url}: HTTP {status}"))),
        }
    }

    fn listing(&self, id: &str, revision: &str) -> Result<Value> {
        let url =
            format!("{}/api/models/{id}/revision/{}?blobs=true", self.endpoint, escaped(revision).replace('/', "%2F"));
        let mut text = Vec::new();
        let mut body = self.get(&url, 0)?.into_body().into_with_config().limit(MAX_LISTING_BYTES).reader();
        body.read_to_end(&mut text).map_err(|e| download_fault(format!("{url}: {e}")))?;
        json::parse_json(&text, "the hub's description of the model")
    }

    /// Downloads one file, going on where an earlier try, or an earlier run, broke off.
    fn fetch(&self, id: &str, commit: &str, file: &Wanted, path: &Path) -> Result<()> {
        if fs::metadata(path).is_ok_and(|it| it.is_file() && file.bytes.is_none_or(|bytes| it.len() == bytes)) {
            return Ok(());
        }
        create_parent(path)?;
        let mut temp = path.as_os_str().to_owned();
        temp.push(".incomplete");
        let temp = PathBuf::from(temp);
        let url = format!("{}/{id}/resolve/{commit}/{}", self.endpoint, escaped(&file.name));
        tracing::info!(file = %file.name, bytes = file.bytes, "downloading");
        for n_tries_left in (0..N_TRIES).rev() {
            match self.fetch_rest(&url, file, &temp)? {
                None => break,
                Some(broken) if n_tries_left == 0 => return Err(broken),
                Some(broken) => tracing::warn!("{broken}; trying again"),
            }
        }
        fs::rename(&temp, path).map_err(|e| Error::io("rename", path, e))
    }

    /// Asks for what is still missing; `Some` is a stream that broke and may be asked for again.
    fn fetch_rest(&self, url: &str, wanted: &Wanted, temp: &Path) -> Result<Option<Error>> {
        let failed = |e: io::Error| Error::io("write to", temp, e);
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(temp).map_err(failed)?;
        let mut have = file.metadata().map_err(failed)?.len();
        if wanted.bytes.is_none_or(|it| have > it) {
            // Without a known size a rest cannot be told from a whole.
            have = 0;
        }
        if wanted.bytes.is_none_or(|it| have < it) || have == 0 {
            let response = self.get(url, have)?;
            if response.status().as_u16() != 206 {
                have = 0;
            }
            file.set_len(have).and_then(|()| file.seek(SeekFrom::Start(have))).map_err(failed)?;
            let limit = wanted.bytes.map_or(MAX_SIDE_BYTES, |it| it - have);
            let said = response.body().content_length();
            let mut body =
                response.into_body().into_with_config().limit(u64::MAX).reader().take(limit.saturating_add(1));
            let got = match copy(&mut body, &mut file) {
                Ok(got) => got,
                Err(CopyFault::Read(e)) => return Ok(Some(download_fault(format!("{url}: {e}")))),
                Err(CopyFault::Write(e)) => return Err(failed(e)),
            };
            let expected = wanted.bytes.map(|it| it - have).or(said).unwrap_or(got);
            if got > expected {
                // These are not the bytes that were announced: nothing of them is kept.
                file.set_len(0).map_err(failed)?;
            }
            if got != expected {
                return Ok(Some(download_fault(format!("{url}: {got} bytes came, {expected} were announced"))));
            }
        }
        file.sync_data().map_err(failed)?;
        Ok(None)
    }
}

enum CopyFault {
    Read(io::Error),
    Write(io::Error),
}

/// Copies a stream; a fault of the network is told from one of the disk.
fn copy(from: &mut impl Read, to: &mut fs::File) -> Result<u64, CopyFault> {
    let mut buffer = vec![0; 1 << 18];
    let mut n_bytes = 0;
    loop {
        let n_read = match from.read(&mut buffer) {
            Ok(0) => return Ok(n_bytes),
            Ok(n_read) => n_read,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyFault::Read(e)),
        };
        to.write_all(&buffer[..n_read]).map_err(CopyFault::Write)?;
        n_bytes += n_read as u64;
    }
}

fn create_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|e| Error::io("create", parent, e))
}

/// A path as it stands in a URL.
fn escaped(path: &str) -> String {
    let mut out = String::new();
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' | b'/' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn download_fault(reason: String) -> Error {
    ErrorKind::Download { reason }.into()
}
