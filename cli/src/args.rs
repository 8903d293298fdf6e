//! Arguments shared by several commands, and the parsers of their values.

mod duration;
mod engine;
mod sampling;
mod speculation;

pub use duration::parse_duration;
pub use engine::EngineArgs;
pub use sampling::SamplingArgs;
pub use speculation::{NumDrafts, SpeculationArgs};

use clap::{Args, ValueEnum};
use retie_model::{
    WeightDtype,
    kernels::{self, Capture},
};

/// `--device`.
#[derive(Clone, Debug, Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, wgpu, wgpu:N, cuda, cuda:N; auto takes the first of CUDA, WGPU,
    /// CPU that this binary and this machine have
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
}

/// `--capture`, for commands that decode or train.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct CaptureArgs {
    /// Record the kernels of a decoded token, or of a teacher's forward pass, and launch them as
    /// one, where the device can: auto, off
    #[arg(long, value_name = "WHEN", default_value = "auto")]
    capture: CaptureArg,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum CaptureArg {
    #[default]
    Auto,
    Off,
}

impl CaptureArgs {
    /// Sets it for the process.
    pub fn apply(self) {
        kernels::set_capture(match self.capture {
            CaptureArg::Auto => Capture::Auto,
            CaptureArg::Off => Capture::Off,
        });
    }
}

/// `--dtype`, for commands that only read a model.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct DtypeArgs {
    /// Hold matrices in this type; sums are f32 throughout. `auto` keeps bf16 where the file has
    /// bf16 (CPU), else f32
    #[arg(long, value_name = "DTYPE", default_value = "auto")]
    dtype: DtypeArg,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum DtypeArg {
    #[default]
    Auto,
    F32,
    Bf16,
}

impl DtypeArgs {
    /// Element type of the matrices, as the model loader takes it.
    pub fn get(self) -> WeightDtype {
        match self.dtype {
            DtypeArg::Auto => WeightDtype::Auto,
            DtypeArg::F32 => WeightDtype::F32,
            DtypeArg::Bf16 => WeightDtype::Bf16,
        }
    }
}

/// `--set`, for commands that read a YAML file.
#[derive(Clone, Debug, Default, Args)]
pub struct SetArgs {
    /// Replace a value of the file, e.g. `--set train.steps=10`; the value is YAML
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// `--json`, for commands that report.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct JsonArgs {
    /// Print JSON on stdout
    #[arg(long)]
    pub json: bool,
}
