//! Encoding of f32 into the types that are written: F32, F16, BF16, Q8_0.
//!
//! The bytes are those of `gguf.quants.quantize` of the Python package `gguf`, which are those of
//! ggml's reference (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>).

use super::{BF16, F16, F32, Format, find};
use crate::{Dtype, narrow};
use rayon::prelude::*;

/// Number of the type in the tensor table.
const Q8_0: u32 = 8;
const Q8_0_VALUES: usize = 32;
const Q8_0_BYTES: usize = 34;

/// Type of a matrix in a written file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// Blocks of 32 signed bytes with one scale.
    Q8_0,
}

impl GgufType {
    /// Number of the type in the tensor table.
    pub(in crate::gguf) fn id(self) -> u32 {
        match self {
            Self::F32 => F32,
            Self::F16 => F16,
            Self::BF16 => BF16,
            Self::Q8_0 => Q8_0,
        }
    }

    /// Value of `general.file_type` for a file whose matrices have this type.
    pub(in crate::gguf) fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::BF16 => 32,
        }
    }

    /// The type that presents a safetensors type unchanged.
    #[must_use]
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }

    /// The safetensors type with the same elements; `None` for blocks.
    pub(in crate::gguf) fn dtype(self) -> Option<Dtype> {
        match self {
            Self::F32 => Some(Dtype::F32),
            Self::F16 => Some(Dtype::F16),
            Self::BF16 => Some(Dtype::BF16),
            Self::Q8_0 => None,
        }
    }

    /// Its format.
    pub(in crate::gguf) fn format(self) -> Option<&'static Format> {
        find(self.id()).ok()
    }

    /// Bytes of `values`, whole blocks of them.
    pub(in crate::gguf) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self.dtype() {
            Some(dtype) => narrow(values, dtype),
            None => {
                let mut bytes = vec![0; values.len() / Q8_0_VALUES * Q8_0_BYTES];
                let blocks = bytes.par_chunks_exact_mut(Q8_0_BYTES).zip(values.par_chunks_exact(Q8_0_VALUES));
                blocks.for_each(|(bytes, values)| q8_0(values, bytes));
                bytes
            }
        }
    }
}

/// Scale `d = max |x| / 127` in f16, then `round(x / d)`, where ties go away from zero.
fn q8_0(values: &[f32], bytes: &mut [u8]) {
    let largest = values.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let d = largest / 127.0;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    let (scale, numbers) = bytes.split_at_mut(2);
    scale.copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
    for (number, x) in numbers.iter_mut().zip(values) {
        *number = ((x * inverse).round() as i8).cast_unsigned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and what the Python package makes of them, written by `tests/golden/gguf_encode.py`.
    #[test]
    fn every_type_has_the_bytes_of_the_python_package() {
        let golden = include_bytes!("../../../tests/golden/gguf_encode.safetensors");
        let golden = safetensors::SafeTensors::deserialize(golden).unwrap();
        let values = crate::widen(golden.tensor("values").unwrap().data(), Dtype::F32);
        for kind in [GgufType::F32, GgufType::F16, GgufType::BF16, GgufType::Q8_0] {
            let expected = golden.tensor(&format!("{kind:?}")).unwrap();
            assert_eq!(kind.encode(&values), expected.data(), "{kind:?}");
            assert_eq!(kind.format().unwrap().num_bytes(values.len() as u64), Some(expected.data().len() as u64));
        }
    }
}
