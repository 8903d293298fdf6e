//! A recursive checkpoint as the plain model that computes the same.
//!
//! Depth `d` of the recursive model, which runs stored layer `i`, becomes layer `d`:
//!
//! | tensor of layer `d` | made of |
//! |---|---|
//! | a linear | that of layer `i`, if any, with the LoRA or DoRA of the depth ([`crate::merge`]) |
//! | norms, biases | those of the depth, or of layer `i` if they are shared |
//! | the last linear or norm of each part | times the residual scale of the depth, if it has one |
//!
//! A residual scale `s` multiplies what attention or the feed-forward network adds to the residual
//! stream. That is the output of `o_proj` or `down_proj`, whose rows and bias it multiplies, or in
//! families with a norm behind the part that of the norm: `w ← s ⊙ w`, and where norms are stored
//! as `w` for `1 + w`, `w ← s ⊙ (1 + w) − 1`.

use crate::{ExportError, format::ExportModel, merge::Parts, obstacles, round::narrow_f64};
use retie_checkpoint::{CheckpointError, Dtype, TensorInfo, TensorSource, narrow, widen};
use retie_config::{
    Depth, ExtraVector, ModelConfig, NormKind, NormPosition, Projection, Residual, ShareMap, TensorOwner, TensorPart,
    TensorRole, TensorSpec,
};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// The plain model of a recursive one, as a [`TensorSource`] under the names of the checkpoint
/// layout. Its tensors are computed when they are read.
pub struct Unrolled<'a> {
    source: &'a dyn TensorSource,
    config: ModelConfig,
    tensors: BTreeMap<String, Tensor>,
}

struct Tensor {
    info: TensorInfo,
    /// Stored tensor that it is made of.
    stored: String,
    change: Change,
}

/// Difference of a tensor from the stored one.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// A linear with names of its factors `A` and `B`, its magnitudes and its scale.
    Linear {
        factors: Option<[String; 2]>,
        magnitudes: Option<String>,
        scale: Option<String>,
    },
    /// A norm or bias times the tensor `scale`; the norm may be stored less 1.
    Scaled {
        scale: String,
        plus_one: bool,
    },
}

/// Numbers of tensors of an [`Unrolled`] model by what they are made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Linears with LoRA or DoRA.
    pub merged: usize,
    /// Linears, norms and biases with a residual scale.
    pub scaled: usize,
}

impl<'a> Unrolled<'a> {
    /// Unrolls `model`, whose tensors have been checked, for the format of name `format`. `dtype`
    /// is the type of every tensor; without it each has the type of the stored one.
    ///
    /// # Errors
    /// When no plain model of the family computes the same (every reason is listed), or a tensor
    /// cannot be read.
    pub fn new(model: ExportModel<'a>, dtype: Option<Dtype>, format: &'static str) -> Result<Self, ExportError> {
        Self::with(model, dtype, format, Lora::Merged)
    }

    /// [`Unrolled::new`] without the LoRA of the depths, and without the residual scales that their
    /// magnitudes take.
    ///
    /// # Errors
    /// As [`Unrolled::new`].
    pub(crate) fn without_lora(
        model: ExportModel<'a>,
        dtype: Option<Dtype>,
        format: &'static str,
    ) -> Result<Self, ExportError> {
        Self::with(model, dtype, format, Lora::Beside)
    }

    fn with(
        model: ExportModel<'a>,
        dtype: Option<Dtype>,
        format: &'static str,
        lora: Lora,
    ) -> Result<Self, ExportError> {
        let reasons = obstacles::of_unrolling(&model)?;
        if !reasons.is_empty() {
            let hint = obstacles::hint_of_unrolling(model.config).to_owned();
            return Err(ExportError::CannotHold { format, reasons, hint });
        }
        let (source, config) = (model.tensors, model.config.unrolled());
        let depths = Depths { model: &model, map: model.config.share_map(), lora };
        let tensor = |spec: TensorSpec| {
            let (stored, change) = depths.origin(&spec);
            let factor = match &change {
                Change::Linear { factors: Some([a, _]), .. } => source.info(a),
                _ => None,
            };
            let found = source.info(&stored).or(factor)?;
            let info = TensorInfo { dtype: dtype.unwrap_or(found.dtype), shape: spec.shape.clone() };
            Some((spec.name(), Tensor { info, stored, change }))
        };
        let tensors = config.tensors().into_iter().filter_map(tensor).collect();
        Ok(Self { source, config, tensors })
    }

    /// Configuration of the plain model.
    #[must_use]
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Numbers of changed tensors.
    pub(crate) fn changes(&self) -> Changes {
        let mut changes = Changes::default();
        for tensor in self.tensors.values() {
            match &tensor.change {
                Change::None => {}
                Change::Scaled { .. } => changes.scaled += 1,
                Change::Linear { factors, scale, .. } => {
                    changes.merged += usize::from(factors.is_some());
                    changes.scaled += usize::from(scale.is_some());
                }
            }
        }
        changes
    }

    fn tensor(&self, name: &str) -> Result<&Tensor, CheckpointError> {
        let path = || self.source.path_of(name).to_owned();
        self.tensors.get(name).ok_or_else(|| CheckpointError::NoTensor { path: path(), tensor: name.to_owned() })
    }

    /// Elements of a tensor in `dtype`.
    fn elements(&self, tensor: &Tensor, dtype: Dtype) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let read = |name: &String| self.source.read_f32(name);
        match &tensor.change {
            Change::None => match self.source.info(&tensor.stored).is_some_and(|info| info.dtype == dtype) {
                true => self.source.bytes(&tensor.stored),
                false => Ok(narrow(&read(&tensor.stored)?, dtype).into()),
            },
            Change::Scaled { scale, plus_one } => {
                let (stored, scale) = (read(&tensor.stored)?, read(scale)?);
                let one = f64::from(u8::from(*plus_one));
                let scaled = stored.iter().zip(&scale).map(|(w, s)| (f64::from(*w) + one) * f64::from(*s) - one);
                Ok(narrow_f64(&scaled.collect::<Vec<_>>(), dtype).into())
            }
            Change::Linear { factors, magnitudes, scale } => {
                let weight = match self.source.info(&tensor.stored) {
                    Some(_) => read(&tensor.stored)?,
                    None => vec![0.0; tensor.info.shape.iter().product()], // the factors are all of it
                };
                let parts = Parts {
                    weight,
                    inp: tensor.info.shape.last().copied().unwrap_or(0),
                    factors: factors
                        .as_ref()
                        .map(|[a, b]| Ok::<_, CheckpointError>([read(a)?, read(b)?]))
                        .transpose()?,
                    magnitudes: magnitudes.as_ref().map(read).transpose()?,
                    scale: scale.as_ref().map(read).transpose()?,
                };
                Ok(parts.merged(dtype).into())
            }
        }
    }
}

impl TensorSource for Unrolled<'_> {
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
        let tensor = self.tensor(name)?;
        self.elements(tensor, tensor.info.dtype)
    }

    /// Values before they are rounded to the type of [`TensorSource::info`].
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        Ok(widen(&self.elements(self.tensor(name)?, Dtype::F32)?, Dtype::F32))
    }
}

/// Place of the LoRA of the depths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lora {
    /// In the linears.
    Merged,
    /// Not in the plain model.
    Beside,
}

/// The recursive model, by depth.
struct Depths<'m> {
    model: &'m ExportModel<'m>,
    map: ShareMap,
    lora: Lora,
}

impl Depths<'_> {
    /// Stored tensor and change of a tensor of the plain model.
    fn origin(&self, spec: &TensorSpec) -> (String, Change) {
        let TensorOwner::Layer(layer) = spec.owner else { return (spec.name(), Change::None) };
        let config = self.model.config;
        if config.recursion.is_none() {
            return (spec.name(), Change::None);
        }
        let step = self.map.depths()[layer.0];
        let is_weight = spec.part == TensorPart::Weight;
        let of_layer = TensorOwner::Layer(step.layer).tensor_name(spec.role, spec.part);
        match spec.role {
            TensorRole::Projection(projection) if is_weight => (of_layer, self.linear(step.depth, projection)),
            _ => {
                let of_depth = TensorOwner::Depth(step.depth).tensor_name(spec.role, spec.part);
                let stored = if config.has_depth_vectors() { of_depth } else { of_layer };
                let plus_one = is_weight && config.anatomy.norm == NormKind::RmsPlusOne;
                let scale = residual_scale(self.model, step.depth, spec.role);
                (stored, scale.map_or(Change::None, |scale| Change::Scaled { scale, plus_one }))
            }
        }
    }

    fn linear(&self, depth: Depth, projection: Projection) -> Change {
        let stored = |role| {
            let name = TensorOwner::Depth(depth).weight(role);
            Some(name).filter(|name| self.model.tensors.info(name).is_some())
        };
        let factors = stored(TensorRole::LoraA(projection)).zip(stored(TensorRole::LoraB(projection)));
        let magnitudes = stored(TensorRole::Magnitude(projection));
        let scale = residual_scale(self.model, depth, TensorRole::Projection(projection));
        let (factors, magnitudes, scale) = match self.lora {
            Lora::Merged => (factors, magnitudes, scale),
            Lora::Beside => (None, None, scale.filter(|_| magnitudes.is_none())),
        };
        if factors.is_none() && scale.is_none() {
            return Change::None;
        }
        Change::Linear { factors: factors.map(|(a, b)| [a, b]), magnitudes, scale }
    }
}

/// True if an extra vector is merged into linears or norms ([`residual_scale`]).
pub(crate) fn is_merged(vector: ExtraVector) -> bool {
    match vector {
        ExtraVector::AttentionScale | ExtraVector::MlpScale => true,
        ExtraVector::LoopEmbedding | ExtraVector::LoopNorm => false,
    }
}

/// Residual scale that a linear or norm of a depth takes: the last one of its part.
pub(crate) fn residual_scale(model: &ExportModel<'_>, depth: Depth, role: TensorRole) -> Option<String> {
    let last = match model.config.anatomy.residual {
        Residual::PreNorm | Residual::Parallel => [Projection::O, Projection::Down].map(TensorRole::Projection),
        Residual::Sandwich | Residual::PostNorm => {
            [NormPosition::PostAttention, NormPosition::PostFeedforward].map(TensorRole::Norm)
        }
    };
    let vectors = [ExtraVector::AttentionScale, ExtraVector::MlpScale];
    let (_, vector) = last.into_iter().zip(vectors).find(|(last, _)| *last == role)?;
    let name = TensorOwner::Depth(depth).weight(TensorRole::Extra(vector));
    model.tensors.info(&name).is_some().then_some(name)
}

/// The rows of `matrix [out, n]` times `scale [out]`.
pub(crate) fn scaled_rows(matrix: &[f32], scale: &[f32]) -> Vec<f64> {
    let rows = matrix.chunks((matrix.len() / scale.len().max(1)).max(1)).zip(scale);
    rows.flat_map(|(row, scale)| row.iter().map(|x| f64::from(*x) * f64::from(*scale))).collect()
}
