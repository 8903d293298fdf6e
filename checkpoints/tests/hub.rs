//! The hub against a server on the loopback interface that answers as the hub does.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use retie_checkpoint::{CheckpointError, Hub, HubAddress, HubError, HubId, ModelSource};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What one test's server holds, and what it was asked.
#[derive(Default)]
struct State {
    /// Path in the repository → content.
    files: BTreeMap<String, Vec<u8>>,
    /// Files whose content is answered with an error page.
    broken: Vec<String>,
    /// Every request line, with `+token` if the right one came along.
    requests: Vec<String>,
}

struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// A server of the repository `prefix` (`org/name`, or `datasets/org/name`).
    fn start(prefix: &'static str, files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), prefix, &shared);
            }
        });
        Self { address, state }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().requests)
    }

    fn hub(&self, cache: &Path) -> Hub {
        hub(&self.address, cache, false)
    }
}

fn hub(endpoint: &str, cache: &Path, offline: bool) -> Hub {
    Hub::from_variables(|name| match name {
        "HF_ENDPOINT" => Some(endpoint.to_owned()),
        "HF_HUB_CACHE" => Some(cache.to_str().unwrap().to_owned()),
        "HF_TOKEN" => Some("secret".to_owned()),
        "HF_HUB_OFFLINE" => offline.then(|| "1".to_owned()),
        _ => None,
    })
}

/// Reads one request and answers it; the connection is then closed.
fn answer(mut stream: TcpStream, prefix: &str, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let [method, path, _] = request.split(' ').collect::<Vec<_>>()[..] else { return };
    let path = path.split('?').next().unwrap();
    let mut state = state.lock().unwrap();
    let token =
        if headers.iter().any(|h| h.eq_ignore_ascii_case("authorization: Bearer secret")) { " +token" } else { "" };
    state.requests.push(format!("{method} {path}{token}"));

    let api = match prefix.strip_prefix("datasets/") {
        Some(_) => format!("/api/{prefix}"),
        None => format!("/api/models/{prefix}"),
    };
    let json = |value: serde_json::Value| ("200 OK", Vec::new(), value.to_string().into_bytes());
    let not_found = || ("404 Not Found", Vec::new(), b"{\"error\": \"not found\"}".to_vec());
    let (status, headers, body) = if path == format!("{api}/revision/main")
        || path == format!("{api}/revision/{COMMIT}")
    {
        json(serde_json::json!({ "id": "org/name", "sha": COMMIT }))
    } else if let Some(folder) = path.strip_prefix(&format!("{api}/tree/{COMMIT}")) {
        let folder = folder.trim_start_matches('/');
        let inside = state.files.iter().filter(|(name, _)| name.rsplit_once('/').map_or("", |(f, _)| f) == folder);
        let entry = |(name, content): (&String, &Vec<u8>)| serde_json::json!({ "type": "file", "oid": "x", "size": content.len(), "path": name });
        json(inside.map(entry).chain([serde_json::json!({ "type": "directory", "oid": "x", "path": "sub" })]).collect())
    } else if let Some(file) = path.strip_prefix(&format!("/{prefix}/resolve/{COMMIT}/")) {
        match state.files.get(file) {
            Some(_) if method == "GET" && state.broken.iter().any(|b| b == file) => {
                ("403 Forbidden", Vec::new(), b"<html>expired link</html>".to_vec())
            }
            Some(content) => {
                let etag = format!("\"etag-of-{}\"", file.replace('/', "-"));
                ("200 OK", vec![("ETag", etag), ("X-Repo-Commit", COMMIT.to_owned())], content.clone())
            }
            None => not_found(),
        }
    } else {
        not_found()
    };
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(b"\r\n").unwrap();
    if method != "HEAD" {
        stream.write_all(&body).unwrap();
    }
}

const CONFIG: &[u8] = br#"{"model_type": "llama", "vocab_size": 4, "hidden_size": 8, "intermediate_size": 16,
    "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;

/// A safetensors file with one norm.
fn weights() -> Vec<u8> {
    let norm = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8], &[0; 32]).unwrap();
    safetensors::serialize([("model.norm.weight", norm)], None).unwrap()
}

fn id() -> HubId {
    HubId::parse("org/name").unwrap()
}

fn cause(error: CheckpointError) -> HubError {
    match error {
        CheckpointError::Hub { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn a_model_is_downloaded_once_and_then_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let weights = weights();
    let server = Server::start(
        "org/name",
        &[
            ("config.json", CONFIG),
            ("model.safetensors", &weights),
            ("tokenizer.json", b"{}"),
            ("README.md", b"no"),
            ("pytorch_model.bin", b"no"),
        ],
    );
    let seen = Arc::new(Mutex::new(BTreeMap::new()));
    let record = Arc::clone(&seen);
    let hub_online = server.hub(cache.path()).with_progress(move |progress| {
        record.lock().unwrap().insert(progress.file.to_owned(), (progress.bytes, progress.total_bytes));
    });
    let source = ModelSource::open_with("org/name", &hub_online).unwrap();
    let snapshot = cache.path().join("models--org--name/snapshots").join(COMMIT);
    assert_eq!(source.path, snapshot);
    assert_eq!(source.tensors.names(), ["model.norm.weight"]);
    assert_eq!(source.tokenizer_json(), Some(&b"{}"[..]));
    assert!(!snapshot.join("README.md").exists() && !snapshot.join("pytorch_model.bin").exists());
    let refs = fs_err::read_to_string(cache.path().join("models--org--name/refs/main")).unwrap();
    assert_eq!(refs, COMMIT);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.ends_with("+token")), "{requests:?}");
    let len = weights.len() as u64;
    assert_eq!(seen.lock().unwrap().get("model.safetensors"), Some(&(len, len)));

    server.hub(cache.path()).model(&id()).unwrap();
    assert!(server.requests().iter().all(|request| request.starts_with("GET /api/")), "nothing is downloaded again");

    assert_eq!(hub(&server.address, cache.path(), true).model(&id()).unwrap(), snapshot);
    let at_commit = HubId::parse(&format!("org/name@{COMMIT}")).unwrap();
    assert_eq!(server.hub(cache.path()).model(&at_commit).unwrap(), snapshot);
    assert_eq!(server.requests(), [""; 0], "neither offline nor at a cached commit is anything asked");
}

#[test]
fn shards_are_those_that_the_index_names() {
    let cache = tempfile::tempdir().unwrap();
    let weights = weights();
    let index = br#"{"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00001.safetensors"}}"#;
    let server = Server::start(
        "org/name",
        &[
            ("config.json", CONFIG),
            ("model.safetensors.index.json", index),
            ("model-00001-of-00001.safetensors", &weights),
            ("consolidated.safetensors", b"not asked for"),
        ],
    );
    let source = ModelSource::open_with("org/name", &server.hub(cache.path())).unwrap();
    assert_eq!(source.tensors.names(), ["model.norm.weight"]);
    assert!(!source.path.join("consolidated.safetensors").exists());
}

#[test]
fn a_repository_of_pickles_is_refused_before_anything_is_downloaded() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("pytorch_model.bin", b"x")]);
    let error = server.hub(cache.path()).model(&id()).unwrap_err().to_string();
    assert!(error.starts_with("`org/name` has only pickle weights: `pytorch_model.bin`\nhint: "), "{error}");
    assert!(server.requests().iter().all(|request| request.starts_with("GET /api/")));
}

#[test]
fn an_error_page_in_place_of_a_file_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state.lock().unwrap().broken.push("model.safetensors".to_owned());
    let error = cause(server.hub(cache.path()).model(&id()).unwrap_err());
    assert!(matches!(error, HubError::Size { found: 25, .. }), "{error}");
    assert!(hub(&server.address, cache.path(), true).model(&id()).is_err());
    server.state.lock().unwrap().broken.clear();
    let snapshot = server.hub(cache.path()).model(&id()).unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), weights());
}

#[test]
fn a_repository_that_is_not_there_is_named_with_the_hub() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[]);
    let error = ModelSource::open_with("org/other", &server.hub(cache.path())).err().unwrap();
    let CheckpointError::NoModel { source: Some(source), .. } = error else { panic!("{error}") };
    let error = cause(*source);
    assert!(error.to_string().starts_with(&format!("`{}` has no such repository", server.address)), "{error}");
}

#[test]
fn what_is_cached_is_used_when_the_hub_cannot_be_reached() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    let snapshot = server.hub(cache.path()).model(&id()).unwrap();
    // a port that was free a moment ago
    let closed = format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    assert_eq!(hub(&closed, cache.path(), false).model(&id()).unwrap(), snapshot);
    let empty = tempfile::tempdir().unwrap();
    let error = cause(hub(&closed, empty.path(), false).model(&id()).unwrap_err());
    assert!(error.to_string().starts_with(&format!("cannot get the commit from `{closed}`")), "{error}");
}

#[test]
fn a_file_of_a_data_set_is_downloaded_once_and_then_found_offline() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("datasets/org/name", &[("data/test.parquet", b"PAR1"), ("data/train.parquet", b"")]);
    let online = server.hub(cache.path());
    let path = online.dataset_file(&id(), "data/test.parquet").unwrap();
    assert_eq!(fs_err::read(&path).unwrap(), b"PAR1");
    assert_eq!(hub(&server.address, cache.path(), true).dataset_file(&id(), "data/test.parquet").unwrap(), path);
    let missing = cause(online.dataset_file(&id(), "data/none.parquet").unwrap_err());
    assert_eq!(missing.to_string(), "the repository has no file `data/none.parquet`");
    let files = |text: &str| HubAddress::parse(text).unwrap().and_then(|address| online.dataset_files(&address));
    assert_eq!(files("hf://datasets/org/name/data/test.parquet").unwrap(), std::slice::from_ref(&path));
    server.requests();
    let both = files("hf://datasets/org/name@main/data/t*.parquet").unwrap();
    assert_eq!(both, [path.clone(), path.with_file_name("train.parquet")]);
    let offline = hub(&server.address, cache.path(), true);
    let address = HubAddress::parse("hf://datasets/org/name/data/*.parquet").unwrap().unwrap();
    server.requests();
    assert_eq!(offline.dataset_files(&address).unwrap(), both);
    assert_eq!(server.requests(), [""; 0]);
    let none = cause(files("hf://datasets/org/name/data/*.jsonl").unwrap_err());
    assert_eq!(none.to_string(), "the repository has no file that matches `data/*.jsonl`");
    let outside = cause(online.dataset_file(&id(), "../secret").unwrap_err());
    assert!(matches!(outside, HubError::BadFileName { .. }));
}
