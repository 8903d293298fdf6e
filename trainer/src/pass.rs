//! The stack's forward pass as parts that can be taken back one by one, from the last to the first.
//!
//! With one part it is plain backpropagation. With one part a recursion it is gradient checkpointing (Chen et al.,
//! <https://arxiv.org/abs/1604.06174>): the forward pass runs without a graph and keeps the hidden states that enter each part; the
//! backward pass runs each part again with a graph, and hands the gradient of its input to the part before. So the activations of
//! one part are in memory at a time. The gradients are those of one graph over the whole stack, but for the order in which the
//! uses of a shared weight are summed.
//!
//! Routers choose once: a recursion that runs again runs over the same rows. What a loss asks of a router's logits enters the graph of
//! its recursion.
//!
//! Hidden states are read, and their gradients given back, at the ends of parts: losses may want those of any depth.
//!
//! The embeddings are outside of it: their gradient is that of the first part's input, by row.

use crate::gradients::Gradients;
use burn::{
    module::Module,
    tensor::{Int, Tensor, TensorData},
};
use retie_model::{CausalLm, Choice, Decision, Routing, Rows, kernels::Layout};
use std::{collections::BTreeMap, ops::Range};

/// A forward pass that can be taken back.
#[derive(Debug)]
pub struct Pass {
    rows: Rows,
    parts: Vec<Part>,
    /// What the depths up to each end leave, `[M, D]`, without a graph.
    states: BTreeMap<usize, Tensor<2>>,
    /// What the routers did, recursion by recursion.
    decisions: Vec<Decision>,
}

/// Depths with one graph.
#[derive(Debug)]
struct Part {
    /// Runs of depths, one after the other.
    runs: Vec<Range<usize>>,
    /// What enters them: the graph's leaf, or a plain tensor where there is none yet.
    entering: Tensor<2>,
    /// What each run leaves, in the graph; `None` where it is made for the backward pass.
    leaving: Option<Vec<Tensor<2>>>,
    /// Which decisions are made in it.
    decisions: Range<usize>,
}

/// Gradients of hidden states, `[M, D]`, by the number of depths before them.
pub type StateGradients = BTreeMap<usize, Tensor<2>>;

impl Pass {
    /// Runs `student` over `ids [M]`. The hidden states after each number of depths in `ends` can be read, and those after the last
    /// depth; of a routed model, in which `choice` goes through a recursion, at the ends of recursions only. With `recompute` there is
    /// no graph until the backward pass, which makes one for a recursion at a time.
    pub fn run(
        student: &CausalLm,
        ids: Tensor<1, Int>,
        layout: Layout,
        choice: Choice,
        ends: &[usize],
        recompute: bool,
    ) -> Self {
        let mut routing = Routing::new(choice);
        let rows = student.rows(layout);
        let plain = student.valid();
        let runs = runs(student, ends);
        plain.draw_lots(&ids, &rows, &mut routing);
        let x = plain.embed(ids);
        let mut states = BTreeMap::new();
        let mut parts = Vec::new();
        if recompute {
            let mut x = x;
            for run in runs {
                let before = routing.decisions().len();
                let left = plain.run_pass(x.clone(), run.clone(), &rows, &mut routing, None);
                states.insert(run.end, left.clone());
                let decisions = before..routing.decisions().len();
                parts.push(Part { runs: vec![run], entering: x, leaving: None, decisions });
                x = left;
            }
        } else {
            let entering = leaf(x);
            let leaving = run_all(student, entering.clone(), &runs, &rows, &mut routing);
            states.extend(runs.iter().zip(&leaving).map(|(run, x)| (run.end, x.clone().inner())));
            let decisions = 0..routing.decisions().len();
            parts.push(Part { runs, entering, leaving: Some(leaving), decisions });
        }
        let last = student.share_map().num_depths();
        states.retain(|end, _| *end == last || ends.contains(end));
        Self { rows, parts, states, decisions: routing.into_decisions() }
    }

    /// Hidden states `[M, D]` after `end` depths, before the final norm.
    ///
    /// # Panics
    /// When nobody asked for them.
    pub fn state(&self, end: usize) -> Tensor<2> {
        self.states[&end].clone()
    }

    /// What the routers did, recursion by recursion; nothing without routers.
    pub fn decisions(&self) -> &[Decision] {
        &self.decisions
    }

    /// Adds the gradients of everything between embeddings and final norm, given those of some of the states and, for each of
    /// [`Pass::decisions`], of its logits; gives the gradient of the embeddings' rows, `[M, D]`.
    ///
    /// # Panics
    /// When the last state has no gradient.
    pub fn backward(
        self,
        student: &CausalLm,
        mut of_states: StateGradients,
        of_logits: &[Vec<f32>],
        grads: &mut Gradients,
    ) -> Tensor<2> {
        let Self { rows, parts, decisions, .. } = self;
        let last = student.share_map().num_depths();
        let Some(mut incoming) = of_states.remove(&last) else { unreachable!("the last state is always read") };
        for Part { runs, entering, leaving, decisions: made } in parts.into_iter().rev() {
            let (before, asked) = (&decisions[made.clone()], &of_logits[made]);
            let (entering, leaving, decided) = match leaving {
                Some(leaving) => (entering, leaving, before.to_vec()),
                None => {
                    let entering = leaf(entering);
                    let mut routing = before.first().map_or_else(Routing::default, Routing::again);
                    let leaving = run_all(student, entering.clone(), &runs, &rows, &mut routing);
                    (entering, leaving, routing.into_decisions())
                }
            };
            let Some(end) = runs.last().map(|run| run.end) else { continue };
            add_state(&mut of_states, end, incoming);
            let given = runs.iter().zip(leaving).filter_map(|(run, x)| Some((x, of_states.remove(&run.end)?)));
            let logits = decided.iter().zip(asked).filter_map(|(decision, grad)| with_gradient(decision, grad));
            incoming = take_back(student, given.chain(logits), &entering, grads);
        }
        student.embed_backward(incoming)
    }
}

/// Recursions and unshared ends, divided where one of `ends` lies within.
fn runs(student: &CausalLm, ends: &[usize]) -> Vec<Range<usize>> {
    let mut runs = Vec::new();
    for pass in student.share_map().passes() {
        let mut start = pass.start;
        for end in pass.start + 1..=pass.end {
            if end == pass.end || ends.contains(&end) {
                runs.push(start..end);
                start = end;
            }
        }
    }
    runs
}

fn run_all(
    model: &CausalLm,
    mut x: Tensor<2>,
    runs: &[Range<usize>],
    rows: &Rows,
    routing: &mut Routing,
) -> Vec<Tensor<2>> {
    let mut run = |depths: &Range<usize>| {
        x = model.run_pass(x.clone(), depths.clone(), rows, routing, None);
        x.clone()
    };
    runs.iter().map(&mut run).collect()
}

/// The logits of a decision in its graph, `[n, 1]`, and their gradient.
fn with_gradient(decision: &Decision, grad: &[f32]) -> Option<(Tensor<2>, Tensor<2>)> {
    let logits = decision.logits.clone()?;
    let data = TensorData::new(grad.to_vec(), [grad.len(), 1]);
    let grad = Tensor::from_data(data, &logits.device().inner());
    Some((logits, grad))
}

/// A tensor that a graph begins with.
pub fn leaf(x: Tensor<2>) -> Tensor<2> {
    Tensor::from_inner(x).require_grad()
}

/// Adds a gradient of the state after `end` depths.
pub fn add_state(of_states: &mut StateGradients, end: usize, grad: Tensor<2>) {
    let sum = match of_states.remove(&end) {
        Some(sum) => sum + grad,
        None => grad,
    };
    of_states.insert(end, sum);
}

/// Adds the gradients of the parameters between `input` and outputs with the given gradients; gives the gradient of `input`.
pub fn take_back(
    student: &CausalLm,
    outputs: impl IntoIterator<Item = (Tensor<2>, Tensor<2>)>,
    input: &Tensor<2>,
    grads: &mut Gradients,
) -> Tensor<2> {
    // d(Σ x·g)/dx = g: the gradients go on into the graph.
    let sums = outputs.into_iter().map(|(x, grad)| (x * Tensor::from_inner(grad)).sum());
    let mut graph = match sums.reduce(|a, b| a + b) {
        Some(sum) => sum.backward(),
        None => unreachable!("an output with a gradient"),
    };
    let grad = match input.grad_remove(&mut graph) {
        Some(grad) => grad,
        None => unreachable!("a leaf that the output depends on has a gradient"),
    };
    grads.add(student, graph);
    grad
}
