//! Exits that are drawn: each sequence of a micro-batch draws a recursion count, and has the losses
//! of that exit alone. The layers after the loop, the norm and the head run for these sequences
//! only, so that all exits together cost less than one for every sequence.
//!
//! A sequence draws by its number in the data and the step: the same after a resume, in any
//! micro-batch and on any rank.

use super::{Learnt, Readouts, layout};
use crate::{loss::Requirements, pass::leaf};
use burn::tensor::Tensor;
use retie_data::Batch;
use retie_model::{
    CausalLm,
    kernels::{HeadInput, HeadTerms, HeadValues, Readout, Teacher, TopProbs, head_loss},
    mix,
};

/// An exit and the sequences that drew it.
pub struct DrawnExit {
    end: usize,
    terms: HeadTerms,
    batch: Batch,
    /// Their rows in the micro-batch.
    rows: Vec<usize>,
    /// Their targets among those of the micro-batch that are learnt.
    targets: Vec<usize>,
    /// The part of these that they are.
    part: f64,
}

/// Losses of a drawn exit, and what they are taken back from.
pub struct DrawnLoss {
    pub end: usize,
    /// Part of the micro-batch's targets.
    pub part: f64,
    /// Means over the targets.
    pub values: HeadValues,
    /// Input of the head in its graph, and its gradient.
    pub output: (Tensor<2>, Tensor<2>),
    /// Leaf of the graph: the state of all rows.
    pub entering: Tensor<2>,
    /// Gradient of the head's table.
    pub grad_weight: Tensor<2>,
}

/// The exits of `required` that sequences of `batch` draw, from `draw` and `1 … num_recursions`.
pub fn exits(required: &Requirements, batch: &Batch, (draw, num_recursions): (u64, usize)) -> Vec<DrawnExit> {
    let count = |row: usize| 1 + (mix(draw ^ batch.indices[row] as u64) % num_recursions as u64) as usize;
    let learnt = |index: &usize| batch.learnt.as_ref().is_none_or(|learnt| learnt[*index]);
    let of_exit = |(exit, (end, terms)): (usize, (&usize, &HeadTerms))| {
        let (own, rows) = batch.only(|row| count(row) == exit + 1);
        let mut position = 0;
        let mut targets = Vec::with_capacity(own.num_learnt());
        for index in (0..batch.inputs.len()).filter(learnt) {
            if rows.binary_search(&index).is_ok() {
                targets.push(position);
            }
            position += 1;
        }
        let part = targets.len() as f64 / position.max(1) as f64;
        DrawnExit { end: *end, terms: scaled(*terms, part as f32), batch: own, rows, targets, part }
    };
    let exits = required.drawn.iter().enumerate().map(of_exit);
    exits.filter(|exit| !exit.targets.is_empty()).collect()
}

impl DrawnExit {
    /// Runs the exit, with the teacher and, for all targets of the micro-batch, the input of the
    /// head after the whole stack.
    pub(super) fn backward(
        self,
        student: &CausalLm,
        readouts: &Readouts<'_>,
        (teacher, whole): (Option<&Teacher>, Option<&Tensor<2>>),
    ) -> Option<DrawnLoss> {
        let Self { end, terms, batch, rows, targets, part } = self;
        let entering = leaf(readouts.pass.state(end));
        let learnt = Learnt::of(&batch);
        let context = student.row_context(layout(&batch));
        let out = student.run_depths(select(entering.clone(), &rows), readouts.coda.clone(), &context);
        let normed = student.norm(learnt.rows(out));
        let mut heads = vec![Readout { hidden: normed.clone().inner(), terms }];
        if let Some(whole) = whole.filter(|_| terms.last.is_some()) {
            heads.push(Readout { hidden: select(whole.clone(), &targets), terms: HeadTerms::default() });
        }
        let teacher = teacher.filter(|_| terms.teacher.is_some()).map(|teacher| only(teacher, &targets));
        let loss = head_loss(student.head().inner(), &heads, teacher.as_ref(), &learnt.targets);
        let readout = loss.readouts.into_iter().next()?;
        let (values, output) = (readout.values, (normed, readout.grad_hidden));
        Some(DrawnLoss { end, part, values, output, entering, grad_weight: loss.grad_weight })
    }
}

/// Terms whose means are over a part of the targets.
fn scaled(mut terms: HeadTerms, part: f32) -> HeadTerms {
    terms.cross_entropy.weight *= part;
    terms.teacher.iter_mut().chain(&mut terms.last).for_each(|term| term.weight *= part);
    terms
}

/// The teacher's distributions of some targets.
fn only(teacher: &Teacher, targets: &[usize]) -> Teacher {
    match teacher {
        Teacher::Model(input) => {
            let HeadInput { hidden, head } = input.as_ref();
            Teacher::Model(Box::new(HeadInput { hidden: select(hidden.clone(), targets), head: head.clone() }))
        }
        Teacher::Top(top) => {
            let mut some = TopProbs::default();
            targets.iter().map(|target| top.row(*target)).for_each(|(ids, log_probs)| some.push(ids, log_probs));
            Teacher::Top(some)
        }
    }
}

/// Rows of `x [M, D]`.
fn select(x: Tensor<2>, rows: &[usize]) -> Tensor<2> {
    let rows: Vec<i32> = rows.iter().map(|row| *row as i32).collect();
    let rows = Tensor::from_ints(rows.as_slice(), &x.device());
    x.select(0, rows)
}
