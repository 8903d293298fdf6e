//! Errors of this crate.

/// Failure to build or use a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The checkpoint cannot be read or does not fit its configuration.
    #[error(transparent)]
    Checkpoint(#[from] retie_checkpoint::CheckpointError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] retie_config::ConfigError),
    /// Unknown device name.
    #[error("unknown device `{found}`\nhint: one of {known}")]
    UnknownDevice {
        /// The given name.
        found: String,
        /// The known names.
        known: &'static str,
    },
    /// The binary was built without the backend.
    #[error("this binary has no `{backend}` backend\nhint: build it with `--features {backend}`")]
    BackendNotBuilt {
        /// The backend.
        backend: &'static str,
    },
    /// This machine does not have the device.
    #[error("no device `{name}`: {reason}\nhint: is its driver installed? `--device cpu` is always there")]
    NoSuchDevice {
        /// The given name.
        name: String,
        /// Error of the backend.
        reason: String,
    },
    /// The CUDA toolkit's library of mathematical functions is not there.
    #[error(
        "CUDA's mathematical functions were not found: no `nvvm/libdevice/libdevice.10.bc` under {searched}\nhint: set `CUDA_PATH` to the folder of a CUDA toolkit; `pip install nvidia-cuda-nvcc-cu12` has the file too, under `nvidia/cuda_nvcc`"
    )]
    NoLibdevice {
        /// The folders, for a message.
        searched: String,
    },
    /// bf16 weights were requested with autodiff, or on a device without bf16.
    #[error("weights in bf16 want a device that has bf16, without autodiff\nhint: `--dtype f32`, or `--device cpu`")]
    Bf16OnDevice,
}
