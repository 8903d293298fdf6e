//! One depth of the stack: where its norms stand, and what is added to what.

use crate::{
    attention::{Attention, AttentionAtDepth},
    extras::{Extras, scaled},
    kernels::{self, Layout},
    kv::Kv,
    mlp::{Mlp, MlpAtDepth},
    norm::{Norm, chosen},
    rope::RopeAngles,
};
use burn::{module::Module, tensor::Tensor};
use retie_config::{DepthKind, ModelConfig, Residual};

/// Stored weights, run by one depth or by several. Norms are absent where each depth has its own, and where the family has none.
#[derive(Module, Debug)]
pub struct Layer {
    pub input_layernorm: Option<Norm>,
    pub self_attn: Attention,
    pub post_attention_layernorm: Option<Norm>,
    pub pre_feedforward_layernorm: Option<Norm>,
    pub mlp: Mlp,
    pub post_feedforward_layernorm: Option<Norm>,
}

/// What belongs to one depth alone.
#[derive(Module, Debug)]
pub struct DepthWeights {
    pub input_layernorm: Option<Norm>,
    pub self_attn: AttentionAtDepth,
    pub post_attention_layernorm: Option<Norm>,
    pub pre_feedforward_layernorm: Option<Norm>,
    pub mlp: MlpAtDepth,
    pub post_feedforward_layernorm: Option<Norm>,
    pub extras: Extras,
}

impl DepthWeights {
    /// LoRA in place of DoRA.
    pub(crate) fn drop_magnitudes(&mut self) {
        let (attention, mlp) = (&mut self.self_attn, &mut self.mlp);
        let linears = [&mut attention.q_proj, &mut attention.k_proj, &mut attention.v_proj, &mut attention.o_proj];
        let linears = linears.into_iter().chain([&mut mlp.gate_proj, &mut mlp.up_proj, &mut mlp.down_proj]);
        linears.for_each(|linear| linear.lora_magnitude_vector = None);
    }

    /// What DoRA divides by, once and for all, in a model whose weights do not change.
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

/// What all depths of a forward pass know of its rows.
#[derive(Debug)]
pub struct Rows {
    pub(crate) layout: Layout,
    /// How often the positions of `angles` repeat.
    pub(crate) batch: usize,
    /// One for each rotation of the model.
    pub(crate) angles: Vec<RopeAngles>,
}

/// A depth about to run.
#[derive(Clone, Copy)]
pub(crate) struct Block<'a> {
    pub layer: &'a Layer,
    pub own: &'a DepthWeights,
    pub config: &'a ModelConfig,
    pub kind: DepthKind,
}

impl Block<'_> {
    /// `x [M, D]` → `[M, D]`, attending to the keys and values that `kv` says.
    pub fn forward(self, x: Tensor<2>, rows: &Rows, kv: Kv<'_>) -> Tensor<2> {
        let x = self.enter(x);
        let mixed = self.mix(self.attention_input(x.clone()), rows, kv);
        let attended = self.attention_output(mixed);
        if self.config.anatomy.residual == Residual::Parallel {
            let fed = self.feed_forward(self.mlp_input(x.clone()));
            return kernels::add(kernels::add(x, attended), fed);
        }
        let x = kernels::add(x, attended);
        let fed = self.feed_forward(self.mlp_input(x.clone()));
        kernels::add(x, fed)
    }

    /// The stream that the depth's parts read and add to, from what the depth before left.
    pub fn enter(self, x: Tensor<2>) -> Tensor<2> {
        self.own.extras.enter(x, &self.config.anatomy)
    }

    /// What q, k and v read.
    pub fn attention_input(self, x: Tensor<2>) -> Tensor<2> {
        match self.config.anatomy.residual {
            Residual::PostNorm => x,
            _ => self.norm(x, &self.layer.input_layernorm, &self.own.input_layernorm),
        }
    }

    /// What o reads.
    pub fn mix(self, x: Tensor<2>, rows: &Rows, kv: Kv<'_>) -> Tensor<2> {
        self.layer.self_attn.mix(x, &self.own.self_attn, self.config, self.kind, rows, kv)
    }

    /// What attention adds to the stream, from what o reads.
    pub fn attention_output(self, mixed: Tensor<2>) -> Tensor<2> {
        let out = self.layer.self_attn.o_proj.forward(mixed, &self.own.self_attn.o_proj);
        let out = match self.config.anatomy.residual {
            Residual::Sandwich | Residual::PostNorm => {
                self.norm(out, &self.layer.post_attention_layernorm, &self.own.post_attention_layernorm)
            }
            Residual::PreNorm | Residual::Parallel => out,
        };
        scaled(out, &self.own.extras.attention_scale)
    }

    /// What gate and up read.
    pub fn mlp_input(self, x: Tensor<2>) -> Tensor<2> {
        match self.config.anatomy.residual {
            Residual::PostNorm => x,
            Residual::Sandwich => {
                self.norm(x, &self.layer.pre_feedforward_layernorm, &self.own.pre_feedforward_layernorm)
            }
            Residual::PreNorm | Residual::Parallel => {
                self.norm(x, &self.layer.post_attention_layernorm, &self.own.post_attention_layernorm)
            }
        }
    }

    /// What down reads.
    pub fn inner(self, x: Tensor<2>) -> Tensor<2> {
        self.layer.mlp.inner(x, &self.own.mlp, self.config.anatomy.mlp)
    }

    /// What the feed-forward network adds to the stream, from what down reads.
    pub fn mlp_output(self, inner: Tensor<2>) -> Tensor<2> {
        self.after_mlp(self.layer.mlp.down_proj.forward(inner, &self.own.mlp.down_proj))
    }

    /// [`Block::mlp_output`] of [`Block::inner`], in one.
    fn feed_forward(self, x: Tensor<2>) -> Tensor<2> {
        self.after_mlp(self.layer.mlp.forward(x, &self.own.mlp, self.config.anatomy.mlp))
    }

    fn after_mlp(self, out: Tensor<2>) -> Tensor<2> {
        let out = match self.config.anatomy.residual {
            Residual::Sandwich | Residual::PostNorm => {
                self.norm(out, &self.layer.post_feedforward_layernorm, &self.own.post_feedforward_layernorm)
            }
            Residual::PreNorm | Residual::Parallel => out,
        };
        scaled(out, &self.own.extras.mlp_scale)
    }

    fn norm(self, x: Tensor<2>, stored: &Option<Norm>, own: &Option<Norm>) -> Tensor<2> {
        chosen(stored, own).forward(x, &self.config.anatomy)
    }
}
