//! Conversions between slices and tensors of the CPU backend.

use super::matmul::Matrix;
use burn::{
    backend::{BackendTensor, DispatchTensorKind, TensorMetadata, flex::FlexTensor},
    tensor::{Shape, Tensor, TensorData},
};
use half::bf16;

/// Backend tensor of `tensor`, which must be an untracked float tensor on the CPU.
pub fn on_host<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => dense(tensor),
        other => unreachable!("not a float tensor of the CPU: {other:?}"),
    }
}

/// Contiguous tensor whose storage starts at its first element.
pub fn dense(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() && tensor.layout().start_offset() == 0 { tensor } else { tensor.to_contiguous() }
}

/// Elements of a dense f32 tensor.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    &tensor.storage::<f32>()[..tensor.layout().num_elements()]
}

/// Elements of a dense bf16 tensor.
pub fn bf16_values(tensor: &FlexTensor) -> &[bf16] {
    &tensor.storage::<bf16>()[..tensor.layout().num_elements()]
}

/// Matrix view of a dense tensor of two dimensions.
pub fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    Matrix::new(values(tensor), tensor.shape().dims())
}

/// One zero for each element of `tensor`.
pub fn zeros_like(tensor: &FlexTensor) -> Vec<f32> {
    vec![0.0; tensor.layout().num_elements()]
}

/// Tensor that owns `values`, without a copy.
pub fn from_values(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

/// Sum of vectors of `width` that tasks have made of their rows. It goes in the order of the rows,
/// so that no result depends on the number of threads or on their scheduling.
pub fn added<'a>(parts: impl IntoIterator<Item = &'a [f32]>, width: usize) -> Vec<f32> {
    let mut total = vec![0.0f32; width];
    for part in parts {
        total.iter_mut().zip(part).for_each(|(sum, value)| *sum += value);
    }
    total
}
