//! The objective of a batch: the sum of its terms, beside a frozen teacher where a term needs one.

use crate::{
    gradients::Gradients,
    loss::{self, Losses},
    pass::Pass,
};
use burn::tensor::{Device, Int, Tensor};
use retie_config::LossConfig;
use retie_data::Batch;
use retie_model::{
    CausalLm,
    kernels::{HeadInput, HeadLoss, HeadTerms, Layout, Readout, ReadoutLoss, head_loss, token_log_probs},
};

/// What is minimised.
#[derive(Debug)]
pub struct Objective {
    losses: Vec<LossConfig>,
    teacher: Option<CausalLm>,
    checkpoint_recursions: bool,
}

impl Objective {
    /// The weighted sum of `losses`. The configuration has checked that a teacher is there if a loss needs one.
    #[must_use]
    pub fn new(losses: &[LossConfig], teacher: Option<CausalLm>, checkpoint_recursions: bool) -> Self {
        Self { losses: losses.to_vec(), teacher, checkpoint_recursions }
    }

    /// The frozen teacher.
    #[must_use]
    pub fn teacher(&self) -> Option<&CausalLm> {
        self.teacher.as_ref()
    }

    /// Adds the gradient of the objective on `batch`, times `share`, to `grads`, and its values to `losses`: the batch's part of the
    /// optimizer step.
    pub fn backward(&self, student: &CausalLm, batch: &Batch, share: f64, grads: &mut Gradients, losses: &mut Losses) {
        let ids = token_ids(batch, &student.device()).reshape([batch.inputs.len()]);
        let layout = Layout::batch(batch.rows, batch.sequence_length);
        let run = if self.checkpoint_recursions { Pass::by_recursion } else { Pass::whole };
        let pass = run(student, ids, layout);
        let terms = || self.losses.iter().map(loss::of);
        let mut asked = HeadTerms::default();
        terms().for_each(|term| term.ask(share, &mut asked));
        let teacher = self.teacher.as_ref().map(|teacher| HeadInput {
            hidden: teacher.forward(token_ids(batch, &teacher.device()), None),
            weight: teacher.head(),
        });
        let readout = Readout { hidden: pass.hidden(), terms: asked };
        let HeadLoss { mut readouts, grad_weight } =
            head_loss(student.head().inner(), &[readout], teacher.as_ref(), &batch.targets);
        let Some(ReadoutLoss { values, grad_hidden }) = readouts.pop() else { unreachable!("one readout, one loss") };
        let mut part = losses.part(share);
        part.add_cross_entropy(values.nll);
        terms().for_each(|term| term.record(&values, &mut part));
        let grad_rows = pass.backward(student, grad_hidden, grads);
        grads.add_tables(student, grad_weight, &batch.inputs, grad_rows);
    }
}

/// Mean cross-entropy of `batches`, nats per token.
pub fn cross_entropy<'a>(model: &CausalLm, batches: impl Iterator<Item = Batch> + 'a) -> f64 {
    let device = model.device();
    let (mut total, mut tokens) = (0.0, 0usize);
    for batch in batches {
        let hidden = model.forward(token_ids(&batch, &device), None);
        let (log_probs, _) = token_log_probs(&HeadInput { hidden, weight: model.head() }, &batch.targets);
        total -= log_probs.iter().map(|p| f64::from(*p)).sum::<f64>();
        tokens += log_probs.len();
    }
    total / tokens.max(1) as f64
}

fn token_ids(batch: &Batch, device: &Device) -> Tensor<2, Int> {
    let ids: Vec<i32> = batch.inputs.iter().map(|id| *id as i32).collect();
    Tensor::<1, Int>::from_ints(ids.as_slice(), device).reshape([batch.rows, batch.sequence_length])
}
