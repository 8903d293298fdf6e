//! Early exits (RRT Section 3.7 and Appendix J, <https://arxiv.org/abs/2410.20672>): the hidden
//! states that a recursion leaves go through the layers after the loop, the final norm and the
//! head, as those of the last one do: an exit skips recursions and nothing else. With `R`
//! recursions the loss is `Σ a_i L_i` over `i = 1 … R − 1`, where `L_i = CE_i`, or `T² D` from the
//! detached logits of the last recursion, or of the teacher, or several of them added up.
//!
//! RRT's `α_i` weigh the last recursion too. Here the other terms are its losses, so
//! `a_i = α_i / α_R`: `i/R` for its `i / Σ j`, `c` for its `(c, …, c, 1)`. The objective is RRT's
//! divided by `α_R`.
//!
//! With `sample` each sequence draws a recursion count `1 … R` and has the losses of that exit
//! alone, with the factor `R a_i`; none if it draws `R`.
//!
//! Columns, for exit `i`: `exit_i_cross_entropy`, `exit_i_final`, `exit_i_teacher`.

use super::{LogitValues, Loss, Misfit, Stacks, TermRequirements, TermValues};
use retie_config::{EarlyExitConfig, ExitDistillConfig, ExitReference, ExitWeights};
use retie_model::kernels::HeadValues;

impl Loss for EarlyExitConfig {
    fn check(&self, stacks: &Stacks) -> Result<(), Misfit> {
        let hint = "it takes two recursions or more that run one after the other, as in `cycle` and `middle_cycle`";
        let exits = stacks.student.exits().map_err(|error| Misfit { reason: error.to_string(), hint })?;
        let exits = exits.num_recursions() - 1;
        if exits == 0 {
            return Err(Misfit { reason: "the student has 1 recursion".to_owned(), hint });
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
        if self.sample {
            required.of_drawn();
        }
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
            let found = match self.sample {
                true => found.drawn.get(&end).copied(),
                false => found.of_all.get(&end).map(|found| (1.0, *found)),
            };
            let mut add = |what: &str, factor, value: fn(&HeadValues) -> Option<f64>| {
                let found = found.and_then(|(part, found)| Some((part, value(&found)?)));
                match self.sample {
                    true => values.add_drawn(&name(what), factor, found),
                    false => values.add(&name(what), factor, found.map_or(0.0, |(_, value)| value)),
                }
            };
            if self.has_cross_entropy() {
                add("cross_entropy", factor, |found| Some(found.cross_entropy));
            }
            if self.distill_from(ExitReference::Final).is_some() {
                add("final", factor * squared, |found| found.last);
            }
            if self.distill_from(ExitReference::Teacher).is_some() {
                add("teacher", factor * squared, |found| found.teacher);
            }
        }
    }
}

/// Depths before each exit, and the exit's factor: `a_i`, or `R a_i` where exits are drawn.
fn exits(config: &EarlyExitConfig, stacks: &Stacks) -> impl Iterator<Item = (usize, f64)> {
    let count = stacks.student.num_recursions();
    let drawn = if config.sample { count as f64 } else { 1.0 };
    stacks.exits().into_iter().zip(config.weights.factors(count).into_iter().map(move |factor| drawn * factor))
}
