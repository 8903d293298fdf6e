//! Types of tensors that are written, and the encoding of f32 into them.
//!
//! F32, F16, BF16 and Q8_0 have the bytes of `gguf.quants.quantize` of the Python package `gguf`,
//! the others those of ggml's `ggml_quantize_chunk`
//! (<https://github.com/ggml-org/ggml/blob/master/src/ggml-quants.c>).

use super::{BF16, F16, F32, Format, encode_k, encode_simple, find};
use crate::{Dtype, narrow};
use rayon::prelude::*;

/// Type of a matrix in a written file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names of ggml")]
pub enum GgufType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// Blocks of 32 numbers of 5 bits with one scale.
    Q5_0,
    /// The same with a minimum.
    Q5_1,
    /// Blocks of 32 signed bytes with one scale.
    Q8_0,
    /// Blocks of 256 numbers of 4 bits, with a scale and a minimum for every 32.
    Q4_K,
    /// Blocks of 256 numbers of 5 bits, with a scale and a minimum for every 32.
    Q5_K,
    /// Blocks of 256 numbers of 6 bits, with a scale for every 16.
    Q6_K,
}

impl GgufType {
    /// Number of the type in the tensor table.
    pub(in crate::gguf) fn id(self) -> u32 {
        match self {
            Self::F32 => F32,
            Self::F16 => F16,
            Self::BF16 => BF16,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q4_K => 12,
            Self::Q5_K => 13,
            Self::Q6_K => 14,
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
            _ => None,
        }
    }

    /// Its format.
    pub(in crate::gguf) fn format(self) -> Option<&'static Format> {
        find(self.id()).ok()
    }

    /// Bytes of `values`, whole blocks of them.
    pub(in crate::gguf) fn encode(self, values: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => narrow(values, Dtype::F32),
            Self::F16 => narrow(values, Dtype::F16),
            Self::BF16 => narrow(values, Dtype::BF16),
            Self::Q5_0 => blocks(values, encode_simple::q5_0),
            Self::Q5_1 => blocks(values, encode_simple::q5_1),
            Self::Q8_0 => blocks(values, encode_simple::q8_0),
            Self::Q4_K => blocks(values, encode_k::q4_k),
            Self::Q5_K => blocks(values, encode_k::q5_k),
            Self::Q6_K => blocks(values, encode_k::q6_k),
        }
    }
}

/// Blocks of `VALUES` values as `BYTES` bytes, on every core.
fn blocks<const VALUES: usize, const BYTES: usize>(
    values: &[f32],
    encode: fn(&[f32; VALUES], &mut [u8; BYTES]),
) -> Vec<u8> {
    let (values, _) = values.as_chunks::<VALUES>();
    let mut bytes = vec![[0; BYTES]; values.len()];
    bytes.par_iter_mut().zip(values).for_each(|(bytes, values)| encode(values, bytes));
    bytes.into_flattened()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values and what the Python package and ggml make of them, written by
    /// `tests/golden/gguf_encode.py`.
    #[test]
    fn every_type_has_the_bytes_of_the_python_package_and_of_ggml() {
        let golden = include_bytes!("../../../tests/golden/gguf_encode.safetensors");
        let golden = safetensors::SafeTensors::deserialize(golden).unwrap();
        let values = crate::widen(golden.tensor("values").unwrap().data(), Dtype::F32);
        let kinds = [
            GgufType::F32,
            GgufType::F16,
            GgufType::BF16,
            GgufType::Q5_0,
            GgufType::Q5_1,
            GgufType::Q8_0,
            GgufType::Q4_K,
            GgufType::Q5_K,
            GgufType::Q6_K,
        ];
        for kind in kinds {
            let expected = golden.tensor(&format!("{kind:?}")).unwrap();
            let found = kind.encode(&values);
            assert_eq!(kind.format().unwrap().num_bytes(values.len() as u64), Some(expected.data().len() as u64));
            let size = kind.format().unwrap().block_bytes;
            for (block, (found, expected)) in found.chunks(size).zip(expected.data().chunks(size)).enumerate() {
                assert_eq!(found, expected, "{kind:?}, block {block}");
            }
        }
    }
}
