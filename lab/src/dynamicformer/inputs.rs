//! What the network sees of intersection numbers. The entries of the tensor are those of a space:
//! samples of the same genus and points share them.

use super::DynamicFormerConfig;
use crate::LabError;
use burn::tensor::{Device, Int, Tensor, TensorData};
use retie_tasks::numbers::{PsiSample, b_entries};

/// A batch.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Genus and number of points, `[B, 2]`.
    pub genus_points: Tensor<2>,
    /// Exponents, `[B, P]`; padding is 0.
    pub exponents: Tensor<2, Int>,
    /// 1 for the exponents that are no padding, `[B, P]`.
    pub exponent_mask: Tensor<2>,
    /// `i, j, k, log(1 + 100 B^i_jk)` of the spaces, `[S, M, 4]`; padding is 0.
    pub entries: Tensor<3>,
    /// 1 for the entries that are no padding, `[S, M]`.
    pub entry_mask: Tensor<2>,
    /// The space of a sample, `[B]`.
    pub space: Tensor<1, Int>,
    /// The first sample of a space, `[S]`.
    pub first: Tensor<1, Int>,
}

impl Inputs {
    /// Of samples, of which there is at least one.
    ///
    /// # Errors
    /// An exponent that the network has no embedding of.
    pub fn new(samples: &[&PsiSample], config: &DynamicFormerConfig, device: &Device) -> Result<Self, LabError> {
        let largest = samples.iter().flat_map(|sample| &sample.exponents).max().copied().unwrap_or(0);
        if largest > config.largest_exponent {
            return Err(LabError::Setting {
                found: format!("an exponent of {largest}"),
                expected: format!("at most {}, which has an embedding", config.largest_exponent),
            });
        }
        let mut spaces: Vec<[usize; 2]> = Vec::new();
        let (mut space, mut first) = (Vec::new(), Vec::new());
        for (index, sample) in samples.iter().enumerate() {
            let key = [sample.genus, sample.exponents.len()];
            let known = spaces.iter().position(|space| *space == key);
            space.push(known.unwrap_or(spaces.len()) as i64);
            if known.is_none() {
                spaces.push(key);
                first.push(index as i64);
            }
        }
        let genus_points: Vec<f32> = samples.iter().flat_map(|s| [s.genus as f32, s.exponents.len() as f32]).collect();

        let points = samples.iter().map(|sample| sample.exponents.len()).max().unwrap_or(0);
        let mut exponents = vec![0_i64; samples.len() * points];
        let mut exponent_mask = vec![0.0_f32; samples.len() * points];
        for (row, sample) in samples.iter().enumerate() {
            for (column, exponent) in sample.exponents.iter().enumerate() {
                exponents[row * points + column] = *exponent as i64;
                exponent_mask[row * points + column] = 1.0;
            }
        }

        // Numbers of genus g with n points have exponents up to 3g - 3 + n.
        let tensors: Vec<_> = spaces.iter().map(|[genus, points]| b_entries(3 * genus + points - 3)).collect();
        let most = tensors.iter().map(Vec::len).max().unwrap_or(0);
        let mut entries = vec![0.0_f32; spaces.len() * most * 4];
        let mut entry_mask = vec![0.0_f32; spaces.len() * most];
        for (row, tensor) in tensors.iter().enumerate() {
            for (column, entry) in tensor.iter().enumerate() {
                let at = row * most + column;
                let value = (1.0 + 100.0 * entry.value).ln() as f32;
                entries[4 * at..4 * at + 4].copy_from_slice(&[entry.i as f32, entry.j as f32, entry.k as f32, value]);
                entry_mask[at] = 1.0;
            }
        }
        let (batch, spaces) = (samples.len(), spaces.len());
        Ok(Self {
            genus_points: Tensor::from_data(TensorData::new(genus_points, [batch, 2]), device),
            exponents: Tensor::from_data(TensorData::new(exponents, [batch, points]), device),
            exponent_mask: Tensor::from_data(TensorData::new(exponent_mask, [batch, points]), device),
            entries: Tensor::from_data(TensorData::new(entries, [spaces, most, 4]), device),
            entry_mask: Tensor::from_data(TensorData::new(entry_mask, [spaces, most]), device),
            space: Tensor::from_data(TensorData::new(space, [batch]), device),
            first: Tensor::from_data(TensorData::new(first, [spaces]), device),
        })
    }
}
