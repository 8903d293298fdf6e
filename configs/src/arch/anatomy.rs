//! Anatomy of a decoder's layers beyond their sizes: every way in which the families differ.

use super::{LAYER_TYPES, NO_ROPE_LAYERS, Rope, Sizes, rope};
use crate::{ConfigError, NormPosition, keys::Keys};
use serde_json::Value;

/// Components of a decoder's layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Anatomy {
    /// Kind of every norm.
    pub norm: NormKind,
    /// `ε` of every norm.
    pub norm_eps: f64,
    /// Placement of the norms and of the residual connections in a layer.
    pub residual: Residual,
    /// Norms of queries and keys before the rotation.
    pub qk_norm: Option<QkNorm>,
    /// The feed-forward network.
    pub mlp: MlpKind,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
    /// Biases on the feed-forward linears.
    pub mlp_bias: bool,
    /// Rotary embeddings that depths refer to by index.
    pub ropes: Vec<Rope>,
    /// Rotary embedding and attention window of each depth of the unrolled stack.
    pub depths: Vec<DepthKind>,
    /// Attention scores are divided by the square root of this; `head_dim` in most families.
    pub query_pre_attn_scalar: f64,
    /// `c` of the soft cap `c·tanh(s/c)` on the scaled attention scores; `None` without a cap.
    pub attn_logit_softcapping: Option<f64>,
    /// `c` of the soft cap `c·tanh(z/c)` on the logits; `None` without a cap.
    pub final_logit_softcapping: Option<f64>,
    /// Factor that the embeddings are multiplied with before the first depth.
    pub embedding_scale: Option<f64>,
    /// True if the head uses the embedding matrix.
    pub tie_word_embeddings: bool,
}

/// Formula of a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) · w`.
    Rms,
    /// `x / rms(x) · (1 + w)`.
    RmsPlusOne,
    /// `(x − mean) / std · w + b`.
    Layer,
}

/// Residual structure of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// `x += attn(norm(x))`, `x += mlp(norm(x))`.
    PreNorm,
    /// `x += norm(attn(norm(x)))`, `x += norm(mlp(norm(x)))`.
    Sandwich,
    /// `x += norm(attn(x))`, `x += norm(mlp(x))`.
    PostNorm,
    /// `x + attn(norm(x)) + mlp(norm(x))`.
    Parallel,
}

/// Scope of the norm on queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head by itself, `head_dim` elements.
    Head,
    /// All heads of a token together.
    Full,
}

/// Activation function of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x·σ(x)`.
    Silu,
    /// GELU, tanh approximation.
    GeluTanh,
    /// GELU, exact (erf).
    Gelu,
}

/// Form of a feed-forward network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MlpKind {
    /// `down(act(gate(x)) · up(x))`.
    Gated(Activation),
    /// `down(act(up(x)))`.
    Plain(Activation),
}

/// Attention settings of one depth that may differ from those of other depths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DepthKind {
    /// Index into [`Anatomy::ropes`]; `None` where queries and keys are not rotated (NoPE).
    pub rope: Option<usize>,
    /// Sliding window: a token attends to itself and the `window − 1` tokens before it; `None` for
    /// full attention.
    pub window: Option<usize>,
}

impl Anatomy {
    /// Llama: RMSNorm before each part, SwiGLU without biases, one rotary embedding, full
    /// attention.
    pub(super) fn llama(keys: &Keys<'_>, sizes: Sizes) -> Result<Self, ConfigError> {
        keys.one_of("hidden_act", &["silu"])?;
        Ok(Self {
            norm: NormKind::Rms,
            norm_eps: keys.number("rms_norm_eps")?,
            residual: Residual::PreNorm,
            qk_norm: None,
            mlp: MlpKind::Gated(Activation::Silu),
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            ropes: vec![rope::read(keys, sizes.head_dim)?],
            depths: vec![DepthKind { rope: Some(0), window: None }; sizes.num_hidden_layers],
            query_pre_attn_scalar: sizes.head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            embedding_scale: None,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        })
    }

    /// Gemma: a Llama with norms by `1 + w`, GeGLU, and tied embeddings scaled by `√D`.
    pub(super) fn gemma(
        keys: &Keys<'_>,
        sizes: Sizes,
        activation: Activation,
        ropes: Vec<Rope>,
    ) -> Result<Self, ConfigError> {
        const BIDIRECTIONAL: &str = "use_bidirectional_attention";
        if let Some(found) = keys.present(BIDIRECTIONAL).filter(|found| **found != Value::Bool(false)) {
            return Err(keys.unsupported(BIDIRECTIONAL, found, "only causal language models are supported"));
        }
        let (head_dim, bias) = (sizes.head_dim, keys.flag("attention_bias")?);
        Ok(Self {
            norm: NormKind::RmsPlusOne,
            norm_eps: keys.number("rms_norm_eps")?,
            residual: Residual::PreNorm,
            qk_norm: None,
            mlp: MlpKind::Gated(activation),
            qkv_bias: bias,
            output_bias: bias,
            mlp_bias: false,
            ropes,
            depths: vec![DepthKind { rope: Some(0), window: None }; sizes.num_hidden_layers],
            query_pre_attn_scalar: head_dim as f64,
            attn_logit_softcapping: None,
            final_logit_softcapping: None,
            embedding_scale: Some((sizes.hidden_size as f64).sqrt()),
            tie_word_embeddings: keys.flag("tie_word_embeddings")?,
        })
    }

    /// The activation that `hidden_activation` names; `hidden_act` may only repeat it.
    pub(super) fn hidden_activation(keys: &Keys<'_>) -> Result<Activation, ConfigError> {
        let name = keys.one_of("hidden_activation", &["gelu_pytorch_tanh", "gelu"])?;
        if let Some(found) = keys.present("hidden_act").filter(|found| found.as_str() != Some(name)) {
            let hint = format!("`hidden_activation` is `{name}`, and counts in `transformers`: take `hidden_act` out");
            return Err(keys.unsupported("hidden_act", found, &hint));
        }
        match name {
            "gelu" => Ok(Activation::Gelu),
            _ => Ok(Activation::GeluTanh),
        }
    }

    /// Sets biases on all four linears of attention, or on none.
    pub(super) fn with_attention_bias(self, bias: bool) -> Self {
        Self { qkv_bias: bias, output_bias: bias, ..self }
    }

    /// Sets a sliding window at the depths that `layer_types` of the file calls
    /// `sliding_attention`, or, if the file has no such key, at those where `otherwise` is true.
    pub(super) fn with_windows(
        mut self,
        keys: &Keys<'_>,
        window: Option<usize>,
        otherwise: impl Fn(usize) -> bool,
    ) -> Result<Self, ConfigError> {
        let sliding = match layer_types(keys, self.depths.len())? {
            Some(sliding) => sliding,
            None => (0..self.depths.len()).map(otherwise).collect(),
        };
        for (depth, _) in self.depths.iter_mut().zip(sliding).filter(|(_, sliding)| *sliding) {
            depth.window =
                Some(window.ok_or(ConfigError::MissingKey { path: keys.path.to_owned(), key: "sliding_window" })?);
        }
        Ok(self)
    }

    /// Norms of a layer in the order of the forward pass, without those of queries and keys.
    #[must_use]
    pub fn layer_norms(&self) -> &'static [NormPosition] {
        use NormPosition::{Input, PostAttention, PostFeedforward, PreFeedforward};
        match self.residual {
            Residual::PreNorm | Residual::Parallel => &[Input, PostAttention],
            Residual::PostNorm => &[PostAttention, PostFeedforward],
            Residual::Sandwich => &[Input, PostAttention, PreFeedforward, PostFeedforward],
        }
    }

    /// Description of a depth's attention: `window of 512 tokens, rope base 10000`.
    #[must_use]
    pub fn describe(&self, kind: DepthKind) -> String {
        let sees = kind.window.map_or_else(|| "all tokens".to_owned(), |window| format!("window of {window} tokens"));
        let turns = kind.rope.map(|rope| format!("rope base {}", self.ropes[rope].theta));
        format!("{sees}, {}", turns.as_deref().unwrap_or("no rope"))
    }

    /// True if norms have a bias.
    #[must_use]
    pub fn norm_bias(&self) -> bool {
        self.norm == NormKind::Layer
    }

    /// JSON list for a key that has an entry for each depth.
    pub(super) fn depth_key(&self, key: &str) -> Value {
        let depths = self.depths.iter();
        match key {
            NO_ROPE_LAYERS => depths.map(|depth| u8::from(depth.rope.is_some())).collect(),
            _ => depths.map(|depth| if depth.window.is_some() { SLIDING } else { FULL }).collect(),
        }
    }
}

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// True for each depth with a sliding window; `None` if the file has no `layer_types`.
pub(super) fn layer_types(keys: &Keys<'_>, num_hidden_layers: usize) -> Result<Option<Vec<bool>>, ConfigError> {
    keys.per_depth(LAYER_TYPES, num_hidden_layers, |value| match value.as_str() {
        Some(FULL) => Ok(false),
        Some(SLIDING) => Ok(true),
        _ => Err(keys.unsupported(LAYER_TYPES, value, "supported: `full_attention`, `sliding_attention`")),
    })
}
