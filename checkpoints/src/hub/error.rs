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
        source: RequestError,
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
        source: RequestError,
    },
    /// An upload without a token.
    #[cfg(feature = "hub")]
    #[error("uploading needs a token\nhint: set `HF_TOKEN` to one that may write, or run `hf auth login`")]
    NoToken,
    /// An upload where nothing may be sent.
    #[cfg(feature = "hub")]
    #[error("nothing is uploaded: `HF_HUB_OFFLINE` is set\nhint: unset it")]
    Offline,
    /// A request of an upload failed. The commit is made last, so that the repository has all files
    /// or is as it was.
    #[cfg(feature = "hub")]
    #[error("cannot put {what} to `{endpoint}`\nhint: nothing was committed; the token has to allow writing there")]
    Upload {
        /// What was sent.
        what: String,
        /// The hub.
        endpoint: String,
        /// Why it failed.
        source: RequestError,
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
    /// A downloaded file has another content than the hub states. It was removed.
    #[cfg(feature = "hub")]
    #[error(
        "`{file}` was downloaded with the {found}, expected the {expected}\nhint: try again; if it stays so, something between you and the hub changes files"
    )]
    Hash {
        /// The file.
        file: String,
        /// Its hash.
        found: String,
        /// The hash that the hub states.
        expected: String,
    },
}

/// Why a request to the hub failed.
#[cfg(feature = "hub")]
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The server answered with a status that is no success.
    #[error("the server answered with status {status}{}", message.as_ref().map(|m| format!(": {m}")).unwrap_or_default())]
    Status {
        /// HTTP status code.
        status: u16,
        /// What the server says about it.
        message: Option<String>,
    },
    /// The server cannot be reached, or the connection broke.
    #[error("the connection failed: {0}")]
    Connection(Box<ureq::Error>),
    /// The answer lacks something.
    #[error("the server's answer lacks {expected}")]
    Answer {
        /// What it lacks.
        expected: String,
    },
    /// The answer is not the JSON document that was expected.
    #[error("the server's answer is not the JSON document that was expected")]
    Json(#[from] serde_json::Error),
}

#[cfg(feature = "hub")]
impl From<ureq::Error> for RequestError {
    fn from(error: ureq::Error) -> Self {
        Self::Connection(Box::new(error))
    }
}

#[cfg(feature = "hub")]
impl RequestError {
    /// Whether the same request may succeed a moment later.
    pub(super) fn may_pass(&self) -> bool {
        match self {
            Self::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Self::Connection(error) => !matches!(**error, ureq::Error::BadUri(_) | ureq::Error::TooManyRedirects),
            Self::Answer { .. } | Self::Json(_) => false,
        }
    }
}

impl HubError {
    /// Whether the hub could not be reached at all, so that the cache is the next best source.
    #[cfg(feature = "hub")]
    pub(super) fn is_unreachable(&self) -> bool {
        match self {
            Self::Request { source: RequestError::Status { status, .. }, .. } => *status >= 500 || *status == 429,
            Self::Request { source: RequestError::Connection(_), .. } => true,
            _ => false,
        }
    }
}
