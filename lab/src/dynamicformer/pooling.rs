//! Pooling of a set of any size: LePNA, principal neighbourhood aggregation (Corso et al. 2020,
//! <https://arxiv.org/abs/2004.05718>) with a learned size of an average set.

use burn::{
    module::{Module, Param},
    tensor::{Device, Tensor},
};

/// Sum, maximum, mean and standard deviation over a set of `n`, each times 1,
/// `log(n + 1) / log(m + 1)` and the inverse of that.
#[derive(Module, Debug)]
pub struct LePna {
    /// `m`, `[1]`.
    pub average_size: Param<Tensor<1>>,
}

/// `m` at the start.
const INITIAL_SIZE: f32 = 9.0;

/// The least that `m` counts as.
const LEAST_SIZE: f32 = 1.0;

/// Added to variances, whose root has no slope at 0.
const VARIANCE_EPS: f64 = 1e-5;

/// What maxima do not choose.
const NEVER: f32 = -1e30;

impl LePna {
    /// Pooling with the published `m`.
    #[must_use]
    pub fn new(device: &Device) -> Self {
        Self { average_size: Param::from_data([INITIAL_SIZE], device) }
    }

    /// What is made of one element.
    pub const FACTOR: usize = 12;

    /// Pools the elements that `mask` has a 1 for; each set has at least one.
    ///
    /// # Shapes
    /// `x` `[B, N, E]`, `mask` `[B, N]`; returns `[B, 12·E]`: the four aggregates, then the four of
    /// the second scale, then of the third.
    pub fn forward(&self, x: Tensor<3>, mask: Tensor<2>) -> Tensor<2> {
        let [batch, elements, width] = x.dims();
        let size = mask.clone().sum_dim(1); // [B, 1]
        let mask = mask.reshape([batch, elements, 1]);
        let flat = |x: Tensor<3>| x.reshape([batch, width]);
        let sum = flat((x.clone() * mask.clone()).sum_dim(1));
        let mean = sum.clone() / size.clone();
        let most = flat(
            x.clone().mask_fill(mask.clone().lower_scalar(0.5).expand([batch, elements, width]), NEVER).max_dim(1),
        );
        let apart = (x - mean.clone().reshape([batch, 1, width])) * mask;
        let deviation = (flat(apart.square().sum_dim(1)) / size.clone()).add_scalar(VARIANCE_EPS).sqrt();
        let all = Tensor::cat(vec![sum, most, mean, deviation], 1); // [B, 4·E]
        let average = self.average_size.val().clamp_min(LEAST_SIZE).reshape([1, 1]);
        let scale = size.add_scalar(1.0).log() / average.add_scalar(1.0).log(); // [B, 1]
        Tensor::cat(vec![all.clone(), all.clone() * scale.clone(), all / scale], 1)
    }
}
