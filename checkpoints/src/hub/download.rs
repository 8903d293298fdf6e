//! Downloads into the cache.
//!
//! The revision is resolved to a commit once, every file is taken at that commit, and the revision
//! is recorded only when all of them are there, so that the cache never pairs files of two commits.
//!
//! A file grows as `blobs/{etag}.incomplete`, from which an interrupted download goes on, and is
//! complete when its size and hash are those that the hub states and it is renamed to
//! `blobs/{etag}`, to which the snapshot then links.

use super::{
    DownloadProgress, Hub, HubError, HubId, RequestError,
    cache::{self, CachedRepo, Kind},
    digest::Digest,
    http::{self, HubClient, Retries},
    hub_error, is_inside,
};
use crate::{CheckpointError, INDEX_FILE, SINGLE_FILE, safetensors::unusable_weights, source::COMPANIONS};
use fs_err::OpenOptions;
use serde::Deserialize;
use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

/// Bytes that are read before they are written and reported.
const BUFFER_BYTES: usize = 256 << 10;

/// The files of a model → its snapshot.
pub(super) fn model(hub: &Hub, id: &HubId) -> Result<PathBuf, CheckpointError> {
    let session = Session::new(hub, id, Kind::Model, "")?;
    let mut files: Vec<String> = vec!["config.json".to_owned()];
    if session.files.contains_key(SINGLE_FILE) {
        files.push(SINGLE_FILE.to_owned());
    } else if session.files.contains_key(INDEX_FILE) {
        let index = session.fetch(INDEX_FILE)?;
        let shards = cache::shards(&index).map_err(|e| match e {
            cache::ShardsError::Io(e) => CheckpointError::Io(e),
            cache::ShardsError::Json(source) => CheckpointError::BadJson { path: index.clone(), source },
        })?;
        files.extend(shards);
    } else {
        let names = session.files.keys().cloned().collect();
        return Err(unusable_weights(id.to_string().into(), names));
    }
    files.extend(COMPANIONS.iter().filter(|name| session.files.contains_key(**name)).map(|name| (*name).to_owned()));
    for file in &files {
        session.fetch(file)?;
    }
    session.finish()
}

/// Names of the files in a folder of a data set.
pub(super) fn dataset_folder(hub: &Hub, id: &HubId, folder: &str) -> Result<Vec<String>, CheckpointError> {
    let session = Session::new(hub, id, Kind::Dataset, folder)?;
    Ok(session.files.into_keys().collect())
}

/// One file of a data set.
pub(super) fn dataset_file(hub: &Hub, id: &HubId, file: &str) -> Result<PathBuf, CheckpointError> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    let session = Session::new(hub, id, Kind::Dataset, folder)?;
    let path = session.fetch(file)?;
    session.finish()?;
    Ok(path)
}

/// Answer of `/api/{kind}/{repo}/revision/{revision}`, as far as it is used.
#[derive(Deserialize)]
struct Revision {
    sha: Option<String>,
}

/// Entry of the answer of `/api/{kind}/{repo}/tree/{commit}/{folder}`, as far as it is used.
#[derive(Deserialize)]
struct TreeEntry {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    /// SHA-1 of the object in git: of the file, or of the pointer to one in large storage.
    #[serde(default)]
    oid: String,
    /// Of a file in large storage.
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    /// SHA-256 of the file.
    oid: String,
}

/// What the hub states about a file.
#[derive(Clone)]
struct Stated {
    size: u64,
    /// `None` where the hub states no hash.
    digest: Option<Digest>,
}

impl From<TreeEntry> for Stated {
    fn from(entry: TreeEntry) -> Self {
        let digest = match &entry.lfs {
            Some(lfs) => Digest::sha256(&lfs.oid),
            None => Digest::git_blob(&entry.oid),
        };
        Self { size: entry.size, digest }
    }
}

/// One repository at one commit.
struct Session<'a> {
    hub: &'a Hub,
    id: &'a HubId,
    client: HubClient,
    kind: Kind,
    cached: CachedRepo,
    commit: String,
    /// Files in the folder that was listed.
    files: BTreeMap<String, Stated>,
}

impl<'a> Session<'a> {
    /// Looks up the commit of the revision, and lists `folder` at it.
    fn new(hub: &'a Hub, id: &'a HubId, kind: Kind, folder: &str) -> Result<Self, CheckpointError> {
        let client = HubClient::new(&hub.remote).map_err(|e| refused(hub, id, "a connection", e))?;
        let api = client.url(&format!("api/{}/{}", kind.plural(), id.repo));
        let revision = client.json::<Revision>(&format!("{api}/revision/{}", http::segment(&id.revision)));
        let (revision, _) = revision.map_err(|e| match e {
            RequestError::Status { status: 404, .. } => not_found(hub, id, e),
            e => refused(hub, id, "the commit", e),
        })?;
        let commit = revision.sha.filter(|commit| cache::is_commit(commit)).ok_or_else(|| {
            refused(hub, id, "the commit", RequestError::Answer { expected: "the revision's commit".to_owned() })
        })?;
        let mut page = Some(format!("{api}/tree/{commit}/{}", http::segments(folder)));
        let mut files = BTreeMap::new();
        while let Some(url) = page {
            let (entries, next) =
                client.json::<Vec<TreeEntry>>(&url).map_err(|e| refused(hub, id, "the list of files", e))?;
            let of_page = entries.into_iter().filter(|entry| entry.r#type == "file");
            files.extend(of_page.map(|entry| (entry.path.clone(), Stated::from(entry))));
            page = next;
        }
        Ok(Self { hub, id, client, kind, cached: CachedRepo::new(&hub.cache, kind, id), commit, files })
    }

    /// Downloads `file` unless the cache has it.
    fn fetch(&self, file: &str) -> Result<PathBuf, CheckpointError> {
        if !is_inside(file) {
            return Err(hub_error(self.id, HubError::BadFileName { file: file.to_owned() }));
        }
        let no_file = || hub_error(self.id, HubError::NoFile { file: file.to_owned() });
        let Stated { size, digest } = self.files.get(file).cloned().ok_or_else(no_file)?;
        let path = self.cached.snapshot(&self.commit).join(file);
        if has_size(&path, size) {
            return Ok(path);
        }
        let repo = format!("{}{}", self.kind.url_prefix(), self.id.repo);
        let url = self.client.url(&format!("{repo}/resolve/{}/{}", self.commit, http::segments(file)));
        let etag = self.client.etag(&url).map_err(|e| refused(self.hub, self.id, &format!("`{file}`"), e))?;
        let blob = self.cached.blob(&etag);
        let _lock = self.cached.lock(&etag, file)?;
        if !has_size(&blob, size) {
            let incomplete = self.cached.blob(&format!("{etag}.incomplete"));
            self.download(Download { file, url: &url, size, path: &incomplete })?;
            self.check(file, &incomplete, digest.as_ref())?;
            fs_err::rename(incomplete, &blob)?;
        }
        self.cached.link(&self.commit, file, &etag)?;
        Ok(path)
    }

    /// Fills `download.path`, in as many attempts as it takes.
    fn download(&self, download: Download<'_>) -> Result<(), CheckpointError> {
        let Download { file, size: expected, path, .. } = download;
        let report = |bytes: u64| {
            if let Some(call) = &self.hub.remote.on_progress {
                call(DownloadProgress { file, bytes, total_bytes: expected });
            }
        };
        let mut retries = Retries::default();
        let mut had = 0;
        while let Err(stop) = download.attempt(&self.client, &report) {
            let error = match stop {
                Stop::Write(error) => return Err(error.into()),
                Stop::Request(error) => error,
            };
            let has = fs_err::metadata(path).map_or(0, |metadata| metadata.len());
            if has > had {
                retries.reset();
                had = has;
            }
            retries.wait(error).map_err(|e| failed(self.hub, self.id, &format!("`{file}`"), e))?;
        }
        let found = fs_err::metadata(path)?.len();
        if found != expected {
            fs_err::remove_file(path)?;
            return Err(hub_error(self.id, HubError::Size { file: file.to_owned(), found, expected }));
        }
        Ok(())
    }

    /// Compares what was downloaded of `file` with the hash that the hub states, and removes what
    /// is another file.
    fn check(&self, file: &str, path: &Path, digest: Option<&Digest>) -> Result<(), CheckpointError> {
        let Some(expected) = digest else { return Ok(()) };
        let found = expected.of_file(path)?;
        if found == *expected {
            return Ok(());
        }
        fs_err::remove_file(path)?;
        let (found, expected) = (found.to_string(), expected.to_string());
        Err(hub_error(self.id, HubError::Hash { file: file.to_owned(), found, expected }))
    }

    /// Records which commit the revision is.
    fn finish(&self) -> Result<PathBuf, CheckpointError> {
        let snapshot = self.cached.snapshot(&self.commit);
        if !cache::is_commit(&self.id.revision) {
            let ref_file = self.cached.ref_file();
            if let Some(parent) = ref_file.parent() {
                fs_err::create_dir_all(parent)?;
            }
            fs_err::write(ref_file, &self.commit)?;
        }
        Ok(snapshot)
    }
}

/// A file of the hub on its way to the disk.
struct Download<'a> {
    file: &'a str,
    url: &'a str,
    size: u64,
    path: &'a Path,
}

/// Why an attempt to download a file stopped.
enum Stop {
    Request(RequestError),
    Write(io::Error),
}

impl Download<'_> {
    /// Appends what `path` lacks; `report` gets the bytes that it has.
    fn attempt(&self, client: &HubClient, report: &impl Fn(u64)) -> Result<(), Stop> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path).map_err(Stop::Write)?;
        let mut bytes = file.metadata().map_err(Stop::Write)?.len();
        if bytes > self.size {
            file.set_len(0).map_err(Stop::Write)?;
            bytes = 0;
        }
        report(bytes);
        if bytes == self.size {
            return Ok(());
        }
        let (start, mut content) = client.content(self.url, bytes).map_err(Stop::Request)?;
        if start != bytes {
            file.set_len(start).map_err(Stop::Write)?;
            bytes = start;
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        while bytes <= self.size {
            let read = content.read(&mut buffer).map_err(|e| Stop::Request(ureq::Error::from(e).into()))?;
            if read == 0 {
                break;
            }
            file.write_all(&buffer[..read]).map_err(Stop::Write)?;
            bytes += read as u64;
            report(bytes);
        }
        Ok(())
    }
}

fn has_size(path: &Path, size: u64) -> bool {
    fs_err::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == size)
}

/// The hub does not know or does not show what was asked for.
fn not_found(hub: &Hub, id: &HubId, source: RequestError) -> CheckpointError {
    hub_error(id, HubError::NotFound { endpoint: hub.remote.endpoint.clone(), source })
}

/// A request to the hub itself failed, perhaps because it shows the repository to nobody without
/// permission.
fn refused(hub: &Hub, id: &HubId, what: &str, source: RequestError) -> CheckpointError {
    match source {
        RequestError::Status { status: 401 | 403, .. } => not_found(hub, id, source),
        source => failed(hub, id, what, source),
    }
}

fn failed(hub: &Hub, id: &HubId, what: &str, source: RequestError) -> CheckpointError {
    hub_error(id, HubError::Request { what: what.to_owned(), endpoint: hub.remote.endpoint.clone(), source })
}
