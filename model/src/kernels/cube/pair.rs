//! Operations with two outputs in burn's autodiff graph, whose nodes have one: a node of the whole
//! operation, and one for each output, which leaves its gradient for the first. So the backward
//! pass sees both gradients at once, where a sum of them would be a launch of its own.

use burn::backend::{
    Autodiff, Backend,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    tensor::FloatTensor,
};
use std::{
    fmt::Debug,
    marker::PhantomData,
    sync::{Arc, Mutex, PoisonError},
};

type Tracked<B, C> = FloatTensor<Autodiff<B, C>>;

/// Gradients of the outputs, `None` where no result depends on one.
type Given<B> = [Option<FloatTensor<B>>; 2];

type Shared<B> = Arc<Mutex<Given<B>>>;

type BackwardFn<B, S, const N: usize> = fn(S, Given<B>) -> [Option<FloatTensor<B>>; N];

#[derive(Debug)]
struct Whole<B: Backend, S, const N: usize>(BackwardFn<B, S, N>, PhantomData<B>);

impl<B: Backend, S: Clone + Send + Debug + 'static, const N: usize> Backward<B, N> for Whole<B, S, N> {
    type State = (S, Shared<B>);

    fn backward(self, ops: Ops<Self::State, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let (saved, shared) = ops.state;
        let given = std::mem::take(&mut *shared.lock().unwrap_or_else(PoisonError::into_inner));
        for (parent, result) in ops.parents.into_iter().zip((self.0)(saved, given)) {
            if let (Some(parent), Some(result)) = (parent, result) {
                grads.register::<B>(parent.id, result);
            }
        }
    }
}

#[derive(Debug)]
struct Output<B: Backend>(usize, PhantomData<B>);

impl<B: Backend> Backward<B, 1> for Output<B> {
    type State = Shared<B>;

    fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<B>(&ops.node);
        ops.state.lock().unwrap_or_else(PoisonError::into_inner)[self.0] = Some(grad);
    }
}

/// Runs `forward` on the inner tensors and records `backward` if any input is tracked; `forward`
/// returns the outputs and the state for `backward`.
pub fn record_pair<B: Backend, C: CheckpointStrategy, S: Clone + Send + Debug + 'static, const N: usize>(
    inputs: [Tracked<B, C>; N],
    forward: impl FnOnce([FloatTensor<B>; N]) -> ([FloatTensor<B>; 2], S),
    backward: BackwardFn<B, S, N>,
) -> (Tracked<B, C>, Tracked<B, C>) {
    let nodes = inputs.each_ref().map(|input| input.node());
    let ([first, second], saved) = forward(inputs.map(|input| input.into_primitive()));
    let shared = Shared::<B>::default();
    let whole = match Whole::<B, S, N>(backward, PhantomData).prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish((saved, shared.clone()), first.clone()),
        OpsKind::UnTracked(prep) => prep.finish(first.clone()),
    };
    let output = |index, output| {
        let step = Output::<B>(index, PhantomData);
        match step.prepare::<C>([whole.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish(shared.clone(), output),
            OpsKind::UnTracked(prep) => prep.finish(output),
        }
    };
    (output(0, first), output(1, second))
}
