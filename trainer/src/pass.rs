//! The forward pass of the stack in parts, and its backward pass, part by part from the last to the
//! first.
//!
//! With one part it is plain backpropagation. With one part a recursion it is gradient
//! checkpointing (Chen et al., <https://arxiv.org/abs/1604.06174>): the forward pass runs without a
//! graph and keeps the hidden states that enter each part; the backward pass runs each part again
//! with a graph, and hands the gradient of its input to the part before. So the activations of one
//! part are in memory at a time. The gradients are those of one graph over the whole stack, but for
//! the order in which the uses of a shared weight are summed.
//!
//! Routers select once: a recursion that runs again runs over the same rows. The gradient of a
//! router's logits enters the graph of its recursion. Where tokens choose their recursion counts
//! before the loop, later recursions read what they chose from and where they entered: its
//! gradients are summed over them, and enter the graph of the first. So it is with the keys and
//! values of the first recursion, where later ones read them, and with the hidden states that
//! entered earlier recursions: they are states at the ends of parts, and get gradients as those.
//!
//! Hidden states are read, and their gradients given back, at the ends of parts: losses may want
//! those of any depth.
//!
//! The embeddings are outside of it: their gradient is that of the first part's input, by row.

use crate::optim::Gradients;
use burn::{
    module::Module,
    tensor::{Gradients as Graph, Tensor, TensorData},
};
use retie_config::LayerIndex;
use retie_model::{
    CausalLm, EnteredStates, FirstRecursionKv, Forward, Logits, LoopEntry, Replay, RoutingDecision, RowContext,
    SelectionRule, TokenIds,
    kernels::{self, Late, Layout},
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// A forward pass that keeps what its backward pass needs.
#[derive(Debug)]
pub struct Pass {
    rows: Arc<RowContext>,
    parts: Vec<Span>,
    /// Hidden states after each number of depths that is read, `[M, D]`, without a graph.
    states: BTreeMap<usize, Tensor<2>>,
    /// What the routers did, recursion by recursion.
    decisions: Vec<RoutingDecision>,
    /// What tokens chose their recursion counts from, if they do.
    entry: Option<LoopEntry>,
    /// Keys and values of the first recursion, without a graph, where later ones read them and run
    /// again.
    first_kv: FirstRecursionKv,
}

/// How the forward pass of a training step runs.
#[derive(Clone, Debug)]
pub struct PassOptions {
    /// The tokens that go through a recursion of a routed model.
    pub rule: SelectionRule,
    /// Numbers of depths after which hidden states are read; of a routed model, ends of recursions.
    pub ends: Vec<usize>,
    /// Gradient checkpointing: no graph until the backward pass, which makes one for a recursion at
    /// a time.
    pub recompute: bool,
}

/// Gradients of what a decision was made from, row by row of its logits.
#[derive(Debug)]
pub struct LogitGradients {
    /// Of [`RoutingDecision::logits`].
    pub logits: Vec<f32>,
    /// Of [`RoutingDecision::auxiliary_logits`].
    pub auxiliary: Vec<f32>,
}

/// Depths with one graph.
#[derive(Debug)]
struct Span {
    /// Runs of depths, one after the other.
    runs: Vec<Range<usize>>,
    /// Hidden states that enter them: the graph's leaf, or a plain tensor where there is none yet.
    entering: Tensor<2>,
    /// Hidden states after each run, in the graph; `None` where they are made for the backward
    /// pass.
    leaving: Option<Vec<Tensor<2>>>,
    /// The decisions that are made in it.
    decisions: Range<usize>,
    /// States that entered the recursions before, without a graph, where it is made again and reads
    /// them.
    entered: EnteredStates,
}

/// Gradients of hidden states, `[M, D]`, by the number of depths before them.
pub type StateGradients = BTreeMap<usize, Tensor<2>>;

impl Pass {
    /// Runs `student` over `ids [M]`. The hidden states after the last depth can be read too.
    pub fn run(student: &CausalLm, ids: &TokenIds, layout: Layout, options: PassOptions) -> Self {
        let PassOptions { rule, ends, recompute } = options;
        let plain = student.valid();
        let runs = runs(student, &ends);
        let x = plain.embed(ids.tensor().clone());
        let mut states = BTreeMap::new();
        let mut parts = Vec::new();
        let forward = if recompute {
            let mut forward = plain.begin_from(x, ids, layout, rule);
            for run in runs {
                let before = forward.trace().decisions().len();
                let entering = forward.hidden().clone();
                let entered = forward.entered_states().clone();
                forward.advance_to(run.end);
                states.insert(run.end, forward.hidden().clone());
                let decisions = before..forward.trace().decisions().len();
                parts.push(Span { runs: vec![run], entering, leaving: None, decisions, entered });
            }
            forward
        } else {
            let entering = leaf(x);
            let mut forward = student.begin_from(entering.clone(), ids, layout, rule);
            let leaving = advance(&mut forward, &runs);
            states.extend(runs.iter().zip(&leaving).map(|(run, x)| (run.end, x.clone().inner())));
            let decisions = 0..forward.trace().decisions().len();
            parts.push(Span { runs, entering, leaving: Some(leaving), decisions, entered: EnteredStates::default() });
            forward
        };
        let last = student.share_map().num_depths();
        states.retain(|end, _| *end == last || ends.contains(end));
        let (rows, entry) = (forward.rows().clone(), forward.loop_entry().cloned());
        let first_kv = if recompute { forward.first_recursion_kv().clone() } else { FirstRecursionKv::default() };
        let decisions = forward.trace().decisions().to_vec();
        Self { rows, parts, states, decisions, entry, first_kv }
    }

    /// Hidden states `[M, D]` after `end` depths, before the final norm.
    ///
    /// # Panics
    /// When nobody asked for them.
    pub fn state(&self, end: usize) -> Tensor<2> {
        self.states[&end].clone()
    }

    /// Context of the rows of the pass.
    pub fn rows(&self) -> &RowContext {
        &self.rows
    }

    /// What the routers did, recursion by recursion; nothing without routers.
    pub fn decisions(&self) -> &[RoutingDecision] {
        &self.decisions
    }

    /// What the host may have to read of the decisions.
    pub fn late(&self) -> Vec<&Late> {
        self.decisions.iter().flat_map(RoutingDecision::late).collect()
    }

    /// Adds the gradients of everything between embeddings and final norm, given those of some of
    /// the states and, for each of [`Pass::decisions`], those of its logits; gives the gradient of
    /// the embeddings' rows, `[M, D]`.
    ///
    /// # Panics
    /// When the last state has no gradient.
    pub fn backward(
        self,
        student: &CausalLm,
        mut of_states: StateGradients,
        of_logits: &[LogitGradients],
        grads: &mut Gradients,
    ) -> Tensor<2> {
        let Self { rows, parts, decisions, entry, first_kv, .. } = self;
        let mut kv_grads: BTreeMap<LayerIndex, [Option<Tensor<2>>; 2]> = BTreeMap::new();
        let last = student.share_map().num_depths();
        let Some(mut incoming) = of_states.remove(&last) else { unreachable!("the last state is always read") };
        let mut of_entry = LoopEntryGradients::default();
        for Span { runs, entering, leaving, decisions: made, entered } in parts.into_iter().rev() {
            let (before, asked) = (&decisions[made.clone()], &of_logits[made]);
            // The first recursion computes what the others read: what tokens choose from, keys and
            // values.
            let is_first = recursion(student, &runs) == Some(0);
            // Of a later recursion: what it reads of the first, as leaves.
            let mut leaves = None;
            let mut shared = FirstRecursionKv::default();
            let entered = entered.map(leaf);
            let (entering, leaving, decided) = match leaving {
                Some(leaving) => (entering, leaving, before.to_vec()),
                None => {
                    let entering = leaf(entering);
                    let first = before.first();
                    let again = entry.clone().filter(|_| first.is_some());
                    let again = again.map(|entry| if is_first { entry } else { with_leaves(&entry) });
                    leaves = again.clone().filter(|_| !is_first);
                    let mut forward = student.replay(
                        rows.clone(),
                        Replay {
                            depth: runs.first().map_or(0, |run| run.start),
                            hidden: entering.clone(),
                            decision: first.cloned(),
                            entry: again,
                            first_kv: if is_first { FirstRecursionKv::default() } else { first_kv.map(leaf) },
                            entered: entered.clone(),
                        },
                    );
                    let leaving = advance(&mut forward, &runs);
                    shared = forward.first_recursion_kv().clone();
                    (entering, leaving, forward.trace().decisions().to_vec())
                }
            };
            let Some(end) = runs.last().map(|run| run.end) else { continue };
            add_state(&mut of_states, end, incoming);
            let given = runs.iter().zip(leaving).filter_map(|(run, x)| Some((x, of_states.remove(&run.end)?)));
            let logits = decided.iter().zip(asked).flat_map(|(decision, grads)| with_gradients(decision, grads));
            let mut outputs: Vec<_> = given.chain(logits).collect();
            let enters = decided.iter().any(|decision| decision.router_recursions.is_some());
            if let Some(grad) = of_entry.logits.take_if(|_| enters) {
                let logits = decided.iter().find_map(|decision| decision.logits.clone());
                outputs.extend(logits.map(|logits| (logits.tensor, grad)));
            }
            if is_first {
                for (layer, kv) in shared.iter() {
                    let grads = kv_grads.remove(&layer).into_iter().flatten();
                    outputs.extend(kv.iter().zip(grads).filter_map(|(x, grad)| Some((x.clone(), grad?))));
                }
            }
            let mut graph = backward(outputs);
            incoming = of_leaf(&entering, &mut graph);
            for (depth, state) in entered.iter() {
                if let Some(grad) = state.grad_remove(&mut graph) {
                    add_state(&mut of_states, depth, grad);
                }
            }
            for (layer, leaves) in shared.iter().filter(|_| !is_first) {
                for (sum, leaf) in kv_grads.entry(layer).or_default().iter_mut().zip(leaves) {
                    *sum = added(sum.take(), leaf.grad_remove(&mut graph));
                }
            }
            if let Some(LoopEntry { hidden, logits, .. }) = &leaves {
                of_entry.add(hidden.grad_remove(&mut graph), logits.tensor.grad_remove(&mut graph));
            }
            if let Some(grad) = of_entry.hidden.take_if(|_| enters) {
                incoming = incoming + grad;
            }
            grads.add(student, graph);
        }
        if let Some(grad) = of_states.remove(&0) {
            incoming = incoming + grad;
        }
        student.embed_backward(incoming)
    }
}

/// Gradients of the loop entry, summed over the recursions whose backward pass has run.
#[derive(Default)]
struct LoopEntryGradients {
    hidden: Option<Tensor<2>>,
    logits: Option<Tensor<2>>,
}

impl LoopEntryGradients {
    fn add(&mut self, hidden: Option<Tensor<2>>, logits: Option<Tensor<2>>) {
        for (sum, grad) in [(&mut self.hidden, hidden), (&mut self.logits, logits)] {
            *sum = added(sum.take(), grad);
        }
    }
}

fn added(sum: Option<Tensor<2>>, grad: Option<Tensor<2>>) -> Option<Tensor<2>> {
    match (sum, grad) {
        (Some(sum), Some(grad)) => Some(sum + grad),
        (sum, grad) => sum.or(grad),
    }
}

fn with_leaves(entry: &LoopEntry) -> LoopEntry {
    entry.with(leaf(entry.hidden.clone()), Logits::new(leaf(entry.logits.tensor.clone())))
}

/// The recursion that runs of depths are of.
fn recursion(student: &CausalLm, runs: &[Range<usize>]) -> Option<usize> {
    student.share_map().depths()[runs.first()?.start].recursion
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

/// Hidden states after each of `runs`.
fn advance(forward: &mut Forward<'_>, runs: &[Range<usize>]) -> Vec<Tensor<2>> {
    let run = |run: &Range<usize>| {
        forward.advance_to(run.end);
        forward.hidden().clone()
    };
    runs.iter().map(run).collect()
}

/// The logits of a decision in its graph, `[n, O]`, and their gradients.
fn with_gradients(decision: &RoutingDecision, grads: &LogitGradients) -> Vec<(Tensor<2>, Tensor<2>)> {
    let with_gradient = |logits: &Option<Logits>, grad: &[f32]| {
        let logits = logits.clone()?.tensor;
        let grad = Tensor::from_data(TensorData::new(grad.to_vec(), logits.dims()), &logits.device().inner());
        Some((logits, grad))
    };
    let main = with_gradient(&decision.logits, &grads.logits);
    main.into_iter().chain(with_gradient(&decision.auxiliary_logits, &grads.auxiliary)).collect()
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

/// Adds the gradients of the parameters between `input` and outputs with the given gradients; gives
/// the gradient of `input`.
pub fn backpropagate(
    student: &CausalLm,
    outputs: impl IntoIterator<Item = (Tensor<2>, Tensor<2>)>,
    input: &Tensor<2>,
    grads: &mut Gradients,
) -> Tensor<2> {
    let mut graph = backward(outputs);
    let grad = of_leaf(input, &mut graph);
    grads.add(student, graph);
    grad
}

/// Backward pass of the graph behind outputs with the given gradients.
pub fn backward(outputs: impl IntoIterator<Item = (Tensor<2>, Tensor<2>)>) -> Graph {
    let sums = outputs.into_iter().map(|(x, grad)| kernels::inject(x, grad));
    match sums.reduce(|a, b| a + b) {
        Some(sum) => sum.backward(),
        None => unreachable!("an output with a gradient"),
    }
}

fn of_leaf(leaf: &Tensor<2>, graph: &mut Graph) -> Tensor<2> {
    match leaf.grad_remove(graph) {
        Some(grad) => grad,
        None => unreachable!("a leaf that the output depends on has a gradient"),
    }
}
