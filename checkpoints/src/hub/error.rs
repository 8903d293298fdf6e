//! What can go wrong between a hub id and its files.

use std::path::PathBuf;

/// Why files of the hub cannot be had. [`crate::CheckpointError::Hub`] adds the id.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nothing may be downloaded, and the cache lacks it.
    #[error("the hub cache lacks {}\nhint: {hint}", looked.iter().map(|p| format!("`{}`", p.display())).collect::<Vec<_>>().join(", "))]
    NotCached {
        /// Where it would be.
        looked: Vec<PathBuf>,
        /// Why nothing is downloaded, and what to do.
        hint: &'static str,
    },
    /// A file's name that leads out of its repository.
    #[error("`{file}` is not the name of a file in a repository")]
    BadFileName {
        /// The name.
        file: String,
    },
    /// A pattern that fits no file of a repository.
    #[error("the repository has no file that matches `{pattern}`")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// The hub does not know it, or does not show it to everybody.
    #[cfg(feature = "hub")]
    #[error(
        "`{endpoint}` has no such repository or revision, or does not let you see it\nhint: check the name; a private or gated repository needs `HF_TOKEN`"
    )]
    NotFound {
        /// The hub.
        endpoint: String,
        /// Its answer.
        source: Box<hf_hub::HFError>,
    },
    /// The repository has no such file.
    #[cfg(feature = "hub")]
    #[error("the repository has no file `{file}`")]
    NoFile {
        /// The file.
        file: String,
    },
    /// A request failed.
    #[cfg(feature = "hub")]
    #[error("cannot get {what} from `{endpoint}`")]
    Request {
        /// What was asked for.
        what: String,
        /// The hub.
        endpoint: String,
        /// Why it failed.
        source: Box<hf_hub::HFError>,
    },
    /// A downloaded file has another size than the hub states. It was removed.
    #[cfg(feature = "hub")]
    #[error("`{file}` was downloaded with {found} bytes, expected {expected}\nhint: try again")]
    Size {
        /// The file.
        file: String,
        /// Its size.
        found: u64,
        /// The size that the hub states.
        expected: u64,
    },
}

impl HubError {
    /// Whether the hub could not be reached at all, so that the cache is the next best source.
    #[cfg(feature = "hub")]
    pub(super) fn is_unreachable(&self) -> bool {
        let Self::Request { source, .. } = self else { return false };
        match source.as_ref() {
            hf_hub::HFError::Request { .. } => true,
            hf_hub::HFError::Http { context } => context.status.is_server_error(),
            hf_hub::HFError::RateLimited { .. } => true,
            _ => false,
        }
    }
}
