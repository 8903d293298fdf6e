//! Gradient clipping by one norm of all parameters, as `torch.nn.utils.clip_grad_norm_`: burn clips
//! each parameter by its own.

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::Tensor,
};
use burn_optim::GradientsParams;

/// Added to the norm before it divides, as torch does.
const CLIP_EPS: f64 = 1e-6;

/// Scales the gradients of `module` down to the norm `max_norm` where theirs is larger, and returns
/// what it was.
pub(crate) fn clip_norm<M: Module>(module: &M, grads: &mut GradientsParams, max_norm: f64) -> f64 {
    let mut squares = Squares { grads, sum: 0.0 };
    module.visit(&mut squares);
    let norm = squares.sum.sqrt();
    if norm > max_norm {
        module.visit(&mut Scale { grads, by: max_norm / (norm + CLIP_EPS) });
    }
    norm
}

struct Squares<'g> {
    grads: &'g GradientsParams,
    sum: f64,
}

impl ModuleVisitor for Squares<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.get::<D>(param.id) {
            self.sum += f64::from(grad.square().sum().into_scalar::<f32>());
        }
    }
}

struct Scale<'g> {
    grads: &'g mut GradientsParams,
    by: f64,
}

impl ModuleVisitor for Scale<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if let Some(grad) = self.grads.remove::<D>(param.id) {
            self.grads.register(param.id, grad.mul_scalar(self.by));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;
    use burn_nn::LinearConfig;

    #[test]
    fn one_norm_scales_all_gradients() {
        let device = Device::flex().autodiff();
        let layer = LinearConfig::new(2, 1).init(&device);
        // Gradients of the weight 3 and 4, of the bias 12 / 4 · 4: their norm is 13.
        let x = Tensor::<2>::from_data([[3.0 / 12.0, 4.0 / 12.0]], &device);
        let mut grads = GradientsParams::from_grads((layer.forward(x) * 12.0).sum().backward(), &layer);
        assert!((clip_norm(&layer, &mut grads, 1.3) - 13.0).abs() < 1e-5);
        let weight: Vec<f32> = grads.get::<2>(layer.weight.id).unwrap().into_data().to_vec().unwrap();
        let bias: Vec<f32> = grads.get::<1>(layer.bias.as_ref().unwrap().id).unwrap().into_data().to_vec().unwrap();
        // A few f32 roundings.
        for (value, expected) in [weight, bias].concat().into_iter().zip([0.3, 0.4, 1.2]) {
            assert!((value - expected).abs() < 1e-6, "{value} {expected}");
        }
        assert!((clip_norm(&layer, &mut grads, 2.0) - 1.3).abs() < 1e-5);
    }
}
