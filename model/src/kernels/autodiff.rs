//! Recording of operations with hand-written backward passes in burn's autodiff graph.

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};
use std::{fmt::Debug, marker::PhantomData};

/// Input of a backward pass: the saved state of the forward pass, the gradient of its output, and
/// for each input whether it requires a gradient.
pub struct BackwardInput<B: Backend, S, const N: usize> {
    pub saved: S,
    pub grad: FloatTensor<B>,
    pub wanted: [bool; N],
}

type BackwardFn<B, S, const N: usize> = fn(BackwardInput<B, S, N>) -> [Option<FloatTensor<B>>; N];

struct Step<B: Backend, S, const N: usize> {
    backward: BackwardFn<B, S, N>,
    backend: PhantomData<B>,
}

impl<B: Backend, S, const N: usize> Debug for Step<B, S, N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Step")
    }
}

impl<B: Backend, S: Clone + Send + Debug + 'static, const N: usize> Backward<B, N> for Step<B, S, N> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let results = (self.backward)(BackwardInput { saved: ops.state, grad, wanted });
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                grads.register::<B>(parent.id, result);
            }
        }
    }
}

/// Runs `forward` on the inner tensors and records `backward` if any input is tracked.
///
/// `forward` returns the output and the state for `backward` (tensors are shared, not copied).
pub fn record<B: Backend, C: CheckpointStrategy, S: Clone + Send + Debug + 'static, const N: usize>(
    inputs: [FloatTensor<Autodiff<B, C>>; N],
    forward: impl FnOnce([FloatTensor<B>; N]) -> (FloatTensor<B>, S),
    backward: BackwardFn<B, S, N>,
) -> FloatTensor<Autodiff<B, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    let primitives = inputs.map(|input| input.into_primitive());
    let step = Step { backward, backend: PhantomData };
    match step.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => {
            let (output, saved) = forward(primitives);
            prep.finish(saved, output)
        }
        OpsKind::UnTracked(prep) => {
            let (output, _) = forward(primitives);
            prep.finish(output)
        }
    }
}
