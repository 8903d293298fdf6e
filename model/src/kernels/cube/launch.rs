//! What the kernels share: tensors as buffers, numbers of cubes, sums over a cube.
//!
//! Kernels read and write f32 in rows, `[rows, width]`, without gaps. A cube (a thread block) has
//! [`UNITS`] units (threads). Sums are taken in a fixed order, so that a kernel gives the same bits
//! every time.

use crate::kernels::work;
use burn::{
    backend::{BackendTensor, DispatchAutodiffContext, DispatchTensor, DispatchTensorKind, TensorMetadata},
    tensor::{DType, Int, Shape, Tensor},
};
use burn_cubecl::{kernel::into_contiguous, ops::numeric::empty_device_contiguous_dtype, tensor::CubeTensor};
use cubecl::prelude::*;

/// Units of a cube.
pub const UNITS: usize = 128;

/// Cubes in a row of a launch: what every device takes in one dimension.
const CUBES_ACROSS: usize = 65_535;

/// Backend tensor of `tensor`, which must be an untracked float tensor of a CubeCL device.
pub fn on_device<const D: usize>(tensor: Tensor<D>) -> CubeTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Cube(BackendTensor::Float(tensor)) => tensor,
        other => unreachable!("not a float tensor of a CubeCL device: {other:?}"),
    }
}

/// Tensor of a backend tensor, outside of any graph.
pub fn tensor<const D: usize>(tensor: CubeTensor) -> Tensor<D> {
    let kind = DispatchTensorKind::Cube(BackendTensor::Float(tensor));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

/// Backend tensor of a tensor of integers.
pub fn int_on_device<const D: usize>(tensor: Tensor<D, Int>) -> CubeTensor {
    match tensor.into_dispatch().kind {
        DispatchTensorKind::Cube(BackendTensor::Int(tensor)) => dense(tensor),
        other => unreachable!("not a tensor of integers of a CubeCL device: {other:?}"),
    }
}

/// Tensor of a backend tensor of integers.
pub fn int_tensor<const D: usize>(tensor: CubeTensor) -> Tensor<D, Int> {
    let kind = DispatchTensorKind::Cube(BackendTensor::Int(tensor));
    Tensor::from_dispatch(DispatchTensor { kind, autodiff: DispatchAutodiffContext::Disabled })
}

/// `tensor` without gaps, in rows.
pub fn dense(tensor: CubeTensor) -> CubeTensor {
    into_contiguous(tensor)
}

/// Memory for `shape` elements in f32, on the device of `like`.
pub fn empty(like: &CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    empty_device_contiguous_dtype(like.client.clone(), like.device.clone(), shape.into(), DType::F32)
}

/// Memory for a tensor like `x`.
pub fn empty_like(x: &CubeTensor) -> CubeTensor {
    empty(x, x.shape())
}

/// A tensor in a launch.
pub trait Bound {
    /// Its buffer, whose bytes are counted.
    fn bound(self) -> BufferArg;
}

impl Bound for CubeTensor {
    fn bound(self) -> BufferArg {
        work::bound(self.meta.num_elements() * self.dtype.size());
        self.into_buffer_arg()
    }
}

/// The same elements in another shape; `x` is dense.
pub fn reshaped(mut x: CubeTensor, shape: impl Into<Shape>) -> CubeTensor {
    let shape = shape.into();
    debug_assert_eq!(shape.num_elements(), x.shape().num_elements());
    let contiguous = CubeTensor::new_contiguous(x.client.clone(), x.device.clone(), shape, x.handle.clone(), x.dtype);
    x.meta = contiguous.meta;
    x
}

/// Sizes of a tensor of `D` dimensions.
pub fn dims<const D: usize>(x: &CubeTensor) -> [usize; D] {
    x.shape().dims()
}

/// A launch of `count` cubes or a few more: a kernel returns where its cube has no work.
pub fn cubes(count: usize) -> CubeCount {
    let across = count.clamp(1, CUBES_ACROSS);
    CubeCount::Static(across as u32, count.div_ceil(across).max(1) as u32, 1)
}

/// Cubes for `count` units that each do one thing.
pub fn cubes_for_units(count: usize) -> CubeCount {
    cubes(count.div_ceil(UNITS))
}

/// Tensors of a launch, where a device could bind more.
const MOST_TENSORS: usize = 256;

/// How many groups of `tensors` tensors a launch takes beside `others`, on the device of `x`.
pub fn parts_of_a_launch(x: &CubeTensor, tensors: usize, others: usize) -> usize {
    let bindings = x.client.properties().hardware.max_bindings as usize;
    // One is for the sizes.
    (bindings.min(MOST_TENSORS).saturating_sub(others + 1) / tensors).max(1)
}

/// Units of every launch.
pub fn units() -> CubeDim {
    CubeDim::new_1d(UNITS as u32)
}

/// Index of this unit in the whole launch.
#[cube]
pub fn position() -> usize {
    CUBE_POS * comptime!(UNITS) + UNIT_POS as usize
}

/// Sum of `value` over the units of a cube, for all of them. `scratch` has room for one number of
/// each.
#[cube]
pub fn sum_of_cube(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = scratch[unit + half];
            scratch[unit] += other;
        }
        sync_cube();
        half /= 2;
    }
    let sum = scratch[0];
    sync_cube();
    sum
}

/// Largest `value` of a cube, as [`sum_of_cube`].
#[cube]
pub fn max_of_cube(value: f32, scratch: &mut Shared<[f32]>) -> f32 {
    let unit = UNIT_POS as usize;
    scratch[unit] = value;
    sync_cube();
    let mut half = comptime!(UNITS / 2).runtime();
    while half > 0 {
        if unit < half {
            let other = scratch[unit + half];
            if other > scratch[unit] {
                scratch[unit] = other;
            }
        }
        sync_cube();
        half /= 2;
    }
    let max = scratch[0];
    sync_cube();
    max
}
