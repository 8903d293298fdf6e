//! The operations of the backend extension in burn's autodiff graph.

use super::{
    attention::{self, Attended},
    gated,
    heads::Angles,
    launch,
    linear::{self, Merged},
    operations::{CubeOps, within},
    pair::record_pair,
    parts::Stacked,
    rms_norm, rope, rows,
    softmax::Keys,
};
use crate::kernels::{
    Grid, Scoring,
    autodiff::{BackwardInput, record},
};
use burn::backend::{
    Autodiff,
    autodiff::checkpoint::strategy::CheckpointStrategy,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use retie_config::{Activation, Gating};

impl<C: CheckpointStrategy> CubeOps for Autodiff<CubeBackend, C> {
    fn cube_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 2>(
            [x, weight],
            |[x, weight]| (linear::forward(x.clone(), weight.clone()), (x, weight)),
            |BackwardInput { saved: (x, weight), grad, wanted }| linear::backward(x, weight, grad, wanted),
        )
    }

    fn cube_linear_merged(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 4>(
            [x, weight, a, b],
            |[x, weight, a, b]| {
                let parts = Merged::new([weight, a, b]);
                (linear::forward(x.clone(), parts.weight.clone()), (x, parts))
            },
            |BackwardInput { saved: (x, parts), grad, wanted }| linear::backward_merged(x, parts, grad, wanted),
        )
    }

    fn cube_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 2>(
            [gate, up],
            |[gate, up]| (gated::forward(&gate, &up, activation), (gate, up, activation)),
            |BackwardInput { saved: (gate, up, activation), grad, .. }| {
                gated::backward(gate, up, grad, activation).map(Some)
            },
        )
    }

    fn cube_gated_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 3>(
            [gate, up, weight],
            |[gate, up, weight]| {
                let y = linear::forward(gated::forward(&gate, &up, activation), weight.clone());
                (y, (gate, up, activation, weight))
            },
            |BackwardInput { saved: (gate, up, activation, weight), grad, wanted }| {
                let x = gated::forward(&gate, &up, activation);
                let [grad_x, grad_weight] = linear::backward(x, weight, grad, [true, wanted[2]]);
                let [grad_gate, grad_up] = of_gated(gate, up, grad_x, activation);
                [grad_gate, grad_up, grad_weight]
            },
        )
    }

    fn cube_gated_linear_merged(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 5>(
            [gate, up, weight, a, b],
            |[gate, up, weight, a, b]| {
                let parts = Merged::new([weight, a, b]);
                let y = linear::forward(gated::forward(&gate, &up, activation), parts.weight.clone());
                (y, (gate, up, activation, parts))
            },
            |BackwardInput { saved: (gate, up, activation, parts), grad, wanted }| {
                let x = gated::forward(&gate, &up, activation);
                let wanted = [true, wanted[2], wanted[3], wanted[4]];
                let [grad_x, grad_weight, grad_a, grad_b] = linear::backward_merged(x, parts, grad, wanted);
                let [grad_gate, grad_up] = of_gated(gate, up, grad_x, activation);
                [grad_gate, grad_up, grad_weight, grad_a, grad_b]
            },
        )
    }

    fn cube_linear2(x: FloatTensor<Self>, w0: FloatTensor<Self>, w1: FloatTensor<Self>) -> FloatTensor<Self> {
        stacked::<C, 3>([x, w0, w1])
    }

    fn cube_linear3(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        stacked::<C, 4>([x, w0, w1, w2])
    }

    fn cube_linear2_merged(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        a0: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        stacked::<C, 7>([x, w0, a0, b0, w1, a1, b1])
    }

    fn cube_linear3_merged(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        a0: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
        a2: FloatTensor<Self>,
        b2: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        stacked::<C, 10>([x, w0, a0, b0, w1, a1, b1, w2, a2, b2])
    }

    fn cube_gated_halves(
        gate_up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 2>(
            [gate_up, weight],
            |[gate_up, weight]| {
                let y = linear::forward(gated::forward_halves(&gate_up, activation), weight.clone());
                (y, (gate_up, activation, weight))
            },
            |BackwardInput { saved: (gate_up, activation, weight), grad, wanted }| {
                let x = gated::forward_halves(&gate_up, activation);
                let [grad_x, grad_weight] = linear::backward(x, weight, grad, [true, wanted[1]]);
                [grad_x.map(|grad| gated::backward_halves(gate_up, grad, activation)), grad_weight]
            },
        )
    }

    fn cube_gated_halves_merged(
        gate_up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 4>(
            [gate_up, weight, a, b],
            |[gate_up, weight, a, b]| {
                let parts = Merged::new([weight, a, b]);
                let y = linear::forward(gated::forward_halves(&gate_up, activation), parts.weight.clone());
                (y, (gate_up, activation, parts))
            },
            |BackwardInput { saved: (gate_up, activation, parts), grad, wanted }| {
                let x = gated::forward_halves(&gate_up, activation);
                let wanted = [true, wanted[1], wanted[2], wanted[3]];
                let [grad_x, grad_weight, grad_a, grad_b] = linear::backward_merged(x, parts, grad, wanted);
                let grad_x = grad_x.map(|grad| gated::backward_halves(gate_up, grad, activation));
                [grad_x, grad_weight, grad_a, grad_b]
            },
        )
    }

    fn cube_attention_of_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: [usize; 2],
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        attend_qkv::<C>([qkv, cos, sin], heads, Attended { grid, keys: Keys::Causal, scoring })
    }

    fn cube_attention_of_packed_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        first: IntTensor<Self>,
        heads: [usize; 2],
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        attend_qkv::<C>([qkv, cos, sin], heads, within(first, false, grid, scoring))
    }

    fn cube_gather(x: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 1>(
            [x],
            |[x]| {
                let [num_rows, _] = launch::dims(&x);
                (rows::take(x, rows.clone()), (rows, num_rows))
            },
            |BackwardInput { saved: (rows, num_rows), grad, .. }| [Some(rows::scatter(grad, rows, num_rows))],
        )
    }

    fn cube_arrange(x: FloatTensor<Self>, to: IntTensor<Self>, from: IntTensor<Self>) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 1>(
            [x],
            |[x]| (rows::take(x, to), from),
            |BackwardInput { saved: from, grad, .. }| [Some(rows::take(grad, from))],
        )
    }

    fn cube_merge(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        rows: IntTensor<Self>,
        gating: Gating,
    ) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 3>(
            [x, y, gate],
            |tensors| rows::merge(tensors, rows, gating),
            |BackwardInput { saved, grad, .. }| rows::merge_backward(saved, grad).map(Some),
        )
    }

    fn cube_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 2>(
            [x, weight],
            |[x, weight]| (rms_norm::forward(x.clone(), weight.clone(), eps), (x, weight, eps)),
            |BackwardInput { saved: (x, weight, eps), grad, .. }| {
                rms_norm::backward(x, weight, grad, None, eps).map(Some)
            },
        )
    }

    fn cube_add_rms_norm(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        record_pair::<CubeBackend, C, _, 3>(
            [x, y, weight],
            |[x, y, weight]| {
                let [sum, normed] = rms_norm::forward_of_sum(x, y, weight.clone(), eps);
                ([sum.clone(), normed], (sum, weight, eps))
            },
            |saved, given| {
                let [grad, grad_weight] = rms_norm::backward_beside(saved, given);
                [grad.clone(), grad, grad_weight]
            },
        )
    }

    fn cube_rms_norm_beside(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        record_pair::<CubeBackend, C, _, 2>(
            [x, weight],
            |[x, weight]| {
                let normed = rms_norm::forward(x.clone(), weight.clone(), eps);
                ([x.clone(), normed], (x, weight, eps))
            },
            rms_norm::backward_beside,
        )
    }

    fn cube_rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 3>(
            [x, cos, sin],
            |[x, cos, sin]| (rope::rotate(x, cos.clone(), sin.clone(), 1.0), (cos, sin)),
            |BackwardInput { saved: (cos, sin), grad, .. }| [Some(rope::rotate(grad, cos, sin, -1.0)), None, None],
        )
    }

    fn cube_inject(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<CubeBackend, C, _, 2>(
            [x, grad],
            |[x, grad]| (launch::empty(&x, [1]), grad),
            |BackwardInput { saved, .. }| [Some(saved), None],
        )
    }

    fn cube_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        attend::<C>([q, k, v], Attended { grid, keys: Keys::Causal, scoring })
    }

    fn cube_attention_within(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bounds: IntTensor<Self>,
        are_last: bool,
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        attend::<C>([q, k, v], within(bounds, are_last, grid, scoring))
    }
}

fn of_gated(
    gate: CubeTensor,
    up: CubeTensor,
    grad: Option<CubeTensor>,
    activation: Activation,
) -> [Option<CubeTensor>; 2] {
    let Some(grad) = grad else { unreachable!("the gradient of the product's input was asked for") };
    gated::backward(gate, up, grad, activation).map(Some)
}

fn attend<C: CheckpointStrategy>(
    qkv: [FloatTensor<Autodiff<CubeBackend, C>>; 3],
    attended: Attended,
) -> FloatTensor<Autodiff<CubeBackend, C>> {
    record::<CubeBackend, C, _, 3>(
        qkv,
        |[q, k, v]| attention::forward(q, k, v, attended),
        |BackwardInput { saved, grad, .. }| attention::backward(saved, grad).map(Some),
    )
}

/// A linear with several weights beside one another: `x`, and each weight, or each `[W, A, B]`.
fn stacked<C: CheckpointStrategy, const N: usize>(
    tensors: [FloatTensor<Autodiff<CubeBackend, C>>; N],
) -> FloatTensor<Autodiff<CubeBackend, C>> {
    record::<CubeBackend, C, _, N>(
        tensors,
        |tensors| {
            let mut tensors = tensors.into_iter();
            let Some(x) = tensors.next() else { unreachable!("an input") };
            let parts: Vec<CubeTensor> = tensors.collect();
            let stacked = match N {
                3 | 4 => Stacked::plain(parts),
                _ => Stacked::merged(parts.as_chunks::<3>().0.iter().cloned()),
            };
            (linear::forward(x.clone(), stacked.weight.clone()), (x, stacked))
        },
        |BackwardInput { saved: (x, stacked), grad, wanted }| {
            let (grad_x, grads) = stacked.backward(x, grad, [wanted[0], wanted[1..].contains(&true)]);
            let mut grads = std::iter::once(grad_x).chain(grads.into_iter().map(Some));
            [(); N].map(|()| grads.next().flatten())
        },
    )
}

fn attend_qkv<C: CheckpointStrategy>(
    tensors: [FloatTensor<Autodiff<CubeBackend, C>>; 3],
    heads: [usize; 2],
    attended: Attended,
) -> FloatTensor<Autodiff<CubeBackend, C>> {
    record::<CubeBackend, C, _, 3>(
        tensors,
        |[qkv, cos, sin]| {
            let angles = Angles { cos, sin };
            let (out, saved) = attention::of_qkv(qkv, angles.clone(), heads, attended);
            (out, (saved, angles))
        },
        |BackwardInput { saved: (saved, angles), grad, .. }| {
            [Some(attention::backward_of_qkv(saved, angles, grad)), None, None]
        },
    )
}
