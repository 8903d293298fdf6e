//! Between tensors and plain numbers.

use burn::tensor::{Device, Int, Tensor};

/// The elements of a tensor, row by row.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

/// Token ids `[B, T]` of rows of one length.
pub fn ids(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    let flat: Vec<i32> = rows.iter().flatten().map(|id| *id as i32).collect();
    Tensor::<1, Int>::from_ints(flat.as_slice(), device).reshape([rows.len(), rows[0].len()])
}

/// Largest and mean absolute difference.
pub fn differences(a: &[f32], b: &[f32]) -> (f32, f64) {
    assert_eq!(a.len(), b.len());
    let all = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    (all.clone().fold(0.0, f32::max), all.map(f64::from).sum::<f64>() / a.len() as f64)
}
