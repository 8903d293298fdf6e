//! The loss of a batch: next-token cross-entropy and forward KL from a frozen teacher that runs beside the student.

use crate::{gradients::Gradients, pass::Pass};
use burn::tensor::{Device, Int, Tensor};
use retie_config::LossConfig;
use retie_data::Batch;
use retie_model::{
    CausalLm,
    kernels::{HeadInput, HeadLoss, Layout, LossWeights, head_loss, token_log_probs},
};

/// Losses of one step: means over its tokens, nats per token, before weighting.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    pub cross_entropy: f64,
    pub forward_kl: Option<f64>,
}

/// What is minimised.
#[derive(Debug)]
pub struct Objective {
    weights: LossWeights,
    teacher: Option<CausalLm>,
    checkpoint_recursions: bool,
}

impl Objective {
    /// The weighted sum of `losses`. The configuration has checked that a teacher is there if a loss needs one.
    #[must_use]
    pub fn new(losses: &[LossConfig], teacher: Option<CausalLm>, checkpoint_recursions: bool) -> Self {
        let mut weights = LossWeights { cross_entropy: 0.0, forward_kl: 0.0, temperature: 1.0 };
        for loss in losses {
            match loss {
                LossConfig::CrossEntropy(c) => weights.cross_entropy += c.weight as f32,
                LossConfig::Distill(c) => {
                    weights.forward_kl += c.weight as f32;
                    weights.temperature = c.temperature as f32;
                }
            }
        }
        Self { weights, teacher, checkpoint_recursions }
    }

    /// The weighted sum of `losses`.
    #[must_use]
    pub fn total(&self, losses: Losses) -> f64 {
        let LossWeights { cross_entropy, forward_kl, temperature } = self.weights;
        let (temperature, kl) = (f64::from(temperature), losses.forward_kl.unwrap_or(0.0));
        f64::from(cross_entropy) * losses.cross_entropy + f64::from(forward_kl) * temperature * temperature * kl
    }

    /// The frozen teacher.
    #[must_use]
    pub fn teacher(&self) -> Option<&CausalLm> {
        self.teacher.as_ref()
    }

    /// Losses of `batch` and, added to `grads`, the gradient of their weighted sum times `share`: the batch's part of the
    /// optimizer step.
    pub fn backward(&self, student: &CausalLm, batch: &Batch, share: f64, grads: &mut Gradients) -> Losses {
        let ids = token_ids(batch, &student.device()).reshape([batch.inputs.len()]);
        let layout = Layout::batch(batch.rows, batch.sequence_length);
        let run = if self.checkpoint_recursions { Pass::by_recursion } else { Pass::whole };
        let pass = run(student, ids, layout);
        let loss = self.head_loss(student, pass.hidden(), batch, share);
        let grad_rows = pass.backward(student, loss.grad_hidden, grads);
        grads.add_tables(student, loss.grad_weight, &batch.inputs, grad_rows);
        Losses { cross_entropy: loss.cross_entropy, forward_kl: loss.forward_kl }
    }

    /// The loss of the student's final hidden states, times `share`, beside the teacher's on the same tokens.
    fn head_loss(&self, student: &CausalLm, hidden: Tensor<2>, batch: &Batch, share: f64) -> HeadLoss {
        let student = HeadInput { hidden, weight: student.head().inner() };
        let teacher = self.teacher.as_ref().map(|teacher| HeadInput {
            hidden: teacher.forward(token_ids(batch, &teacher.device()), None),
            weight: teacher.head(),
        });
        let weights = LossWeights {
            cross_entropy: self.weights.cross_entropy * share as f32,
            forward_kl: self.weights.forward_kl * share as f32,
            ..self.weights
        };
        head_loss(&student, teacher.as_ref(), &batch.targets, weights)
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
