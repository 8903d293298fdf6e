//! The objective of a batch: the weighted sum of its terms, beside a frozen teacher where a term
//! needs one.
//!
//! Where only some targets are learnt (the answers of conversations), logits, and so the losses of
//! logits, are of these alone; losses of hidden states and of routers are of every token.

mod drawn;
mod sums;
mod telemetry;

pub use sums::StepSums;
pub use telemetry::Telemetry;

use crate::{
    TrainError,
    loss::{HiddenStates, LocalPass, LogitValues, Requirements, RouterLogits, ScaledTerm, Stacks},
    optim::Projections,
    pass::{LogitGradients, Pass, PassOptions, StateGradients, add_state, backpropagate, leaf},
};
use burn::tensor::{Device, Tensor};
use retie_collective::Collective;
use retie_config::LossTerm;
use retie_data::{Batch, DataError, logits::LogitsCache};
use retie_model::{
    CapturedForward, CausalLm, SelectionRule, States, TokenIds,
    kernels::{HeadInput, HeadLoss, Layout, Readout, Teacher, TopProbs, head_loss_beside, token_log_probs},
};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    ops::Range,
    sync::{Mutex, PoisonError},
};

/// The minimised sum of losses.
#[derive(Debug)]
pub struct Objective {
    losses: Vec<LossTerm>,
    teacher: Option<TeacherSource>,
    stacks: Stacks,
    checkpoint_recursions: bool,
    projections: Projections,
    /// Forward passes of the teacher, if they are captured.
    captured: Option<Mutex<CapturedForward>>,
}

/// Source of a teacher's logits.
#[derive(Debug)]
pub enum TeacherSource {
    /// A frozen model that runs beside the student.
    Model(Box<CausalLm>),
    /// The cached top of its distributions.
    Logits(Box<LogitsCache>),
}

/// A micro-batch in the run.
#[derive(Clone, Copy, Debug)]
pub struct MicroBatch<'a> {
    /// Its text.
    pub batch: &'a Batch,
    /// Optimizer step, counted from 1.
    pub step: u64,
    /// Fraction of the step's tokens that it has.
    pub share: f64,
    /// Random number of the step, from which its sequences draw.
    pub draw: u64,
    /// Whether the hidden states after each recursion are measured.
    pub telemetry: bool,
}

/// Output of a teacher on a batch: the required hidden states, by the number of depths before them,
/// and the input of its head.
type TeacherRun = (BTreeMap<usize, Tensor<2>>, Option<Teacher>);

impl Objective {
    /// The weighted sum of `losses`, which have been checked against `stacks`.
    #[must_use]
    pub fn new(
        losses: &[LossTerm],
        teacher: Option<TeacherSource>,
        stacks: Stacks,
        checkpoint_recursions: bool,
        projections: Projections,
    ) -> Self {
        Self { losses: losses.to_vec(), teacher, stacks, checkpoint_recursions, projections, captured: None }
    }

    /// The objective with the forward passes of the teacher captured, where its device does. No
    /// other thread may use the device meanwhile.
    #[must_use]
    pub fn with_capture(self) -> Self {
        let captured = self.teacher().and_then(CapturedForward::new).map(Mutex::new);
        Self { captured, ..self }
    }

    /// The maps between hidden states.
    #[must_use]
    pub fn projections(&self) -> &Projections {
        &self.projections
    }

    /// The maps between hidden states, for their optimizer step.
    pub fn projections_mut(&mut self) -> &mut Projections {
        &mut self.projections
    }

    /// The frozen teacher, if it is a model.
    #[must_use]
    pub fn teacher(&self) -> Option<&CausalLm> {
        match &self.teacher {
            Some(TeacherSource::Model(teacher)) => Some(teacher),
            Some(TeacherSource::Logits(_)) | None => None,
        }
    }

    /// Recursion count of each early exit that a loss trains.
    #[must_use]
    pub fn exits(&self) -> Vec<usize> {
        let trained = Requirements::from_losses(&self.losses, &self.stacks).exits(&self.stacks);
        let exits = self.stacks.exits().into_iter().enumerate();
        exits.filter(|(_, end)| trained.contains(end)).map(|(index, _)| index + 1).collect()
    }

    /// Adds the gradient and the values of the objective on a micro-batch, times its share, to the
    /// sums of the step. The recursions of a routed model select its tokens by `rule`.
    ///
    /// # Errors
    /// When cached logits of a teacher cannot be read.
    pub fn backward(
        &self,
        student: &CausalLm,
        micro_batch: MicroBatch<'_>,
        rule: SelectionRule,
        sums: &mut StepSums,
    ) -> Result<(), TrainError> {
        let MicroBatch { batch, step, share, draw, telemetry } = micro_batch;
        let terms: Vec<_> = self.losses.iter().map(|term| ScaledTerm::new(term, step, share)).collect();
        let mut required = Requirements::from_terms(&terms, &self.stacks);
        let (teacher_states, teacher_head) = self.run_teacher(batch, &required)?;
        self.local_backward(student, batch, &terms, &teacher_states, sums);
        if required.readouts.is_empty() {
            return Ok(()); // single depths are all that is required
        }
        let recursions = telemetry.then(|| self.stacks.student.recursion_ends()).flatten().unwrap_or_default();
        required.student_hidden.extend(recursions.iter().copied());
        let ids = token_ids(batch, &student.device());
        let options = PassOptions { rule, ends: required.ends(), recompute: self.checkpoint_recursions };
        let pass = Pass::run(student, &ids, layout(batch), options);
        let mut state_grads = StateGradients::new();
        let readouts = Readouts { pass: &pass, required: &required, coda: self.stacks.coda() };
        let grads = (&mut state_grads, &mut *sums);
        let (found, grad_head) = head_backward(student, &readouts, teacher_head.as_ref(), (batch, draw), grads);
        sums.telemetry.add_states(share, &recursions.iter().map(|end| pass.state(*end)).collect::<Vec<_>>());
        sums.losses.add_cross_entropy(share, found.of_all[&self.stacks.num_depths()].nll);
        for ScaledTerm { loss, scale, .. } in &terms {
            let values = &mut sums.losses.term(*scale);
            loss.on_logits(&self.stacks, &found, values);
            let maps = (&self.projections, &mut sums.grads);
            let mut states = HiddenStates::new((&pass, &mut state_grads), &teacher_states, maps, *scale);
            loss.on_hidden(&self.stacks, &mut states, values);
        }
        if let Some(router) = student.router() {
            sums.routing.add(pass.decisions(), router, &positions(batch));
        }
        let router_grads = router_gradients(student, &pass, &terms, sums);
        let grad_rows = pass.backward(student, state_grads, &router_grads, &mut sums.grads);
        sums.grads.add_tables(student, grad_head, &batch.inputs, grad_rows);
        Ok(())
    }

    /// Losses of single depths.
    fn local_backward(
        &self,
        student: &CausalLm,
        batch: &Batch,
        terms: &[ScaledTerm<'_>],
        teacher_states: &BTreeMap<usize, Tensor<2>>,
        sums: &mut StepSums,
    ) {
        if !terms.iter().any(|term| term.is_local) {
            return;
        }
        let rows = student.row_context(layout(batch));
        for ScaledTerm { loss, scale, .. } in terms {
            let mut pass = LocalPass::new(student, &rows, teacher_states, &mut sums.grads, *scale);
            loss.local_backward(&self.stacks, &mut pass, &mut sums.losses.term(*scale));
        }
    }

    fn run_teacher(&self, batch: &Batch, required: &Requirements) -> Result<TeacherRun, TrainError> {
        let mut states = BTreeMap::new();
        let teacher = match &self.teacher {
            Some(TeacherSource::Model(teacher)) => teacher,
            Some(TeacherSource::Logits(logits)) => {
                let mut top = TopProbs::default();
                logits.read(&batch.indices, |ids, log_probs| top.push(ids, log_probs))?;
                return Ok((states, Some(Teacher::Top(top))));
            }
            None => return Ok((states, None)),
        };
        let (layout, with_last) = (layout(batch), required.teacher_logits());
        let ends: Vec<usize> = required.teacher_hidden.iter().copied().collect();
        let replayed = self.captured.as_ref().and_then(|captured| {
            let mut captured = captured.lock().unwrap_or_else(PoisonError::into_inner);
            captured.run(&batch.inputs, &layout, &ends, with_last)
        });
        let found = replayed.unwrap_or_else(|| {
            let ids = token_ids(batch, &teacher.device());
            States::of(teacher.begin(ids, layout, SelectionRule::Causal), &ends, with_last)
        });
        states.extend(ends.into_iter().zip(found.after));
        let head = found.last.map(|hidden| {
            let hidden = Learnt::of(batch).rows(hidden);
            Teacher::Model(Box::new(HeadInput { hidden, head: teacher.head() }))
        });
        Ok((states, head))
    }
}

/// Hidden states that go through the final norm and the head.
struct Readouts<'a> {
    pass: &'a Pass,
    required: &'a Requirements,
    /// Depths after the loop, which early exits run too.
    coda: Range<usize>,
}

impl Readouts<'_> {
    /// Input of the head from the state after `end` depths, `[M, D]`, for the targets that are
    /// learnt, and that state as the leaf of a graph of its own.
    fn head_input(&self, student: &CausalLm, end: usize, learnt: &Learnt<'_>) -> (Tensor<2>, Tensor<2>) {
        let x = leaf(self.pass.state(end));
        let out = match end == student.share_map().num_depths() {
            true => x.clone(),
            false => student.run_depths(x.clone(), self.coda.clone(), self.pass.rows()),
        };
        (student.norm(learnt.rows(out)), x)
    }
}

/// Runs head and losses of logits; gradients go to the hidden states, the final norm and, at early
/// exits, the layers after the loop. Gives the values of each readout and the gradient of the
/// head's table. The values are read from a device together with the decisions of the routers.
fn head_backward(
    student: &CausalLm,
    readouts: &Readouts<'_>,
    teacher: Option<&Teacher>,
    (batch, draw): (&Batch, u64),
    (state_grads, sums): (&mut StateGradients, &mut StepSums),
) -> (LogitValues, Tensor<2>) {
    let (pass, required, learnt) = (readouts.pass, readouts.required, Learnt::of(batch));
    let input = |end: &usize| readouts.head_input(student, *end, &learnt);
    let norms: Vec<_> = required.readouts.keys().map(input).collect();
    let of_all: Vec<_> = norms
        .iter()
        .zip(required.readouts.values())
        .map(|((normed, _), terms)| Readout { hidden: normed.clone().inner(), terms: *terms })
        .collect();
    let HeadLoss { readouts: losses, mut grad_weight } =
        head_loss_beside(student.head().inner(), &of_all, teacher, &learnt.targets, &pass.late());
    let mut found = LogitValues::default();
    for ((end, (normed, entering)), readout) in required.readouts.keys().zip(norms).zip(losses) {
        let grad = backpropagate(student, [(normed, readout.grad_hidden)], &entering, &mut sums.grads);
        add_state(state_grads, *end, grad);
        found.of_all.insert(*end, readout.values);
    }
    let whole = of_all.into_iter().next_back().map(|readout| readout.hidden);
    for exit in drawn::exits(required, batch, (draw, student.share_map().num_recursions())) {
        let Some(drawn) = exit.backward(student, readouts, (teacher, whole.as_ref())) else { continue };
        let grad = backpropagate(student, [drawn.output], &drawn.entering, &mut sums.grads);
        add_state(state_grads, drawn.end, grad);
        grad_weight = grad_weight + drawn.grad_weight;
        found.drawn.insert(drawn.end, (drawn.part, drawn.values));
    }
    (found, grad_weight)
}

/// Losses of routers: gradients of the logits of each routing decision.
fn router_gradients(
    student: &CausalLm,
    pass: &Pass,
    terms: &[ScaledTerm<'_>],
    sums: &mut StepSums,
) -> Vec<LogitGradients> {
    let mut gradients = |logits: &RouterLogits<'_>| {
        let mut sum = vec![0.0; logits.len()];
        for ScaledTerm { name, loss, scale, .. } in terms {
            let Some(loss) = loss.on_router(logits) else { continue };
            sums.losses.term(*scale).add(name, 1.0, loss.value);
            let factor = scale.gradient(1.0) as f32;
            sum.iter_mut().zip(&loss.grad).for_each(|(sum, grad)| *sum += factor * grad);
        }
        sum
    };
    let Some(router) = student.router() else { return Vec::new() };
    let of_decision = |decision| LogitGradients {
        logits: gradients(&RouterLogits::from_decision(decision, router)),
        auxiliary: RouterLogits::auxiliary(decision).map(|logits| gradients(&logits)).unwrap_or_default(),
    };
    pass.decisions().iter().map(of_decision).collect()
}

/// Mean cross-entropy of `batches`, nats per token, of the exit after `recursions` recursions, or
/// of the whole stack; each rank runs a part of them.
///
/// # Errors
/// When a batch cannot be had.
pub fn cross_entropy(
    model: &CausalLm,
    recursions: Option<usize>,
    batches: impl Iterator<Item = Result<Batch, DataError>>,
    ranks: &dyn Collective,
) -> Result<f64, DataError> {
    let device = model.device();
    let (mut total, mut tokens) = (0.0, 0usize);
    for batch in batches.skip(ranks.rank()).step_by(ranks.world()) {
        let batch = batch?;
        let forward = model.begin(token_ids(&batch, &device), layout(&batch), SelectionRule::Causal);
        let learnt = Learnt::of(&batch);
        if learnt.targets.is_empty() {
            continue;
        }
        let (hidden, _) = match recursions {
            Some(recursions) => forward.exit_after(recursions),
            None => forward.finish(),
        };
        let hidden = learnt.rows(hidden);
        let (log_probs, _) = token_log_probs(&HeadInput { hidden, head: model.head() }, &learnt.targets);
        total -= log_probs.iter().map(|p| f64::from(*p)).sum::<f64>();
        tokens += log_probs.len();
    }
    let mut sums = [total, tokens as f64];
    ranks.all_reduce_f64(&mut sums);
    Ok(sums[0] / sums[1].max(1.0))
}

/// Targets of a batch that are learnt.
struct Learnt<'a> {
    targets: Cow<'a, [u32]>,
    /// Indices of their inputs; `None`: all are learnt.
    rows: Option<Vec<i32>>,
}

impl<'a> Learnt<'a> {
    fn of(batch: &'a Batch) -> Self {
        match batch.learnt_targets() {
            None => Self { targets: Cow::Borrowed(&batch.targets), rows: None },
            Some((targets, rows)) => {
                Self { targets: targets.into(), rows: Some(rows.into_iter().map(|row| row as i32).collect()) }
            }
        }
    }

    /// Their rows of `x [M, D]`.
    fn rows(&self, x: Tensor<2>) -> Tensor<2> {
        let Some(rows) = &self.rows else { return x };
        let rows = Tensor::from_ints(rows.as_slice(), &x.device());
        x.select(0, rows)
    }
}

/// The inputs of a batch, `[M]`.
pub fn token_ids(batch: &Batch, device: &Device) -> TokenIds {
    TokenIds::upload(batch.inputs.iter().copied(), device)
}

/// Position of each input of a batch in its piece of text.
pub fn positions(batch: &Batch) -> Vec<usize> {
    batch.pieces.iter().flat_map(|piece| 0..*piece).collect()
}

/// Attention layout of a batch. Whole rows are a plain batch, for which devices have one kernel.
pub fn layout(batch: &Batch) -> Layout {
    if batch.pieces.iter().all(|piece| *piece == batch.sequence_length) {
        return Layout::batch(batch.rows, batch.sequence_length);
    }
    Layout::packed_in_rows(&batch.pieces, batch.sequence_length)
}

#[cfg(test)]
mod tests;
