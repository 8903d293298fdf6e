//! Tensors of `adapter_model.safetensors`, made of a recursive model.

use crate::{
    format::ExportModel,
    round::narrow_f64,
    unrolled::{residual_scale, scaled_rows},
};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow, widen};
use retie_config::{Depth, LayerIndex, ModelConfig, Projection, TensorOwner, TensorRole, TensorSpec};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Prefix that peft gives to the names of the model's modules.
pub(super) const PREFIX: &str = "base_model.model.";

/// A linear of a depth with LoRA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Linear {
    pub depth: Depth,
    pub projection: Projection,
    pub rank: usize,
}

impl Linear {
    /// The name of its module in the base, such as `model.layers.3.self_attn.q_proj`.
    pub fn module(&self) -> String {
        let weight = self.layer().weight(TensorRole::Projection(self.projection));
        weight.trim_end_matches(".weight").to_owned()
    }

    fn layer(&self) -> TensorOwner {
        TensorOwner::Layer(LayerIndex(self.depth.0))
    }
}

/// The linears with LoRA, in the order of the forward pass.
pub(super) fn linears(config: &ModelConfig) -> Vec<Linear> {
    let factor = |spec: TensorSpec| match (spec.owner, spec.role) {
        (TensorOwner::Depth(depth), TensorRole::LoraA(projection)) => {
            Some(Linear { depth, projection, rank: spec.shape[0] })
        }
        _ => None,
    };
    config.tensors().into_iter().filter_map(factor).collect()
}

/// The adapter, as a [`TensorSource`] under its own names.
pub(crate) struct Adapter<'a> {
    source: &'a dyn TensorSource,
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    info: TensorInfo,
    /// Tensor of the model that it is made of.
    stored: String,
    /// Residual scale that its rows take, if any.
    scale: Option<String>,
}

impl<'a> Adapter<'a> {
    /// That of `model`, whose tensors have been checked. Magnitudes stay in the type that they
    /// have.
    pub fn new(model: ExportModel<'a>, dtype: Option<Dtype>, linears: &[Linear]) -> Self {
        let source = model.tensors;
        let mut tensors = BTreeMap::new();
        for linear in linears {
            let Linear { depth, projection, .. } = *linear;
            let scale = residual_scale(&model, depth, TensorRole::Projection(projection));
            let roles = [TensorRole::LoraA, TensorRole::LoraB, TensorRole::Magnitude].map(|role| role(projection));
            let [_, b, magnitude] = roles;
            let stored = |role| TensorOwner::Depth(depth).weight(role);
            let last = if source.info(&stored(magnitude)).is_some() { magnitude } else { b };
            for role in roles {
                let Some(found) = source.info(&stored(role)) else { continue };
                let dtype = dtype.filter(|_| role != magnitude).unwrap_or(found.dtype);
                let info = TensorInfo { dtype, shape: found.shape.clone() };
                let name = format!("{PREFIX}{}", linear.layer().weight(role));
                let scale = scale.clone().filter(|_| role == last);
                tensors.insert(name, Tensor { info, stored: stored(role), scale });
            }
        }
        Self { source, tensors }
    }

    fn elements(&self, name: &str, dtype: Option<Dtype>) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let missing =
            || CheckpointError::NoTensor { path: self.source.path_of(name).to_owned(), tensor: name.to_owned() };
        let Tensor { info, stored, scale } = self.tensors.get(name).ok_or_else(missing)?;
        let dtype = dtype.unwrap_or(info.dtype);
        let Some(scale) = scale else {
            return match self.source.info(stored).is_some_and(|info| info.dtype == dtype) {
                true => self.source.bytes(stored),
                false => Ok(narrow(&self.source.read_f32(stored)?, dtype).into()),
            };
        };
        let scaled = scaled_rows(&self.source.read_f32(stored)?, &self.source.read_f32(scale)?);
        Ok(narrow_f64(&scaled, dtype).into())
    }
}

impl TensorSource for Adapter<'_> {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name).map(|tensor| &tensor.info)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(self.tensors.get(name).map_or(name, |tensor| &tensor.stored))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.elements(name, None)
    }

    /// Values before they are rounded to the type of [`TensorSource::info`].
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        Ok(widen(&self.elements(name, Some(Dtype::F32))?, Dtype::F32))
    }
}
