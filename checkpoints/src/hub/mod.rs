//! Models and data sets by their name on the Hugging Face hub, through the cache that every tool
//! shares.
//!
//! Variables: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`,
//! `HF_HUB_OFFLINE`
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>). Without
//! the cargo feature `hub` only what is cached can be had.

mod address;
#[cfg(feature = "hub")]
mod base64;
mod cache;
#[cfg(feature = "hub")]
mod digest;
#[cfg(feature = "hub")]
mod download;
mod error;
#[cfg(feature = "hub")]
mod http;
mod id;
#[cfg(feature = "hub")]
mod upload;

use crate::CheckpointError;
pub use address::HubAddress;
use cache::{CachedRepo, Kind};
pub use error::HubError;
#[cfg(feature = "hub")]
pub use error::RequestError;
pub use id::HubId;
use std::path::{Component, Path, PathBuf};
#[cfg(feature = "hub")]
use std::sync::Arc;
#[cfg(feature = "hub")]
pub use upload::Uploaded;

/// How far a download is.
#[cfg(feature = "hub")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadProgress<'a> {
    /// Name in the repository.
    pub file: &'a str,
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub total_bytes: u64,
}

#[cfg(feature = "hub")]
type OnProgress = Arc<dyn Fn(DownloadProgress<'_>) + Send + Sync>;

/// The server, and how it is talked to.
#[cfg(feature = "hub")]
#[derive(Clone)]
struct Remote {
    endpoint: String,
    token: Option<String>,
    on_progress: Option<OnProgress>,
}

#[cfg(feature = "hub")]
impl Remote {
    const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

    fn from_variables(variable: &impl Fn(&str) -> Option<String>) -> Self {
        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| Self::DEFAULT_ENDPOINT.to_owned());
        Self { endpoint, token: token(variable), on_progress: None }
    }
}

/// The token in `HF_TOKEN`, or in the file that `hf auth login` writes.
#[cfg(feature = "hub")]
fn token(variable: &impl Fn(&str) -> Option<String>) -> Option<String> {
    if is_yes(variable("HF_HUB_DISABLE_IMPLICIT_TOKEN")) {
        return None;
    }
    let file = variable("HF_TOKEN_PATH").map_or_else(|| cache::home(variable).join("token"), PathBuf::from);
    let token = variable("HF_TOKEN").or_else(|| fs_err::read_to_string(file).ok())?;
    Some(token.trim().to_owned()).filter(|token| !token.is_empty())
}

fn is_yes(value: Option<String>) -> bool {
    value.is_some_and(|value| matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
}

/// Whether `file` is the name of a file inside of a repository.
fn is_inside(file: &str) -> bool {
    !file.is_empty() && Path::new(file).components().all(|part| matches!(part, Component::Normal(_)))
}

/// The hub and its cache.
#[derive(Clone)]
pub struct Hub {
    cache: PathBuf,
    offline: bool,
    #[cfg(feature = "hub")]
    remote: Remote,
}

impl Hub {
    /// As the environment variables say.
    #[must_use]
    pub fn from_env() -> Self {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As `variable` says, which looks up an environment variable.
    #[must_use]
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        Self {
            cache: cache::root(&variable),
            offline: is_yes(variable("HF_HUB_OFFLINE")),
            #[cfg(feature = "hub")]
            remote: Remote::from_variables(&variable),
        }
    }

    /// Calls `on_progress` while files are downloaded.
    #[cfg(feature = "hub")]
    #[must_use]
    pub fn with_progress(mut self, on_progress: impl Fn(DownloadProgress<'_>) + Send + Sync + 'static) -> Self {
        self.remote.on_progress = Some(Arc::new(on_progress));
        self
    }

    /// Root of the cache.
    #[must_use]
    pub fn cache_dir(&self) -> &Path {
        &self.cache
    }

    /// Whether nothing is downloaded: `HF_HUB_OFFLINE` is set, or this build has no feature `hub`.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.offline || cfg!(not(feature = "hub"))
    }

    /// Whether requests carry a token: from `HF_TOKEN`, or from the file that `hf auth login`
    /// writes.
    #[must_use]
    pub fn has_token(&self) -> bool {
        #[cfg(feature = "hub")]
        return self.remote.token.is_some();
        #[cfg(not(feature = "hub"))]
        false
    }

    /// The folder with the model's configuration, weights and tokenizer; what is missing is
    /// downloaded. If the hub cannot be reached, what is cached is used, with a warning.
    ///
    /// # Errors
    /// When the repository has no safetensors, or the files are not cached and cannot be
    /// downloaded.
    pub fn model(&self, id: &HubId) -> Result<PathBuf, CheckpointError> {
        let cached = CachedRepo::new(&self.cache, Kind::Model, id).model();
        #[cfg(feature = "hub")]
        if !self.offline {
            return match cached {
                Ok(snapshot) if cache::is_commit(&id.revision) => Ok(snapshot),
                cached => or_cached(id, download::model(self, id), cached.ok()),
            };
        }
        cached.map_err(|looked| self.not_cached(id, looked))
    }

    /// One file of a data set; it is downloaded if it is missing. If the hub cannot be reached,
    /// what is cached is used, with a warning.
    ///
    /// # Errors
    /// When the repository has no such file, or the file is not cached and cannot be downloaded.
    pub fn dataset_file(&self, id: &HubId, file: &str) -> Result<PathBuf, CheckpointError> {
        if !is_inside(file) {
            return Err(hub_error(id, HubError::BadFileName { file: file.to_owned() }));
        }
        let cached = CachedRepo::new(&self.cache, Kind::Dataset, id).file(file);
        #[cfg(feature = "hub")]
        if !self.offline {
            return match cached {
                Ok(path) if cache::is_commit(&id.revision) => Ok(path),
                cached => or_cached(id, download::dataset_file(self, id, file), cached.ok()),
            };
        }
        cached.map_err(|looked| self.not_cached(id, vec![looked]))
    }

    /// Names of the files in a folder of a data set, with the folder's; if the hub cannot be
    /// reached, of those that are cached.
    fn dataset_folder(&self, id: &HubId, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let cached = CachedRepo::new(&self.cache, Kind::Dataset, id).folder(folder);
        #[cfg(feature = "hub")]
        if !self.offline {
            return or_cached(id, download::dataset_folder(self, id, folder), cached.ok());
        }
        cached.map_err(|looked| self.not_cached(id, vec![looked]))
    }

    /// Uploads the files of a folder into the model repository `id`, which is made if it is
    /// missing, as one commit. `progress` gets the name and bytes of each large file before it
    /// goes.
    ///
    /// # Errors
    /// There is no token, the hub refuses something or cannot be reached, or a file cannot be read.
    #[cfg(feature = "hub")]
    pub fn upload(
        &self,
        id: &HubId,
        folder: &Path,
        private: bool,
        progress: &mut dyn FnMut(&str, u64),
    ) -> Result<Uploaded, CheckpointError> {
        upload::folder(self, id, folder, private, progress)
    }

    fn not_cached(&self, id: &HubId, looked: Vec<PathBuf>) -> CheckpointError {
        let hint = if self.offline {
            "`HF_HUB_OFFLINE` is set; unset it to download, or point `HF_HOME` or `HF_HUB_CACHE` at another cache"
        } else {
            "this build cannot download (cargo feature `hub`); point `HF_HOME` or `HF_HUB_CACHE` at a cache that has it"
        };
        hub_error(id, HubError::NotCached { looked, hint })
    }
}

/// One file of the data set `repo` (`org/name`, perhaps with `@revision`) on the hub, as the
/// environment variables say.
///
/// # Errors
/// When `repo` is not such a name, or as [`Hub::dataset_file`].
pub fn hub_dataset_file(repo: &str, file: &str) -> Result<PathBuf, CheckpointError> {
    let id = HubId::parse(repo).ok_or_else(|| CheckpointError::BadHubId { found: repo.to_owned() })?;
    Hub::from_env().dataset_file(&id, file)
}

fn hub_error(id: &HubId, source: HubError) -> CheckpointError {
    CheckpointError::Hub { id: id.to_string(), source }
}

#[cfg(feature = "hub")]
fn or_cached<T>(id: &HubId, downloaded: Result<T, CheckpointError>, cached: Option<T>) -> Result<T, CheckpointError> {
    match (downloaded, cached) {
        (Err(CheckpointError::Hub { source, .. }), Some(cached)) if source.is_unreachable() => {
            tracing::warn!(%id, error = %source, "the hub cannot be reached, using what is cached");
            Ok(cached)
        }
        (downloaded, _) => downloaded,
    }
}

#[cfg(all(test, feature = "hub"))]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_in_a_variable_or_in_a_file() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("other");
        let token_of = |variables: &[(&str, &str)]| {
            let home = home.path().to_str().unwrap();
            let all = [variables, &[("HF_HOME", home)]].concat();
            token(&|name| all.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(token_of(&[]), None);
        fs_err::write(home.path().join("token"), "of-home\n").unwrap();
        fs_err::write(&file, "of-path\n").unwrap();
        let path = ("HF_TOKEN_PATH", file.to_str().unwrap());
        assert_eq!(token_of(&[]).as_deref(), Some("of-home"));
        assert_eq!(token_of(&[path]).as_deref(), Some("of-path"));
        assert_eq!(token_of(&[path, ("HF_TOKEN", "of-variable")]).as_deref(), Some("of-variable"));
        assert_eq!(token_of(&[path, ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
    }
}
