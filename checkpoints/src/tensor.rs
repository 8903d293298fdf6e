//! Named tensors on a disk, independent of the file format.

use crate::CheckpointError;
use std::{borrow::Cow, path::Path};

/// Element types of tensors that can be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE half.
    F16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }

    /// The spelling of safetensors' header: `F32`, `BF16`, `F16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::BF16 => "BF16",
            Self::F16 => "F16",
        }
    }

    /// The spelling of `dtype` in `config.json`: `float32`, `bfloat16`, `float16`.
    #[must_use]
    pub fn torch_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::BF16 => "bfloat16",
            Self::F16 => "float16",
        }
    }
}

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type of the bytes that [`TensorSource::bytes`] returns.
    pub dtype: Dtype,
    /// Row-major shape; a linear is `[out_features, in_features]`.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Number of elements, the product of the shape.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size in bytes.
    #[must_use]
    pub fn num_bytes(&self) -> usize {
        self.num_elements() * self.dtype.size()
    }
}

/// Read access to named tensors, one at a time. Names are those of Hugging Face
/// (`model.layers.3.self_attn.q_proj.weight`) for every format. Quantised formats present
/// themselves as [`Dtype::F32`] and dequantise when read.
pub trait TensorSource: Send + Sync {
    /// Every name, ascending.
    fn names(&self) -> Vec<&str>;

    /// Type and shape of `name`, or `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<&TensorInfo>;

    /// Path of the file that holds `name`, for error messages; that of the whole folder or file if
    /// there is no such tensor.
    fn path_of(&self, name: &str) -> &Path;

    /// Type of a tensor that is there and cannot be read, as the file spells it. Such a tensor has
    /// no [`TensorSource::info`].
    fn unread(&self, _name: &str) -> Option<&str> {
        None
    }

    /// Row-major little-endian bytes in the type of [`TensorSource::info`].
    ///
    /// # Errors
    /// When there is no such tensor or its file cannot be read.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError>;

    /// Row-major values, widened to f32.
    ///
    /// # Errors
    /// Every error of [`TensorSource::bytes`].
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let info = self.info(name).ok_or_else(|| CheckpointError::NoTensor {
            path: self.path_of(name).to_owned(),
            tensor: name.to_owned(),
        })?;
        Ok(widen(&self.bytes(name)?, info.dtype))
    }
}

impl<T: TensorSource + ?Sized> TensorSource for &T {
    fn names(&self) -> Vec<&str> {
        (**self).names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        (**self).info(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        (**self).path_of(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        (**self).bytes(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        (**self).read_f32(name)
    }
}

/// Widens little-endian elements of `dtype` to f32.
#[must_use]
pub fn widen(bytes: &[u8], dtype: Dtype) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => bytes.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// Narrows f32 to little-endian elements of `dtype`, rounded to nearest even.
#[must_use]
pub fn narrow(values: &[f32], dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect(),
    }
}
