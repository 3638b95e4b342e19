//! Models by name: directories, the local cache, and downloads from a server on the loopback address.

use std::{fs, path::Path};

use checkpoint::{Class, ErrorKind, HubEnvironment, Origin, Source, resolve_model};
use serde_json::json;
use tempfile::tempdir;

use crate::model_dir::{ModelDir, bytes_file};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn environment(cache: &Path) -> HubEnvironment {
    HubEnvironment { hf_hub_cache: Some(cache.to_owned()), offline: true, ..HubEnvironment::default() }
}

/// A cached model with these files.
fn cached(cache: &Path, files: &[(&str, Vec<u8>)]) {
    let model = cache.join("models--org--name");
    let snapshot = model.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(model.join("refs/refs/pr")).unwrap();
    fs::write(model.join("refs/main"), COMMIT).unwrap();
    fs::write(model.join("refs/refs/pr/1"), COMMIT).unwrap();
    for (name, bytes) in files {
        fs::write(snapshot.join(name), bytes).unwrap();
    }
}

#[test]
fn a_directory_that_exists_wins() {
    let dir = ModelDir::sharded();
    let found = resolve_model(dir.path().to_str().unwrap(), None, &HubEnvironment::default()).unwrap();
    assert_eq!((found.dir.as_path(), found.origin), (dir.path(), Origin::Directory));
}

#[test]
fn a_cached_model_is_found_by_branch_pull_request_and_commit() {
    let cache = tempdir().unwrap();
    cached(cache.path(), &[("config.json", b"{}".to_vec()), ("model.safetensors", bytes_file(&[("a", 1)]))]);
    for revision in [None, Some("main"), Some("refs/pr/1"), Some(COMMIT)] {
        let found = resolve_model("org/name", revision, &environment(cache.path())).unwrap();
        assert_eq!(found.origin, Origin::Cache { commit: COMMIT.to_owned() }, "{revision:?}");
        assert_eq!(Source::open(&found.dir).unwrap().tensors().len(), 1);
    }
}

#[test]
fn what_is_not_cached_is_absent_while_offline() {
    let cache = tempdir().unwrap();
    let absent = |revision| resolve_model("org/name", revision, &environment(cache.path())).unwrap_err();
    let error = absent(None);
    assert_eq!(error.class(), Class::InputAbsent);
    assert!(error.to_string().contains("HF_HUB_OFFLINE"), "{error}");
    // A snapshot without its second shard, or with a config alone, is not there either.
    cached(cache.path(), &[("config.json", b"{}".to_vec())]);
    assert_eq!(absent(None).class(), Class::InputAbsent);
    let index = json!({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}).to_string().into_bytes();
    cached(cache.path(), &[("model.safetensors.index.json", index), ("s1.safetensors", bytes_file(&[("a", 1)]))]);
    assert_eq!(absent(None).class(), Class::InputAbsent);
    cached(cache.path(), &[("s2.safetensors", bytes_file(&[("b", 1)]))]);
    assert!(resolve_model("org/name", None, &environment(cache.path())).is_ok());
    assert_eq!(absent(Some("other")).class(), Class::InputAbsent);
}

#[test]
fn names_that_are_no_id_and_revisions_that_leave_the_cache_are_refused() {
    let cache = tempdir().unwrap();
    let error = resolve_model("./no/such/dir", None, &environment(cache.path())).unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Absent { .. }), "{error}");
    for revision in ["../../x", "/etc/passwd", "", "a\\b"] {
        let error = resolve_model("org/name", Some(revision), &environment(cache.path())).unwrap_err();
        assert_eq!(error.class(), Class::Refused, "{revision}: {error}");
    }
    // Nor does a hostile ref lead out of the snapshots.
    cached(cache.path(), &[("model.safetensors", bytes_file(&[("a", 1)]))]);
    fs::write(cache.path().join("models--org--name/refs/main"), "../snapshots/../..").unwrap();
    assert_eq!(resolve_model("org/name", None, &environment(cache.path())).unwrap_err().class(), Class::InputAbsent);
}

#[cfg(not(feature = "hub"))]
#[test]
fn a_build_without_downloader_says_so() {
    let cache = tempdir().unwrap();
    let environment = HubEnvironment { offline: false, ..environment(cache.path()) };
    let error = resolve_model("org/name", None, &environment).unwrap_err();
    assert_eq!(error.class(), Class::Unavailable);
    assert!(error.to_string().contains("no downloader"), "{error}");
}

#[cfg(feature = "hub")]
mod downloads {
    use std::{
        collections::HashMap,
        io::{BufRead as _, BufReader, Write as _},
        net::{TcpListener, TcpStream},
        sync::{Arc, Mutex},
    };

    use serde_json::Value;

    use super::*;

    /// A hub on the loopback address; it ends with the process.
    struct Server {
        endpoint: String,
        requests: Arc<Mutex<Vec<String>>>,
    }

    #[derive(Clone, Default)]
    struct Site {
        files: HashMap<String, Vec<u8>>,
        /// The first answer for this path breaks off after so many bytes.
        break_off: Option<(String, usize)>,
        /// Answered to everything.
        status: Option<u16>,
    }

    impl Site {
        fn model(files: &[(&str, Vec<u8>)]) -> Self {
            let siblings: Vec<Value> =
                files.iter().map(|(name, bytes)| json!({"rfilename": name, "size": bytes.len()})).collect();
            let mut site = Self::default();
            let listing = json!({"sha": COMMIT, "siblings": siblings}).to_string().into_bytes();
            site.files.insert("/api/models/org/name/revision/main?blobs=true".to_owned(), listing);
            for (name, bytes) in files {
                site.files.insert(format!("/org/name/resolve/{COMMIT}/{name}"), bytes.clone());
            }
            site
        }

        fn serve(self) -> Server {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let endpoint = format!("http://{}", listener.local_addr().unwrap());
            let requests = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&requests);
            std::thread::spawn(move || {
                let mut site = self;
                for stream in listener.incoming().flatten() {
                    site.answer(stream, &seen);
                }
            });
            Server { endpoint, requests }
        }

        fn answer(&mut self, mut stream: TcpStream, seen: &Mutex<Vec<String>>) -> Option<()> {
            let mut lines = BufReader::new(stream.try_clone().ok()?).lines().map_while(Result::ok);
            let path = lines.next()?.split(' ').nth(1)?.to_owned();
            let headers: Vec<String> = lines.take_while(|it| !it.is_empty()).map(|it| it.to_lowercase()).collect();
            let header = |name: &str| headers.iter().find_map(|it| it.strip_prefix(name)).map(str::to_owned);
            let from: usize = header("range: bytes=").map_or(0, |it| it.trim_end_matches('-').parse().unwrap());
            let token = header("authorization: ").unwrap_or_default();
            seen.lock().unwrap().push(format!("{path} from {from} {token}").trim_end().to_owned());
            let (status, body) = match (self.status, self.files.get(&path)) {
                (Some(status), _) => (status, &b""[..]),
                (None, Some(bytes)) if from > 0 => (206, &bytes[from..]),
                (None, Some(bytes)) => (200, &bytes[..]),
                (None, None) => (404, &b""[..]),
            };
            let head = format!("HTTP/1.1 {status} x\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all(head.as_bytes()).ok()?;
            let sent = match self.break_off.take() {
                Some((at, n_bytes)) if at == path => &body[..n_bytes],
                other => {
                    self.break_off = other;
                    body
                }
            };
            stream.write_all(sent).ok()
        }
    }

    fn online(cache: &Path, server: &Server) -> HubEnvironment {
        HubEnvironment { offline: false, endpoint: Some(server.endpoint.clone()), ..environment(cache) }
    }

    fn model_files() -> Vec<(&'static str, Vec<u8>)> {
        let index = json!({"weight_map": {"a": "s1.safetensors", "b": "s2.safetensors"}}).to_string().into_bytes();
        vec![
            (".gitattributes", b"x".to_vec()),
            ("README.md", b"x".to_vec()),
            ("config.json", b"{}".to_vec()),
            ("consolidated.safetensors", b"not needed".to_vec()),
            ("model.safetensors.index.json", index),
            ("pytorch_model.bin", b"never".to_vec()),
            ("s1.safetensors", bytes_file(&[("a", 5000)])),
            ("s2.safetensors", bytes_file(&[("b", 7)])),
            ("tokenizer.json", b"{}".to_vec()),
        ]
    }

    #[test]
    fn a_model_is_downloaded_once_and_then_cached() {
        let cache = tempdir().unwrap();
        let server = Site::model(&model_files()).serve();
        let environment = HubEnvironment { token: Some("secret".to_owned()), ..online(cache.path(), &server) };
        let found = resolve_model("org/name", None, &environment).unwrap();
        assert_eq!(found.origin, Origin::Download { commit: COMMIT.to_owned() });
        let source = Source::open(&found.dir).unwrap();
        assert_eq!(source.read(source.get("a").unwrap()).unwrap(), [1; 5000]);
        let mut names: Vec<_> =
            fs::read_dir(&found.dir).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        let expected = [
            "README.md",
            "config.json",
            "model.safetensors.index.json",
            "s1.safetensors",
            "s2.safetensors",
            "tokenizer.json",
        ];
        assert_eq!(names, expected);
        let requests = server.requests.lock().unwrap().clone();
        assert_eq!(requests.len(), 7, "{requests:?}");
        assert!(requests.iter().all(|it| it.ends_with("bearer secret")), "{requests:?}");
        let again = resolve_model("org/name", None, &environment).unwrap();
        assert_eq!(again.origin, Origin::Cache { commit: COMMIT.to_owned() });
        assert_eq!(server.requests.lock().unwrap().len(), 7);
    }

    #[test]
    fn a_download_that_breaks_off_goes_on_where_it_was() {
        let cache = tempdir().unwrap();
        let path = format!("/org/name/resolve/{COMMIT}/s1.safetensors");
        let site = Site { break_off: Some((path.clone(), 3000)), ..Site::model(&model_files()) };
        let server = site.serve();
        let found = resolve_model("org/name", None, &online(cache.path(), &server)).unwrap();
        assert_eq!(fs::read(found.dir.join("s1.safetensors")).unwrap(), bytes_file(&[("a", 5000)]));
        let requests = server.requests.lock().unwrap().clone();
        assert!(requests.contains(&format!("{path} from 3000")), "{requests:?}");
        assert!(!found.dir.join("s1.safetensors.incomplete").exists());
    }

    #[test]
    fn refusals_of_the_hub_are_told_apart() {
        for (status, class, word) in
            [(404, Class::InputAbsent, "404"), (401, Class::Unavailable, "HF_TOKEN"), (500, Class::Unavailable, "500")]
        {
            let cache = tempdir().unwrap();
            let server = Site { status: Some(status), ..Site::default() }.serve();
            let error = resolve_model("org/name", None, &online(cache.path(), &server)).unwrap_err();
            assert_eq!(error.class(), class, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
        let cache = tempdir().unwrap();
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let server = Server { endpoint: format!("http://{closed}"), requests: Arc::default() };
        let error = resolve_model("org/name", None, &online(cache.path(), &server)).unwrap_err();
        assert_eq!(error.class(), Class::Unavailable, "{error}");
    }

    #[test]
    fn file_names_and_commits_that_leave_the_cache_are_refused() {
        for listing in [
            json!({"sha": COMMIT, "siblings": [{"rfilename": "../../../x.json", "size": 1}]}),
            json!({"sha": COMMIT, "siblings": [{"rfilename": "/tmp/x.json", "size": 1}]}),
            json!({"sha": "../../aaaaaaa", "siblings": []}),
        ] {
            let cache = tempdir().unwrap();
            let mut site = Site::default();
            let path = "/api/models/org/name/revision/main?blobs=true".to_owned();
            site.files.insert(path, listing.to_string().into_bytes());
            let server = site.serve();
            let error = resolve_model("org/name", None, &online(cache.path(), &server)).unwrap_err();
            assert_eq!(error.class(), Class::Refused, "{listing}: {error}");
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn a_file_of_another_length_than_announced_is_no_part_of_the_cache() {
        let cache = tempdir().unwrap();
        let mut site = Site::model(&model_files());
        let path = format!("/org/name/resolve/{COMMIT}/s2.safetensors");
        site.files.insert(path, b"short".to_vec());
        let server = site.serve();
        let error = resolve_model("org/name", None, &online(cache.path(), &server)).unwrap_err();
        assert_eq!(error.class(), Class::Unavailable, "{error}");
        assert!(!cache.path().join("models--org--name/refs/main").exists());
        assert!(!cache.path().join(format!("models--org--name/snapshots/{COMMIT}/s2.safetensors")).exists());
    }
}
