//! Errors of this crate.

/// Why a model cannot be built or used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint cannot be read or does not fit its configuration.
    #[error(transparent)]
    Checkpoint(#[from] retie_checkpoint::CheckpointError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] retie_config::ConfigError),
    /// No such device.
    #[error("unknown device `{found}`\nhint: one of {known}")]
    UnknownDevice {
        /// What was asked for.
        found: String,
        /// What can be asked for.
        known: &'static str,
    },
    /// The binary was built without that backend.
    #[error("this binary has no `{backend}` backend\nhint: build it with `--features {backend}`")]
    BackendNotBuilt {
        /// The backend.
        backend: &'static str,
    },
    /// This machine has no such device.
    #[error("no device `{name}`: {reason}\nhint: is its driver installed? `--device cpu` is always there")]
    NoSuchDevice {
        /// What was asked for.
        name: String,
        /// What the backend found.
        reason: String,
    },
    /// Weights in bf16 are for inference, on devices that have it.
    #[error("weights in bf16 want a device that has bf16, without autodiff\nhint: `--dtype f32`, or `--device cpu`")]
    Bf16OnDevice,
    /// More tokens than the model has positions for.
    #[error("{asked} tokens do not fit the model's context of {max_position_embeddings}\nhint: {hint}")]
    ContextTooLong {
        /// Tokens asked for.
        asked: usize,
        /// The model's limit.
        max_position_embeddings: usize,
        /// What to change.
        hint: &'static str,
    },
}
