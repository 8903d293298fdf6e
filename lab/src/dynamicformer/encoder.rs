//! An encoder of a set: one pre-norm Transformer layer without positions and with a memory token,
//! whose queries and keys are normalised in groups (as x-transformers does,
//! <https://github.com/lucidrains/x-transformers>).

use super::DynamicFormerConfig;
use crate::{Dra, Noise};
use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor, activation::softmax},
};
use burn_nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};

/// Factor of the product of normalised queries and keys (`attn_qk_norm_scale` of x-transformers).
const QK_SCALE: f64 = 10.0;

/// Added to lengths that divide, as torch's `normalize` has a least one.
const LENGTH_EPS: f64 = 1e-12;

/// Added to the scores of padding.
const PADDING_SCORE: f64 = -1e9;

/// The layer.
#[derive(Module, Debug)]
pub struct Encoder {
    project_in: Linear,
    /// The memory token, `[1, D]`.
    token: Param<Tensor<2>>,
    attention_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    mlp_norm: RmsNorm,
    up: Linear,
    activation: Dra,
    down: Linear,
    norm: RmsNorm,
    project_out: Linear,
    heads: usize,
    groups: usize,
}

/// What an encoder makes of a set.
#[derive(Debug)]
pub struct Encoded {
    /// Of each element, `[B, N, E]`.
    pub elements: Tensor<3>,
    /// Of the memory token, `[B, D]`.
    pub memory: Tensor<2>,
}

impl Encoder {
    /// An encoder; [`seeded`](crate::seeded) draws its weights.
    #[must_use]
    pub fn new(config: &DynamicFormerConfig, device: &Device) -> Self {
        let (elements, width, inner) = (config.element_size, config.hidden_size, config.intermediate_size);
        let plain = |from: usize, to: usize| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(width).init(device);
        Self {
            project_in: LinearConfig::new(elements, width).init(device),
            token: Param::from_tensor(Tensor::zeros([1, width], device)),
            attention_norm: norm(),
            query: plain(width, width),
            key: plain(width, width),
            value: plain(width, width),
            output: plain(width, width),
            mlp_norm: norm(),
            up: plain(width, inner),
            activation: Dra::new(config.form, device),
            down: plain(inner, width),
            norm: norm(),
            project_out: LinearConfig::new(width, elements).init(device),
            heads: config.num_attention_heads,
            groups: config.norm_groups,
        }
    }

    /// Encodes the elements that `mask` has a 1 for; those that it has a 0 for are as if they were
    /// not there.
    ///
    /// # Shapes
    /// `x` `[B, N, E]`, `mask` `[B, N]`.
    pub fn forward(&self, x: Tensor<3>, mask: Tensor<2>, noise: &mut Noise<'_>) -> Encoded {
        let [batch, elements, _] = x.dims();
        let x = self.project_in.forward(x);
        let [_, _, width] = x.dims();
        let token = self.token.val().reshape([1, 1, width]).expand([batch, 1, width]);
        let x = noise.apply(Tensor::cat(vec![token, x], 1)); // [B, 1+N, D]
        let padding = Tensor::cat(vec![mask.zeros_like().narrow(1, 0, 1), mask.neg().add_scalar(1.0)], 1);

        let normed = self.attention_norm.forward(x.clone());
        let x = x + self.attention(normed, padding * PADDING_SCORE, noise);
        let inner = self.activation.forward(self.up.forward(self.mlp_norm.forward(x.clone())));
        let x = x + self.down.forward(noise.apply(inner));

        let x = self.norm.forward(x);
        let memory = x.clone().narrow(1, 0, 1).reshape([batch, width]);
        Encoded { elements: self.project_out.forward(x.narrow(1, 1, elements)), memory }
    }

    /// `softmax(10 q̂ k̂ᵀ + bias) v`, with `bias` `[B, T]` of the keys.
    fn attention(&self, x: Tensor<3>, bias: Tensor<2>, noise: &mut Noise<'_>) -> Tensor<3> {
        let [batch, tokens, width] = x.dims();
        let of_head = width / self.heads;
        let split = |linear: &Linear| {
            linear.forward(x.clone()).reshape([batch, tokens, self.heads, of_head]).swap_dims(1, 2) // [B, N, T, H]
        };
        let unit = |x: Tensor<4>| {
            let groups = x.reshape([batch * self.heads, tokens, self.groups, of_head / self.groups]);
            let length = groups.clone().square().sum_dim(3).add_scalar(LENGTH_EPS).sqrt();
            (groups / length).reshape([batch, self.heads, tokens, of_head])
        };
        let (query, key, value) = (unit(split(&self.query)), unit(split(&self.key)), split(&self.value));
        let scores = query.matmul(key.swap_dims(2, 3)) * QK_SCALE + bias.reshape([batch, 1, 1, tokens]);
        let mixed = noise.apply(softmax(scores, 3)).matmul(value);
        self.output.forward(mixed.swap_dims(1, 2).reshape([batch, tokens, width]))
    }
}
