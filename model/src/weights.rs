//! Loading of checkpoint tensors into parameters, and read access to parameters by tensor name.

use crate::{
    ModelError,
    attention::{Attention, AttentionAtDepth},
    block::{DepthWeights, Layer},
    causal_lm::{CausalLm, Decoder, DecoderSpec, Table},
    extras::Extras,
    kernels::{f32_slice, kernels_of},
    linear::{Factor, Linear, LinearAtDepth},
    mlp::{Mlp, MlpAtDepth},
    named::{NamedVisitor, visit_named},
    norm::Norm,
    rope::RopeFrequencies,
    router::Router,
    steps::{Step, StepLoader},
};
use burn::{
    module::Param,
    tensor::{DType, Device, Tensor, TensorData},
};
use half::bf16;
use retie_checkpoint::{CheckpointError, Dtype, TensorSource, check_tensors};
use retie_config::{
    Depth, DepthAssignment, ExtraVector, LayerIndex, ModelConfig, NormPosition, Precision, Projection, RouterKind,
    StepConfig, TensorOwner, TensorRole, TensorSpec,
};
use std::sync::Arc;

/// Data type of matrices in memory. Norms, biases and all results of computation are f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightDtype {
    /// f32.
    F32,
    /// bf16, rounded to nearest even where the checkpoint is more precise. Sums are f32. Devices
    /// other than the CPU also round the other factor and the product to bf16.
    Bf16,
    /// bf16 if the checkpoint holds bf16 and the device is the CPU, else f32: no weight is rounded.
    #[default]
    Auto,
}

impl WeightDtype {
    /// Whether a tensor of `rank` dimensions that is `stored` so is held in bf16 on `device`.
    fn is_bf16(self, rank: usize, stored: Dtype, device: &Device) -> bool {
        match self {
            Self::F32 => false,
            Self::Bf16 => rank == 2,
            Self::Auto => rank == 2 && stored == Dtype::BF16 && kernels_of(device).keeps_bf16_weights(),
        }
    }
}

/// Loader of parts of a checkpoint.
pub(crate) struct Loader<'a> {
    pub tensors: &'a dyn TensorSource,
    pub device: &'a Device,
    pub dtype: WeightDtype,
}

impl Loader<'_> {
    /// Parameter by tensor name; it requires gradients on an autodiff device.
    pub fn param<const D: usize>(&self, name: &str) -> Result<Param<Tensor<D>>, CheckpointError> {
        let (stored, shape) = match self.tensors.info(name) {
            Some(info) => (info.dtype, info.shape.clone()),
            None => (Dtype::F32, Vec::new()), // reading it will say so
        };
        let tensor = if self.dtype.is_bf16(D, stored, self.device) {
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

    /// Parameter by tensor name; `None` if the checkpoint does not have it.
    pub(crate) fn optional<const D: usize>(&self, name: &str) -> Result<Option<Param<Tensor<D>>>, CheckpointError> {
        self.tensors.info(name).map(|_| self.param(name)).transpose()
    }

    fn norm(&self, owner: TensorOwner, position: NormPosition) -> Result<Option<Norm>, CheckpointError> {
        let role = TensorRole::Norm(position);
        let bias = self.optional(&owner.bias(role))?;
        Ok(self.optional(&owner.weight(role))?.map(|weight| Norm { weight, bias }))
    }

    /// Norm after the last depth.
    pub fn final_norm(&self) -> Result<Norm, CheckpointError> {
        let (owner, role) = (TensorOwner::Model, TensorRole::FinalNorm);
        Ok(Norm { weight: self.param(&owner.weight(role))?, bias: self.optional(&owner.bias(role))? })
    }

    /// Weight of the head, `[V, D]`.
    pub fn head(&self, config: &ModelConfig) -> Result<Param<Tensor<2>>, CheckpointError> {
        self.param(&TensorOwner::Model.weight(config.head_role()))
    }

    fn linear(&self, layer: LayerIndex, projection: Projection) -> Result<Linear, CheckpointError> {
        let (owner, role) = (TensorOwner::Layer(layer), TensorRole::Projection(projection));
        let (weight, bias) = (self.optional(&owner.weight(role))?, self.optional(&owner.bias(role))?);
        Ok(Linear { weight, bias, precision: Precision::default() })
    }

    /// LoRA, magnitudes and bias of a depth. A linear that is `stored` without weight has to have
    /// both factors.
    fn linear_at_depth(
        &self,
        depth: Depth,
        projection: Projection,
        stored: Option<&Linear>,
    ) -> Result<LinearAtDepth, CheckpointError> {
        let owner = TensorOwner::Depth(depth);
        let is_replaced = stored.is_some_and(|stored| stored.weight.is_none());
        let factor = |role| {
            let name = owner.weight(role);
            let found = if is_replaced { Some(self.param(&name)?) } else { self.optional(&name)? };
            Ok::<_, CheckpointError>(found.map(|weight| Factor { weight }))
        };
        Ok(LinearAtDepth {
            lora_A: factor(TensorRole::LoraA(projection))?,
            lora_B: factor(TensorRole::LoraB(projection))?,
            lora_magnitude_vector: self.optional(&owner.weight(TensorRole::Magnitude(projection)))?,
            bias: self.optional(&owner.bias(TensorRole::Projection(projection)))?,
            row_norms: None,
        })
    }

    /// Weights of a stored layer of `config`.
    pub fn layer(&self, layer: LayerIndex, config: &ModelConfig) -> Result<Layer, CheckpointError> {
        let norm = |position| self.norm(TensorOwner::Layer(layer), position);
        let linear = |projection| self.linear(layer, projection);
        let [q_proj, k_proj, v_proj] =
            self.adjoined([linear(Projection::Q)?, linear(Projection::K)?, linear(Projection::V)?]);
        let gate_proj = config.has_projection(Projection::Gate).then(|| linear(Projection::Gate)).transpose()?;
        let up_proj = linear(Projection::Up)?;
        let (gate_proj, up_proj) = match gate_proj {
            Some(gate_proj) => {
                let [gate_proj, up_proj] = self.adjoined([gate_proj, up_proj]);
                (Some(gate_proj), up_proj)
            }
            None => (None, up_proj),
        };
        Ok(Layer {
            input_layernorm: norm(NormPosition::Input)?,
            self_attn: Attention {
                q_proj,
                k_proj,
                v_proj,
                o_proj: linear(Projection::O)?,
                q_norm: norm(NormPosition::Query)?,
                k_norm: norm(NormPosition::Key)?,
            },
            post_attention_layernorm: norm(NormPosition::PostAttention)?,
            pre_feedforward_layernorm: norm(NormPosition::PreFeedforward)?,
            mlp: Mlp { gate_proj, up_proj, down_proj: linear(Projection::Down)? },
            post_feedforward_layernorm: norm(NormPosition::PostFeedforward)?,
        })
    }

    /// Linears that read the same rows, whose weights, if they are not trained, stand where the
    /// kernels of the device find them as one.
    fn adjoined<const N: usize>(&self, mut linears: [Linear; N]) -> [Linear; N] {
        let weights: Option<Vec<_>> = linears.iter().map(|linear| Some(linear.weight.as_ref()?.val())).collect();
        if let Some(weights) = weights {
            for (linear, weight) in linears.iter_mut().zip(kernels_of(self.device).adjoined(weights)) {
                linear.weight = linear.weight.take().map(|param| param.map(|_| weight));
            }
        }
        linears
    }

    /// Routers of one kind, in f32 whatever the data type of the other matrices.
    fn routers(&self, kind: RouterKind, config: &ModelConfig) -> Result<Vec<Router>, CheckpointError> {
        let exact = Self { dtype: WeightDtype::F32, ..*self };
        let table = |weight| Table { weight };
        let router = |index| {
            let owner = TensorOwner::Router(kind, index);
            Ok(Router {
                up_proj: exact.optional(&owner.weight(TensorRole::RouterUp))?.map(table),
                out_proj: table(exact.param(&owner.weight(TensorRole::RouterOut))?),
            })
        };
        (0..config.num_routers(kind)).map(router).collect()
    }

    /// Weights of a depth that runs `layer` in a recursion with the row `step`; all `None` in a
    /// plain model.
    pub fn depth(
        &self,
        depth: Depth,
        layer: &Layer,
        step: Option<&StepConfig>,
    ) -> Result<DepthWeights, CheckpointError> {
        let norm = |position| self.norm(TensorOwner::Depth(depth), position);
        let linear = |projection, stored| self.linear_at_depth(depth, projection, stored);
        let (attention, mlp) = (&layer.self_attn, &layer.mlp);
        let extra = |vector| self.optional(&TensorOwner::Depth(depth).weight(TensorRole::Extra(vector)));
        let mut own = DepthWeights {
            input_layernorm: norm(NormPosition::Input)?,
            self_attn: AttentionAtDepth {
                q_proj: linear(Projection::Q, Some(&attention.q_proj))?,
                k_proj: linear(Projection::K, Some(&attention.k_proj))?,
                v_proj: linear(Projection::V, Some(&attention.v_proj))?,
                o_proj: linear(Projection::O, Some(&attention.o_proj))?,
                q_norm: norm(NormPosition::Query)?,
                k_norm: norm(NormPosition::Key)?,
            },
            post_attention_layernorm: norm(NormPosition::PostAttention)?,
            pre_feedforward_layernorm: norm(NormPosition::PreFeedforward)?,
            mlp: MlpAtDepth {
                gate_proj: linear(Projection::Gate, mlp.gate_proj.as_ref())?,
                up_proj: linear(Projection::Up, Some(&mlp.up_proj))?,
                down_proj: linear(Projection::Down, Some(&mlp.down_proj))?,
            },
            post_feedforward_layernorm: norm(NormPosition::PostFeedforward)?,
            extras: Extras {
                loop_embedding: extra(ExtraVector::LoopEmbedding)?,
                loop_norm: extra(ExtraVector::LoopNorm)?,
                attention_scale: extra(ExtraVector::AttentionScale)?,
                mlp_scale: extra(ExtraVector::MlpScale)?,
            },
            step: Step::load(step, &StepLoader { loader: &Self { dtype: WeightDtype::F32, ..*self }, depth })?,
        };
        if !self.device.is_autodiff() {
            own.keep_row_norms(layer);
        }
        Ok(own)
    }
}

impl CausalLm {
    /// Reads every parameter of `config` from `tensors` in f32. On an autodiff device the
    /// parameters require gradients.
    ///
    /// # Errors
    /// When tensors are missing, unexpected or of another shape (all of them in one error), or a
    /// file cannot be read.
    pub fn load(config: &ModelConfig, tensors: &dyn TensorSource, device: &Device) -> Result<Self, ModelError> {
        Self::load_with(config, tensors, device, WeightDtype::F32)
    }

    /// Reads a model for inference as [`CausalLm::load`] does, with matrices held as `dtype`.
    ///
    /// # Errors
    /// As [`CausalLm::load`], and for [`WeightDtype::Bf16`] on a device without bf16 or with
    /// autodiff.
    pub fn load_with(
        config: &ModelConfig,
        tensors: &dyn TensorSource,
        device: &Device,
        dtype: WeightDtype,
    ) -> Result<Self, ModelError> {
        let has_bf16 = kernels_of(device).has_bf16(device);
        if dtype == WeightDtype::Bf16 && (!has_bf16 || device.is_autodiff()) {
            return Err(ModelError::Bf16OnDevice);
        }
        check_tensors(config, tensors)?;
        config.validate()?;
        let share_map = config.share_map();
        let loader = Loader { tensors, device, dtype };
        let table = |role| Ok::<_, ModelError>(Table { weight: loader.param(&TensorOwner::Model.weight(role))? });
        let indices = (0..share_map.num_layers()).map(LayerIndex);
        let layers: Vec<_> = indices.map(|layer| loader.layer(layer, config)).collect::<Result<_, _>>()?;
        let row = |depth: &DepthAssignment| config.recursion.as_ref().and_then(|recursion| recursion.step(depth));
        let depth = |at: &DepthAssignment| loader.depth(at.depth, &layers[at.layer.0], row(at));
        let depths = share_map.depths().iter().map(depth).collect::<Result<_, _>>()?;
        let model = Decoder {
            embed_tokens: table(TensorRole::Embedding)?,
            layers,
            depths,
            routers: loader.routers(RouterKind::Main, config)?,
            auxiliary_routers: loader.routers(RouterKind::Auxiliary, config)?,
            norm: loader.final_norm()?,
        };
        let lm_head = (!config.anatomy.tie_word_embeddings).then(|| table(TensorRole::Head)).transpose()?;
        let ropes = RopeFrequencies::all(config);
        Ok(Self { model, lm_head, spec: Arc::new(DecoderSpec { config: config.clone(), share_map, ropes }) })
    }

    /// Bytes that the weights of `config` take when [`CausalLm::load_with`] has read them.
    #[must_use]
    pub fn weight_bytes(
        config: &ModelConfig,
        tensors: &dyn TensorSource,
        device: &Device,
        dtype: WeightDtype,
    ) -> usize {
        let bytes = |spec: &TensorSpec| {
            let stored = tensors.info(&spec.name()).map_or(Dtype::F32, |info| info.dtype);
            spec.num_elements() * if dtype.is_bf16(spec.shape.len(), stored, device) { 2 } else { 4 }
        };
        config.tensors().iter().map(bytes).sum()
    }

    /// Names and shapes of all parameters, in the order of the module tree.
    #[must_use]
    pub fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        let mut list = Vec::new();
        self.for_each_parameter(|name, param| list.push((name.to_owned(), param.shape())));
        list
    }

    /// Calls `f` with the name and a view of each parameter. Values are copied from the device only
    /// on request.
    pub fn for_each_parameter(&self, f: impl FnMut(&str, ParameterView<'_>)) {
        struct Visitor<F>(F);
        impl<F: FnMut(&str, ParameterView<'_>)> NamedVisitor for Visitor<F> {
            fn visit<const D: usize>(&mut self, name: &str, param: &Param<Tensor<D>>) {
                let shape = param.val().dims().to_vec();
                let read = || f32_slice(&param.val().inner().into_data()).to_vec();
                (self.0)(name, ParameterView { shape, read: &read });
            }
        }
        visit_named(self, &mut Visitor(f));
    }
}

/// View of a parameter: its shape, and its values on request.
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

    /// Row-major values, copied from the device.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        (self.read)()
    }
}
