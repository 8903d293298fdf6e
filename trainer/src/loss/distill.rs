//! A divergence from the teacher's distribution (RRT Appendix I, <https://arxiv.org/abs/2410.20672>): `w T² D(p_T, q_T)`; the
//! divergences are in `retie_model::kernels`. Column: `distill`, `D` without `T²`.

use super::{Asked, Loss, Part, Stacks};
use retie_config::DistillConfig;
use retie_model::kernels::{DistillTerm, HeadValues};
use std::collections::BTreeMap;

impl Loss for DistillConfig {
    fn ask(&self, share: f64, stacks: &Stacks, asked: &mut Asked) {
        asked.readout(stacks.num_depths()).teacher = Some(DistillTerm {
            weight: (self.weight * share) as f32,
            divergence: self.divergence,
            temperature: self.temperature as f32,
        });
    }

    fn record(&self, stacks: &Stacks, found: &BTreeMap<usize, HeadValues>, losses: &mut Part<'_>) {
        if let Some(divergence) = found[&stacks.num_depths()].teacher {
            losses.add("distill", self.weight * self.temperature * self.temperature, divergence);
        }
    }
}
