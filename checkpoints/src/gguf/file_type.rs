//! Types of a whole file: the type of each of its matrices.
//!
//! The mixtures are those of llama.cpp's quantiser
//! (<https://github.com/ggml-org/llama.cpp/blob/master/src/llama-quant.cpp>) for dense models with
//! fewer than 80 layers, without an importance matrix: the head, and some of the values and of the
//! last linears of layers, have more bits than the rest.

use super::GgufType;
use retie_config::{Projection, TensorRole};

/// Type of the matrices of a written file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names of llama.cpp")]
#[allow(missing_docs)]
pub enum GgufFileType {
    F32,
    F16,
    BF16,
    Q8_0,
    /// Q4_K, and Q6_K where it helps most.
    Q4_K_M,
    /// Q5_K, and Q6_K where it helps most.
    Q5_K_M,
    Q6_K,
}

/// A matrix of a model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix {
    pub role: TensorRole,
    /// Stored layer, and their number.
    pub layer: usize,
    pub num_layers: usize,
    /// True for the embeddings of a model whose head they are.
    pub is_head: bool,
    /// Values of a row.
    pub row: usize,
}

impl GgufFileType {
    /// Value of `general.file_type`.
    pub(super) fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::Q4_K_M => 15,
            Self::Q5_K_M => 17,
            Self::Q6_K => 18,
            Self::BF16 => 32,
        }
    }

    /// The file whose matrices have this type, which a model's own can be.
    pub(super) fn of(kind: GgufType) -> Self {
        match kind {
            GgufType::F16 => Self::F16,
            GgufType::BF16 => Self::BF16,
            _ => Self::F32,
        }
    }

    /// Type of a matrix.
    pub(super) fn of_matrix(self, matrix: Matrix) -> GgufType {
        let wanted = match self {
            Self::F32 => GgufType::F32,
            Self::F16 => GgufType::F16,
            Self::BF16 => GgufType::BF16,
            Self::Q8_0 => GgufType::Q8_0,
            Self::Q6_K => GgufType::Q6_K,
            Self::Q4_K_M | Self::Q5_K_M if matrix.has_more_bits() => GgufType::Q6_K,
            Self::Q4_K_M => GgufType::Q4_K,
            Self::Q5_K_M => GgufType::Q5_K,
        };
        // A row is a whole number of blocks; blocks of 256 are replaced by blocks of 32.
        let fits = |kind: GgufType| matrix.row.is_multiple_of(kind.format().map_or(1, |format| format.block_values));
        let smaller = match wanted {
            GgufType::Q4_K => GgufType::Q5_0,
            GgufType::Q5_K => GgufType::Q5_1,
            GgufType::Q6_K => GgufType::Q8_0,
            other => other,
        };
        [wanted, smaller].into_iter().find(|kind| fits(*kind)).unwrap_or(GgufType::F16)
    }
}

impl Matrix {
    fn has_more_bits(self) -> bool {
        let Self { role, layer, num_layers, is_head, .. } = self;
        // The first eighth of the layers, the last, and every third between them.
        let eighth = num_layers / 8;
        let chosen = layer < eighth || layer >= 7 * num_layers / 8 || (layer - eighth) % 3 == 2;
        match role {
            TensorRole::Head => true,
            TensorRole::Embedding => is_head,
            TensorRole::Projection(Projection::V | Projection::Down) => chosen,
            _ => false,
        }
    }
}
