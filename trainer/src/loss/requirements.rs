//! Logits and hidden states that the losses of a run read.

use super::{ScaledTerm, Stacks, TermScale};
use retie_config::{Divergence, ExitReference, LossTerm};
use retie_model::kernels::{CrossEntropyTerm, DistillTerm, HeadTerms};
use std::collections::{BTreeMap, BTreeSet};

/// Requirements of all terms on the forward passes. A hidden state is named by the number of depths
/// before it.
#[derive(Debug, Default)]
pub struct Requirements {
    /// Terms of logits, for each hidden state that goes through the final norm and the head.
    pub readouts: BTreeMap<usize, HeadTerms>,
    /// The same for exits that only the sequences have that draw them.
    pub drawn: BTreeMap<usize, HeadTerms>,
    /// Hidden states of the student.
    pub student_hidden: BTreeSet<usize>,
    /// Hidden states of the teacher.
    pub teacher_hidden: BTreeSet<usize>,
    /// Learned maps from hidden states of the student to the teacher's.
    pub num_projections: usize,
}

impl Requirements {
    /// Requirements of `terms`. The last hidden states are read for the cross-entropy that steps
    /// report, unless all losses are of single depths.
    pub fn from_terms(terms: &[ScaledTerm<'_>], stacks: &Stacks) -> Self {
        let mut all = Self::default();
        if !terms.iter().all(|term| term.is_local) {
            all.readouts.entry(stacks.num_depths()).or_default();
        }
        for ScaledTerm { loss, scale, .. } in terms {
            loss.requirements(stacks, &mut TermRequirements { all: &mut all, scale: *scale, is_drawn: false });
        }
        all
    }

    /// Requirements of `losses` but for the factors of a step.
    pub fn from_losses(losses: &[LossTerm], stacks: &Stacks) -> Self {
        let terms: Vec<_> = losses.iter().map(|term| ScaledTerm::new(term, 1, 1.0)).collect();
        Self::from_terms(&terms, stacks)
    }

    /// The student's hidden states that are read in any way.
    pub fn ends(&self) -> Vec<usize> {
        self.student_hidden.iter().chain(self.readouts.keys()).chain(self.drawn.keys()).copied().collect()
    }

    /// Number of depths before each early exit that has a loss.
    pub fn exits(&self, stacks: &Stacks) -> Vec<usize> {
        let ends = self.readouts.keys().chain(self.drawn.keys());
        ends.copied().filter(|end| *end != stacks.num_depths()).collect()
    }

    /// Whether the teacher's logits are compared with.
    pub fn teacher_logits(&self) -> bool {
        self.readouts.values().chain(self.drawn.values()).any(|terms| terms.teacher.is_some())
    }
}

/// Requirements of one term; its scale is applied to the factors that the loss gives.
#[derive(Debug)]
pub struct TermRequirements<'a> {
    all: &'a mut Requirements,
    scale: TermScale,
    is_drawn: bool,
}

impl TermRequirements<'_> {
    /// What is required from now on is so of the sequences alone that draw it.
    pub fn of_drawn(&mut self) {
        self.is_drawn = true;
    }

    fn readout(&mut self, end: usize) -> &mut HeadTerms {
        let readouts = if self.is_drawn { &mut self.all.drawn } else { &mut self.all.readouts };
        readouts.entry(end).or_default()
    }

    /// `factor (CE + z_loss Z²)` of the logits after `end` depths. A readout has one cross-entropy.
    pub fn cross_entropy(&mut self, end: usize, factor: f64, label_smoothing: f64, z_loss: f64) {
        self.readout(end).cross_entropy = CrossEntropyTerm {
            weight: self.scale.gradient(factor) as f32,
            label_smoothing: label_smoothing as f32,
            z_loss: z_loss as f32,
        };
    }

    /// `factor T² D` of the logits after `end` depths, `D` the divergence from those of `reference`
    /// at temperature `T`. A readout has one divergence from each reference.
    pub fn distill(
        &mut self,
        end: usize,
        reference: ExitReference,
        factor: f64,
        (divergence, temperature): (Divergence, f64),
    ) {
        let weight = self.scale.gradient(factor) as f32;
        let term = Some(DistillTerm { weight, divergence, temperature: temperature as f32 });
        let readout = self.readout(end);
        match reference {
            ExitReference::Teacher => readout.teacher = term,
            ExitReference::Final => readout.last = term,
        }
    }

    /// The student's hidden state after `end` depths.
    pub fn student_hidden(&mut self, end: usize) {
        self.all.student_hidden.insert(end);
    }

    /// The teacher's hidden state after `end` depths.
    pub fn teacher_hidden(&mut self, end: usize) {
        self.all.teacher_hidden.insert(end);
    }

    /// `count` learned maps, from hidden states of the student to the teacher's.
    pub fn projections(&mut self, count: usize) {
        self.all.num_projections += count;
    }
}
