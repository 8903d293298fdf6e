//! A server on the loopback interface that answers as the hub does.

use retie_checkpoint::Hub;
use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What one test's server holds, how it answers, and what it was asked.
#[derive(Default)]
pub struct State {
    /// Path in the repository → content.
    files: BTreeMap<String, Vec<u8>>,
    /// Files whose content is answered with a page that says otherwise, under this status.
    pub pages: BTreeMap<String, &'static str>,
    /// Files whose next answer ends after so many bytes.
    pub cuts: BTreeMap<String, usize>,
    /// Files whose content another server has, at this address.
    pub elsewhere: BTreeMap<String, String>,
    /// A former name of the repository.
    pub renamed_from: Option<&'static str>,
    /// What the server says to everybody who wants a file.
    pub gated: Option<&'static str>,
    /// How many of the next requests are answered with status 503.
    pub busy: usize,
    /// Whether a list of files has a page for each.
    pub short_pages: bool,
    /// Files in large storage, and the hash that the list states of them.
    pub large: BTreeMap<String, String>,
    /// Ids of the other files' git objects.
    pub oids: BTreeMap<String, String>,
    /// Every request line, with `+token` if the right one came along, and the range that was asked
    /// for.
    requests: Vec<String>,
}

pub struct Server {
    pub address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    /// A server of the repository `prefix` (`org/name`, or `datasets/org/name`).
    pub fn start(prefix: &'static str, files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let files = files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect();
        let state = Arc::new(Mutex::new(State { files, ..State::default() }));
        let (shared, own) = (Arc::clone(&state), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let Some(request) = Request::read(&stream) else { continue };
                let mut state = shared.lock().unwrap();
                state.requests.push(request.to_string());
                state.answer(&request, prefix, &own).send(stream, &request);
            }
        });
        Self { address, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    pub fn hub(&self, cache: &Path) -> Hub {
        hub(&self.address, cache, false)
    }
}

pub fn hub(endpoint: &str, cache: &Path, offline: bool) -> Hub {
    Hub::from_variables(|name| match name {
        "HF_ENDPOINT" => Some(endpoint.to_owned()),
        "HF_HUB_CACHE" => Some(cache.to_str().unwrap().to_owned()),
        "HF_TOKEN" => Some("secret".to_owned()),
        "HF_HUB_OFFLINE" => offline.then(|| "1".to_owned()),
        _ => None,
    })
}

struct Request {
    method: String,
    path: String,
    query: String,
    has_token: bool,
    /// First byte that is asked for.
    start: Option<usize>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
        let line = lines.next()?;
        let headers: Vec<String> = lines.take_while(|line| !line.is_empty()).map(|line| line.to_lowercase()).collect();
        let [method, target, _] = line.split(' ').collect::<Vec<_>>()[..] else { return None };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let start =
            headers.iter().find_map(|header| header.strip_prefix("range: bytes=")?.strip_suffix('-')?.parse().ok());
        Some(Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            has_token: headers.iter().any(|header| header == "authorization: bearer secret"),
            start,
        })
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}{}", self.method, self.path, if self.has_token { " +token" } else { "" })?;
        self.start.map_or(Ok(()), |start| write!(f, " from {start}"))
    }
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body that are sent.
    sent: usize,
}

impl Answer {
    fn new(status: &'static str, headers: Vec<(&'static str, String)>, body: Vec<u8>) -> Self {
        Self { status, headers, sent: body.len(), body }
    }

    fn json(headers: Vec<(&'static str, String)>, value: &serde_json::Value) -> Self {
        Self::new("200 OK", headers, value.to_string().into_bytes())
    }

    /// Sends it, and closes the connection.
    fn send(self, mut stream: TcpStream, request: &Request) {
        let mut head =
            format!("HTTP/1.1 {}\r\nContent-Length: {}\r\nConnection: close\r\n", self.status, self.body.len());
        self.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(b"\r\n").unwrap();
        if request.method != "HEAD" {
            stream.write_all(&self.body[..self.sent]).unwrap();
        }
    }
}

impl State {
    /// The answer of the server at `address`.
    fn answer(&mut self, request: &Request, prefix: &str, address: &str) -> Answer {
        if self.busy > 0 {
            self.busy -= 1;
            return Answer::new("503 Service Unavailable", Vec::new(), Vec::new());
        }
        if let Some(old) = self.renamed_from.filter(|old| request.path.contains(&format!("{old}/"))) {
            let location = request.path.replace(old, prefix);
            return Answer::new("307 Temporary Redirect", vec![("Location", location)], Vec::new());
        }
        let api = match prefix.strip_prefix("datasets/") {
            Some(_) => format!("/api/{prefix}"),
            None => format!("/api/models/{prefix}"),
        };
        let is_revision = |name: &str| request.path == format!("{api}/revision/{name}");
        if is_revision("main") || is_revision(COMMIT) {
            Answer::json(Vec::new(), &serde_json::json!({ "id": "org/name", "sha": COMMIT }))
        } else if let Some(folder) = request.path.strip_prefix(&format!("{api}/tree/{COMMIT}")) {
            self.list(folder.trim_start_matches('/'), request, address)
        } else if let Some(file) = request.path.strip_prefix(&format!("/{prefix}/resolve/{COMMIT}/")) {
            self.file(file, request)
        } else {
            Answer::new("404 Not Found", Vec::new(), b"{\"error\": \"not found\"}".to_vec())
        }
    }

    fn list(&self, folder: &str, request: &Request, address: &str) -> Answer {
        let inside = self.files.iter().filter(|(name, _)| name.rsplit_once('/').map_or("", |(f, _)| f) == folder);
        let entry = |(name, content): (&String, &Vec<u8>)| {
            let oid = self.oids.get(name).map_or("x", String::as_str);
            let mut entry = serde_json::json!({ "type": "file", "oid": oid, "size": content.len(), "path": name });
            if let Some(hash) = self.large.get(name) {
                entry["lfs"] = serde_json::json!({ "oid": hash, "size": content.len(), "pointerSize": 134 });
            }
            entry
        };
        let sub = serde_json::json!({ "type": "directory", "oid": "x", "path": "sub" });
        let entries: Vec<serde_json::Value> = inside.map(entry).chain([sub]).collect();
        if !self.short_pages {
            return Answer::json(Vec::new(), &entries.into());
        }
        let page: usize = request.query.strip_prefix("cursor=").map_or(0, |page| page.parse().unwrap());
        let next = format!("<{address}{}?cursor={}>; rel=\"next\"", request.path, page + 1);
        let link = if page + 1 < entries.len() { vec![("Link", next)] } else { Vec::new() };
        Answer::json(link, &entries[page..=page].into())
    }

    fn file(&mut self, file: &str, request: &Request) -> Answer {
        let Some(content) = self.files.get(file) else {
            return Answer::new("404 Not Found", Vec::new(), b"Entry not found".to_vec());
        };
        if let Some(message) = self.gated {
            return Answer::new("401 Unauthorized", vec![("X-Error-Message", message.to_owned())], Vec::new());
        }
        if let Some(status) = self.pages.get(file).filter(|_| request.method == "GET") {
            return Answer::new(status, Vec::new(), b"<html>expired link</html>".to_vec());
        }
        let etag = format!("\"etag-of-{}\"", file.replace('/', "-"));
        let commit = ("X-Repo-Commit", COMMIT.to_owned());
        if let Some(other) = self.elsewhere.get(file) {
            let headers = vec![("X-Linked-ETag", etag), commit, ("Location", format!("{other}{}", request.path))];
            return Answer::new("302 Found", headers, Vec::new());
        }
        let (status, mut headers) = ("200 OK", vec![("ETag", etag), commit]);
        let (status, body) = match request.start {
            Some(start) => {
                let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
                headers.push(("Content-Range", range));
                ("206 Partial Content", content[start..].to_vec())
            }
            None => (status, content.clone()),
        };
        let mut answer = Answer::new(status, headers, body);
        if request.method == "GET" {
            answer.sent = self.cuts.remove(file).unwrap_or(answer.sent);
        }
        answer
    }
}
