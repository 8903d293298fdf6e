//! Supported tensor types of GGUF, and their dequantisation to f32.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h>; the values are those
//! of `gguf.quants.dequantize` of the Python package `gguf`, bit for bit. A row (the fastest
//! dimension) is a whole number of blocks.
//!
//! To add a type: one function from a block to its values, one line in [`FORMATS`], one golden.

mod encode;
mod encode_k;
mod encode_simple;
mod k_quants;
mod plain;
mod simple;

pub use encode::GgufType;

use rayon::prelude::*;

/// Type numbers of the tensors whose bytes are presented unchanged.
pub(super) const F32: u32 = 0;
pub(super) const F16: u32 = 1;
pub(super) const BF16: u32 = 30;

/// Values that one task of the thread pool converts: enough to outweigh the cost of its start.
const VALUES_PER_TASK: usize = 1 << 15;

/// One tensor type.
pub(super) struct Format {
    /// Number in the tensor table.
    pub id: u32,
    /// Name in ggml.
    pub name: &'static str,
    /// Values of a block.
    pub block_values: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Whole blocks → their values.
    dequantize: fn(&[u8], &mut [f32]),
}

/// Builds a [`Format`] from a function on one block, whose types fix both sizes.
macro_rules! block_format {
    ($name:literal, $id:expr, $function:path, $block_bytes:literal -> $block_values:literal) => {
        Format {
            id: $id,
            name: $name,
            block_values: $block_values,
            block_bytes: $block_bytes,
            dequantize: |bytes, values| {
                let blocks = bytes.as_chunks::<$block_bytes>().0;
                for (block, values) in blocks.iter().zip(values.as_chunks_mut::<$block_values>().0) {
                    $function(block, values);
                }
            },
        }
    };
}

/// Every supported type.
static FORMATS: &[Format] = &[
    block_format!("F32", F32, plain::f32, 4 -> 1),
    block_format!("F16", F16, plain::f16, 2 -> 1),
    block_format!("BF16", BF16, plain::bf16, 2 -> 1),
    block_format!("Q4_0", 2, simple::q4_0, 18 -> 32),
    block_format!("Q4_1", 3, simple::q4_1, 20 -> 32),
    block_format!("Q5_0", 6, simple::q5_0, 22 -> 32),
    block_format!("Q5_1", 7, simple::q5_1, 24 -> 32),
    block_format!("Q8_0", 8, simple::q8_0, 34 -> 32),
    block_format!("Q4_K", 12, k_quants::q4_k, 144 -> 256),
    block_format!("Q5_K", 13, k_quants::q5_k, 176 -> 256),
    block_format!("Q6_K", 14, k_quants::q6_k, 210 -> 256),
];

/// Names of existing types that are not supported, for messages.
const OTHER_NAMES: &[(u32, &str)] = &[
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

/// Format of type number `id`; the name of the type as error if it is not supported.
pub(super) fn find(id: u32) -> Result<&'static Format, String> {
    FORMATS.iter().find(|f| f.id == id).ok_or_else(|| {
        OTHER_NAMES
            .iter()
            .find(|(other, _)| *other == id)
            .map_or_else(|| format!("type {id}"), |(_, n)| (*n).to_owned())
    })
}

/// Names of every supported type.
pub(super) fn supported() -> String {
    FORMATS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ")
}

impl Format {
    /// Bytes of `values` values; `None` if they are not whole blocks, or too many to count.
    pub fn num_bytes(&self, values: u64) -> Option<u64> {
        let block_values = self.block_values as u64;
        if !values.is_multiple_of(block_values) {
            return None;
        }
        (values / block_values).checked_mul(self.block_bytes as u64)
    }

    /// Whole blocks → values, on every core.
    pub fn dequantize(&self, bytes: &[u8]) -> Vec<f32> {
        let mut values = vec![0.0; bytes.len() / self.block_bytes * self.block_values];
        self.tasks(bytes).zip(values.par_chunks_mut(self.values_per_task())).for_each(|(bytes, values)| {
            (self.dequantize)(bytes, values);
        });
        values
    }

    /// Whole blocks → little-endian f32, on every core.
    pub fn dequantize_to_bytes(&self, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0; bytes.len() / self.block_bytes * self.block_values * size_of::<f32>()];
        self.tasks(bytes).zip(out.par_chunks_mut(self.values_per_task() * size_of::<f32>())).for_each_init(
            Vec::new,
            |values: &mut Vec<f32>, (bytes, out)| {
                values.resize(out.len() / size_of::<f32>(), 0.0);
                (self.dequantize)(bytes, values);
                for (out, value) in out.as_chunks_mut::<4>().0.iter_mut().zip(values) {
                    *out = value.to_le_bytes();
                }
            },
        );
        out
    }

    fn values_per_task(&self) -> usize {
        VALUES_PER_TASK // a multiple of every block size
    }

    fn tasks<'a>(&self, bytes: &'a [u8]) -> rayon::slice::Chunks<'a, u8> {
        bytes.par_chunks(self.values_per_task() / self.block_values * self.block_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of random bytes (with a finite scale) and their values in f32, written by
    /// `tests/golden/gguf_quants.py` with the Python package `gguf`.
    #[test]
    fn every_type_gives_the_values_of_the_python_package_bit_for_bit() {
        let golden = include_bytes!("../../../tests/golden/gguf_quants.safetensors");
        let golden = safetensors::SafeTensors::deserialize(golden).unwrap();
        for format in FORMATS {
            let blocks = golden.tensor(&format!("{}.blocks", format.name)).unwrap();
            let expected = golden.tensor(&format!("{}.values", format.name)).unwrap();
            assert!(blocks.data().len() >= 8 * format.block_bytes);
            assert_eq!(format.dequantize_to_bytes(blocks.data()), expected.data(), "{}", format.name);
            let values = format.dequantize(blocks.data());
            assert_eq!(values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>(), expected.data());
        }
    }

    #[test]
    fn a_task_is_a_whole_number_of_blocks() {
        assert!(FORMATS.iter().all(|f| VALUES_PER_TASK.is_multiple_of(f.block_values)));
    }

    #[test]
    fn tensors_longer_than_a_task_are_whole() {
        let format = find(8).unwrap();
        let block: Vec<u8> = [0x00, 0x3c].into_iter().chain(0..32).collect();
        let blocks = block.repeat(3 * VALUES_PER_TASK / 32 + 5);
        let values = format.dequantize(&blocks);
        assert_eq!(values.len(), 3 * VALUES_PER_TASK + 5 * 32);
        assert!(values.chunks(32).all(|block| block.iter().enumerate().all(|(i, x)| *x == i as f32)));
    }

    #[test]
    fn types_have_names_even_if_they_cannot_be_read() {
        assert_eq!(find(23).err().unwrap(), "IQ4_XS");
        assert_eq!(find(999).err().unwrap(), "type 999");
        assert!(OTHER_NAMES.iter().all(|(id, _)| find(*id).is_err()));
    }
}
