//! The stack's forward pass as parts that can be taken back one by one, from the last to the first.
//!
//! With one part it is plain backpropagation. With one part a recursion it is gradient checkpointing (Chen et al.,
//! <https://arxiv.org/abs/1604.06174>): the forward pass runs without a graph and keeps the hidden states that enter each part; the
//! backward pass runs each part again with a graph, and hands the gradient of its input to the part before. So the activations of
//! one part are in memory at a time. The gradients are those of one graph over the whole stack, but for the order in which the
//! uses of a shared weight are summed.
//!
//! Routers choose once: a recursion that runs again runs over the same rows. What a loss asks of a router's logits enters the graph of
//! its recursion. Where tokens choose their depth before the loop, later recursions read what they chose from and where they entered: its
//! gradients are summed over them, and enter the graph of the first. So it is with the keys and values of the first recursion, where later
//! ones read them.
//!
//! Hidden states are read, and their gradients given back, at the ends of parts: losses may want those of any depth.
//!
//! The embeddings are outside of it: their gradient is that of the first part's input, by row.

use crate::gradients::Gradients;
use burn::{
    module::Module,
    tensor::{Gradients as Graph, Int, Tensor, TensorData},
};
use retie_model::{CausalLm, Choice, Decision, Entry, KeysValues, Routing, Rows, kernels::Layout};
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
    /// Where each token chooses its depth, what that was chosen from.
    entry: Option<Entry>,
    /// Keys and values of the first recursion, without a graph, where later ones read them and run again.
    first: Vec<KeysValues>,
}

/// Gradients of what a decision was made from, row by row of its logits.
#[derive(Debug)]
pub struct LogitGradients {
    /// Of [`Decision::logits`].
    pub logits: Vec<f32>,
    /// Of [`Decision::auxiliary`].
    pub auxiliary: Vec<f32>,
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
        let entry = routing.entry().cloned();
        let first = if recompute { routing.first_keys_values().to_vec() } else { Vec::new() };
        Self { rows, parts, states, decisions: routing.into_decisions(), entry, first }
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
    /// [`Pass::decisions`], those of its logits; gives the gradient of the embeddings' rows, `[M, D]`.
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
        let Self { rows, parts, decisions, entry, first: keys_values, .. } = self;
        let mut of_keys_values: Vec<Option<Tensor<2>>> = vec![None; 2 * keys_values.len()];
        let last = student.share_map().num_depths();
        let Some(mut incoming) = of_states.remove(&last) else { unreachable!("the last state is always read") };
        let mut of_entry = EntryGradients::default();
        for Part { runs, entering, leaving, decisions: made } in parts.into_iter().rev() {
            let (before, asked) = (&decisions[made.clone()], &of_logits[made]);
            // Of a part of the loop: with what the tokens chose from as leaves, but in the first, where it is made.
            let mut leaves = None;
            let mut shared: Vec<Tensor<2>> = Vec::new();
            let (entering, leaving, decided) = match leaving {
                Some(leaving) => (entering, leaving, before.to_vec()),
                None => {
                    let entering = leaf(entering);
                    let first = before.first();
                    let made_here = first.is_some_and(|decision| decision.logits.is_some());
                    let again = entry.clone().filter(|_| first.is_some());
                    let again = again.map(|entry| if made_here { entry } else { with_leaves(&entry) });
                    leaves = again.clone().filter(|_| !made_here);
                    let reads = keys_values.iter().cloned().map(|kv| kv.map(leaf)).collect();
                    let again = |first| Routing::again(first, again).with_first(reads);
                    let mut routing = first.map_or_else(Routing::default, again);
                    let leaving = run_all(student, entering.clone(), &runs, &rows, &mut routing);
                    shared = routing.first_keys_values().iter().flatten().cloned().collect();
                    (entering, leaving, routing.into_decisions())
                }
            };
            let Some(end) = runs.last().map(|run| run.end) else { continue };
            add_state(&mut of_states, end, incoming);
            let given = runs.iter().zip(leaving).filter_map(|(run, x)| Some((x, of_states.remove(&run.end)?)));
            let logits = decided.iter().zip(asked).flat_map(|(decision, grads)| with_gradients(decision, grads));
            let mut outputs: Vec<_> = given.chain(logits).collect();
            let enters = decided.iter().any(|decision| decision.own.is_some());
            if let Some(grad) = of_entry.logits.take_if(|_| enters) {
                outputs
                    .extend(decided.iter().find_map(|decision| decision.logits.clone()).map(|logits| (logits, grad)));
            }
            // The first recursion makes the keys and values, those after it read them.
            let makes = before.first().is_some_and(|decision| decision.recursion == 0);
            if makes {
                let grads = of_keys_values.iter_mut().map(Option::take);
                outputs.extend(shared.iter().zip(grads).filter_map(|(x, grad)| Some((x.clone(), grad?))));
            }
            let mut graph = backward(outputs);
            incoming = of_leaf(&entering, &mut graph);
            for (sum, leaf) in of_keys_values.iter_mut().zip(&shared).filter(|_| !makes) {
                *sum = added(sum.take(), leaf.grad_remove(&mut graph));
            }
            if let Some(Entry { hidden, logits, .. }) = &leaves {
                of_entry.add(hidden.grad_remove(&mut graph), logits.grad_remove(&mut graph));
            }
            if let Some(grad) = of_entry.hidden.take_if(|_| enters) {
                incoming = incoming + grad;
            }
            grads.add(student, graph);
        }
        student.embed_backward(incoming)
    }
}

/// Gradients of what the tokens of a loop chose their depth from, of the recursions that were taken back.
#[derive(Default)]
struct EntryGradients {
    hidden: Option<Tensor<2>>,
    logits: Option<Tensor<2>>,
}

impl EntryGradients {
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

fn with_leaves(entry: &Entry) -> Entry {
    entry.with(leaf(entry.hidden.clone()), leaf(entry.logits.clone()))
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

/// The logits of a decision in its graph, `[n, O]`, and their gradients.
fn with_gradients(decision: &Decision, grads: &LogitGradients) -> Vec<(Tensor<2>, Tensor<2>)> {
    let of = |logits: &Option<Tensor<2>>, grad: &[f32]| {
        let logits = logits.clone()?;
        let grad = Tensor::from_data(TensorData::new(grad.to_vec(), logits.dims()), &logits.device().inner());
        Some((logits, grad))
    };
    let main = of(&decision.logits, &grads.logits);
    main.into_iter().chain(of(&decision.auxiliary, &grads.auxiliary)).collect()
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
    let mut graph = backward(outputs);
    let grad = of_leaf(input, &mut graph);
    grads.add(student, graph);
    grad
}

/// The graph behind outputs with the given gradients, taken back.
pub fn backward(outputs: impl IntoIterator<Item = (Tensor<2>, Tensor<2>)>) -> Graph {
    // d(Σ x·g)/dx = g: the gradients go on into the graph.
    let sums = outputs.into_iter().map(|(x, grad)| (x * Tensor::from_inner(grad)).sum());
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
