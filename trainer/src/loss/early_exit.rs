//! Early exits (RRT Section 3.7 and Appendix J, <https://arxiv.org/abs/2410.20672>): what a recursion leaves goes through the same
//! final norm and head as what the last one leaves. With `R` recursions, `w Σ a_i L_i` over `i = 1 … R − 1`, where
//! `L_i = CE_i`, or `T² D` from the detached logits of the last recursion, or of the teacher, or several of them added up.
//!
//! RRT's `α_i` weigh the last recursion too. Here the other terms are its losses, so `a_i = α_i / α_R`: `i/R` for its `i / Σ j`,
//! `c` for its `(c, …, c, 1)`. The objective is RRT's divided by `α_R`.
//!
//! Columns, for exit `i`: `exit_i_cross_entropy`, `exit_i_final`, `exit_i_teacher`.

use super::{Asked, Loss, Part, Stacks};
use crate::TrainError;
use retie_config::{EarlyExitConfig, ExitDistillConfig, ExitReference, ExitWeights};
use retie_model::kernels::{CrossEntropyTerm, DistillTerm, HeadValues};
use std::collections::BTreeMap;

impl Loss for EarlyExitConfig {
    fn check(&self, stacks: &Stacks) -> Result<(), TrainError> {
        let error = |reason, hint| TrainError::Loss { loss: "early_exit", reason, hint };
        let exits = stacks.exits().len();
        if exits == 0 {
            let reason = format!(
                "the student has {} recursions of `{}`",
                stacks.student.num_recursions(),
                stacks.student.sharing()
            );
            let hint = "it takes two recursions or more that run one after the other, as in `cycle` and `middle_cycle`";
            return Err(error(reason, hint));
        }
        match &self.weights {
            ExitWeights::Each(factors) if factors.len() != exits => {
                let reason = format!("`weights.each` has {} factors, expected {exits}", factors.len());
                Err(error(reason, "one for each recursion but the last"))
            }
            _ => Ok(()),
        }
    }

    fn ask(&self, share: f64, stacks: &Stacks, asked: &mut Asked) {
        for (end, factor) in self.exits(stacks) {
            let weight = (factor * share) as f32;
            let distill = |reference| {
                let distill = self.distill_from(reference)?;
                let temperature = distill.temperature as f32;
                Some(DistillTerm { weight, divergence: distill.divergence, temperature })
            };
            let terms = asked.readout(end);
            if self.has_cross_entropy() {
                terms.cross_entropy = CrossEntropyTerm { weight, ..CrossEntropyTerm::default() };
            }
            terms.last = distill(ExitReference::Final);
            terms.teacher = distill(ExitReference::Teacher);
        }
    }

    fn record(&self, stacks: &Stacks, found: &BTreeMap<usize, HeadValues>, losses: &mut Part<'_>) {
        let squared = |distill: &ExitDistillConfig| distill.temperature * distill.temperature;
        let squared = self.distill.as_ref().map_or(1.0, squared);
        for (index, (end, factor)) in self.exits(stacks).enumerate() {
            let name = |what: &str| format!("exit_{}_{what}", index + 1);
            let found = found[&end];
            if self.has_cross_entropy() {
                losses.add(&name("cross_entropy"), factor, found.cross_entropy);
            }
            for (what, value) in [("final", found.last), ("teacher", found.teacher)] {
                if let Some(value) = value {
                    losses.add(&name(what), factor * squared, value);
                }
            }
        }
    }
}

/// Depths before each exit, and the exit's weight.
trait Exits {
    fn exits(&self, stacks: &Stacks) -> impl Iterator<Item = (usize, f64)>;
}

impl Exits for EarlyExitConfig {
    fn exits(&self, stacks: &Stacks) -> impl Iterator<Item = (usize, f64)> {
        let factors = self.weights.factors(stacks.student.num_recursions());
        stacks.exits().into_iter().zip(factors).map(|(end, factor)| (end, self.weight * factor))
    }
}
