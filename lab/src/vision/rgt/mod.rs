//! RGT, the recursive generalisation transformer for super-resolution
//! (<https://arxiv.org/abs/2303.06373>): every second block attends to a map that one filter,
//! applied to its own result, has reduced to a size that does not depend on the picture's.
//!
//! The reduction and the hybrid adaptive integration are those of the steps of a language model. A
//! step reduces keys and values, so that a cache can hold them; the authors reduce hidden states.
//! Both attentions are products of their own: keys have half the channels of values, and windows
//! have a bias of positions.

mod local;
mod recursive;

pub use local::{LocalAttention, PositionBias};
pub use recursive::RecursiveAttention;

use super::{
    layers::{affine, constant, convolution, depthwise, filtered, norm, normalised},
    pictures::Pictures,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, activation::leaky_relu},
};
use burn_nn::{PixelShuffleConfig, conv::Conv2d};
use retie_config::Activation;
use retie_model::{Affine, Norm, hai, kernels};

pub(super) const EPS: f32 = 1e-5;
/// What the factors of the integration start as.
const INTEGRATION: f64 = 1e-4;
/// Channels before the pixels are shuffled.
const BEFORE_SHUFFLE: usize = 64;
/// Mean colour of the authors' training pictures.
const MEAN: [f32; 3] = [0.4488, 0.4371, 0.4040];

/// Sizes of a network.
#[derive(Clone, Debug)]
pub struct RgtConfig {
    pub width: usize,
    pub num_heads: usize,
    /// Blocks of the groups; every second one has recursive attention.
    pub groups: Vec<usize>,
    /// Width of an MLP, in widths of the network.
    pub mlp_ratio: usize,
    /// Sides of a window; half the heads have it turned by a right angle.
    pub window: [usize; 2],
    /// Factor of the sides of a picture, a power of two.
    pub upscale: usize,
}

impl RgtConfig {
    fn published(num_groups: usize) -> Self {
        Self { width: 180, num_heads: 6, groups: vec![6; num_groups], mlp_ratio: 2, window: [8, 32], upscale: 4 }
    }

    /// RGT-S, for pictures of four times the size.
    #[must_use]
    pub fn small() -> Self {
        Self::published(6)
    }

    /// RGT, for pictures of four times the size.
    #[must_use]
    pub fn base() -> Self {
        Self::published(8)
    }

    /// The network with random weights.
    #[must_use]
    pub fn init(&self, device: &Device) -> Rgt {
        let width = self.width;
        let around = |channels| convolution(channels, 3, true, device);
        let group = |(index, depth): (usize, &usize)| RgtGroup {
            blocks: (0..*depth).map(|block| self.block(index, block, device)).collect(),
            conv: around([width; 2]),
        };
        let shuffles = self.upscale.ilog2();
        Rgt {
            first: around([3, width]),
            first_norm: norm(width, device),
            groups: self.groups.iter().enumerate().map(group).collect(),
            norm: norm(width, device),
            after: around([width; 2]),
            before_shuffle: around([width, BEFORE_SHUFFLE]),
            shuffled: (0..shuffles).map(|_| around([BEFORE_SHUFFLE, 4 * BEFORE_SHUFFLE])).collect(),
            last: around([BEFORE_SHUFFLE, 3]),
        }
    }

    fn block(&self, group: usize, index: usize, device: &Device) -> RgtBlock {
        let (width, wide) = (self.width, self.width * self.mlp_ratio);
        // Windows are moved in every second block with windows.
        let is_moved = index % 4 == if group.is_multiple_of(2) { 2 } else { 0 };
        let attention = match index % 2 {
            0 => RgtAttention::Local(LocalAttention::new(self, is_moved, device)),
            _ => RgtAttention::Recursive(RecursiveAttention::new(width, self.num_heads, device)),
        };
        RgtBlock {
            norm1: norm(width, device),
            attention,
            norm2: norm(width, device),
            up: affine(width, wide, device),
            gate_norm: norm(wide / 2, device),
            gate: depthwise(wide / 2, 9, device),
            down: affine(wide / 2, width, device),
            integration: constant(width, INTEGRATION, device),
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Rgt {
    pub first: Conv2d,
    pub first_norm: Norm,
    pub groups: Vec<RgtGroup>,
    pub norm: Norm,
    pub after: Conv2d,
    pub before_shuffle: Conv2d,
    pub shuffled: Vec<Conv2d>,
    pub last: Conv2d,
}

/// Blocks and a convolution with a residual connection.
#[derive(Module, Debug)]
pub struct RgtGroup {
    pub blocks: Vec<RgtBlock>,
    pub conv: Conv2d,
}

/// A block: attention, an MLP with a gate, and the block's input once more.
#[derive(Module, Debug)]
pub struct RgtBlock {
    pub norm1: Norm,
    pub attention: RgtAttention,
    pub norm2: Norm,
    pub up: Affine,
    pub gate_norm: Norm,
    pub gate: Affine,
    pub down: Affine,
    /// `γ`, `[C]`.
    pub integration: Param<Tensor<1>>,
}

/// Attention of a block.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a network has as many of both")]
pub enum RgtAttention {
    Local(LocalAttention),
    Recursive(RecursiveAttention),
}

/// How often a map is reduced: until its longer side is at most `4·side − 1` pixels, and at least
/// `least` times. The authors train with a side of 4 and evaluate with 16, where `least` is 2, the
/// number of their training.
#[must_use]
pub fn num_reductions([height, width]: [usize; 2], side: usize, least: usize) -> usize {
    ((height.max(width) / side).checked_ilog(4).unwrap_or(0) as usize).max(least)
}

impl Rgt {
    /// Pictures of `upscale` times the size: `[B, 3, H, W]` → `[B, 3, upscale·H, upscale·W]`. Maps
    /// are reduced `reductions` times, to a pixel for `4^reductions` of a side.
    #[must_use]
    pub fn forward(&self, pictures: Tensor<4>, reductions: usize) -> Tensor<4> {
        let mean: Tensor<4> = Tensor::<1>::from_floats(MEAN, &pictures.device()).reshape([1, 3, 1, 1]);
        let first = self.first.forward(pictures - mean.clone());
        let (x, sizes) = Pictures::rows(first.clone());
        let x = normalised(&self.first_norm, x, EPS);
        let x = self.groups.iter().fold(x, |x, group| group.forward(x, &sizes, reductions));
        let x = self.after.forward(sizes.maps(normalised(&self.norm, x, EPS))) + first;
        let x = leaky_relu(self.before_shuffle.forward(x), 0.01);
        let shuffle = PixelShuffleConfig::new(2).init();
        let x = self.shuffled.iter().fold(x, |x, conv| shuffle.forward(conv.forward(x)));
        self.last.forward(x) + mean
    }
}

impl RgtGroup {
    fn forward(&self, x: Tensor<2>, pictures: &Pictures, reductions: usize) -> Tensor<2> {
        let y = self.blocks.iter().fold(x.clone(), |x, block| block.forward(x, pictures, reductions));
        x + Pictures::rows(self.conv.forward(pictures.maps(y))).0
    }
}

impl RgtBlock {
    /// `[M, C]` → `[M, C]`.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>, pictures: &Pictures, reductions: usize) -> Tensor<2> {
        let normed = normalised(&self.norm1, x.clone(), EPS);
        let attended = match &self.attention {
            RgtAttention::Local(local) => local.forward(normed, pictures),
            RgtAttention::Recursive(recursive) => recursive.forward(normed, pictures, reductions),
        };
        let middle = x.clone() + attended;
        let wide = self.up.forward(normalised(&self.norm2, middle.clone(), EPS));
        let parts = kernels::activation(wide, Activation::Gelu).chunk(2, 1);
        let gate = normalised(&self.gate_norm, parts[1].clone(), EPS);
        let gated = parts[0].clone() * filtered(&self.gate, gate, pictures);
        hai::integrate(x, middle + self.down.forward(gated), &self.integration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_reduced_to_a_size_that_does_not_grow() {
        // The authors' training pictures, and pictures of evaluation.
        assert_eq!(num_reductions([64, 64], 4, 0), 2);
        for (side, expected) in [(64, 2), (255, 2), (256, 2), (1023, 2), (1024, 3), (4096, 4)] {
            assert_eq!(num_reductions([side, side / 2], 16, 2), expected, "{side}");
        }
    }
}
