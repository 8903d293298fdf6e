//! Element types of exported tensors.

use retie_checkpoint::Dtype;
use std::fmt;

/// Element type that the matrices of an export are stored in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
    /// GGUF's blocks of 256 numbers of 6 bits.
    Q6K,
    /// GGUF's blocks of 256 numbers of 5 bits, and llama.cpp's choice of matrices with 6.
    Q5KM,
    /// GGUF's blocks of 256 numbers of 4 bits, and llama.cpp's choice of matrices with 6.
    Q4KM,
}

impl StoredType {
    /// Every type.
    pub const ALL: &'static [Self] =
        &[Self::Keep, Self::F32, Self::Bf16, Self::F16, Self::Q8_0, Self::Q6K, Self::Q5KM, Self::Q4KM];
    /// Types of safetensors.
    pub(crate) const OF_FOLDERS: &'static [Self] = &[Self::Keep, Self::F32, Self::Bf16, Self::F16];

    /// The name on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q6K => "q6_k",
            Self::Q5KM => "q5_k_m",
            Self::Q4KM => "q4_k_m",
        }
    }

    /// True if every value of a model of F32, F16 and BF16 is kept as it is.
    #[must_use]
    pub fn is_exact(self) -> bool {
        matches!(self, Self::Keep | Self::F32)
    }

    /// The type as safetensors has it; `None` for `keep` and for blocks.
    pub(crate) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::Bf16 => Some(Dtype::BF16),
            Self::F16 => Some(Dtype::F16),
            _ => None,
        }
    }

    /// Root mean square that rounding to the type costs at most, relative to the largest value of
    /// [`super::weights::K_BLOCK`]; `None` for types whose values are rounded one by one, or by
    /// their block alone.
    ///
    /// A step is 2/15, 2/31 or 1/32 of the largest value and its error at worst half of it; scales
    /// of 6 bits and the value of the other sign at the end of the range add as much again.
    pub(crate) fn k_error(self) -> Option<f64> {
        match self {
            Self::Q4KM => Some(0.1),
            Self::Q5KM => Some(0.07),
            Self::Q6K => Some(0.035),
            _ => None,
        }
    }
}

impl fmt::Display for StoredType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for StoredType {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
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
