//! Each depth alone, fitted to the teacher: its block reads the teacher's hidden state `x` before
//! the depth and should give the teacher's state `t` after it. The loss is
//! `1/N Σ_d mean_m ‖block_d(x_m) − t_m‖² / (‖t_m − x_m‖² + ε‖t_m‖²)` over `N` depths and their
//! tokens `m`: 0 where every block does as the teacher's, 1 where it adds nothing to its token.
//! Column: `blockwise`.
//!
//! A few tokens of a pretrained model have hidden states hundreds of times larger than the rest, so
//! each counts relative to its own size; `ε` ([`FLOOR`]) bounds the weight of those that the
//! teacher leaves nearly as they were.
//!
//! The gradient of a block stays in that block: no backward pass through the stack, no logits.
//! Depth `d` of `N_s` stands for the teacher's depths `round(d·N_t/N_s)` to `round((d+1)·N_t/N_s)`.

use super::{LocalPass, Loss, Misfit, Stacks, TermRequirements, TermValues};
use burn::tensor::Tensor;
use retie_config::BlockwiseConfig;
use retie_model::kernels::read_mean;

/// Part of a hidden state's squared size that is added to the squared size of its change.
const FLOOR: f64 = 1e-4;

impl Loss for BlockwiseConfig {
    fn check(&self, stacks: &Stacks) -> Result<(), Misfit> {
        stacks.check_widths("take a teacher of the same `hidden_size`, e.g. the unconverted original")?;
        let (ours, theirs) = (stacks.num_depths(), stacks.teacher_depths.unwrap_or(0));
        if theirs < ours {
            let reason = format!("the student has {ours} depths, the teacher only {theirs}");
            return Err(Misfit { reason, hint: "each depth needs a layer of the teacher to stand for" });
        }
        Ok(())
    }

    fn requirements(&self, stacks: &Stacks, required: &mut TermRequirements<'_>) {
        (0..=stacks.num_depths()).for_each(|depth| required.teacher_hidden(stacks.matching_depth(depth)));
    }

    fn local_backward(&self, stacks: &Stacks, pass: &mut LocalPass<'_>, values: &mut TermValues<'_>) {
        let count = stacks.num_depths();
        let mut total = 0.0;
        for depth in 0..count {
            let [x, target] = [depth, depth + 1].map(|depth| pass.teacher(stacks.matching_depth(depth)));
            let out = pass.run_depth(depth, x.clone());
            let (value, grad) = relative_error(out.clone().inner(), &x, &target);
            pass.backward(out, grad, count);
            total += value;
        }
        values.add("blockwise", 1.0, total / count as f64);
    }
}

/// Mean squared distance of the rows of `y [M, D]` from those of `target`, relative to the distance
/// of `target` from `x`; and its gradient for `y`.
fn relative_error(y: Tensor<2>, x: &Tensor<2>, target: &Tensor<2>) -> (f64, Tensor<2>) {
    let [rows, _] = y.dims();
    let squares = |x: Tensor<2>| x.square().sum_dim(1); // [M, 1]
    let scale = squares(target.clone() - x.clone()) + squares(target.clone()) * FLOOR;
    let scale = scale.clamp_min(f32::MIN_POSITIVE);
    let difference = y - target.clone();
    let value = read_mean(squares(difference.clone()) / scale.clone());
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
        let at = |y| relative_error(tensor(y), &tensor(x), &tensor(t));
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
