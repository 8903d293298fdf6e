//! Tensors of the CPU backend as slices, and back.

use super::matmul::Matrix;
use burn::{
    backend::{BackendTensor, DispatchTensorKind, TensorMetadata, flex::FlexTensor},
    tensor::{Shape, Tensor, TensorData},
};
use half::bf16;

/// The tensor behind `tensor`, which is on the CPU and not tracked.
pub fn on_host<const D: usize>(tensor: Tensor<D>) -> FlexTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Flex(BackendTensor::Float(tensor)) => dense(tensor),
        other => unreachable!("not a float tensor of the CPU: {other:?}"),
    }
}

/// A tensor whose storage starts at its first element and has no gaps.
pub fn dense(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() && tensor.layout().start_offset() == 0 { tensor } else { tensor.to_contiguous() }
}

/// The elements of a dense tensor of f32.
pub fn values(tensor: &FlexTensor) -> &[f32] {
    &tensor.storage::<f32>()[..tensor.layout().num_elements()]
}

/// The elements of a dense tensor of bf16.
pub fn bf16_values(tensor: &FlexTensor) -> &[bf16] {
    &tensor.storage::<bf16>()[..tensor.layout().num_elements()]
}

/// A dense tensor of two dimensions.
pub fn matrix(tensor: &FlexTensor) -> Matrix<'_> {
    Matrix::new(values(tensor), tensor.shape().dims())
}

/// Zeros for each element of `tensor`.
pub fn zeros_like(tensor: &FlexTensor) -> Vec<f32> {
    vec![0.0; tensor.layout().num_elements()]
}

/// A tensor of `values`, which are not copied.
pub fn from_values(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}
