//! The objective of a batch: the sum of its terms, beside a frozen teacher where a term needs one.

use crate::{
    TrainError,
    collective::Collective,
    gradients::Gradients,
    loss::{self, Asked, Local, Losses, RouterLogits, Stacks, States},
    pass::{LogitGradients, Pass, StateGradients, add_state, leaf, take_back},
    projection::Projections,
};
use burn::tensor::{Device, Int, Tensor};
use retie_config::{LossConfig, ShareMap};
use retie_data::{Batch, DataError, logits::LogitsCache};
use retie_model::{
    CausalLm, Choice, Routing,
    kernels::{HeadInput, HeadLoss, Layout, Readout, Teacher, TopProbs, head_loss, token_log_probs},
};
use std::collections::BTreeMap;

/// What is minimised.
#[derive(Debug)]
pub struct Objective {
    losses: Vec<LossConfig>,
    teacher: Option<Source>,
    stacks: Stacks,
    checkpoint_recursions: bool,
    projections: Projections,
}

/// Where a teacher's logits come from.
#[derive(Debug)]
pub enum Source {
    /// A frozen model that runs beside the student.
    Model(Box<CausalLm>),
    /// What was kept of one.
    Logits(Box<LogitsCache>),
}

/// Where a micro-batch stands in the run.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Optimizer step, counted from 1.
    pub step: u64,
    /// The micro-batch's part of it.
    pub share: f64,
    /// Whether the hidden states after each recursion are looked at.
    pub telemetry: bool,
}

/// What a teacher has on a batch: some of its hidden states, by the number of depths before them, and what its head reads.
type TeacherRun = (BTreeMap<usize, Tensor<2>>, Option<Teacher>);

impl Objective {
    /// The weighted sum of `losses`, which have been checked against `stacks`.
    #[must_use]
    pub fn new(
        losses: &[LossConfig],
        teacher: Option<Source>,
        stacks: Stacks,
        checkpoint_recursions: bool,
        projections: Projections,
    ) -> Self {
        Self { losses: losses.to_vec(), teacher, stacks, checkpoint_recursions, projections }
    }

    /// The maps between hidden states.
    #[must_use]
    pub fn projections(&self) -> &Projections {
        &self.projections
    }

    /// The same, for their step.
    pub fn projections_mut(&mut self) -> &mut Projections {
        &mut self.projections
    }

    /// The frozen teacher, if it is a model.
    #[must_use]
    pub fn teacher(&self) -> Option<&CausalLm> {
        match &self.teacher {
            Some(Source::Model(teacher)) => Some(teacher),
            Some(Source::Logits(_)) | None => None,
        }
    }

    /// Which layer each depth of the student runs.
    #[must_use]
    pub fn share_map(&self) -> &ShareMap {
        &self.stacks.student
    }

    /// Number of depths before each early exit that a loss trains.
    #[must_use]
    pub fn exits(&self) -> Vec<usize> {
        let trained = self.losses.iter().any(|loss| matches!(loss, LossConfig::EarlyExit(_)));
        if trained { self.stacks.exits() } else { Vec::new() }
    }

    /// Adds the gradient of the objective on `batch`, times the share of its turn, to `grads`, and its values to `losses`: the batch's part of the
    /// optimizer step. Of its tokens `choice` goes through the recursions of a routed model.
    ///
    /// # Errors
    /// When what was kept of a teacher cannot be read.
    pub fn backward(
        &self,
        student: &CausalLm,
        batch: &Batch,
        choice: Choice,
        turn: Turn,
        grads: &mut Gradients,
        losses: &mut Losses,
    ) -> Result<(), TrainError> {
        let Turn { step, share, telemetry } = turn;
        let terms: Vec<LossConfig> = self.losses.iter().map(|loss| loss.at(step)).collect();
        let mut asked = Asked::by(&terms, share, &self.stacks);
        let recursions = telemetry.then(|| self.stacks.student.recursion_ends()).flatten().unwrap_or_default();
        let (teacher_states, teacher_head) = self.run_teacher(batch, &asked)?;
        if terms.iter().any(LossConfig::is_local) {
            let rows = student.rows(layout(batch));
            let mut local = Local { student, rows: &rows, teacher: &teacher_states, grads };
            for term in terms.iter().map(loss::of) {
                term.fit(share, &self.stacks, &mut local, &mut losses.part(share));
            }
        }
        if asked.readouts.is_empty() {
            return Ok(()); // single depths are all that is asked
        }
        asked.states.extend(recursions.iter().copied());
        let ids = token_ids(batch, &student.device());
        let pass = Pass::run(student, ids, layout(batch), choice, &asked.ends(), self.checkpoint_recursions);
        let mut of_states = StateGradients::new();
        let mut part = losses.part(share);

        // The final norm of each readout is a graph of its own.
        let norms: Vec<_> =
            asked.readouts.keys().map(|end| leaf(pass.state(*end))).map(|x| (student.norm(x.clone()), x)).collect();
        let readouts: Vec<_> = norms
            .iter()
            .zip(asked.readouts.values())
            .map(|((normed, _), terms)| Readout { hidden: normed.clone().inner(), terms: *terms })
            .collect();
        let HeadLoss { readouts, grad_weight } =
            head_loss(student.head().inner(), &readouts, teacher_head.as_ref(), &batch.targets);
        let mut found = BTreeMap::new();
        for ((end, (normed, entering)), readout) in asked.readouts.keys().zip(norms).zip(readouts) {
            let grad = take_back(student, [(normed, readout.grad_hidden)], &entering, grads);
            add_state(&mut of_states, *end, grad);
            found.insert(*end, readout.values);
        }

        part.add_states(&recursions.iter().map(|end| pass.state(*end)).collect::<Vec<_>>());
        part.add_cross_entropy(found[&self.stacks.num_depths()].nll);
        let mut states = States::new(&pass, &teacher_states, &mut of_states, (&self.projections, grads));
        for term in terms.iter().map(loss::of) {
            term.record(&self.stacks, &found, &mut part);
            term.compare(share, &self.stacks, &mut states, &mut part);
        }
        if let Some(router) = student.router() {
            losses.routing.add(pass.decisions(), router, &positions(batch));
        }
        let mut part = losses.part(share);
        let mut asked_of = |seen: &RouterLogits<'_>| {
            let mut sum = vec![0.0; seen.len()];
            for (factor, loss) in terms.iter().map(loss::of).filter_map(|term| term.of_router(seen, &mut part)) {
                let factor = (factor * share) as f32;
                sum.iter_mut().zip(&loss.grad).for_each(|(sum, grad)| *sum += factor * grad);
            }
            sum
        };
        let of_router = |(decision, router)| LogitGradients {
            logits: asked_of(&RouterLogits::of(decision, router)),
            auxiliary: RouterLogits::of_auxiliary(decision).map(|seen| asked_of(&seen)).unwrap_or_default(),
        };
        let routers = std::iter::repeat_with(|| student.router()).flatten();
        let of_logits: Vec<LogitGradients> = pass.decisions().iter().zip(routers).map(of_router).collect();
        let grad_rows = pass.backward(student, of_states, &of_logits, grads);
        grads.add_tables(student, grad_weight, &batch.inputs, grad_rows);
        Ok(())
    }

    fn run_teacher(&self, batch: &Batch, asked: &Asked) -> Result<TeacherRun, TrainError> {
        let mut states = BTreeMap::new();
        let teacher = match &self.teacher {
            Some(Source::Model(teacher)) => teacher,
            Some(Source::Logits(logits)) => {
                let mut top = TopProbs::default();
                logits.read(&batch.indices, |ids, log_probs| top.push(ids, log_probs))?;
                return Ok((states, Some(Teacher::Top(top))));
            }
            None => return Ok((states, None)),
        };
        let rows = teacher.rows(layout(batch));
        let ids = token_ids(batch, &teacher.device());
        let mut routing = Routing::default();
        teacher.draw_lots(&ids, &rows, &mut routing);
        let mut x = teacher.embed(ids);
        let mut start = 0;
        for end in &asked.teacher_states {
            x = teacher.run_passes(x, start..*end, &rows, &mut routing, None);
            states.insert(*end, x.clone());
            start = *end;
        }
        let head = asked.teacher_logits().then(|| {
            let depths = start..teacher.share_map().num_depths();
            let hidden = teacher.norm(teacher.run_passes(x, depths, &rows, &mut routing, None));
            Teacher::Model(Box::new(HeadInput { hidden, head: teacher.head() }))
        });
        Ok((states, head))
    }
}

/// Mean cross-entropy of `batches`, nats per token; each rank runs a part of them.
///
/// # Errors
/// When a batch cannot be had.
pub fn cross_entropy(
    model: &CausalLm,
    batches: impl Iterator<Item = Result<Batch, DataError>>,
    ranks: &dyn Collective,
) -> Result<f64, DataError> {
    let device = model.device();
    let (mut total, mut tokens) = (0.0, 0usize);
    for batch in batches.skip(ranks.rank()).step_by(ranks.world()) {
        let batch = batch?;
        let hidden = model.forward_packed(token_ids(&batch, &device), layout(&batch));
        let (log_probs, _) = token_log_probs(&HeadInput { hidden, head: model.head() }, &batch.targets);
        total -= log_probs.iter().map(|p| f64::from(*p)).sum::<f64>();
        tokens += log_probs.len();
    }
    let mut sums = [total, tokens as f64];
    ranks.all_reduce_f64(&mut sums);
    Ok(sums[0] / sums[1].max(1.0))
}

/// The inputs of a batch, `[M]`.
pub fn token_ids(batch: &Batch, device: &Device) -> Tensor<1, Int> {
    let ids: Vec<i32> = batch.inputs.iter().map(|id| *id as i32).collect();
    Tensor::from_ints(ids.as_slice(), device)
}

/// Where each input of a batch stands in its piece of text.
pub fn positions(batch: &Batch) -> Vec<usize> {
    batch.pieces.iter().flat_map(|piece| 0..*piece).collect()
}

/// What the inputs of a batch see. Whole rows are a plain batch, for which devices have one kernel.
pub fn layout(batch: &Batch) -> Layout {
    if batch.pieces.iter().all(|piece| *piece == batch.sequence_length) {
        return Layout::batch(batch.rows, batch.sequence_length);
    }
    Layout::packed(batch.pieces.iter().map(|piece| (*piece, 0..0)))
}

#[cfg(test)]
mod tests;
