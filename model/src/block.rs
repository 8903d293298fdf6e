//! Decoder block at one depth: placement of the norms, and the residual connections.

use crate::{
    at_depths::AtDepths,
    attention::{Attention, AttentionAtDepth, AttentionContext},
    extras::{Extras, scaled},
    kernels,
    kv::{KeysValues, KvSource},
    mlp::{Mlp, MlpAtDepth},
    norm::{Norm, normalised},
    row_context::RowContext,
    steps::{Step, StepAttention},
};
use burn::{
    module::{Module, Param},
    tensor::Tensor,
};
use retie_checkpoint::ProbePoint;
use retie_config::{DepthKind, ModelConfig, Residual};
use std::ops::ControlFlow;

/// Weights of a stored layer, run by one or several depths. Norms are `None` where each depth has
/// its own and in families without them.
#[derive(Module, Debug)]
pub struct Layer {
    pub input_layernorm: Option<Norm>,
    pub self_attn: Attention,
    pub post_attention_layernorm: Option<Norm>,
    pub pre_feedforward_layernorm: Option<Norm>,
    pub mlp: Mlp,
    pub post_feedforward_layernorm: Option<Norm>,
}

/// Weights that belong to one depth: LoRA or DoRA of each linear, own norms, extras, mechanisms of
/// its recursion's step.
#[derive(Module, Debug)]
pub struct DepthWeights {
    pub input_layernorm: Option<Norm>,
    pub self_attn: AttentionAtDepth,
    pub post_attention_layernorm: Option<Norm>,
    pub pre_feedforward_layernorm: Option<Norm>,
    pub mlp: MlpAtDepth,
    pub post_feedforward_layernorm: Option<Norm>,
    pub extras: Extras,
    pub step: Step,
}

impl DepthWeights {
    /// Removes the DoRA magnitudes, which leaves plain LoRA.
    pub(crate) fn drop_magnitudes(&mut self) {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        let linears = [&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj, &mut attention.o_proj];
        let linears = linears.into_iter().chain([&mut mlp.gate_proj, &mut mlp.up_proj, &mut mlp.down_proj]);
        linears.for_each(|linear| linear.lora_magnitude_vector = None);
    }

    /// Computes the row norms `‖W' + B A‖` of DoRA once, for a model whose weights do not change.
    pub(crate) fn keep_row_norms(&mut self, layer: &Layer) {
        self.self_attn.q_proj.keep_row_norms(&layer.self_attn.q_proj);
        self.self_attn.k_proj.keep_row_norms(&layer.self_attn.k_proj);
        self.self_attn.v_proj.keep_row_norms(&layer.self_attn.v_proj);
        self.self_attn.o_proj.keep_row_norms(&layer.self_attn.o_proj);
        if let Some(gate) = &layer.mlp.gate_proj {
            self.mlp.gate_proj.keep_row_norms(gate);
        }
        self.mlp.up_proj.keep_row_norms(&layer.mlp.up_proj);
        self.mlp.down_proj.keep_row_norms(&layer.mlp.down_proj);
    }
}

/// Callback of a block: gets a probe point, the input of its linears and the residual stream
/// there, `[M, D]`. May stop the block.
pub(crate) type Observer<'a> = &'a mut dyn FnMut(ProbePoint, &Tensor<2>, &Tensor<2>) -> ControlFlow<()>;

/// Residual stream `x [M, D]` between two blocks, to which the MLP's addend of the first may still
/// have to be added.
pub(crate) struct Stream {
    pub x: Tensor<2>,
    pub addend: Option<Tensor<2>>,
}

impl Stream {
    /// The sum.
    pub fn sum(self) -> Tensor<2> {
        match self.addend {
            Some(addend) => kernels::add(self.x, addend),
            None => self.x,
        }
    }
}

impl From<Tensor<2>> for Stream {
    fn from(x: Tensor<2>) -> Self {
        Self { x, addend: None }
    }
}

/// One depth with the weights and configuration that it runs on; or several depths of one layer and
/// kind, each over rows of its own.
#[derive(Clone)]
pub(crate) struct Block<'a> {
    pub layer: &'a Layer,
    pub own: AtDepths<'a, DepthWeights>,
    pub config: &'a ModelConfig,
    pub kind: DepthKind,
}

impl Block<'_> {
    /// Runs the block: `x [M, D]` → `[M, D]`, on the keys and values of `kv`. `observer` gets the
    /// input of each probe point; if it stops the block, the result is the residual stream there.
    pub fn forward(
        &self,
        x: Tensor<2>,
        rows: &RowContext,
        mut kv: KvSource<'_>,
        mut observer: Option<Observer<'_>>,
    ) -> Tensor<2> {
        let x = self.enter(x);
        let entered = self.own.any(|own| own.step.reads_input()).then(|| x.clone());
        let [x, read] = self.with_attention_input(x.into());
        if stops(&mut observer, ProbePoint::Attention, &read, &x) {
            return x;
        }
        let step = self.step();
        let gnconv = step.and_then(|step| step.gnconv.as_ref());
        let branch = gnconv.map(|gnconv| gnconv.forward(read.clone(), &rows.layout, kv.cache_mut()));
        let mixed = if step.is_some_and(|step| matches!(step.attention, Some(StepAttention::None))) {
            None
        } else {
            let mixed = self.mix(read, rows, kv);
            if stops(&mut observer, ProbePoint::Output, &mixed, &x) {
                return x;
            }
            Some(mixed)
        };
        self.behind_attention(entered, x, [mixed, branch], observer)
    }

    /// [`Block::forward`] on a stream between two blocks, whose sum is made with the first norm of
    /// the second where the device has a kernel for it.
    pub fn pass(&self, stream: Stream, rows: &RowContext) -> Stream {
        let kv = KvSource::Computed { cache: None, kept: None };
        let changes = self.own.any(|own| own.extras.change_input() || own.step.changes_block());
        let norm =
            self.joined_norm(&stream.x, &self.layer.post_attention_layernorm, |own| &own.post_attention_layernorm);
        let (false, Some(weight), true) = (changes, norm, self.adds_as_it_is(|own| &own.extras.mlp_scale)) else {
            return self.forward(stream.sum(), rows, kv, None).into();
        };
        let [x, read] = self.with_attention_input(stream);
        let mixed = self.mix(read, rows, kv);
        let attended = self.attention_output(mixed);
        let [x, read] = kernels::add_rms_norm(x, attended, weight, self.norm_eps());
        Stream { x, addend: Some(self.feed_forward(read, None)) }
    }

    /// Runs the rest of the block, from the linears of `point` on, which read `read`; `x` is the
    /// residual stream there. Both are what an observer got, so that the result is that of
    /// [`forward`](Self::forward). Of a depth without mechanisms of a step.
    pub fn resume(
        &self,
        point: ProbePoint,
        [read, x]: [Tensor<2>; 2],
        rows: &RowContext,
        observer: Observer<'_>,
    ) -> Tensor<2> {
        let mut observer = Some(observer);
        match point {
            ProbePoint::Attention => {
                let mixed = self.mix(read, rows, KvSource::Computed { cache: None, kept: None });
                if stops(&mut observer, ProbePoint::Output, &mixed, &x) {
                    return x;
                }
                self.behind_attention(None, x, [Some(mixed), None], observer)
            }
            ProbePoint::Output => self.behind_attention(None, x, [Some(read), None], observer),
            ProbePoint::Mlp => self.behind_norm(None, x, read, observer),
            ProbePoint::Down => self.leave(None, x, self.mlp_output(read)),
        }
    }

    /// Runs the block from the input of `o_proj` on, and from the output of the branch beside
    /// attention, of which there is one or both.
    fn behind_attention(
        &self,
        entered: Option<Tensor<2>>,
        x: Tensor<2>,
        parts: [Option<Tensor<2>>; 2],
        mut observer: Option<Observer<'_>>,
    ) -> Tensor<2> {
        let (x, read) = match parts {
            [Some(mixed), None] if self.adds_as_it_is(|own| &own.extras.attention_scale) => {
                let own = self.own.part(|own| &own.self_attn.o_proj);
                let o_proj = &self.layer.self_attn.o_proj;
                let norm =
                    self.joined_norm(&x, &self.layer.post_attention_layernorm, |own| &own.post_attention_layernorm);
                let [x, read] = match norm {
                    Some(weight) => kernels::add_rms_norm(x, o_proj.forward(mixed, &own), weight, self.norm_eps()),
                    None => {
                        let x = o_proj.forward_onto(mixed, &own, x);
                        [x.clone(), self.mlp_input(x)]
                    }
                };
                (x, read)
            }
            [mixed, branch] => {
                let attended = mixed.map(|mixed| self.attention_output(mixed));
                let Some(attended) = [attended, branch].into_iter().flatten().reduce(kernels::add) else {
                    unreachable!("a row without attention has a branch")
                };
                if self.config.anatomy.residual == Residual::Parallel {
                    let read = self.mlp_input(x.clone());
                    (self.add_attention(x, attended), read)
                } else {
                    let x = self.add_attention(x, attended);
                    let read = self.mlp_input(x.clone());
                    (x, read)
                }
            }
        };
        if stops(&mut observer, ProbePoint::Mlp, &read, &x) {
            return x;
        }
        self.behind_norm(entered, x, read, observer)
    }

    /// Runs the block from the input of the MLP on.
    fn behind_norm(
        &self,
        entered: Option<Tensor<2>>,
        x: Tensor<2>,
        read: Tensor<2>,
        mut observer: Option<Observer<'_>>,
    ) -> Tensor<2> {
        if observer.is_none() {
            let is_plain = self.adds_as_it_is(|own| &own.extras.mlp_scale);
            if is_plain && !self.own.any(|own| own.step.changes_output()) {
                return self.feed_forward(read, Some(x));
            }
            return self.leave(entered, x, self.feed_forward(read, None));
        }
        let inner = self.inner(read);
        if stops(&mut observer, ProbePoint::Down, &inner, &x) {
            return x;
        }
        self.leave(entered, x, self.mlp_output(inner))
    }

    /// Output of the depth, of its `entered` input, where that is read, the residual stream `x` and
    /// the MLP's addend.
    fn leave(&self, entered: Option<Tensor<2>>, x: Tensor<2>, addend: Tensor<2>) -> Tensor<2> {
        if !self.own.any(|own| own.step.changes_output()) {
            return kernels::add(x, addend);
        }
        let eps = self.norm_eps();
        let leave = |own: &DepthWeights, entered, [x, addend]: [Tensor<2>; 2]| {
            own.step.leave(entered, own.step.add_mlp(x, addend), eps)
        };
        match entered {
            Some(entered) => self
                .own
                .each_of([entered, x, addend], |own, [entered, x, addend]| leave(own, Some(entered), [x, addend])),
            None => self.own.each_of([x, addend], |own, x| leave(own, None, x)),
        }
    }

    /// Whether a branch is added to the residual stream as its last linear gives it, and the other
    /// branch reads the sum.
    fn adds_as_it_is(&self, scale: impl Fn(&DepthWeights) -> &Option<Param<Tensor<1>>>) -> bool {
        let changes = |own: &DepthWeights| scale(own).is_some() || own.step.coefficients.is_some();
        self.config.anatomy.residual == Residual::PreNorm && !self.own.any(changes)
    }

    fn add_attention(&self, x: Tensor<2>, addend: Tensor<2>) -> Tensor<2> {
        if !self.own.any(|own| own.step.coefficients.is_some()) {
            return kernels::add(x, addend);
        }
        self.own.each_of([x, addend], |own, [x, addend]| own.step.add_attention(x, addend))
    }

    /// Residual stream of this depth: the output of the previous depth with this depth's extras.
    fn enter(&self, x: Tensor<2>) -> Tensor<2> {
        if !self.own.any(|own| own.extras.change_input()) {
            return x;
        }
        self.own.each(x, |own, x| own.extras.enter(x, &self.config.anatomy))
    }

    /// Input of `q_proj`, `k_proj` and `v_proj`.
    fn attention_input(&self, x: Tensor<2>) -> Tensor<2> {
        match self.config.anatomy.residual {
            Residual::PostNorm => x,
            _ => self.norm(x, &self.layer.input_layernorm, |own| &own.input_layernorm),
        }
    }

    /// The residual stream, and the input of `q_proj`, `k_proj` and `v_proj`.
    fn with_attention_input(&self, stream: Stream) -> [Tensor<2>; 2] {
        let is_normed = self.config.anatomy.residual != Residual::PostNorm;
        let norm = || self.joined_norm(&stream.x, &self.layer.input_layernorm, |own| &own.input_layernorm);
        match (is_normed.then(norm).flatten(), stream) {
            (Some(weight), Stream { x, addend: Some(y) }) => kernels::add_rms_norm(x, y, weight, self.norm_eps()),
            (Some(weight), Stream { x, addend: None }) => kernels::rms_norm_beside(x, weight, self.norm_eps()),
            (None, stream) => {
                let x = stream.sum();
                [x.clone(), self.attention_input(x)]
            }
        }
    }

    /// Weight of an RMSNorm of one depth, where the device has kernels for it and what stands
    /// beside it in the residual stream `x`.
    fn joined_norm(
        &self,
        x: &Tensor<2>,
        stored: &Option<Norm>,
        own: impl Fn(&DepthWeights) -> &Option<Norm>,
    ) -> Option<Tensor<1>> {
        let own = self.own.one().filter(|_| kernels::joins_norms(x)).map(own)?;
        own.as_ref().or(stored.as_ref())?.rms_weight(&self.config.anatomy)
    }

    fn norm_eps(&self) -> f32 {
        self.config.anatomy.norm_eps as f32
    }

    /// Keys and values of `x [M, D]`, `[M, K·H]` each.
    pub fn keys_values(&self, x: Tensor<2>, rows: &RowContext) -> KeysValues {
        let read = self.attention_input(self.enter(x));
        self.layer.self_attn.keys_values(read, &self.own.part(|own| &own.self_attn), self.context(rows))
    }

    fn context<'b>(&'b self, rows: &'b RowContext) -> AttentionContext<'b> {
        let step = self.step();
        let own = step.and_then(|step| step.attention.as_ref());
        let filters = step.and_then(|step| step.rg.as_ref());
        AttentionContext { config: self.config, kind: self.kind, rows, own, filters }
    }

    /// Mechanisms of the recursion that read other tokens; rows of several depths have none.
    fn step(&self) -> Option<&Step> {
        self.own.one().map(|own| &own.step)
    }

    /// Input of `o_proj`.
    fn mix(&self, x: Tensor<2>, rows: &RowContext, kv: KvSource<'_>) -> Tensor<2> {
        self.layer.self_attn.mix(x, &self.own.part(|own| &own.self_attn), self.context(rows), kv)
    }

    /// Attention's addend to the residual stream, from the input of `o_proj`.
    fn attention_output(&self, mixed: Tensor<2>) -> Tensor<2> {
        let out = self.layer.self_attn.o_proj.forward(mixed, &self.own.part(|own| &own.self_attn.o_proj));
        let out = match self.config.anatomy.residual {
            Residual::Sandwich | Residual::PostNorm => {
                self.norm(out, &self.layer.post_attention_layernorm, |own| &own.post_attention_layernorm)
            }
            Residual::PreNorm | Residual::Parallel => out,
        };
        self.scaled(out, |own| &own.extras.attention_scale)
    }

    /// Input of `gate_proj` and `up_proj`.
    fn mlp_input(&self, x: Tensor<2>) -> Tensor<2> {
        match self.config.anatomy.residual {
            Residual::PostNorm => x,
            Residual::Sandwich => {
                self.norm(x, &self.layer.pre_feedforward_layernorm, |own| &own.pre_feedforward_layernorm)
            }
            Residual::PreNorm | Residual::Parallel => {
                self.norm(x, &self.layer.post_attention_layernorm, |own| &own.post_attention_layernorm)
            }
        }
    }

    /// Input of `down_proj`.
    fn inner(&self, x: Tensor<2>) -> Tensor<2> {
        let activation = self.own.part(|own| &own.step.activation);
        self.layer.mlp.inner(x, &self.own.part(|own| &own.mlp), self.config.anatomy.mlp, &activation)
    }

    /// The MLP's addend to the residual stream, from the input of `down_proj`.
    fn mlp_output(&self, inner: Tensor<2>) -> Tensor<2> {
        self.after_mlp(self.layer.mlp.down_proj.forward(inner, &self.own.part(|own| &own.mlp.down_proj)))
    }

    /// Fused form of [`Block::inner`] followed by [`Block::mlp_output`]; or, where the output is
    /// added [as it is](Block::adds_as_it_is), its sum with the residual stream.
    fn feed_forward(&self, x: Tensor<2>, residual: Option<Tensor<2>>) -> Tensor<2> {
        let activation = self.own.part(|own| &own.step.activation);
        let (own, kind, is_sum) = (self.own.part(|own| &own.mlp), self.config.anatomy.mlp, residual.is_some());
        let out = self.layer.mlp.forward(x, &own, kind, &activation, residual);
        if is_sum { out } else { self.after_mlp(out) }
    }

    fn after_mlp(&self, out: Tensor<2>) -> Tensor<2> {
        let out = match self.config.anatomy.residual {
            Residual::Sandwich | Residual::PostNorm => {
                self.norm(out, &self.layer.post_feedforward_layernorm, |own| &own.post_feedforward_layernorm)
            }
            Residual::PreNorm | Residual::Parallel => out,
        };
        self.scaled(out, |own| &own.extras.mlp_scale)
    }

    fn scaled(&self, out: Tensor<2>, scale: impl Fn(&DepthWeights) -> &Option<Param<Tensor<1>>>) -> Tensor<2> {
        if !self.own.any(|own| scale(own).is_some()) {
            return out;
        }
        self.own.each(out, |own, out| scaled(out, scale(own)))
    }

    fn norm(&self, x: Tensor<2>, stored: &Option<Norm>, own: impl Fn(&DepthWeights) -> &Option<Norm>) -> Tensor<2> {
        normalised(x, stored, &self.own.part(own), |norm, x| norm.forward(x, &self.config.anatomy))
    }
}

/// Shows the input of a probe point to the observer; true if the observer stops the block.
fn stops(observer: &mut Option<Observer<'_>>, point: ProbePoint, read: &Tensor<2>, residual: &Tensor<2>) -> bool {
    observer.as_deref_mut().is_some_and(|observe| observe(point, read, residual).is_break())
}
