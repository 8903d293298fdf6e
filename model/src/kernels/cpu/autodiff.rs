//! Recording of CPU operations with hand-written backward passes in burn's autodiff graph.

use burn::backend::{
    Autodiff, Flex,
    autodiff::{
        checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
        grads::Gradients,
        ops::{Backward, Ops, OpsKind},
    },
    flex::FlexTensor,
    tensor::FloatTensor,
};
use std::fmt::Debug;

/// Input of a backward pass: the saved state of the forward pass, the gradient of its output, and
/// for each input whether it requires a gradient.
pub struct BackwardInput<S, const N: usize> {
    pub saved: S,
    pub grad: FlexTensor,
    pub wanted: [bool; N],
}

type BackwardFn<S, const N: usize> = fn(BackwardInput<S, N>) -> [Option<FlexTensor>; N];

#[derive(Debug)]
struct Step<S, const N: usize>(BackwardFn<S, N>);

impl<S: Clone + Send + Debug + 'static, const N: usize> Backward<Flex, N> for Step<S, N> {
    type State = S;

    fn backward(self, ops: Ops<S, N>, grads: &mut Gradients, _: &mut Checkpointer) {
        let grad = grads.consume::<Flex>(&ops.node);
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let results = (self.0)(BackwardInput { saved: ops.state, grad, wanted });
        for (parent, result) in ops.parents.into_iter().zip(results) {
            if let (Some(parent), Some(result)) = (parent, result) {
                grads.register::<Flex>(parent.id, result);
            }
        }
    }
}

/// Runs `forward` on the inner tensors and records `backward` if any input is tracked.
///
/// `forward` returns the output and the state for `backward` (tensors are shared, not copied).
pub fn record<C: CheckpointStrategy, S: Clone + Send + Debug + 'static, const N: usize>(
    inputs: [FloatTensor<Autodiff<Flex, C>>; N],
    forward: impl FnOnce([FlexTensor; N]) -> (FlexTensor, S),
    backward: BackwardFn<S, N>,
) -> FloatTensor<Autodiff<Flex, C>> {
    let nodes = inputs.each_ref().map(|input| input.node());
    let primitives = inputs.map(|input| input.into_primitive());
    match Step(backward).prepare::<C>(nodes).compute_bound().stateful() {
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
