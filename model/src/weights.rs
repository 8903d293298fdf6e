//! Checkpoint tensors → parameters, and parameters → checkpoint tensors.

use crate::{
    ModelError,
    attention::{Attention, AttentionAtDepth},
    block::{DepthWeights, Layer},
    causal_lm::{CausalLm, Decoder, Plan, Table},
    extras::Extras,
    kernels::{f32_slice, is_cpu},
    linear::{Factor, Linear, LinearAtDepth},
    mlp::{Mlp, MlpAtDepth},
    norm::Norm,
    rope::RopeFrequencies,
    router::Router,
};
use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Device, FloatDType, Tensor, TensorData},
};
use half::bf16;
use retie_checkpoint::{
    CheckpointError, Dtype, FINAL_NORM, FINAL_NORM_BIAS, MAGNITUDES, RouterKind, TensorSource, check_tensors,
    num_routers, router_tensor, share_map,
};
use retie_config::{DepthPlan, ModelConfig, Precision};
use std::sync::Arc;

/// In what type matrices are held in memory. Norms and biases are f32, as is everything that is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// f32.
    F32,
    /// bf16, rounded to nearest even where the checkpoint holds more. Sums are f32; devices other than the CPU round what is multiplied
    /// with it to bf16 too, and the product.
    Bf16,
    /// bf16 where the checkpoint holds bf16 and the device is the CPU, else f32: no weight is rounded.
    #[default]
    Auto,
}

/// Reads parts of a checkpoint.
pub(crate) struct Loader<'a> {
    pub tensors: &'a dyn TensorSource,
    pub device: &'a Device,
    pub dtype: WeightDtype,
}

impl Loader<'_> {
    /// A parameter; on an autodiff device it wants gradients.
    pub fn param<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>, CheckpointError> {
        let (stored, shape) = match self.tensors.info(name) {
            Some(info) => (info.dtype, info.shape.clone()),
            None => (Dtype::F32, Vec::new()), // reading it will say so
        };
        let bf16 = match self.dtype {
            WeightDtype::F32 => false,
            WeightDtype::Bf16 => D == 2,
            WeightDtype::Auto => D == 2 && stored == Dtype::BF16 && is_cpu(self.device),
        };
        let tensor = if bf16 {
            let values: Vec<bf16> = match stored {
                Dtype::BF16 => {
                    self.tensors.bytes(name)?.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect()
                }
                _ => self.tensors.read_f32(name)?.into_iter().map(bf16::from_f32).collect(),
            };
            Tensor::from_data(TensorData::new(values, shape), (self.device, DType::BF16))
        } else {
            Tensor::from_data(TensorData::new(self.tensors.read_f32(name)?, shape), self.device)
        };
        let tensor = if self.device.is_autodiff() { tensor.require_grad() } else { tensor };
        Ok(Param::initialized(burn::module::ParamId::new(), tensor))
    }

    fn optional<const D: usize>(&self, name: &str) -> Result<Option<Param<Tensor<D>>>, CheckpointError> {
        self.tensors.info(name).map(|_| self.param(name)).transpose()
    }

    fn norm(&self, name: &str) -> Result<Option<Norm>, CheckpointError> {
        let bias = self.optional(&format!("{name}.bias"))?;
        Ok(self.optional(&format!("{name}.weight"))?.map(|weight| Norm { weight, bias }))
    }

    /// The norm after the last depth.
    pub fn final_norm(&self) -> Result<Norm, CheckpointError> {
        Ok(Norm { weight: self.param(FINAL_NORM)?, bias: self.optional(FINAL_NORM_BIAS)? })
    }

    fn linear(&self, name: &str) -> Result<Linear, CheckpointError> {
        let (weight, bias) = (self.param(&format!("{name}.weight"))?, self.optional(&format!("{name}.bias"))?);
        Ok(Linear { weight, bias, precision: Precision::default() })
    }

    fn optional_linear(&self, name: &str) -> Result<Option<Linear>, CheckpointError> {
        self.tensors.info(&format!("{name}.weight")).map(|_| self.linear(name)).transpose()
    }

    fn linear_at_depth(&self, name: &str) -> Result<LinearAtDepth, CheckpointError> {
        let factor = |part: &str| {
            Ok::<_, CheckpointError>(self.optional(&format!("{name}.{part}.weight"))?.map(|weight| Factor { weight }))
        };
        Ok(LinearAtDepth {
            lora_A: factor("lora_A")?,
            lora_B: factor("lora_B")?,
            lora_magnitude_vector: self.optional(&format!("{name}.{MAGNITUDES}"))?,
            bias: self.optional(&format!("{name}.bias"))?,
            row_norms: None,
        })
    }

    /// A stored layer.
    pub fn layer(&self, index: usize) -> Result<Layer, CheckpointError> {
        let at = |part: &str| format!("model.layers.{index}.{part}");
        Ok(Layer {
            input_layernorm: self.norm(&at("input_layernorm"))?,
            self_attn: Attention {
                q_proj: self.linear(&at("self_attn.q_proj"))?,
                k_proj: self.linear(&at("self_attn.k_proj"))?,
                v_proj: self.linear(&at("self_attn.v_proj"))?,
                o_proj: self.linear(&at("self_attn.o_proj"))?,
                q_norm: self.norm(&at("self_attn.q_norm"))?,
                k_norm: self.norm(&at("self_attn.k_norm"))?,
            },
            post_attention_layernorm: self.norm(&at("post_attention_layernorm"))?,
            pre_feedforward_layernorm: self.norm(&at("pre_feedforward_layernorm"))?,
            mlp: Mlp {
                gate_proj: self.optional_linear(&at("mlp.gate_proj"))?,
                up_proj: self.linear(&at("mlp.up_proj"))?,
                down_proj: self.linear(&at("mlp.down_proj"))?,
            },
            post_feedforward_layernorm: self.norm(&at("post_feedforward_layernorm"))?,
        })
    }

    /// The routers of a kind, in f32 whatever the other matrices are held in.
    fn routers(&self, kind: RouterKind, config: &ModelConfig) -> Result<Vec<Router>, CheckpointError> {
        let exact = Self { dtype: WeightDtype::F32, ..*self };
        let table = |weight| Table { weight };
        let router = |r| {
            Ok(Router {
                up_proj: exact.optional(&router_tensor(kind, r, "up_proj.weight"))?.map(table),
                out_proj: table(exact.param(&router_tensor(kind, r, "out_proj.weight"))?),
            })
        };
        (0..num_routers(kind, config)).map(router).collect()
    }

    /// What a depth that runs `layer` owns; empty in a plain model.
    pub fn depth(&self, index: usize, layer: &Layer) -> Result<DepthWeights, CheckpointError> {
        let at = |part: &str| format!("model.depths.{index}.{part}");
        let mut own = DepthWeights {
            input_layernorm: self.norm(&at("input_layernorm"))?,
            self_attn: AttentionAtDepth {
                q_proj: self.linear_at_depth(&at("self_attn.q_proj"))?,
                k_proj: self.linear_at_depth(&at("self_attn.k_proj"))?,
                v_proj: self.linear_at_depth(&at("self_attn.v_proj"))?,
                o_proj: self.linear_at_depth(&at("self_attn.o_proj"))?,
                q_norm: self.norm(&at("self_attn.q_norm"))?,
                k_norm: self.norm(&at("self_attn.k_norm"))?,
            },
            post_attention_layernorm: self.norm(&at("post_attention_layernorm"))?,
            pre_feedforward_layernorm: self.norm(&at("pre_feedforward_layernorm"))?,
            mlp: MlpAtDepth {
                gate_proj: self.linear_at_depth(&at("mlp.gate_proj"))?,
                up_proj: self.linear_at_depth(&at("mlp.up_proj"))?,
                down_proj: self.linear_at_depth(&at("mlp.down_proj"))?,
            },
            post_feedforward_layernorm: self.norm(&at("post_feedforward_layernorm"))?,
            extras: Extras {
                loop_embedding: self.optional(&at("extras.loop_embedding"))?,
                loop_norm: self.optional(&at("extras.loop_norm"))?,
                attention_scale: self.optional(&at("extras.attention_scale"))?,
                mlp_scale: self.optional(&at("extras.mlp_scale"))?,
            },
        };
        if !self.device.is_autodiff() {
            own.keep_row_norms(layer);
        }
        Ok(own)
    }
}

impl CausalLm {
    /// Reads every parameter of `config` from `tensors` in f32. On an autodiff device each wants gradients.
    ///
    /// # Errors
    /// When tensors are missing, unexpected or of another shape (all of them in one error), or a file cannot be read.
    pub fn load(config: &ModelConfig, tensors: &dyn TensorSource, device: &Device) -> Result<Self, ModelError> {
        Self::load_with(config, tensors, device, WeightDtype::F32)
    }

    /// As [`CausalLm::load`], for inference with matrices held as `dtype` says.
    ///
    /// # Errors
    /// As [`CausalLm::load`], and for [`WeightDtype::Bf16`] on a device without bf16, or one with autodiff.
    pub fn load_with(
        config: &ModelConfig,
        tensors: &dyn TensorSource,
        device: &Device,
        dtype: WeightDtype,
    ) -> Result<Self, ModelError> {
        let has_bf16 = is_cpu(device) || device.supports_dtype(FloatDType::BF16);
        if dtype == WeightDtype::Bf16 && (!has_bf16 || device.is_autodiff()) {
            return Err(ModelError::Bf16OnDevice);
        }
        check_tensors(config, tensors)?;
        let share_map = share_map(config)?;
        let loader = Loader { tensors, device, dtype };
        let table = |name: &str| Ok::<_, ModelError>(Table { weight: loader.param(name)? });
        let layers: Vec<_> = (0..share_map.num_layers()).map(|i| loader.layer(i)).collect::<Result<_, _>>()?;
        let depth = |step: &DepthPlan| loader.depth(step.depth.0, &layers[step.layer.0]);
        let depths = share_map.depths().iter().map(depth).collect::<Result<_, _>>()?;
        let model = Decoder {
            embed_tokens: table("model.embed_tokens.weight")?,
            layers,
            depths,
            routers: loader.routers(RouterKind::Main, config)?,
            auxiliary_routers: loader.routers(RouterKind::Auxiliary, config)?,
            norm: loader.final_norm()?,
        };
        let lm_head = (!config.anatomy.tie_word_embeddings).then(|| table("lm_head.weight")).transpose()?;
        let ropes = RopeFrequencies::all(config);
        let num_depths = share_map.num_depths();
        Ok(Self { model, lm_head, plan: Arc::new(Plan { config: config.clone(), share_map, num_depths, ropes }) })
    }

    /// Names and shapes of all parameters, in the order of the module tree.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        self.for_each_parameter(|name, param| list.push((name.to_owned(), param.shape())));
        list
    }

    /// Calls `f` with the name and a handle of each parameter. Values are read from the device when asked for.
    pub fn for_each_parameter(&self, f: impl FnMut(&str, ParameterView<'_>)) {
        struct Visitor<F> {
            path: Vec<String>,
            f: F,
        }
        impl<F: FnMut(&str, ParameterView<'_>)> ModuleVisitor for Visitor<F> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                let shape = param.val().dims().to_vec();
                let read = || f32_slice(&param.val().inner().into_data()).to_vec();
                (self.f)(&self.path.join("."), ParameterView { shape, read: &read });
            }
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_owned());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
        }
        self.visit(&mut Visitor { path: Vec::new(), f });
    }
}

/// A parameter's shape, and its values on demand.
pub struct ParameterView<'a> {
    shape: Vec<usize>,
    read: &'a dyn Fn() -> Vec<f32>,
}

impl ParameterView<'_> {
    /// Row-major shape.
    #[must_use]
    pub fn shape(&self) -> Vec<usize> {
        self.shape.clone()
    }

    /// The values, copied from the device.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        (self.read)()
    }
}
