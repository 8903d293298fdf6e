//! The hub cache on the disk: `{root}/models--{org}--{name}/refs/{revision}` holds a commit,
//! `…/snapshots/{commit}/{file}` is a file, which links to `…/blobs/{etag}`.
//!
//! Layout and variables: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>. It is
//! shared with every other tool that uses the hub.

use super::HubId;
use crate::{INDEX_FILE, SINGLE_FILE};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Kinds of repositories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// Its name in the cache and in the hub's API.
    pub fn plural(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Dataset => "datasets",
        }
    }

    /// What stands before a repository's name in the URLs of its files.
    #[cfg(feature = "hub")]
    pub fn url_prefix(self) -> &'static str {
        match self {
            Self::Model => "",
            Self::Dataset => "datasets/",
        }
    }
}

/// Root of the cache as the variables state it; `variable` looks one up.
pub(super) fn root(variable: &impl Fn(&str) -> Option<String>) -> PathBuf {
    if let Some(root) = variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
        return root.into();
    }
    home(variable).join("hub")
}

/// Where the tools of Hugging Face keep their files, as the variables state it.
pub(super) fn home(variable: &impl Fn(&str) -> Option<String>) -> PathBuf {
    variable("HF_HOME").map(PathBuf::from).unwrap_or_else(|| {
        let user_cache = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let user_cache = user_cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
        user_cache.unwrap_or_default().join("huggingface")
    })
}

/// Whether `revision` names a commit, which never changes.
pub(super) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// What the cache has of one repository at one revision.
pub(super) struct CachedRepo {
    folder: PathBuf,
    revision: String,
}

impl CachedRepo {
    pub fn new(root: &Path, kind: Kind, id: &HubId) -> Self {
        let folder = root.join(format!("{}--{}", kind.plural(), id.repo.replace('/', "--")));
        Self { folder, revision: id.revision.clone() }
    }

    /// The file that says which commit the revision is.
    pub fn ref_file(&self) -> PathBuf {
        self.folder.join("refs").join(&self.revision)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// The commit of the revision when the cache was last filled.
    pub fn commit(&self) -> Option<String> {
        if is_commit(&self.revision) {
            return Some(self.revision.clone());
        }
        let commit = fs_err::read_to_string(self.ref_file()).ok()?.trim().to_owned();
        is_commit(&commit).then_some(commit)
    }

    /// `file` of the revision, or where it should have been.
    pub fn file(&self, file: &str) -> Result<PathBuf, PathBuf> {
        let path = self.snapshot(&self.commit().ok_or_else(|| self.ref_file())?).join(file);
        if path.is_file() { Ok(path) } else { Err(path) }
    }

    /// Names of the files in `folder` of the revision, with the folder's, or where it should have
    /// been.
    pub fn folder(&self, folder: &str) -> Result<Vec<String>, PathBuf> {
        let path = self.snapshot(&self.commit().ok_or_else(|| self.ref_file())?).join(folder);
        let entries = fs_err::read_dir(&path).map_err(|_| path.clone())?;
        let files = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_file());
        let names = files.filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
        Ok(names.map(|name| if folder.is_empty() { name } else { format!("{folder}/{name}") }).collect())
    }

    /// The snapshot of the revision if it holds a whole model, or what it lacks.
    pub fn model(&self) -> Result<PathBuf, Vec<PathBuf>> {
        let snapshot = self.snapshot(&self.commit().ok_or_else(|| vec![self.ref_file()])?);
        let mut needed = vec![snapshot.join("config.json")];
        let index = snapshot.join(INDEX_FILE);
        if !snapshot.join(SINGLE_FILE).is_file() && index.is_file() {
            needed.extend(shards(&index).unwrap_or_default().iter().map(|shard| snapshot.join(shard)));
        } else {
            needed.push(snapshot.join(SINGLE_FILE));
        }
        needed.retain(|path| !path.is_file());
        if needed.is_empty() { Ok(snapshot) } else { Err(needed) }
    }
}

#[cfg(feature = "hub")]
impl CachedRepo {
    /// Where the content with entity tag `etag` is.
    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Waits until no other process writes the content with entity tag `etag`, and keeps others
    /// from it until the file that is given back is dropped.
    pub fn lock(&self, etag: &str, file: &str) -> Result<fs_err::File, std::io::Error> {
        fs_err::create_dir_all(self.folder.join("blobs"))?;
        let (root, name) = (self.folder.parent().unwrap_or(Path::new("")), self.folder.file_name().unwrap_or_default());
        let locks = root.join(".locks").join(name);
        fs_err::create_dir_all(&locks)?;
        let lock = fs_err::File::create(locks.join(format!("{etag}.lock")))?;
        if lock.try_lock().is_err() {
            tracing::info!(%file, "waiting for another process that downloads it");
            lock.lock()?;
        }
        Ok(lock)
    }

    /// Puts the content with entity tag `etag` into the snapshot of `commit` as `file`: a relative
    /// link where the system has them, a copy elsewhere.
    pub fn link(&self, commit: &str, file: &str, etag: &str) -> Result<(), std::io::Error> {
        let path = self.snapshot(commit).join(file);
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        if path.symlink_metadata().is_ok() {
            fs_err::remove_file(&path)?;
        }
        #[cfg(unix)]
        {
            let up = "../".repeat(Path::new(file).components().count() + 1);
            fs_err::os::unix::fs::symlink(format!("{up}blobs/{etag}"), path)
        }
        #[cfg(not(unix))]
        {
            fs_err::copy(self.blob(etag), path).map(|_| ())
        }
    }
}

/// The files that a safetensors index names, ascending.
pub(super) fn shards(index: &Path) -> Result<BTreeSet<String>, ShardsError> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index: Index = serde_json::from_slice(&fs_err::read(index)?)?;
    Ok(index.weight_map.into_values().collect())
}

/// Why an index cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShardsError {
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_of(variables: &[(&str, &str)]) -> PathBuf {
        root(&|name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_root_follows_the_variables_of_hugging_face() {
        assert_eq!(root_of(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")]), Path::new("/c"));
        assert_eq!(root_of(&[("HF_HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Path::new("/h/hub"));
        assert_eq!(root_of(&[("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert!(root_of(&[]).ends_with(".cache/huggingface/hub"));
    }

    #[test]
    fn a_snapshot_without_all_its_shards_is_not_a_model() {
        let root = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let repo = CachedRepo::new(root.path(), Kind::Model, &HubId::parse("a/b").unwrap());
        assert_eq!(repo.model(), Err(vec![root.path().join("models--a--b/refs/main")]));
        fs_err::create_dir_all(root.path().join("models--a--b/refs")).unwrap();
        fs_err::write(repo.ref_file(), format!("{commit}\n")).unwrap();
        let snapshot = repo.snapshot(commit);
        assert_eq!(repo.model(), Err(vec![snapshot.join("config.json"), snapshot.join("model.safetensors")]));
        fs_err::create_dir_all(&snapshot).unwrap();
        fs_err::write(snapshot.join("config.json"), "{}").unwrap();
        fs_err::write(snapshot.join(INDEX_FILE), r#"{"weight_map": {"x": "s1", "y": "s2", "z": "s1"}}"#).unwrap();
        fs_err::write(snapshot.join("s1"), "").unwrap();
        assert_eq!(repo.model(), Err(vec![snapshot.join("s2")]));
        fs_err::write(snapshot.join("s2"), "").unwrap();
        assert_eq!(repo.model(), Ok(snapshot));
    }
}
