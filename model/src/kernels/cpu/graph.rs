//! The operations of [`FlexOps`] in burn's graph, with their hand-written backward passes.

use super::*;
use crate::kernels::autodiff::{BackwardInput, record};
use burn::backend::{Autodiff, autodiff::checkpoint::strategy::CheckpointStrategy};

impl<C: CheckpointStrategy> FlexOps for Autodiff<Flex, C> {
    fn decoder_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<Flex, C, _, 2>(
            [x, y],
            |[x, y]| (Flex::decoder_add(x, y), ()),
            |BackwardInput { grad, .. }| [Some(grad.clone()), Some(grad)],
        )
    }

    fn decoder_embedding(table: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        record::<Flex, C, _, 1>(
            [table],
            |[table]| {
                let [num_rows, _] = table.shape().dims();
                let (out, ids) = embedding::forward(table, &ids);
                (out, (ids, num_rows))
            },
            |BackwardInput { saved: (ids, num_rows), grad, .. }| [Some(embedding::backward(&ids, num_rows, grad))],
        )
    }

    fn decoder_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<Flex, C, _, 2>(
            [x, weight],
            |[x, weight]| (Flex::decoder_linear(x.clone(), weight.clone()), (x, weight)),
            |BackwardInput { saved, grad, wanted }| linear::backward(saved, grad, wanted),
        )
    }

    fn decoder_linear_lora(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 4>([x, weight, a, b], linear::forward_lora, |BackwardInput { saved, grad, wanted }| {
            linear::backward_lora(saved, grad, wanted)
        })
    }

    fn decoder_linear_merged(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 4>(
            [x, weight, a, b],
            |[x, weight, a, b]| {
                let parts = Mergeable::new([weight, a, b]);
                (linear::forward_merged(x.clone(), &parts), (x, parts))
            },
            |BackwardInput { saved, grad, wanted }| linear::backward_merged(saved, grad, wanted),
        )
    }

    fn decoder_rescale(
        y: FloatTensor<Self>,
        magnitudes: FloatTensor<Self>,
        norms: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [y, magnitudes, norms],
            |[y, magnitudes, norms]| {
                let (y, magnitudes, norms) = (dense(y), dense(magnitudes), dense(norms));
                (rescale::forward(&y, &magnitudes, &norms), (y, magnitudes, norms))
            },
            |BackwardInput { saved: (y, magnitudes, norms), grad, wanted }| {
                rescale::backward(&y, &magnitudes, &norms, &dense(grad), wanted)
            },
        )
    }

    fn decoder_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        record::<Flex, C, _, 2>(
            [x, weight],
            |[x, weight]| (Flex::decoder_rms_norm(x.clone(), weight.clone(), eps), (x, weight, eps)),
            |BackwardInput { saved: (x, weight, eps), grad, .. }| {
                let (x, weight, grad) = (dense(x), dense(weight), dense(grad));
                let mut grad_x = zeros_like(&x);
                let grad_weight = rms_norm::backward(values(&x), values(&weight), values(&grad), eps, &mut grad_x);
                [Some(from_values(grad_x, x.shape())), Some(from_values(grad_weight, weight.shape()))]
            },
        )
    }

    fn decoder_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f32,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [x, weight, bias],
            |[x, weight, bias]| (Flex::decoder_layer_norm(x.clone(), weight.clone(), bias, eps), (x, weight, eps)),
            |BackwardInput { saved: (x, weight, eps), grad, .. }| {
                let (x, weight, grad) = (dense(x), dense(weight), dense(grad));
                let mut grad_x = zeros_like(&x);
                let grads = layer_norm::backward(values(&x), values(&weight), values(&grad), eps, &mut grad_x);
                let [grad_weight, grad_bias] = grads.map(|grad| Some(from_values(grad, weight.shape())));
                [Some(from_values(grad_x, x.shape())), grad_weight, grad_bias]
            },
        )
    }

    fn decoder_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, kind: Gate) -> FloatTensor<Self> {
        record::<Flex, C, _, 2>(
            [gate, up],
            |[gate, up]| {
                let (gate, up) = (dense(gate), dense(up));
                (gated::forward(&gate, &up, kind), (gate, up, kind))
            },
            |BackwardInput { saved: (gate, up, kind), grad, .. }| gated::backward(&gate, &up, kind, Some(grad)),
        )
    }

    fn decoder_waved(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        scalars: FloatTensor<Self>,
        wave: Wave,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [gate, up, scalars],
            |[gate, up, scalars]| {
                let (gate, up, scalars) = (dense(gate), dense(up), dense(scalars));
                (wave::forward(&gate, &up, &scalars, wave), (gate, up, scalars, wave))
            },
            |BackwardInput { saved: (gate, up, scalars, wave), grad, .. }| {
                wave::backward(&gate, &up, &scalars, wave, &dense(grad))
            },
        )
    }

    fn decoder_add_bias(x: FloatTensor<Self>, bias: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<Flex, C, _, 2>(
            [x, bias],
            |[x, bias]| (Flex::decoder_add_bias(x, bias), ()),
            |BackwardInput { grad, wanted, .. }| {
                let grad = dense(grad);
                let of_bias = wanted[1].then(|| bias::backward(&grad));
                [Some(grad), of_bias]
            },
        )
    }

    fn decoder_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<Flex, C, _, 1>(
            [x],
            |[x]| {
                let x = dense(x);
                (gelu::forward(&x), x)
            },
            |BackwardInput { saved, grad, .. }| [Some(gelu::backward(&saved, &dense(grad)))],
        )
    }

    fn decoder_mix(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        f: FloatTensor<Self>,
        g: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 4>(
            [x, y, f, g],
            |inputs| {
                let [x, y, f, g] = inputs.map(dense);
                (mix::forward(&x, &y, &f, &g), [x, y, f, g])
            },
            |BackwardInput { saved, grad, wanted }| mix::backward(saved.each_ref(), &dense(grad), wanted),
        )
    }

    fn decoder_depthwise(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        taps: Taps,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [x, weight, bias],
            |inputs| {
                let [x, weight, bias] = inputs.map(dense);
                (depthwise::forward(&x, &weight, &bias, &taps), (x, weight, taps))
            },
            |BackwardInput { saved: (x, weight, taps), grad, wanted }| {
                depthwise::backward(&x, &weight, &taps, &dense(grad), wanted)
            },
        )
    }

    fn decoder_gated_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Gate,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [gate, up, weight],
            |[gate, up, weight]| {
                let (gate, up) = (dense(gate), dense(up));
                (linear::forward(gated::forward(&gate, &up, kind), weight.clone()), (gate, up, kind, weight))
            },
            |BackwardInput { saved: (gate, up, kind, weight), grad, wanted }| {
                let x = gated::forward(&gate, &up, kind);
                let [grad_x, grad_weight] = linear::backward((x, weight), grad, [true, wanted[2]]);
                let [grad_gate, grad_up] = gated::backward(&gate, &up, kind, grad_x);
                [grad_gate, grad_up, grad_weight]
            },
        )
    }

    fn decoder_gated_linear_lora(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Gate,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 5>(
            [gate, up, weight, a, b],
            |[gate, up, weight, a, b]| {
                let (gate, up) = (dense(gate), dense(up));
                let (y, state) = linear::forward_lora([gated::forward(&gate, &up, kind), weight, a, b]);
                (y, (gate, up, kind, state.forget_x()))
            },
            |BackwardInput { saved: (gate, up, kind, state), grad, wanted }| {
                let state = state.with_x(gated::forward(&gate, &up, kind));
                let wanted = [true, wanted[2], wanted[3], wanted[4]];
                let [grad_x, grad_weight, grad_a, grad_b] = linear::backward_lora(state, grad, wanted);
                let [grad_gate, grad_up] = gated::backward(&gate, &up, kind, grad_x);
                [grad_gate, grad_up, grad_weight, grad_a, grad_b]
            },
        )
    }

    fn decoder_gated_linear_merged(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        kind: Gate,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 5>(
            [gate, up, weight, a, b],
            |[gate, up, weight, a, b]| {
                let (gate, up, parts) = (dense(gate), dense(up), Mergeable::new([weight, a, b]));
                let y = linear::forward_merged(gated::forward(&gate, &up, kind), &parts);
                (y, (gate, up, kind, parts))
            },
            |BackwardInput { saved: (gate, up, kind, parts), grad, wanted }| {
                let x = gated::forward(&gate, &up, kind);
                let wanted = [true, wanted[2], wanted[3], wanted[4]];
                let [grad_x, grad_weight, grad_a, grad_b] = linear::backward_merged((x, parts), grad, wanted);
                let [grad_gate, grad_up] = gated::backward(&gate, &up, kind, grad_x);
                [grad_gate, grad_up, grad_weight, grad_a, grad_b]
            },
        )
    }

    fn decoder_rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [x, cos, sin],
            |[x, cos, sin]| {
                let (cos, sin) = (dense(cos), dense(sin));
                (rotate(x, &cos, &sin, Turn::Forward), (cos, sin))
            },
            |BackwardInput { saved: (cos, sin), grad, .. }| [Some(rotate(grad, &cos, &sin, Turn::Back)), None, None],
        )
    }

    fn decoder_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        layout: Layout,
        scoring: Scoring,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [q, k, v],
            |[q, k, v]| attention_forward(q, k, v, layout, scoring),
            |BackwardInput { saved, grad, .. }| {
                let AttentionState { q, k, v, out, log_sums, layout, scoring } = saved;
                let grad = dense(grad);
                let heads = heads(&q, &k, scoring);
                let saved = Saved {
                    q: values(&q),
                    k: values(&k),
                    v: values(&v),
                    out: values(&out),
                    log_sums: values(&log_sums),
                };
                let [grad_q, grad_k, grad_v] = attention::backward(&saved, values(&grad), heads, &layout);
                [
                    Some(from_values(grad_q, q.shape())),
                    Some(from_values(grad_k, k.shape())),
                    Some(from_values(grad_v, v.shape())),
                ]
            },
        )
    }

    fn decoder_merge(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        merge: Merge,
    ) -> FloatTensor<Self> {
        record::<Flex, C, _, 3>(
            [x, y, gate],
            |[x, y, gate]| merge::forward(x, y, gate, merge),
            |BackwardInput { saved, grad, .. }| merge::backward(&saved, grad),
        )
    }

    fn decoder_write(buffer: FloatTensor<Self>, values: FloatTensor<Self>, runs: Arc<[RowCopy]>) -> FloatTensor<Self> {
        record::<Flex, C, _, 2>(
            [buffer, values],
            |[buffer, values]| {
                let [num_rows, _] = values.shape().dims();
                (write::forward(buffer, values, &runs), (runs, num_rows))
            },
            |BackwardInput { saved: (runs, num_rows), grad, .. }| write::backward(&runs, num_rows, grad),
        )
    }
}
