//! Layers of several networks.

use super::pictures::{Pictures, behind_zeros};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, activation::relu},
};
use burn_nn::{
    BatchNorm, BatchNormConfig, Initializer, PaddingConfig2d,
    conv::{Conv2d, Conv2dConfig},
};
use retie_model::{Affine, NamedVisitor, Norm, kernels, visit_named};

/// Number of trained parameters: without the running statistics of batch norms, which burn counts.
#[must_use]
pub fn num_parameters(module: &impl Module) -> usize {
    struct Count(usize);
    impl NamedVisitor for Count {
        fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
            let is_statistic = name.ends_with("running_mean") || name.ends_with("running_var");
            self.0 += if is_statistic { 0 } else { param.lazy_shape().num_elements() };
        }
    }
    let mut count = Count(0);
    visit_named(module, &mut count);
    count.0
}

/// Initialisation of burn's layers: uniform up to `1/√fan_in`.
const UNIFORM: Initializer = Initializer::KaimingUniform { gain: 0.577_350_269_189_625_8, fan_out_only: false };

/// A linear layer with a bias.
pub(super) fn affine(from: usize, to: usize, device: &Device) -> Affine {
    let fans = (Some(from), Some(to));
    Affine {
        weight: UNIFORM.init_with([to, from], fans.0, fans.1, device),
        bias: UNIFORM.init_with([to], fans.0, fans.1, device),
    }
}

/// Filters of a depthwise convolution with a bias.
pub(super) fn depthwise(channels: usize, taps: usize, device: &Device) -> Affine {
    Affine {
        weight: UNIFORM.init_with([channels, taps], Some(taps), Some(taps), device),
        bias: UNIFORM.init_with([channels], Some(taps), Some(taps), device),
    }
}

/// Depthwise convolution of the pictures in the rows `x [M, C]` by a square filter, padded with
/// zeros.
pub(super) fn filtered(filter: &Affine, x: Tensor<2>, pictures: &Pictures) -> Tensor<2> {
    let [_, taps] = filter.weight.dims();
    filter.depthwise(&behind_zeros(x), pictures.taps(taps.isqrt()))
}

/// A LayerNorm of `width` channels.
pub(super) fn norm(width: usize, device: &Device) -> Norm {
    Norm { weight: Initializer::Ones.init([width], device), bias: Some(Initializer::Zeros.init([width], device)) }
}

/// LayerNorm of rows.
pub(super) fn normalised(norm: &Norm, x: Tensor<2>, eps: f32) -> Tensor<2> {
    let Some(bias) = &norm.bias else { unreachable!("`norm` makes a bias") };
    kernels::layer_norm(x, norm.weight.val(), bias.val(), eps)
}

/// A parameter of equal elements.
pub(super) fn constant(width: usize, value: f64, device: &Device) -> Param<Tensor<1>> {
    Initializer::Constant { value }.init([width], device)
}

/// A convolution that keeps the size of its maps; its stride is 1 and its bias as asked for.
pub(super) fn convolution([from, to]: [usize; 2], kernel: usize, has_bias: bool, device: &Device) -> Conv2d {
    let half = kernel / 2;
    let padding = PaddingConfig2d::Explicit(half, half, half, half);
    Conv2dConfig::new([from, to], [kernel, kernel]).with_padding(padding).with_bias(has_bias).init(device)
}

/// Convolution without a bias, batch norm and ReLU.
#[derive(Module, Debug)]
pub struct ConvNormRelu {
    pub conv: Conv2d,
    pub norm: BatchNorm,
}

impl ConvNormRelu {
    /// Maps keep their size.
    pub(super) fn new(channels: [usize; 2], kernel: usize, device: &Device) -> Self {
        let conv = convolution(channels, kernel, false, device);
        Self { conv, norm: BatchNormConfig::new(channels[1]).init(device) }
    }

    /// Maps keep their size; the taps of the 3 × 3 filter are `dilation` pixels apart.
    pub(super) fn dilated(channels: [usize; 2], dilation: usize, device: &Device) -> Self {
        let padding = PaddingConfig2d::Explicit(dilation, dilation, dilation, dilation);
        let conv = Conv2dConfig::new(channels, [3, 3]).with_padding(padding).with_dilation([dilation, dilation]);
        Self { conv: conv.with_bias(false).init(device), norm: BatchNormConfig::new(channels[1]).init(device) }
    }

    /// `[B, C, H, W]` → `[B, C', H, W]`, before the ReLU.
    pub(super) fn linear(&self, x: Tensor<4>) -> Tensor<4> {
        self.norm.forward(self.conv.forward(x))
    }

    /// `[B, C, H, W]` → `[B, C', H, W]`.
    pub fn forward(&self, x: Tensor<4>) -> Tensor<4> {
        relu(self.linear(x))
    }
}
