//! HorNet (<https://arxiv.org/abs/2207.14284>): recursive gated convolutions in the place of
//! attention.
//!
//! The convolution is that of the steps of a language model, over neighbourhoods of a picture.

use super::{
    layers::{affine, constant, depthwise, norm, normalised},
    pictures::Pictures,
};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};
use burn_nn::conv::{Conv2d, Conv2dConfig};
use retie_config::{Activation, GnconvConfig};
use retie_model::{Affine, Gnconv, Norm, kernels};

const EPS: f32 = 1e-6;

/// Sizes of a network.
#[derive(Clone, Debug)]
pub struct HornetConfig {
    /// Channels of the first stage; each later one has twice those of the one before.
    pub width: usize,
    /// Blocks of the stages.
    pub depths: Vec<usize>,
    /// Orders of the gated convolutions of the stages.
    pub orders: Vec<usize>,
    /// Side of their filters.
    pub kernel: usize,
    /// Side of the patches that the first stage is made of.
    pub patch: usize,
    pub num_classes: usize,
    /// What the scales of both branches of a block start as; 1e-6 for many steps of training.
    pub scale: f64,
}

impl HornetConfig {
    fn published(width: usize) -> Self {
        Self {
            width,
            depths: vec![2, 3, 18, 2],
            orders: vec![2, 3, 4, 5],
            kernel: 7,
            patch: 4,
            num_classes: 1000,
            scale: 1e-6,
        }
    }

    /// HorNet-T with filters of 7 × 7, for ImageNet.
    #[must_use]
    pub fn tiny() -> Self {
        Self::published(64)
    }

    /// HorNet-S with filters of 7 × 7, for ImageNet.
    #[must_use]
    pub fn small() -> Self {
        Self::published(96)
    }

    /// HorNet-B with filters of 7 × 7, for ImageNet.
    #[must_use]
    pub fn base() -> Self {
        Self::published(128)
    }

    /// The network with random weights.
    #[must_use]
    pub fn init(&self, device: &Device) -> Hornet {
        let patches =
            |channels, size: usize| Conv2dConfig::new(channels, [size; 2]).with_stride([size; 2]).init(device);
        let widths: Vec<usize> = (0..self.depths.len()).map(|stage| self.width << stage).collect();
        let stages = widths.iter().zip(self.depths.iter().zip(&self.orders));
        let stage = |(width, (depth, order)): (&usize, (&usize, &usize))| HornetStage {
            blocks: (0..*depth).map(|_| self.block(*width, *order, device)).collect(),
        };
        let last = widths[widths.len() - 1];
        Hornet {
            patches: patches([3, self.width], self.patch),
            first_norm: norm(self.width, device),
            stages: stages.map(stage).collect(),
            norms: widths.windows(2).map(|pair| norm(pair[0], device)).collect(),
            pools: widths.windows(2).map(|pair| patches([pair[0], pair[1]], 2)).collect(),
            norm: norm(last, device),
            head: affine(last, self.num_classes, device),
        }
    }

    fn block(&self, width: usize, order: usize, device: &Device) -> HornetBlock {
        let config = GnconvConfig { order, kernel: self.kernel * self.kernel };
        let widths = config.widths(width);
        let gnconv = Gnconv {
            in_proj: affine(width, 2 * width, device),
            conv: depthwise(widths.iter().sum(), config.kernel, device),
            between: widths.windows(2).map(|pair| affine(pair[0], pair[1], device)).collect(),
            out_proj: affine(width, width, device),
            scale: constant(width, self.scale, device),
            config,
        };
        HornetBlock {
            norm1: norm(width, device),
            gnconv,
            norm2: norm(width, device),
            up: affine(width, 4 * width, device),
            down: affine(4 * width, width, device),
            scale: constant(width, self.scale, device),
        }
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct Hornet {
    pub patches: Conv2d,
    pub first_norm: Norm,
    pub stages: Vec<HornetStage>,
    /// Before the convolutions between the stages.
    pub norms: Vec<Norm>,
    /// Between the stages.
    pub pools: Vec<Conv2d>,
    pub norm: Norm,
    pub head: Affine,
}

/// Blocks of one width.
#[derive(Module, Debug)]
pub struct HornetStage {
    pub blocks: Vec<HornetBlock>,
}

/// A block: a gated convolution and an MLP.
#[derive(Module, Debug)]
pub struct HornetBlock {
    pub norm1: Norm,
    pub gnconv: Gnconv,
    pub norm2: Norm,
    pub up: Affine,
    pub down: Affine,
    /// `γ` of the MLP, `[C]`; the gated convolution has its own.
    pub scale: Param<Tensor<1>>,
}

impl Hornet {
    /// Logits of pictures: `[B, 3, H, W]` → `[B, classes]`.
    #[must_use]
    pub fn forward(&self, pictures: Tensor<4>) -> Tensor<2> {
        let (x, mut pictures) = Pictures::rows(self.patches.forward(pictures));
        let mut x = normalised(&self.first_norm, x, EPS);
        for (index, stage) in self.stages.iter().enumerate() {
            let [_, taps] = stage.blocks[0].gnconv.conv.weight.dims();
            let taps = pictures.taps(taps.isqrt());
            x = stage.blocks.iter().fold(x, |x, block| block.forward(x, &taps));
            if let (Some(norm), Some(pool)) = (self.norms.get(index), self.pools.get(index)) {
                (x, pictures) = Pictures::rows(pool.forward(pictures.maps(normalised(norm, x, EPS))));
            }
        }
        let [_, channels] = x.dims();
        let mean = x.reshape([pictures.count, pictures.num_pixels(), channels]).mean_dim(1);
        self.head.forward(normalised(&self.norm, mean.reshape([pictures.count, channels]), EPS))
    }
}

impl HornetBlock {
    fn forward(&self, x: Tensor<2>, taps: &[kernels::RowSet]) -> Tensor<2> {
        let x = x.clone() + self.gnconv.forward_over(normalised(&self.norm1, x, EPS), taps);
        let wide = kernels::activation(self.up.forward(normalised(&self.norm2, x.clone(), EPS)), Activation::Gelu);
        x + self.down.forward(wide) * self.scale.val().unsqueeze()
    }
}
