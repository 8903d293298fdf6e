//! Uploads to a server on the loopback interface that takes them as the hub does.

use crate::server::hub;
use retie_checkpoint::{HubId, Uploaded};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
};

/// Bytes of a part of a file that is sent in parts.
const PART: usize = 10;

/// What the server was sent.
#[derive(Default)]
struct Taken {
    /// Method and path of each request, with `+token` if the right one came along.
    requests: Vec<String>,
    /// Bodies by path.
    bodies: BTreeMap<String, Vec<u8>>,
    /// SHA-256 of what is in large storage already.
    stored: Vec<String>,
    /// Status of the answer to a commit.
    refuses_commit: bool,
}

fn start() -> (String, Arc<Mutex<Taken>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let taken = Arc::new(Mutex::new(Taken::default()));
    let (shared, own) = (Arc::clone(&taken), address.clone());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            answer(stream.unwrap(), &shared, &own);
        }
    });
    (address, taken)
}

fn answer(mut stream: TcpStream, taken: &Mutex<Taken>, address: &str) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    let mut head = Vec::new();
    while reader.read_line(&mut line).unwrap() > 2 {
        head.push(std::mem::take(&mut line).trim_end().to_owned());
    }
    let Some(first) = head.first() else { return };
    let [method, path] = [0, 1].map(|part| first.split(' ').nth(part).unwrap().to_owned());
    let length = head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let mut taken = taken.lock().unwrap();
    let token = head.iter().any(|line| line.eq_ignore_ascii_case("authorization: Bearer secret"));
    taken.requests.push(format!("{method} {path}{}", if token { " +token" } else { "" }));
    let (status, reply) = reply(&taken, &path, &body, address);
    taken.bodies.insert(path.clone(), body);
    let reply = reply.map_or_else(String::new, |reply| reply.to_string());
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nETag: \"tag{path}\"\r\n", reply.len());
    stream.write_all(format!("{head}Connection: close\r\n\r\n{reply}").as_bytes()).unwrap();
}

fn reply(taken: &Taken, path: &str, body: &[u8], address: &str) -> (&'static str, Option<Value>) {
    let json_body = || serde_json::from_slice::<Value>(body).unwrap();
    match path {
        "/api/repos/create" if !taken.bodies.contains_key(path) => ("200 OK", Some(json!({ "url": "x" }))),
        "/api/repos/create" => ("409 Conflict", Some(json!({ "error": "exists" }))),
        "/api/models/me/model/preupload/main" => {
            let mode = |name: &str| if name.ends_with(".safetensors") { "lfs" } else { "regular" };
            let place = |file: &Value| {
                let name = file["path"].as_str().unwrap();
                json!({ "path": name, "uploadMode": mode(name), "shouldIgnore": name == "notes.tmp" })
            };
            let files: Vec<Value> = json_body()["files"].as_array().unwrap().iter().map(place).collect();
            ("200 OK", Some(json!({ "files": files })))
        }
        "/me/model.git/info/lfs/objects/batch" => {
            let object = |object: &Value| {
                let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
                if taken.stored.iter().any(|stored| stored == oid) {
                    return json!({ "oid": oid, "size": size });
                }
                let upload = match size > PART {
                    true => {
                        let mut header = json!({ "chunk_size": PART.to_string() });
                        for part in 1..=size.div_ceil(PART) {
                            header[format!("{part:05}")] = json!(format!("{address}/part/{part}"));
                        }
                        json!({ "href": format!("{address}/complete"), "header": header })
                    }
                    false => json!({ "href": format!("{address}/whole") }),
                };
                let verify = json!({ "href": format!("{address}/verify") });
                json!({ "oid": oid, "size": size, "actions": { "upload": upload, "verify": verify } })
            };
            let objects: Vec<Value> = json_body()["objects"].as_array().unwrap().iter().map(object).collect();
            ("200 OK", Some(json!({ "transfer": "basic", "objects": objects })))
        }
        "/api/models/me/model/commit/main" if taken.refuses_commit => ("403 Forbidden", None),
        "/api/models/me/model/commit/main" => ("200 OK", Some(json!({ "commitUrl": "https://hub/me/model/commit/1" }))),
        "/verify" | "/whole" => ("200 OK", None),
        _ if path.starts_with("/part/") || path == "/complete" => ("200 OK", Some(json!({}))),
        _ => ("404 Not Found", None),
    }
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let files: [(&str, &[u8]); 5] = [
        ("README.md", b"a card"),
        ("model-1.safetensors", b"0123456789abcdefghijklmno"),
        ("model-2.safetensors", b"small"),
        ("notes.tmp", b"x"),
        (".hidden", b"x"),
    ];
    files.iter().for_each(|(name, bytes)| fs_err::write(folder.path().join(name), bytes).unwrap());
    fs_err::create_dir(folder.path().join("checkpoints")).unwrap();
    folder
}

fn upload(address: &str, folder: &Path) -> Result<(Uploaded, Vec<String>), String> {
    let (cache, mut seen) = (tempfile::tempdir().unwrap(), Vec::new());
    let id = HubId::parse("me/model").unwrap();
    let uploaded =
        hub(address, cache.path(), false).upload(&id, folder, true, &mut |name, _| seen.push(name.to_owned()));
    let uploaded = uploaded.map_err(|error| format!("{error}: {}", std::error::Error::source(&error).unwrap()))?;
    Ok((uploaded, seen))
}

#[test]
fn a_folder_is_one_commit_with_its_large_files_stored_before() {
    let (address, taken) = start();
    let folder = folder();
    let (uploaded, seen) = upload(&address, folder.path()).unwrap();
    let expected = [("README.md", 6), ("model-1.safetensors", 25), ("model-2.safetensors", 5)];
    assert_eq!(uploaded.files, expected.map(|(name, bytes)| (name.to_owned(), bytes)));
    assert_eq!((uploaded.stored_bytes, uploaded.url.as_str()), (30, "https://hub/me/model/commit/1"));
    assert_eq!(seen, ["model-1.safetensors", "model-2.safetensors"]);
    let mut taken = taken.lock().unwrap();
    let requests = [
        "POST /api/repos/create +token",
        "POST /api/models/me/model/preupload/main +token",
        "POST /me/model.git/info/lfs/objects/batch +token",
        "PUT /part/1 +token",
        "PUT /part/2 +token",
        "PUT /part/3 +token",
        "POST /complete +token",
        "POST /verify +token",
        "PUT /whole +token",
        "POST /verify +token",
        "POST /api/models/me/model/commit/main +token",
    ];
    assert_eq!(taken.requests, requests);
    let body = |path: &str| String::from_utf8(taken.bodies[path].clone()).unwrap();
    assert_eq!(["/part/1", "/part/2", "/part/3", "/whole"].map(body), ["0123456789", "abcdefghij", "klmno", "small"]);
    let json = |path: &str| serde_json::from_str::<Value>(&body(path)).unwrap();
    let create = json!({ "type": "model", "organization": "me", "name": "model", "private": true });
    assert_eq!(json("/api/repos/create"), create);
    assert_eq!(json("/complete")["parts"][2], json!({ "partNumber": 3, "etag": "\"tag/part/3\"" }));
    let oid = |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let lines = body("/api/models/me/model/commit/main");
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["key"], "header");
    assert_eq!(lines[1]["value"], json!({ "path": "README.md", "encoding": "base64", "content": "YSBjYXJk" }));
    let large = json!({ "path": "model-2.safetensors", "algo": "sha256", "oid": oid(b"small"), "size": 5 });
    assert_eq!(lines[3], json!({ "key": "lfsFile", "value": large }));
    assert_eq!(lines.len(), 4);
    // What is stored already is not sent again, and a repository that is there is used.
    taken.stored = vec![oid(b"small"), oid(b"0123456789abcdefghijklmno")];
    taken.requests.clear();
    drop(taken);
    assert_eq!(upload(&address, folder.path()).unwrap().0.stored_bytes, 0);
}

#[test]
fn a_refusal_is_said_and_nothing_is_sent_without_a_token() {
    let (address, taken) = start();
    let folder = folder();
    taken.lock().unwrap().refuses_commit = true;
    let error = upload(&address, folder.path()).unwrap_err();
    assert!(error.contains("cannot put the commit to") && error.contains("nothing was committed"), "{error}");
    let id = HubId::parse("me/model").unwrap();
    taken.lock().unwrap().requests.clear();
    for (variables, expected) in [
        (vec![("HF_ENDPOINT", address.as_str()), ("HF_HUB_CACHE", "x"), ("HF_TOKEN_PATH", "none")], "needs a token"),
        (
            vec![("HF_ENDPOINT", address.as_str()), ("HF_HUB_CACHE", "x"), ("HF_HUB_OFFLINE", "1")],
            "`HF_HUB_OFFLINE` is set",
        ),
    ] {
        let hub = retie_checkpoint::Hub::from_variables(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        });
        let error = hub.upload(&id, folder.path(), false, &mut |_, _| ()).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains(expected), "{cause}");
    }
    assert!(taken.lock().unwrap().requests.is_empty());
}
