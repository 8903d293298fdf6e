//! Models and data sets by their name on the Hugging Face hub, through the cache that every tool shares.
//!
//! Variables: `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`
//! (<https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables>). Without the cargo feature `hub`
//! only what is cached can be had.

mod address;
mod cache;
#[cfg(feature = "hub")]
mod download;
mod error;
mod id;

use crate::CheckpointError;
pub use address::HubAddress;
use cache::{CachedRepo, Kind};
pub use error::HubError;
pub use id::HubId;
use std::{
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DownloadProgress<'a> {
    /// Name in the repository.
    pub file: &'a str,
    /// Bytes that have come.
    pub bytes: u64,
    /// Bytes of the whole file.
    pub total_bytes: u64,
}

type OnProgress = Arc<dyn Fn(DownloadProgress<'_>) + Send + Sync>;

/// The hub and its cache.
#[derive(Clone)]
pub struct Hub {
    cache: PathBuf,
    offline: bool,
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    endpoint: String,
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    token: Option<String>,
    #[cfg_attr(not(feature = "hub"), allow(dead_code))]
    on_progress: Option<OnProgress>,
}

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

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
        let yes = |name: &str| {
            variable(name).is_some_and(|v| matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE"))
        };
        let token = variable("HF_TOKEN").filter(|_| !yes("HF_HUB_DISABLE_IMPLICIT_TOKEN"));
        Self {
            cache: cache::root(&variable),
            offline: yes("HF_HUB_OFFLINE"),
            endpoint: variable("HF_ENDPOINT").unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()),
            token,
            on_progress: None,
        }
    }

    /// Calls `on_progress` while files are downloaded, from another thread.
    #[must_use]
    pub fn with_progress(self, on_progress: impl Fn(DownloadProgress<'_>) + Send + Sync + 'static) -> Self {
        Self { on_progress: Some(Arc::new(on_progress)), ..self }
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

    /// The folder with the model's configuration, weights and tokenizer; what is missing is downloaded. If the hub cannot be
    /// reached, what is cached is used, with a warning.
    ///
    /// # Errors
    /// When the repository has no safetensors, or the files are not cached and cannot be downloaded.
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

    /// One file of a data set; it is downloaded if it is missing. If the hub cannot be reached, what is cached is used, with a
    /// warning.
    ///
    /// # Errors
    /// When the repository has no such file, or the file is not cached and cannot be downloaded.
    pub fn dataset_file(&self, id: &HubId, file: &str) -> Result<PathBuf, CheckpointError> {
        let inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
        if file.is_empty() || !inside {
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

    /// Names of the files in a folder of a data set, with the folder's; if the hub cannot be reached, of those that are cached.
    fn dataset_folder(&self, id: &HubId, folder: &str) -> Result<Vec<String>, CheckpointError> {
        let cached = CachedRepo::new(&self.cache, Kind::Dataset, id).folder(folder);
        #[cfg(feature = "hub")]
        if !self.offline {
            return or_cached(id, download::dataset_folder(self, id, folder), cached.ok());
        }
        cached.map_err(|looked| self.not_cached(id, vec![looked]))
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

/// One file of the data set `repo` (`org/name`, perhaps with `@revision`) on the hub, as the environment variables say.
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
