//! Recursive generalisation self-attention: all pixels attend to a reduced map.

use super::{
    super::{
        layers::{affine, depthwise, filtered, norm, normalised},
        pictures::Pictures,
    },
    EPS,
};
use burn::{
    module::Module,
    tensor::{Device, Tensor, activation::softmax},
};
use retie_config::Activation;
use retie_model::{Affine, Norm, kernels};

/// Pixels of a side that one pixel of the reduced map is made of.
const STRIDE: usize = 4;

/// Weights of the attention.
#[derive(Module, Debug)]
pub struct RecursiveAttention {
    /// The filter that is applied to its own result, `[C, 16]`.
    pub reduction: Affine,
    pub around: Affine,
    /// To the channels of queries and keys, half of all.
    pub narrow: Affine,
    pub norm: Norm,
    pub q_proj: Affine,
    pub k_proj: Affine,
    pub v_proj: Affine,
    /// Of values, for their positions.
    pub positions: Affine,
    pub o_proj: Affine,
    #[module(skip)]
    num_heads: usize,
}

impl RecursiveAttention {
    pub(super) fn new(width: usize, num_heads: usize, device: &Device) -> Self {
        let half = width / 2;
        Self {
            reduction: depthwise(width, STRIDE * STRIDE, device),
            around: depthwise(width, 9, device),
            narrow: affine(width, half, device),
            norm: norm(half, device),
            q_proj: affine(width, half, device),
            k_proj: affine(half, half, device),
            v_proj: affine(half, width, device),
            positions: depthwise(width, 9, device),
            o_proj: affine(width, width, device),
            num_heads,
        }
    }

    /// `[M, C]` → `[M, C]`; the map that is attended to is reduced `reductions` times.
    #[must_use]
    pub fn forward(&self, x: Tensor<2>, pictures: &Pictures, reductions: usize) -> Tensor<2> {
        let (mut reduced, mut sizes) = (x.clone(), *pictures);
        for _ in 0..reductions {
            reduced = self.reduction.depthwise(&reduced, sizes.parts(STRIDE));
            sizes = sizes.coarse(STRIDE);
        }
        let narrow = self.narrow.forward(filtered(&self.around, reduced, &sizes));
        let latents = kernels::activation(normalised(&self.norm, narrow, EPS), Activation::Gelu);
        let v = self.v_proj.forward(latents.clone());
        let v = v.clone() + filtered(&self.positions, v, &sizes);
        let heads = |x: Tensor<2>, rows: usize| {
            let [_, width] = x.dims();
            x.reshape([pictures.count, rows, self.num_heads, width / self.num_heads]).swap_dims(1, 2)
        };
        let (pixels, reduced) = (pictures.num_pixels(), sizes.num_pixels());
        let (q, k) = (heads(self.q_proj.forward(x), pixels), heads(self.k_proj.forward(latents), reduced));
        let [_, _, _, head_dim] = q.dims();
        let scores = q.matmul(k.swap_dims(2, 3)) / (head_dim as f32).sqrt();
        let attended = softmax(scores, 3).matmul(heads(v, reduced)).swap_dims(1, 2);
        self.o_proj.forward(attended.reshape([pictures.num_rows(), self.o_proj.weight.dims()[0]]))
    }
}
