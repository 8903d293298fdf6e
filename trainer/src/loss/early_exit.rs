//! Early exits (RRT Section 3.7 and Appendix J, <https://arxiv.org/abs/2410.20672>): the hidden
//! states that a recursion leaves go through the same final norm and head as those of the last one.
//! With `R` recursions the loss is `Σ a_i L_i` over `i = 1 … R − 1`, where `L_i = CE_i`, or `T² D`
//! from the detached logits of the last recursion, or of the teacher, or several of them added up.
//!
//! RRT's `α_i` weigh the last recursion too. Here the other terms are its losses, so
//! `a_i = α_i / α_R`: `i/R` for its `i / Σ j`, `c` for its `(c, …, c, 1)`. The objective is RRT's
//! divided by `α_R`.
//!
//! Columns, for exit `i`: `exit_i_cross_entropy`, `exit_i_final`, `exit_i_teacher`.

use super::{LogitValues, Loss, Misfit, Stacks, TermRequirements, TermValues};
use retie_config::{EarlyExitConfig, ExitDistillConfig, ExitReference, ExitWeights};

impl Loss for EarlyExitConfig {
    fn check(&self, stacks: &Stacks) -> Result<(), Misfit> {
        let exits = stacks.exits().len();
        if exits == 0 {
            let (count, sharing) = (stacks.student.num_recursions(), stacks.student.sharing());
            return Err(Misfit {
                reason: format!("the student has {count} recursions of `{sharing}`"),
                hint: "it takes two recursions or more that run one after the other, as in `cycle` and `middle_cycle`",
            });
        }
        match &self.weights {
            ExitWeights::Each(factors) if factors.len() != exits => Err(Misfit {
                reason: format!("`weights.each` has {} factors, expected {exits}", factors.len()),
                hint: "one for each recursion but the last",
            }),
            _ => Ok(()),
        }
    }

    fn requirements(&self, stacks: &Stacks, required: &mut TermRequirements<'_>) {
        for (end, factor) in exits(self, stacks) {
            if self.has_cross_entropy() {
                required.cross_entropy(end, factor, 0.0, 0.0);
            }
            for reference in [ExitReference::Final, ExitReference::Teacher] {
                if let Some(ExitDistillConfig { divergence, temperature, .. }) = self.distill_from(reference) {
                    required.distill(end, reference, factor, (*divergence, *temperature));
                }
            }
        }
    }

    fn on_logits(&self, stacks: &Stacks, found: &LogitValues, values: &mut TermValues<'_>) {
        let squared = self.distill.as_ref().map_or(1.0, |distill| distill.temperature * distill.temperature);
        for (index, (end, factor)) in exits(self, stacks).enumerate() {
            let name = |what: &str| format!("exit_{}_{what}", index + 1);
            let found = found[&end];
            if self.has_cross_entropy() {
                values.add(&name("cross_entropy"), factor, found.cross_entropy);
            }
            for (what, value) in [("final", found.last), ("teacher", found.teacher)] {
                if let Some(value) = value {
                    values.add(&name(what), factor * squared, value);
                }
            }
        }
    }
}

/// Depths before each exit, and the exit's factor `a_i`.
fn exits(config: &EarlyExitConfig, stacks: &Stacks) -> impl Iterator<Item = (usize, f64)> {
    let factors = config.weights.factors(stacks.student.num_recursions());
    stacks.exits().into_iter().zip(factors)
}
