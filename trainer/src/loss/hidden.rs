//! Hidden states of the student drawn to the teacher's: `1/n Σ d(h, t)` over `n` pairs of depths, a
//! mean over tokens, before the final norm. `d` is the mean of the squared differences of the `D`
//! components, or `1 − cos(h, t)`. Column: `hidden`.
//!
//! With `projection` it is `P h` in place of `h`, with a learned `P [D_t, D_s]` a pair: see
//! [`crate::optim::Projections`].
//!
//! By default the pairs are the ends of recursions and the same part of the teacher's stack: after
//! `round(e · N_t / N_s)` of its `N_t` depths, for the end `e` of a recursion in the student's
//! `N_s`.

use super::{HiddenStates, Loss, Misfit, Stacks, TermRequirements, TermValues};
use burn::tensor::Tensor;
use retie_config::{HiddenConfig, HiddenDistance};
use retie_model::kernels;

impl Loss for HiddenConfig {
    fn check(&self, stacks: &Stacks) -> Result<(), Misfit> {
        if !self.projection {
            stacks.check_widths("say `projection: true`, or take a teacher of the same `hidden_size`")?;
        }
        let (ours, theirs) = (stacks.num_depths(), stacks.teacher_depths.unwrap_or(0));
        let Some(map) = &self.map else {
            return match stacks.student.recursion_ends() {
                Some(_) => Ok(()),
                None => Err(Misfit {
                    reason: format!("the recursions of `{}` do not run one after the other", stacks.student.sharing()),
                    hint: "say in `map` which depths are compared",
                }),
            };
        };
        match map.iter().find(|pair| pair.student >= ours || pair.teacher >= theirs) {
            Some(pair) => Err(Misfit {
                reason: format!(
                    "`map` compares depth {} of {ours} with depth {} of {theirs}",
                    pair.student, pair.teacher
                ),
                hint: "depths are counted from 0",
            }),
            None => Ok(()),
        }
    }

    fn requirements(&self, stacks: &Stacks, required: &mut TermRequirements<'_>) {
        let pairs = pairs(self, stacks);
        if self.projection {
            required.projections(pairs.len());
        }
        for (student, teacher) in pairs {
            required.student_hidden(student);
            required.teacher_hidden(teacher);
        }
    }

    fn on_hidden(&self, stacks: &Stacks, states: &mut HiddenStates<'_>, values: &mut TermValues<'_>) {
        let pairs = pairs(self, stacks);
        let count = pairs.len();
        let mut total = 0.0;
        for (index, (student, teacher)) in pairs.into_iter().enumerate() {
            let (h, t) = (states.student(student), states.teacher(teacher));
            let (value, grad) = match states.projection(index) {
                Some(projection) => {
                    let (value, grad) = distance(self.distance, kernels::linear(h.clone(), projection.clone()), t);
                    states.add_projection_grad(index, grad.clone().transpose().matmul(h), count);
                    (value, grad.matmul(projection))
                }
                None => distance(self.distance, h, t),
            };
            states.add_grad(student, grad, count);
            total += value;
        }
        values.add("hidden", 1.0, total / count as f64);
    }
}

/// Depths of student and teacher before each pair of states that is compared.
fn pairs(config: &HiddenConfig, stacks: &Stacks) -> Vec<(usize, usize)> {
    if let Some(map) = &config.map {
        return map.iter().map(|pair| (pair.student + 1, pair.teacher + 1)).collect();
    }
    let ends = stacks.student.recursion_ends().unwrap_or_default();
    ends.into_iter().map(|end| (end, stacks.matching_depth(end))).collect()
}

/// Mean distance of the rows of `h [M, D]` from those of `t [M, D]`, and its gradient for `h`.
fn distance(kind: HiddenDistance, h: Tensor<2>, t: Tensor<2>) -> (f64, Tensor<2>) {
    let [rows, width] = h.dims();
    match kind {
        HiddenDistance::Mse => {
            let difference = h - t;
            let value = kernels::read_mean(difference.clone().square());
            (f64::from(value), difference * (2.0 / (rows * width) as f64))
        }
        HiddenDistance::Cosine => {
            let norm = |x: &Tensor<2>| x.clone().square().sum_dim(1).sqrt().clamp_min(NORM_FLOOR);
            let of_h = norm(&h);
            let (h, t) = (h / of_h.clone(), t.clone() / norm(&t));
            let cosine = (h.clone() * t.clone()).sum_dim(1); // [M, 1]
            let value = 1.0 - f64::from(kernels::read_mean(cosine.clone()));
            (value, (h * cosine - t) / of_h / rows as f64)
        }
    }
}

/// A hidden state of zeros has no direction; this keeps its cosine at 0.
const NORM_FLOOR: f32 = 1e-12;

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use retie_config::{HiddenPair, ShareMap, Sharing};

    fn tensor(values: [f32; 6]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(values.to_vec(), [2, 3]), &Device::flex())
    }

    #[test]
    fn distances_have_their_known_values_and_gradients_of_finite_differences() {
        let h = [1.0, -2.0, 0.5, 0.25, 1.5, -1.0];
        let t = [2.0, 1.0, 0.5, -1.0, 1.5, 0.75];
        // By hand: (1 + 9 + 0 + 1.5625 + 0 + 3.0625)/6, and 1 − the mean of 0.25/√(5.25·5.25) and
        // 1.25/√(3.3125·3.8125).
        for (kind, expected) in [(HiddenDistance::Mse, 2.4375), (HiddenDistance::Cosine, 0.800_318_3)] {
            let (value, grad) = distance(kind, tensor(h), tensor(t));
            assert!((value - expected).abs() < 1e-6, "{kind:?}: {value}");
            let grad: Vec<f32> = grad.into_data().try_into_vec().unwrap();
            for i in 0..6 {
                let at = |by: f32| {
                    let mut h = h;
                    h[i] += by;
                    distance(kind, tensor(h), tensor(t)).0
                };
                // A step of 1/64: rounding of f32 divided by it, and the third derivative, are
                // below 1e-4.
                let quotient = (at(1.0 / 64.0) - at(-1.0 / 64.0)) * 32.0;
                assert!((quotient - f64::from(grad[i])).abs() < 1e-4, "{kind:?}[{i}]: {} and {quotient}", grad[i]);
            }
        }
    }

    #[test]
    fn the_pairs_are_the_ends_of_recursions_at_the_same_part_of_the_stack() {
        let stacks = |teacher| Stacks {
            student: ShareMap::new(8, 2, Sharing::MiddleCycle).unwrap(),
            teacher_depths: Some(teacher),
            widths: (4, Some(4)),
        };
        let mut config = HiddenConfig::default();
        assert_eq!(pairs(&config, &stacks(8)), [(4, 4), (7, 7)]);
        assert_eq!(pairs(&config, &stacks(12)), [(4, 6), (7, 11)]);
        config.map = Some(vec![HiddenPair { student: 0, teacher: 11 }]);
        assert_eq!(pairs(&config, &stacks(12)), [(1, 12)]);
        assert!(config.check(&stacks(12)).is_ok() && config.check(&stacks(11)).is_err());
    }
}
