//! SReT, the sliced recursive transformer (<https://arxiv.org/abs/2111.05297>): every block is
//! applied twice, each time with a non-linear projection of its own behind it.
//!
//! The first application attends within slices of consecutive pixels, the second within slices that
//! are taken from everywhere. The authors draw these at random in every pass, also in evaluation;
//! here they are every `g`-th pixel, as in the steps of a language model, so that a picture has one
//! output.
//!
//! Nothing here has a formula of its own that a step of a language model has: the projection, the
//! coefficients and the attention within slices are the same operators.

use super::{
    layers::{affine, constant, norm, normalised},
    pictures::Pictures,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, activation::relu},
};
use burn_nn::{
    BatchNorm, BatchNormConfig, Initializer, PaddingConfig2d,
    conv::{Conv2d, Conv2dConfig},
};
use retie_config::Activation;
use retie_model::{Affine, Nll, Norm, attend_slices, coefficients, kernels};

const EPS: f32 = 1e-6;

/// Sizes of a network.
#[derive(Clone, Debug)]
pub struct SretConfig {
    /// Pixels of a side of a picture.
    pub image_size: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// The stages; each has half the pixels of a side of the one before.
    pub stages: Vec<SretStageConfig>,
    /// Width of an MLP, in widths of the stage.
    pub mlp_ratio: f64,
    /// Width of a projection, in widths of the stage.
    pub nll_ratio: usize,
    pub num_classes: usize,
}

/// Sizes of a stage.
#[derive(Clone, Debug)]
pub struct SretStageConfig {
    pub num_heads: usize,
    /// Blocks, each of which is applied twice.
    pub num_blocks: usize,
    /// Slices of both applications.
    pub groups: [usize; 2],
}

impl SretConfig {
    fn published(head_dim: usize, heads: [usize; 3], mlp_ratio: f64, nll_ratio: usize) -> Self {
        let sizes = heads.into_iter().zip([2, 5, 3]).zip([[8, 2], [4, 1], [1, 1]]);
        let stage = |((num_heads, num_blocks), groups)| SretStageConfig { num_heads, num_blocks, groups };
        let stages = sizes.map(stage).collect();
        Self { image_size: 224, head_dim, stages, mlp_ratio, nll_ratio, num_classes: 1000 }
    }

    /// SReT-T, for ImageNet.
    #[must_use]
    pub fn tiny() -> Self {
        Self::published(32, [2, 4, 8], 3.6, 1)
    }

    /// SReT-LT, for ImageNet.
    #[must_use]
    pub fn larger_tiny() -> Self {
        Self::published(32, [2, 4, 8], 4.0, 1)
    }

    /// SReT-S, for ImageNet.
    #[must_use]
    pub fn small() -> Self {
        Self::published(42, [3, 6, 12], 3.0, 2)
    }

    /// The network with random weights.
    #[must_use]
    pub fn init(&self, device: &Device) -> Sret {
        let widths: Vec<usize> = self.stages.iter().map(|stage| stage.num_heads * self.head_dim).collect();
        let side = self.image_size / 8;
        let (first, last) = (widths[0], widths[widths.len() - 1]);
        let convolution = |channels| {
            let padding = PaddingConfig2d::Explicit(1, 1, 1, 1);
            Conv2dConfig::new(channels, [3, 3]).with_stride([2, 2]).with_padding(padding)
        };
        let stem = |channels: [usize; 2]| SretStem {
            conv: convolution(channels).init(device),
            norm: BatchNormConfig::new(channels[1]).init(device),
        };
        let pool = |pair: &[usize]| convolution([pair[0], pair[1]]).with_groups(pair[0]).init(device);
        Sret {
            stem: [[3, first / 2], [first / 2, first], [first, first]].map(stem).into(),
            positions: Initializer::Normal { mean: 0.0, std: 0.02 }.init([1, first, side, side], device),
            stages: self.stages.iter().zip(&widths).map(|(stage, width)| self.stage(stage, *width, device)).collect(),
            pools: widths.windows(2).map(pool).collect(),
            norm: norm(last, device),
            head: affine(last, self.num_classes, device),
        }
    }

    fn stage(&self, config: &SretStageConfig, width: usize, device: &Device) -> SretStage {
        let wide = (width as f64 * self.mlp_ratio) as usize;
        let block = |_| SretBlock {
            norm1: norm(width, device),
            qkv: affine(width, 3 * width, device),
            proj: affine(width, width, device),
            norm2: norm(width, device),
            up: affine(width, wide, device),
            down: affine(wide, width, device),
            coefficients: constant(4, 1.0, device),
            num_heads: config.num_heads,
        };
        let projection = |_| Nll {
            norm: norm(width, device),
            up_proj: affine(width, self.nll_ratio * width, device),
            down_proj: affine(self.nll_ratio * width, width, device),
            scales: constant(2, 1.0, device),
        };
        SretStage {
            blocks: (0..config.num_blocks).map(block).collect(),
            projections: (0..2 * config.num_blocks).map(projection).collect(),
            groups: config.groups,
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Sret {
    pub stem: Vec<SretStem>,
    /// Embedding of the positions of the first stage, `[1, C, H, W]`.
    pub positions: Param<Tensor<4>>,
    pub stages: Vec<SretStage>,
    /// Between the stages.
    pub pools: Vec<Conv2d>,
    pub norm: Norm,
    pub head: Affine,
}

/// Convolution with a stride of 2, batch norm and ReLU.
#[derive(Module, Debug)]
pub struct SretStem {
    pub conv: Conv2d,
    pub norm: BatchNorm,
}

/// Blocks of one width.
#[derive(Module, Debug)]
pub struct SretStage {
    pub blocks: Vec<SretBlock>,
    /// Behind each application of a block.
    pub projections: Vec<Nll>,
    #[module(skip)]
    groups: [usize; 2],
}

/// A block: attention within slices and an MLP.
#[derive(Module, Debug)]
pub struct SretBlock {
    pub norm1: Norm,
    pub qkv: Affine,
    pub proj: Affine,
    pub norm2: Norm,
    pub up: Affine,
    pub down: Affine,
    /// Factors of both residual sums, `[4]`.
    pub coefficients: Param<Tensor<1>>,
    #[module(skip)]
    num_heads: usize,
}

impl Sret {
    /// Logits of pictures: `[B, 3, H, W]` → `[B, classes]`.
    #[must_use]
    pub fn forward(&self, pictures: Tensor<4>) -> Tensor<2> {
        let stem = |x, stem: &SretStem| relu(stem.norm.forward(stem.conv.forward(x)));
        let mut x = self.stem.iter().fold(pictures, stem) + self.positions.val();
        for (index, stage) in self.stages.iter().enumerate() {
            let (rows, pictures) = Pictures::rows(x);
            x = pictures.maps(stage.forward(rows, &pictures));
            if let Some(pool) = self.pools.get(index) {
                x = pool.forward(x);
            }
        }
        let [count, channels, height, width] = x.dims();
        let mean = x.reshape([count, channels, height * width]).mean_dim(2).reshape([count, channels]);
        self.head.forward(normalised(&self.norm, mean, EPS))
    }
}

/// Rows of the slices of pictures: runs of consecutive pixels, or every `groups`-th one.
fn slices(pictures: &Pictures, groups: usize, is_run: bool) -> Vec<Vec<usize>> {
    let pixels = pictures.num_pixels();
    let run = pixels.div_ceil(groups);
    let of = |picture: usize, slice: usize| {
        let rows = picture * pixels..(picture + 1) * pixels;
        match is_run {
            true => rows.skip(slice * run).take(run).collect(),
            false => rows.skip(slice).step_by(groups).collect(),
        }
    };
    (0..pictures.count).flat_map(|picture| (0..groups).map(move |slice| of(picture, slice))).collect()
}

impl SretStage {
    /// `[M, C]` → `[M, C]`.
    fn forward(&self, mut x: Tensor<2>, pictures: &Pictures) -> Tensor<2> {
        let slices = [(self.groups[0], true), (self.groups[1], false)].map(|(g, is_run)| slices(pictures, g, is_run));
        for (index, projection) in self.projections.iter().enumerate() {
            x = projection.forward(self.blocks[index / 2].forward(x, &slices[index % 2]), EPS);
        }
        x
    }
}

impl SretBlock {
    fn forward(&self, x: Tensor<2>, slices: &[Vec<usize>]) -> Tensor<2> {
        let [rows, width] = x.dims();
        let qkv = self.qkv.forward(normalised(&self.norm1, x.clone(), EPS));
        let head_dim = width / self.num_heads;
        let [q, k, v] =
            [0, 1, 2].map(|part| qkv.clone().narrow(1, part * width, width).reshape([rows, self.num_heads, head_dim]));
        let attended = attend_slices(q, k, v, slices, kernels::Scoring::plain(head_dim)).reshape([rows, width]);
        let x = coefficients::add(x, self.proj.forward(attended), Some(&self.coefficients), 0);
        let wide = kernels::activation(self.up.forward(normalised(&self.norm2, x.clone(), EPS)), Activation::Gelu);
        coefficients::add(x, self.down.forward(wide), Some(&self.coefficients), 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_have_every_pixel_once() {
        let pictures = Pictures { count: 2, height: 2, width: 3 };
        assert_eq!(slices(&pictures, 2, true), [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]);
        assert_eq!(slices(&pictures, 2, false), [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]);
    }
}
