//! The terms of the objective, one a file. A term says what it asks of the forward passes, and takes its values out of what was
//! found; or it is about the logits of routers.
//!
//! A configuration's entry is the term: [`Loss`] is implemented by the parameter structs of `losses`.

mod blockwise;
mod cross_entropy;
mod distill;
mod early_exit;
mod hidden;
mod router;
mod states;

pub use router::RouterLogits;
pub use states::States;

use crate::{TrainError, collective::Collective, gradients::Gradients, telemetry::Telemetry};
use burn::tensor::Tensor;
use retie_config::{LossConfig, ShareMap};
use retie_model::{
    CausalLm, RouterLoss, RoutingSums, Rows,
    kernels::{HeadTerms, HeadValues},
};
use std::collections::{BTreeMap, BTreeSet};

/// A term of the objective.
pub trait Loss {
    /// Refuses models that it cannot be taken of.
    ///
    /// # Errors
    /// [`TrainError::Loss`].
    fn check(&self, _stacks: &Stacks) -> Result<(), TrainError> {
        Ok(())
    }

    /// Adds what it asks for, its weight times `share`: a micro-batch's part of the step.
    fn ask(&self, _share: f64, _stacks: &Stacks, _asked: &mut Asked) {}

    /// Adds gradients of the hidden states that it asked for, and what it found.
    fn compare(&self, _share: f64, _stacks: &Stacks, _states: &mut States<'_>, _losses: &mut Part<'_>) {}

    /// Adds the values of what it asked of logits.
    fn record(&self, _stacks: &Stacks, _found: &BTreeMap<usize, HeadValues>, _losses: &mut Part<'_>) {}

    /// Adds gradients of depths that it runs by themselves, and what it found.
    fn fit(&self, _share: f64, _stacks: &Stacks, _local: &mut Local<'_>, _losses: &mut Part<'_>) {}

    /// What it makes of the logits of a router and of what that chose, with its factor. Its value is added to `losses`.
    fn of_router(&self, _seen: &RouterLogits<'_>, _losses: &mut Part<'_>) -> Option<(f64, RouterLoss)> {
        None
    }
}

/// The term that an entry of the configuration is.
pub fn of(config: &LossConfig) -> &dyn Loss {
    match config {
        LossConfig::CrossEntropy(config) => config,
        LossConfig::Distill(config) => config,
        LossConfig::EarlyExit(config) => config,
        LossConfig::Hidden(config) => config,
        LossConfig::Blockwise(config) => config,
        LossConfig::RouterBce(config) => config,
        LossConfig::AuxiliaryRouterBce(config) => config,
        LossConfig::RouterZLoss(config) => config,
        LossConfig::RouterBalancing(config) => config,
        LossConfig::RouterDecisiveness(config) => config,
    }
}

/// How many maps between hidden states `losses` learn.
pub fn num_projections(losses: &[LossConfig], stacks: &Stacks) -> usize {
    let count = |loss: &LossConfig| match loss {
        LossConfig::Hidden(config) if config.projection => hidden::pairs(config, stacks).len(),
        _ => 0,
    };
    losses.iter().map(count).sum()
}

/// What a loss of single depths has before it.
#[derive(Debug)]
pub struct Local<'a> {
    /// Whose depths.
    pub student: &'a CausalLm,
    /// The rows of the batch.
    pub rows: &'a Rows,
    /// The teacher's hidden states that were asked for, `[M, D]`, by the number of its depths before them.
    pub teacher: &'a BTreeMap<usize, Tensor<2>>,
    /// Where gradients go.
    pub grads: &'a mut Gradients,
}

/// Of how many of the teacher's depths `depth` of the student's stand for: `round(depth·N_t/N_s)`.
fn matching_depth(stacks: &Stacks, depth: usize) -> usize {
    let (ours, theirs) = (stacks.num_depths(), stacks.teacher_depths.unwrap_or(0));
    (2 * depth * theirs + ours) / (2 * ours)
}

/// The stacks of student and teacher.
#[derive(Clone, Debug)]
pub struct Stacks {
    /// Which layer each depth of the student runs.
    pub student: ShareMap,
    /// Depths of the teacher.
    pub teacher_depths: Option<usize>,
    /// Sizes of the hidden states of the two.
    pub widths: (usize, Option<usize>),
}

impl Stacks {
    /// Depths of the student.
    pub fn num_depths(&self) -> usize {
        self.student.num_depths()
    }

    /// Refuses a teacher whose hidden states cannot be compared with the student's.
    fn check_widths(&self, loss: &'static str, hint: &'static str) -> Result<(), TrainError> {
        let (ours, theirs) = (self.widths.0, self.widths.1.unwrap_or(0));
        if ours == theirs {
            return Ok(());
        }
        let reason = format!("the student's hidden states have {ours} components, the teacher's {theirs}");
        Err(TrainError::Loss { loss, reason, hint })
    }

    /// Number of depths before each early exit: the ends of all recursions but the last.
    pub fn exits(&self) -> Vec<usize> {
        let mut ends = self.student.recursion_ends().unwrap_or_default();
        ends.pop();
        ends
    }
}

/// What the terms ask of the forward passes. Hidden states are named by the number of depths before them.
#[derive(Debug, Default)]
pub struct Asked {
    /// Terms of logits: those of hidden states through the final norm and the head.
    pub readouts: BTreeMap<usize, HeadTerms>,
    /// Hidden states of the student.
    pub states: BTreeSet<usize>,
    /// Hidden states of the teacher.
    pub teacher_states: BTreeSet<usize>,
}

impl Asked {
    /// What `losses` ask; the last hidden states are read for the cross-entropy that steps report, unless all losses are of single
    /// depths.
    pub fn by(losses: &[LossConfig], share: f64, stacks: &Stacks) -> Self {
        let mut asked = Self::default();
        if !losses.iter().all(LossConfig::is_local) {
            asked.readout(stacks.num_depths());
        }
        losses.iter().for_each(|loss| of(loss).ask(share, stacks, &mut asked));
        asked
    }

    /// The terms of the logits after `end` depths.
    pub fn readout(&mut self, end: usize) -> &mut HeadTerms {
        self.readouts.entry(end).or_default()
    }

    /// The student's hidden states that are read in any way.
    pub fn ends(&self) -> Vec<usize> {
        self.states.iter().chain(self.readouts.keys()).copied().collect()
    }

    /// Whether the teacher's logits are compared with.
    pub fn teacher_logits(&self) -> bool {
        self.readouts.values().any(|terms| terms.teacher.is_some())
    }
}

/// Losses of a step: means over its tokens, in nats per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// What was minimised: the sum of the terms, weighted.
    pub loss: f64,
    /// Next-token cross-entropy of the plain text, whatever the terms are; `None` where no term needs the student's logits.
    pub cross_entropy: Option<f64>,
    /// Each term by name, unweighted.
    pub terms: BTreeMap<String, f64>,
    /// What the routers of a routed model did.
    pub routing: RoutingSums,
    /// Of the hidden states, where it is looked at.
    pub telemetry: Telemetry,
}

impl Losses {
    /// Makes each value the sum over all ranks, of which each has added its micro-batches: all have the same terms and recursions.
    pub fn sum(&mut self, ranks: &dyn Collective) {
        let Telemetry { hidden_norm, cosine, grad_norm: _ } = &mut self.telemetry;
        let losses = self.terms.values_mut().chain([&mut self.loss]).chain(&mut self.cross_entropy);
        let mut all: Vec<&mut f64> = losses.chain(hidden_norm).chain(cosine).collect();
        let mut values: Vec<f64> = all.iter().map(|value| **value).collect();
        ranks.all_reduce_f64(&mut values);
        all.iter_mut().zip(values).for_each(|(value, sum)| **value = sum);
    }

    /// Where a micro-batch adds its part, `share`, of the step.
    pub fn part(&mut self, share: f64) -> Part<'_> {
        Part { losses: self, share }
    }
}

/// A micro-batch's part of the losses of a step.
#[derive(Debug)]
pub struct Part<'a> {
    losses: &'a mut Losses,
    share: f64,
}

impl Part<'_> {
    /// Adds the value of the term `name`; the objective has `factor · value`.
    pub fn add(&mut self, name: &str, factor: f64, value: f64) {
        self.losses.loss += self.share * factor * value;
        *self.losses.terms.entry(name.to_owned()).or_default() += self.share * value;
    }

    /// Adds the telemetry of what the recursions leave.
    pub fn add_states(&mut self, states: &[Tensor<2>]) {
        self.losses.telemetry.add_states(self.share, states);
    }

    /// Adds the cross-entropy of the plain text.
    pub fn add_cross_entropy(&mut self, value: f64) {
        *self.losses.cross_entropy.get_or_insert_default() += self.share * value;
    }
}
