//! Each depth alone, fitted to the teacher: from the teacher's hidden state `x` before it, its block is to make the teacher's `t`
//! behind it. `w/N Σ_d mean_m ‖block_d(x_m) − t_m‖² / (‖t_m − x_m‖² + ε‖t_m‖²)` over `N` depths and their tokens `m`. Column:
//! `blockwise`, the same without `w`: 0 where every block does what the teacher's does, 1 where it adds nothing to its token.
//!
//! A few tokens of a pretrained model have hidden states hundreds of times larger than the rest, so each counts by its own size; `ε`
//! ([`FLOOR`]) bounds the weight of those that the teacher leaves nearly as they were.
//!
//! The gradient of a block stays in that block: no backward pass through the stack, no logits. Depth `d` of `N_s` stands for the
//! teacher's depths `round(d·N_t/N_s)` to `round((d+1)·N_t/N_s)`.

use super::{Asked, Local, Loss, Part, Stacks, matching_depth};
use crate::{TrainError, pass::backward};
use burn::tensor::Tensor;
use retie_config::BlockwiseConfig;

/// Of the squared size of a token's hidden state, what is added to that of its change.
const FLOOR: f64 = 1e-4;

impl Loss for BlockwiseConfig {
    fn check(&self, stacks: &Stacks) -> Result<(), TrainError> {
        let error = |reason, hint| Err(TrainError::Loss { loss: "blockwise", reason, hint });
        stacks.check_widths("blockwise", "take a teacher of the same `hidden_size`, e.g. the unconverted original")?;
        let (ours, theirs) = (stacks.num_depths(), stacks.teacher_depths.unwrap_or(0));
        if theirs < ours {
            let reason = format!("the student has {ours} depths, the teacher only {theirs}");
            return error(reason, "each depth needs a layer of the teacher to stand for");
        }
        Ok(())
    }

    fn ask(&self, _: f64, stacks: &Stacks, asked: &mut Asked) {
        asked.teacher_states.extend((0..=stacks.num_depths()).map(|depth| matching_depth(stacks, depth)));
    }

    fn fit(&self, share: f64, stacks: &Stacks, local: &mut Local<'_>, losses: &mut Part<'_>) {
        let count = stacks.num_depths();
        let mut total = 0.0;
        for depth in 0..count {
            let [x, target] = [depth, depth + 1].map(|depth| local.teacher[&matching_depth(stacks, depth)].clone());
            let out = local.student.run_depths(Tensor::from_inner(x.clone()), depth..depth + 1, local.rows, None);
            let (value, grad) = relative(out.clone().inner(), &x, &target);
            let grad = grad * (self.weight * share / count as f64);
            local.grads.add(local.student, backward([(out, grad)]));
            total += value;
        }
        losses.add("blockwise", self.weight, total / count as f64);
    }
}

/// How far the rows of `y [M, D]` are from those of `target`, relative to what those are from `x`; and the gradient for `y`.
fn relative(y: Tensor<2>, x: &Tensor<2>, target: &Tensor<2>) -> (f64, Tensor<2>) {
    let [rows, _] = y.dims();
    let squares = |x: Tensor<2>| x.square().sum_dim(1); // [M, 1]
    let scale = squares(target.clone() - x.clone()) + squares(target.clone()) * FLOOR;
    let scale = scale.clamp_min(f32::MIN_POSITIVE);
    let difference = y - target.clone();
    let value = (squares(difference.clone()) / scale.clone()).mean().into_scalar::<f32>();
    (f64::from(value), difference / scale * (2.0 / rows as f64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};

    fn tensor(values: [f32; 6]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [2, 3]), &Device::flex())
    }

    #[test]
    fn the_distance_has_its_known_value_and_the_gradient_of_finite_differences() {
        let (x, t) = ([1.0, 0.0, -1.0, 2.0, 2.0, 2.0], [2.0, 0.5, -1.0, 1.0, 4.0, 2.0]);
        let y = [1.5, 0.0, -1.0, 2.0, 3.0, 1.0];
        let at = |y| relative(tensor(y), &tensor(x), &tensor(t));
        let (value, grad) = at(y);
        // By hand: 0.5 of 1.25 + 1e-4 · 5.25 and 3 of 5 + 1e-4 · 21.
        let expected = (0.5 / 1.250_525 + 3.0 / 5.0021) / 2.0;
        assert!((value - expected).abs() < 1e-6, "{value}");
        assert_eq!(at(t).0, 0.0);
        let grad: Vec<f32> = grad.into_data().try_into_vec().unwrap();
        for i in 0..6 {
            let moved = |by: f32| {
                let mut y = y;
                y[i] += by;
                at(y).0
            };
            // Quadratic: the quotient is exact but for rounding.
            let quotient = (moved(0.125) - moved(-0.125)) * 4.0;
            assert!((quotient - f64::from(grad[i])).abs() < 1e-5, "{i}: {} and {quotient}", grad[i]);
        }
    }
}
