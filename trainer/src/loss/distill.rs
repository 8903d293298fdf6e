//! Divergence from the teacher's distribution (RRT Appendix I, <https://arxiv.org/abs/2410.20672>):
//! `T² D(p_T, q_T)`; the divergences are in `retie_model::kernels`. Column: `distill`, `D` without
//! `T²`.

use super::{LogitValues, Loss, Stacks, TermRequirements, TermValues};
use retie_config::{DistillConfig, ExitReference};

impl Loss for DistillConfig {
    fn requirements(&self, stacks: &Stacks, required: &mut TermRequirements<'_>) {
        let softened = (self.divergence, self.temperature);
        required.distill(stacks.num_depths(), ExitReference::Teacher, 1.0, softened);
    }

    fn on_logits(&self, stacks: &Stacks, found: &LogitValues, values: &mut TermValues<'_>) {
        if let Some(divergence) = found.of_all[&stacks.num_depths()].teacher {
            values.add("distill", self.temperature * self.temperature, divergence);
        }
    }
}
