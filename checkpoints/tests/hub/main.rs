//! The hub against a server on the loopback interface that answers as the hub does.
#![cfg(feature = "hub")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod server;
mod upload;

use retie_checkpoint::{CheckpointError, HubAddress, HubError, HubId, ModelSource, RequestError};
use server::{COMMIT, Server, hub};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    error::Error,
    net::TcpListener,
    sync::{Arc, Mutex},
};

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
    let answer_with = |status| {
        server.state().pages.insert("model.safetensors".to_owned(), status);
        cause(server.hub(cache.path()).model(&id()).unwrap_err())
    };
    let error = answer_with("403 Forbidden");
    assert!(matches!(error, HubError::Request { source: RequestError::Status { status: 403, .. }, .. }), "{error}");
    let error = answer_with("200 OK");
    assert!(matches!(error, HubError::Size { found: 25, .. }), "{error}");
    let blobs = fs_err::read_dir(cache.path().join("models--org--name/blobs")).unwrap();
    let blobs: Vec<_> = blobs.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(blobs, ["etag-of-config.json"]);
    assert!(hub(&server.address, cache.path(), true).model(&id()).is_err());
    server.state().pages.clear();
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

#[test]
fn an_interrupted_download_goes_on_where_it_stopped() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state().cuts.insert("model.safetensors".to_owned(), 20);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let hub = server.hub(cache.path()).with_progress(move |progress| {
        if progress.file == "model.safetensors" {
            record.lock().unwrap().push(progress.bytes);
        }
    });
    let snapshot = hub.model(&id()).unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), weights());
    let path = format!("GET /org/name/resolve/{COMMIT}/model.safetensors +token");
    let requests: Vec<_> = server.requests().into_iter().filter(|request| request.starts_with(&path)).collect();
    assert_eq!(requests, [path.clone(), format!("{path} from 20")]);
    assert_eq!(*seen.lock().unwrap(), [0, 20, 20, weights().len() as u64]);
}

#[test]
fn what_an_earlier_process_downloaded_is_not_asked_for_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    let blobs = cache.path().join("models--org--name/blobs");
    fs_err::create_dir_all(&blobs).unwrap();
    fs_err::write(blobs.join("etag-of-model.safetensors.incomplete"), &weights()[..30]).unwrap();
    fs_err::write(blobs.join("etag-of-config.json"), CONFIG).unwrap();
    let snapshot = server.hub(cache.path()).model(&id()).unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), weights());
    assert!(!blobs.join("etag-of-model.safetensors.incomplete").exists());
    let requests = server.requests().into_iter().filter(|request| request.contains("GET /org"));
    let path = format!("GET /org/name/resolve/{COMMIT}/model.safetensors +token");
    assert_eq!(requests.collect::<Vec<_>>(), [format!("{path} from 30")]);
}

#[test]
fn another_host_gets_the_request_and_not_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 2] = [("config.json", CONFIG), ("model.safetensors", &weights())];
    let (server, storage) = (Server::start("org/name", &files), Server::start("org/name", &files));
    let storage_address = storage.address.replace("127.0.0.1", "localhost");
    server.state().elsewhere.insert("model.safetensors".to_owned(), storage_address);
    let snapshot = server.hub(cache.path()).model(&id()).unwrap();
    assert_eq!(fs_err::read(snapshot.join("model.safetensors")).unwrap(), weights());
    assert!(server.requests().iter().all(|request| request.ends_with("+token")));
    assert_eq!(storage.requests(), [format!("GET /org/name/resolve/{COMMIT}/model.safetensors")]);
}

#[test]
fn another_port_of_the_same_host_gets_no_token_either() {
    let cache = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 2] = [("config.json", CONFIG), ("model.safetensors", &weights())];
    let (server, other) = (Server::start("org/name", &files), Server::start("org/name", &files));
    server.state().elsewhere.insert("config.json".to_owned(), other.address.clone());
    server.hub(cache.path()).model(&id()).unwrap();
    assert_eq!(other.requests(), [format!("GET /org/name/resolve/{COMMIT}/config.json")]);
}

#[test]
fn a_file_with_another_hash_than_the_hub_states_is_not_kept() {
    let sha256 = hex(&Sha256::digest(weights()));
    // `git hash-object` of the configuration.
    let oid = "32fc071be466c83461c5017047548836a4090b60";
    for (wrong, what) in [("model.safetensors", "the SHA-256 "), ("config.json", "the git object ")] {
        let cache = tempfile::tempdir().unwrap();
        let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
        server.state().large.insert("model.safetensors".to_owned(), sha256.clone());
        server.state().oids.insert("config.json".to_owned(), oid.to_owned());
        server.hub(cache.path()).model(&id()).unwrap();

        let cache = tempfile::tempdir().unwrap();
        match wrong {
            "config.json" => server.state().oids.insert(wrong.to_owned(), oid.replace('0', "1")),
            _ => server.state().large.insert(wrong.to_owned(), "0".repeat(64)),
        };
        let blobs = cache.path().join("models--org--name/blobs");
        let error = cause(server.hub(cache.path()).model(&id()).unwrap_err());
        let message = error.to_string();
        assert!(message.starts_with(&format!("`{wrong}` was downloaded with {what}")), "{message}");
        assert!(!blobs.join(format!("etag-of-{wrong}")).exists());
        assert!(!blobs.join(format!("etag-of-{wrong}.incomplete")).exists());
    }
}

#[test]
fn a_part_that_an_earlier_process_left_of_another_file_is_noticed() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state().large.insert("model.safetensors".to_owned(), hex(&Sha256::digest(weights())));
    let blobs = cache.path().join("models--org--name/blobs");
    fs_err::create_dir_all(&blobs).unwrap();
    fs_err::write(blobs.join("etag-of-model.safetensors.incomplete"), [b'x'; 30]).unwrap();
    let error = cause(server.hub(cache.path()).model(&id()).unwrap_err());
    assert!(matches!(error, HubError::Hash { .. }), "{error}");
    server.hub(cache.path()).model(&id()).unwrap();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn a_repository_that_was_renamed_is_found_with_the_token() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state().renamed_from = Some("org/old");
    let snapshot = server.hub(cache.path()).model(&HubId::parse("org/old").unwrap()).unwrap();
    assert_eq!(fs_err::read(snapshot.join("config.json")).unwrap(), CONFIG);
    let requests = server.requests();
    assert!(requests.iter().all(|request| request.ends_with("+token")), "{requests:?}");
}

#[test]
fn a_gated_repository_is_refused_with_what_the_hub_says_and_a_hint() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state().gated = Some("Access to model org/name is restricted");
    let error = cause(server.hub(cache.path()).model(&id()).unwrap_err());
    assert!(error.to_string().ends_with("a private or gated repository needs `HF_TOKEN`"), "{error}");
    let source = error.source().unwrap().to_string();
    assert_eq!(source, "the server answered with status 401: Access to model org/name is restricted");
}

#[test]
fn a_server_that_is_busy_is_asked_again() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state().busy = 2;
    server.hub(cache.path()).model(&id()).unwrap();
    server.state().busy = 100;
    server.requests();
    server.hub(cache.path()).model(&id()).unwrap();
    assert_eq!(server.requests().len(), 4, "then what is cached is used");
}

#[test]
fn a_list_of_files_may_have_several_pages() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("org/name", &[("config.json", CONFIG), ("model.safetensors", &weights())]);
    server.state().short_pages = true;
    server.hub(cache.path()).model(&id()).unwrap();
    let requests = server.requests();
    assert_eq!(requests.iter().filter(|request| request.contains("/tree/")).count(), 3);
    assert!(requests.iter().all(|request| request.ends_with("+token")), "{requests:?}");
}

#[test]
#[cfg(unix)]
fn a_snapshot_links_to_blobs_that_are_named_by_entity_tag() {
    let cache = tempfile::tempdir().unwrap();
    let server = Server::start("datasets/org/name", &[("a/b/t.txt", b"text")]);
    let path = server.hub(cache.path()).dataset_file(&id(), "a/b/t.txt").unwrap();
    let link = fs_err::read_link(path).unwrap();
    assert_eq!(link.to_str(), Some("../../../../blobs/etag-of-a-b-t.txt"));
}
