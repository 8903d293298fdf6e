//! The operations of the backend extension, on tensors without a graph. Those with one are in
//! `graph`.

use super::{
    attend_few,
    attention::{self, Attended},
    gated,
    heads::Angles,
    launch, linear,
    parts::Stacked,
    rms_norm, rope, rows,
    softmax::Keys,
};
use crate::kernels::{Grid, Scoring};
use burn::backend::{
    Backend, backend_extension,
    tensor::{FloatTensor, IntTensor},
};
use burn_cubecl::{CubeBackend, tensor::CubeTensor};
use retie_config::{Activation, Gating};

#[backend_extension(Cube, Autodiff)]
pub trait CubeOps: Backend {
    fn cube_linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_linear_merged(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_gated(gate: FloatTensor<Self>, up: FloatTensor<Self>, activation: Activation) -> FloatTensor<Self>;
    fn cube_gated_linear(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_gated_linear_merged(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_linear2(x: FloatTensor<Self>, w0: FloatTensor<Self>, w1: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_linear3(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        w2: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments, reason = "an extension takes tensors one by one")]
    fn cube_linear2_merged(
        x: FloatTensor<Self>,
        w0: FloatTensor<Self>,
        a0: FloatTensor<Self>,
        b0: FloatTensor<Self>,
        w1: FloatTensor<Self>,
        a1: FloatTensor<Self>,
        b1: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments, reason = "an extension takes tensors one by one")]
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
    ) -> FloatTensor<Self>;
    fn cube_gated_halves(
        gate_up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_gated_halves_merged(
        gate_up: FloatTensor<Self>,
        activation: Activation,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
    ) -> FloatTensor<Self>;
    fn cube_attention_of_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        heads: [usize; 2],
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self>;
    #[allow(clippy::too_many_arguments, reason = "an extension takes tensors one by one")]
    fn cube_attention_of_packed_qkv(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        first: IntTensor<Self>,
        heads: [usize; 2],
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self>;
    fn cube_gather(x: FloatTensor<Self>, rows: IntTensor<Self>) -> FloatTensor<Self>;
    fn cube_arrange(x: FloatTensor<Self>, to: IntTensor<Self>, from: IntTensor<Self>) -> FloatTensor<Self>;
    fn cube_merge(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        rows: IntTensor<Self>,
        gating: Gating,
    ) -> FloatTensor<Self>;
    fn cube_rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self>;
    fn cube_add_rms_norm(
        x: FloatTensor<Self>,
        y: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    fn cube_rms_norm_beside(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f32,
    ) -> (FloatTensor<Self>, FloatTensor<Self>);
    fn cube_rope(x: FloatTensor<Self>, cos: FloatTensor<Self>, sin: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_inject(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self>;
    fn cube_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self>;
    fn cube_attention_within(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        bounds: IntTensor<Self>,
        are_last: bool,
        grid: Grid,
        scoring: Scoring,
    ) -> FloatTensor<Self>;
}

/// Attention to the keys up to the given ones, or from them on.
pub fn within(bounds: CubeTensor, are_last: bool, grid: Grid, scoring: Scoring) -> Attended {
    let bounds = launch::dense(bounds);
    Attended { grid, keys: if are_last { Keys::UpTo(bounds) } else { Keys::From(bounds) }, scoring }
}

/// Attention without a graph.
fn attended(q: CubeTensor, k: CubeTensor, v: CubeTensor, attended: Attended) -> CubeTensor {
    if attend_few::takes(&q, &attended) {
        return attend_few::attend_few(q, k, v, &attended);
    }
    attention::forward(q, k, v, attended).0
}

impl CubeOps for CubeBackend {
    fn cube_linear(x: CubeTensor, weight: CubeTensor) -> CubeTensor {
        linear::forward(x, weight)
    }

    fn cube_linear_merged(x: CubeTensor, weight: CubeTensor, a: CubeTensor, b: CubeTensor) -> CubeTensor {
        linear::forward(x, linear::merged(&weight, &a, &b))
    }

    fn cube_gated(gate: CubeTensor, up: CubeTensor, activation: Activation) -> CubeTensor {
        gated::forward(&gate, &up, activation)
    }

    fn cube_gated_linear(gate: CubeTensor, up: CubeTensor, activation: Activation, weight: CubeTensor) -> CubeTensor {
        linear::forward(gated::forward(&gate, &up, activation), weight)
    }

    fn cube_gated_linear_merged(
        gate: CubeTensor,
        up: CubeTensor,
        activation: Activation,
        weight: CubeTensor,
        a: CubeTensor,
        b: CubeTensor,
    ) -> CubeTensor {
        linear::forward(gated::forward(&gate, &up, activation), linear::merged(&weight, &a, &b))
    }

    fn cube_linear2(x: CubeTensor, w0: CubeTensor, w1: CubeTensor) -> CubeTensor {
        linear::forward(x, Stacked::plain([w0, w1]).weight)
    }

    fn cube_linear3(x: CubeTensor, w0: CubeTensor, w1: CubeTensor, w2: CubeTensor) -> CubeTensor {
        linear::forward(x, Stacked::plain([w0, w1, w2]).weight)
    }

    fn cube_linear2_merged(
        x: CubeTensor,
        w0: CubeTensor,
        a0: CubeTensor,
        b0: CubeTensor,
        w1: CubeTensor,
        a1: CubeTensor,
        b1: CubeTensor,
    ) -> CubeTensor {
        linear::forward(x, Stacked::merged([[w0, a0, b0], [w1, a1, b1]]).weight)
    }

    fn cube_linear3_merged(
        x: CubeTensor,
        w0: CubeTensor,
        a0: CubeTensor,
        b0: CubeTensor,
        w1: CubeTensor,
        a1: CubeTensor,
        b1: CubeTensor,
        w2: CubeTensor,
        a2: CubeTensor,
        b2: CubeTensor,
    ) -> CubeTensor {
        linear::forward(x, Stacked::merged([[w0, a0, b0], [w1, a1, b1], [w2, a2, b2]]).weight)
    }

    fn cube_gated_halves(gate_up: CubeTensor, activation: Activation, weight: CubeTensor) -> CubeTensor {
        linear::forward(gated::forward_halves(&gate_up, activation), weight)
    }

    fn cube_gated_halves_merged(
        gate_up: CubeTensor,
        activation: Activation,
        weight: CubeTensor,
        a: CubeTensor,
        b: CubeTensor,
    ) -> CubeTensor {
        linear::forward(gated::forward_halves(&gate_up, activation), linear::merged(&weight, &a, &b))
    }

    fn cube_attention_of_qkv(
        qkv: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        heads: [usize; 2],
        grid: Grid,
        scoring: Scoring,
    ) -> CubeTensor {
        attention::of_qkv(qkv, Angles { cos, sin }, heads, Attended { grid, keys: Keys::Causal, scoring }).0
    }

    fn cube_attention_of_packed_qkv(
        qkv: CubeTensor,
        cos: CubeTensor,
        sin: CubeTensor,
        first: CubeTensor,
        heads: [usize; 2],
        grid: Grid,
        scoring: Scoring,
    ) -> CubeTensor {
        attention::of_qkv(qkv, Angles { cos, sin }, heads, within(first, false, grid, scoring)).0
    }

    fn cube_gather(x: CubeTensor, rows: CubeTensor) -> CubeTensor {
        rows::take(x, rows)
    }

    /// Rows of `x` by `to`, below 0 zeros; row `m` of `x` is row `from[m]` of the result.
    fn cube_arrange(x: CubeTensor, to: CubeTensor, _: CubeTensor) -> CubeTensor {
        rows::take(x, to)
    }

    fn cube_merge(x: CubeTensor, y: CubeTensor, gate: CubeTensor, rows: CubeTensor, gating: Gating) -> CubeTensor {
        rows::merge([x, y, gate], rows, gating).0
    }

    fn cube_rms_norm(x: CubeTensor, weight: CubeTensor, eps: f32) -> CubeTensor {
        rms_norm::forward(x, weight, eps)
    }

    fn cube_add_rms_norm(x: CubeTensor, y: CubeTensor, weight: CubeTensor, eps: f32) -> (CubeTensor, CubeTensor) {
        rms_norm::forward_of_sum(x, y, weight, eps).into()
    }

    fn cube_rms_norm_beside(x: CubeTensor, weight: CubeTensor, eps: f32) -> (CubeTensor, CubeTensor) {
        (x.clone(), rms_norm::forward(x, weight, eps))
    }

    fn cube_rope(x: CubeTensor, cos: CubeTensor, sin: CubeTensor) -> CubeTensor {
        rope::rotate(x, cos, sin, 1.0)
    }

    /// A number that stands for `Σ x·g`: nothing but its gradient is read.
    fn cube_inject(x: CubeTensor, _: CubeTensor) -> CubeTensor {
        launch::empty(&x, [1])
    }

    fn cube_attention(q: CubeTensor, k: CubeTensor, v: CubeTensor, grid: Grid, scoring: Scoring) -> CubeTensor {
        attended(q, k, v, Attended { grid, keys: Keys::Causal, scoring })
    }

    fn cube_attention_within(
        q: CubeTensor,
        k: CubeTensor,
        v: CubeTensor,
        bounds: CubeTensor,
        are_last: bool,
        grid: Grid,
        scoring: Scoring,
    ) -> CubeTensor {
        attended(q, k, v, within(bounds, are_last, grid, scoring))
    }
}
