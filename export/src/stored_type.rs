//! Element types of exported tensors.

use retie_checkpoint::Dtype;
use std::fmt;

/// Element type that the matrices of an export are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredType {
    /// Type of each tensor in the model.
    #[default]
    Keep,
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// GGUF's blocks of 32 signed bytes with one scale.
    Q8_0,
}

impl StoredType {
    /// Every type.
    pub const ALL: &'static [Self] = &[Self::Keep, Self::F32, Self::Bf16, Self::F16, Self::Q8_0];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
        }
    }

    /// The type as safetensors has it; `None` for `keep` and for blocks.
    pub(crate) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::Keep | Self::Q8_0 => None,
            Self::F32 => Some(Dtype::F32),
            Self::Bf16 => Some(Dtype::BF16),
            Self::F16 => Some(Dtype::F16),
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for StoredType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().copied().find(|stored| stored.name() == name).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|stored| stored.name()).collect();
            format!("unknown type `{name}`, expected one of {}", names.join(", "))
        })
    }
}
