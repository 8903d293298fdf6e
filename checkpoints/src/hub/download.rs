//! Downloads into the cache, through `hf-hub`.
//!
//! The revision is resolved to a commit once, every file is taken at that commit, and the revision is recorded only when all
//! of them are there, so that the cache never pairs files of two commits.

use super::{
    DownloadProgress, Hub, HubError, HubId,
    cache::{self, CachedRepo, Kind},
    hub_error,
};
use crate::{CheckpointError, INDEX_FILE, SINGLE_FILE, safetensors::unusable_weights, source::COMPANIONS};
use hf_hub::{
    HFClient, HFClientSync, HFError, HFRepositorySync,
    progress::{DownloadEvent, Progress, ProgressEvent, ProgressHandler},
    repository::{RepoTreeEntry, RepoType},
};
use std::{collections::BTreeMap, path::PathBuf};

/// Retries after a failure that may pass; with `hf-hub`'s delays (0.2 s, 0.4 s, …) that is over a second.
const MAX_RETRIES: usize = 3;

/// The files of a model → its snapshot.
pub(super) fn model(hub: &Hub, id: &HubId) -> Result<PathBuf, CheckpointError> {
    let client = client(hub, id)?;
    let (org, name) = hf_hub::split_id(&id.repo);
    let repo = client.model(org, name);
    let info = repo.info().revision(&id.revision).send().map_err(|e| wrong(hub, id, "the commit", e))?;
    let session = Session::new(hub, id, Kind::Model, &repo, info.sha, None)?;
    let mut files: Vec<String> = vec!["config.json".to_owned()];
    if session.sizes.contains_key(SINGLE_FILE) {
        files.push(SINGLE_FILE.to_owned());
    } else if session.sizes.contains_key(INDEX_FILE) {
        let index = session.fetch(INDEX_FILE)?;
        let shards = cache::shards(&index).map_err(|e| match e {
            cache::ShardsError::Io(e) => CheckpointError::Io(e),
            cache::ShardsError::Json(source) => CheckpointError::BadJson { path: index.clone(), source },
        })?;
        files.extend(shards);
    } else {
        let names = session.sizes.keys().cloned().collect();
        return Err(unusable_weights(id.to_string().into(), names));
    }
    files.extend(COMPANIONS.iter().filter(|name| session.sizes.contains_key(**name)).map(|name| (*name).to_owned()));
    for file in &files {
        session.fetch(file)?;
    }
    session.finish()
}

/// Names of the files in a folder of a data set.
pub(super) fn dataset_folder(hub: &Hub, id: &HubId, folder: &str) -> Result<Vec<String>, CheckpointError> {
    let client = client(hub, id)?;
    let (org, name) = hf_hub::split_id(&id.repo);
    let repo = client.dataset(org, name);
    let info = repo.info().revision(&id.revision).send().map_err(|e| wrong(hub, id, "the commit", e))?;
    let folder = Some(folder).filter(|folder| !folder.is_empty());
    let session = Session::new(hub, id, Kind::Dataset, &repo, info.sha, folder)?;
    Ok(session.sizes.into_keys().collect())
}

/// One file of a data set.
pub(super) fn dataset_file(hub: &Hub, id: &HubId, file: &str) -> Result<PathBuf, CheckpointError> {
    let client = client(hub, id)?;
    let (org, name) = hf_hub::split_id(&id.repo);
    let repo = client.dataset(org, name);
    let info = repo.info().revision(&id.revision).send().map_err(|e| wrong(hub, id, "the commit", e))?;
    let folder = file.rsplit_once('/').map(|(folder, _)| folder);
    let session = Session::new(hub, id, Kind::Dataset, &repo, info.sha, folder)?;
    let path = session.fetch(file)?;
    session.finish()?;
    Ok(path)
}

fn client(hub: &Hub, id: &HubId) -> Result<HFClientSync, CheckpointError> {
    let builder = HFClient::builder().endpoint(&hub.endpoint).cache_dir(&hub.cache).retry_max_attempts(MAX_RETRIES);
    let builder = match &hub.token {
        Some(token) => builder.token(token),
        None => builder, // a token file, if there is one
    };
    builder.build_sync().map_err(|e| wrong(hub, id, "a connection", e))
}

/// One repository at one commit.
struct Session<'a, T: RepoType> {
    hub: &'a Hub,
    id: &'a HubId,
    repo: &'a HFRepositorySync<T>,
    cached: CachedRepo,
    commit: String,
    /// Files in the folder that was listed, with their sizes.
    sizes: BTreeMap<String, u64>,
}

impl<'a, T: RepoType> Session<'a, T> {
    fn new(
        hub: &'a Hub,
        id: &'a HubId,
        kind: Kind,
        repo: &'a HFRepositorySync<T>,
        commit: Option<String>,
        folder: Option<&str>,
    ) -> Result<Self, CheckpointError> {
        let commit = commit.filter(|commit| cache::is_commit(commit)).ok_or_else(|| {
            wrong(hub, id, "the commit", HFError::malformed_response("the revision's commit is not stated"))
        })?;
        let listing = repo.list_tree().revision(&commit).maybe_path_in_repo(folder).send();
        let sizes = listing
            .map_err(|e| wrong(hub, id, "the list of files", e))?
            .into_iter()
            .filter_map(|entry| match entry {
                RepoTreeEntry::File { path, size, .. } => Some((path, size)),
                RepoTreeEntry::Directory { .. } => None,
            })
            .collect();
        Ok(Self { hub, id, repo, cached: CachedRepo::new(&hub.cache, kind, id), commit, sizes })
    }

    /// Downloads `file` unless the cache has it.
    fn fetch(&self, file: &str) -> Result<PathBuf, CheckpointError> {
        let expected =
            *self.sizes.get(file).ok_or_else(|| hub_error(self.id, HubError::NoFile { file: file.to_owned() }))?;
        let progress = self.hub.on_progress.clone().map(|call| Progress::new(Forward { file: file.to_owned(), call }));
        let path = self
            .repo
            .download_file()
            .filename(file)
            .revision(&self.commit)
            .maybe_progress(progress)
            .send()
            .map_err(|e| wrong(self.hub, self.id, &format!("`{file}`"), e))?;
        // `hf-hub` does not look at the status of the last answer: an error page would be kept as the file
        let found = fs_err::metadata(&path)?.len();
        if found != expected {
            if let Ok(blob) = fs_err::canonicalize(&path) {
                fs_err::remove_file(blob)?;
            }
            fs_err::remove_file(&path).or_else(|e| if path.is_symlink() { Err(e) } else { Ok(()) })?;
            return Err(hub_error(self.id, HubError::Size { file: file.to_owned(), found, expected }));
        }
        Ok(path)
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

/// Passes the events of `hf-hub` on.
struct Forward {
    file: String,
    call: super::OnProgress,
}

impl ProgressHandler for Forward {
    fn on_progress(&self, event: &ProgressEvent) {
        let ProgressEvent::Download(event) = event else { return };
        let call = |bytes, total_bytes| (self.call)(DownloadProgress { file: &self.file, bytes, total_bytes });
        match event {
            DownloadEvent::Start { total_bytes, .. } => call(0, *total_bytes),
            DownloadEvent::Progress { files } => {
                files.iter().for_each(|file| call(file.bytes_completed, file.total_bytes));
            }
            DownloadEvent::AggregateProgress { bytes_completed, total_bytes, .. } => {
                call(*bytes_completed, *total_bytes);
            }
            DownloadEvent::Complete => {}
        }
    }
}

fn wrong(hub: &Hub, id: &HubId, what: &str, source: HFError) -> CheckpointError {
    let endpoint = hub.endpoint.clone();
    let source = Box::new(source);
    let error = match *source {
        HFError::RepoNotFound { .. }
        | HFError::RevisionNotFound { .. }
        | HFError::AuthRequired { .. }
        | HFError::Forbidden { .. } => HubError::NotFound { endpoint, source },
        _ => HubError::Request { what: what.to_owned(), endpoint, source },
    };
    hub_error(id, error)
}
