//! The network, and the loss of its two memory tokens.

use super::{DynamicFormerConfig, Encoder, Inputs, LePna};
use crate::{Dra, Noise};
use burn::{
    module::Module,
    tensor::{Device, Tensor, activation::relu},
};
use burn_nn::{BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, Linear, LinearConfig};

/// `Linear(DRA(Linear(x) + Linear(z)))`, then DRA again.
#[derive(Module, Debug)]
struct Element {
    input: Linear,
    modulation: Linear,
    inner: Dra,
    output: Linear,
    outer: Dra,
}

impl Element {
    fn new(inputs: usize, config: &DynamicFormerConfig, device: &Device) -> Self {
        let (width, element) = (config.mlp_size, config.element_size);
        Self {
            input: LinearConfig::new(inputs, width).init(device),
            modulation: LinearConfig::new(element, width).init(device),
            inner: Dra::new(config.form, device),
            output: LinearConfig::new(width, element).init(device),
            outer: Dra::new(config.form, device),
        }
    }

    /// `x` `[B, N, inputs]`, `z` `[B, E]`; returns `[B, N, E]`.
    fn forward(&self, x: Tensor<3>, z: Tensor<2>) -> Tensor<3> {
        let [batch, width] = z.dims();
        let z = self.modulation.forward(z.reshape([batch, 1, width]));
        self.outer.forward(self.output.forward(self.inner.forward(self.input.forward(x) + z)))
    }
}

/// The network.
#[derive(Module, Debug)]
pub struct DynamicFormer {
    space_in: Linear,
    space_activation: Dra,
    space_norm: BatchNorm,
    space_out: Linear,
    exponent: Embedding,
    point: Element,
    entry: Element,
    point_encoder: Encoder,
    entry_encoder: Encoder,
    point_pooling: LePna,
    entry_pooling: LePna,
    activation: Dra,
    norm: BatchNorm,
    hidden: Linear,
    output: Linear,
}

/// What the network makes of a batch.
#[derive(Debug)]
pub struct Output {
    /// Predictions, `[B]`.
    pub prediction: Tensor<1>,
    /// Memory token of the points, `[B, D]`.
    pub point_memory: Tensor<2>,
    /// Memory token of the entries, `[B, D]`.
    pub entry_memory: Tensor<2>,
}

impl DynamicFormer {
    /// A network; [`seeded`](crate::seeded) draws its weights.
    #[must_use]
    pub fn new(config: &DynamicFormerConfig, device: &Device) -> Self {
        let (element, width) = (config.element_size, config.mlp_size);
        let pooled = (LePna::FACTOR + 1) * element;
        Self {
            space_in: LinearConfig::new(2, width).init(device),
            space_activation: Dra::new(config.form, device),
            space_norm: BatchNormConfig::new(width).init(device),
            space_out: LinearConfig::new(width, element).init(device),
            exponent: EmbeddingConfig::new(config.largest_exponent + 1, element).init(device),
            point: Element::new(element, config, device),
            entry: Element::new(4, config, device),
            point_encoder: Encoder::new(config, device),
            entry_encoder: Encoder::new(config, device),
            point_pooling: LePna::new(device),
            entry_pooling: LePna::new(device),
            activation: Dra::new(config.form, device),
            norm: BatchNormConfig::new(pooled).init(device),
            hidden: LinearConfig::new(pooled, width).init(device),
            output: LinearConfig::new(width, 1).init(device),
        }
    }

    /// Predictions of a batch. On a device with autodiff, norms over the batch are those of this
    /// batch; on one without they are what training has seen.
    pub fn forward(&self, inputs: &Inputs, noise: &mut Noise<'_>) -> Output {
        let space = self.space_activation.forward(self.space_in.forward(inputs.genus_points.clone()));
        let z = self.space_out.forward(self.space_norm.forward(space)); // [B, E]

        let exponents = self.exponent.forward(inputs.exponents.clone());
        let x = self.point.forward(exponents, z.clone());
        let points = self.point_encoder.forward(x.clone(), inputs.exponent_mask.clone(), noise);
        let x = self.point_pooling.forward(points.elements + x, inputs.exponent_mask.clone());

        // Once for each space.
        let e = self.entry.forward(inputs.entries.clone(), z.clone().select(0, inputs.first.clone()));
        let entries = self.entry_encoder.forward(e.clone(), inputs.entry_mask.clone(), noise);
        let e = self.entry_pooling.forward(entries.elements + e, inputs.entry_mask.clone());
        let of_samples = |of_spaces: Tensor<2>| of_spaces.select(0, inputs.space.clone());

        let both = self.activation.forward(of_samples(e) + x);
        let features = self.norm.forward(Tensor::cat(vec![both, z], 1));
        let [batch, _] = features.dims();
        let prediction = self.output.forward(relu(self.hidden.forward(features))).reshape([batch]);
        Output { prediction, point_memory: points.memory, entry_memory: of_samples(entries.memory) }
    }
}

/// Added to the variances of a batch, as norms over batches do.
const VARIANCE_EPS: f64 = 1e-5;

/// `Σ (1 - C_ii)² + ½ Σ_{i≠j} C_ij²` of the cross-correlation `C` of two vectors over a batch
/// (Barlow twins, <https://arxiv.org/abs/2103.03230>).
///
/// # Shapes
/// Both `[B, D]`; returns `[1]`.
pub fn cross_correlation(left: Tensor<2>, right: Tensor<2>) -> Tensor<1> {
    let [batch, width] = left.dims();
    let standard = |x: Tensor<2>| {
        let x = x.clone() - x.mean_dim(0);
        let variance = x.clone().square().mean_dim(0);
        x / variance.add_scalar(VARIANCE_EPS).sqrt()
    };
    let (left, right) = (standard(left), standard(right));
    let correlation = left.swap_dims(0, 1).matmul(right) / batch as f64; // [D, D]
    let diagonal = Tensor::<2>::eye(width, &correlation.device());
    let others = (correlation.clone() * diagonal.clone().neg().add_scalar(1.0)).square().sum() * 0.5;
    ((correlation.neg().add_scalar(1.0)) * diagonal).square().sum() + others
}
