//! Errors of this crate. What is wrong with a request is a response: `api::refusal`.

use retie_engine::EngineError;
use std::io;

/// Why the server does not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Another program listens there.
    #[error(
        "port {port} of `{host}` is in use, expected a free one\nhint: `--port` takes another one; 0 is any free one"
    )]
    PortInUse {
        /// The host.
        host: String,
        /// The port.
        port: u16,
    },
    /// The address cannot be listened at.
    #[error(
        "cannot listen at port {port} of `{host}`\nhint: `--host` is an address or name of this machine; ports below 1024 may need rights"
    )]
    Bind {
        /// The host.
        host: String,
        /// The port.
        port: u16,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A value of the engine is out of its range.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A risk of early exits that the model was not calibrated for.
    #[error("`exit_risk` is `{found}`, expected {expected}\nhint: `retie calibrate` makes thresholds for a level")]
    ExitRisk {
        /// The risk.
        found: f64,
        /// What it could be.
        expected: String,
    },
    /// An API key that every request would have.
    #[error("the API key is empty, expected a text\nhint: leave it out to serve without a key")]
    EmptyApiKey,
    /// The system gives no threads or sockets.
    #[error("the server cannot start")]
    Start(#[source] io::Error),
    /// The engine thread has ended by itself.
    #[error("the engine has stopped unexpectedly")]
    EngineStopped,
}
