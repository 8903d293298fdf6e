//! What will be written, from what: every tensor of the recursive model with its sources, before
//! any weight is read.

use crate::{ConvertError, SourceModel, init::layer_sources, kinds, ranks::named_ranks};
use retie_checkpoint::{Dtype, ProbePoint, TensorInfo, TensorSource, check_tensors};
use retie_config::{
    Compensation, Conversion, Depth, DepthExtra, Init, LayerIndex, LoraBase, LoraConfig, ModelConfig, Projection,
    RecursionConfig, ShareMap, Stack, StoredDtype, TensorInit, TensorNames, TensorOwner, TensorPart, TensorRole,
    TensorSpec,
};
use serde_json::json;
use std::collections::HashSet;

/// A tensor to write: the mean of its sources or what was fitted to them, and the factors that
/// correct it for each depth.
#[derive(Clone, Debug)]
pub(crate) struct PlannedTensor {
    pub name: String,
    pub info: TensorInfo,
    /// Names in the source; one is copied, more are averaged, or fitted to; none where there is a
    /// `start`.
    pub sources: Vec<String>,
    /// What every element is, of a tensor that has nothing in the source.
    pub start: Option<f32>,
    /// Whether the weight and its factors come from a calibration.
    pub fitted: bool,
    /// The linear whose weight it is.
    pub projection: Option<Projection>,
    /// The depths that run that linear.
    pub depths: Vec<Depth>,
    /// One for each depth of the tied group, when it has LoRA.
    pub factors: Vec<PlannedLora>,
}

impl PlannedTensor {
    /// True if factors stand in place of the weight, which is not written.
    pub fn is_replaced(&self) -> bool {
        self.factors.iter().any(|factors| factors.replaces)
    }

    /// The depths that run a linear, each with the weight of the source that it is compared with:
    /// its own, or the one source of all.
    pub fn depths_and_sources(&self) -> impl Iterator<Item = (&Depth, &String)> {
        self.depths.iter().zip(self.sources.iter().cycle())
    }

    /// The factors of a depth.
    pub fn factors_at(&self, depth: Depth) -> Option<&PlannedLora> {
        self.factors.iter().find(|factors| factors.depth == depth)
    }
}

/// The LoRA of one projection at one depth.
#[derive(Clone, Debug)]
pub(crate) struct PlannedLora {
    pub depth: Depth,
    pub layer: LayerIndex,
    pub projection: Projection,
    /// `[out, in]`.
    pub shape: [usize; 2],
    pub rank: usize,
    /// True if they stand in place of the weight, and correct nothing.
    pub replaces: bool,
    /// The weight of that depth in the source.
    pub source: String,
    pub a: (String, TensorInfo),
    pub b: (String, TensorInfo),
    /// Of DoRA, `[out]`, in F32 whatever the matrices are stored in.
    pub magnitudes: Option<(String, TensorInfo)>,
    /// A number that no other factors of the model have, for random draws. It rises with the depth.
    pub stream: u64,
}

/// The whole conversion.
#[derive(Clone, Debug)]
pub(crate) struct ConversionPlan {
    /// Configuration of the model that is written.
    pub config: ModelConfig,
    pub stack: Stack,
    /// For every stored layer, the source layers whose mean it is, or that it was fitted to.
    pub layer_sources: Vec<Vec<usize>>,
    pub tensors: Vec<PlannedTensor>,
    /// Source tensors that hold nothing the model needs, and are left out.
    pub redundant: Vec<String>,
}

impl ConversionPlan {
    /// Checks the source and the conversion against each other and lays out what will be written.
    pub fn new(source: SourceModel<'_>, conversion: &Conversion) -> Result<Self, ConvertError> {
        let SourceModel { tensors: source, config } = source;
        let Conversion { num_recursions, pattern, remainder, init, target, .. } = conversion;
        if let Some(recursion) = &config.recursion {
            let (sharing, num_recursions) = (recursion.sharing, recursion.num_recursions);
            return Err(ConvertError::AlreadyRecursive { sharing, num_recursions });
        }
        let stack = match &conversion.source_layers {
            Some(layers) => Stack::chosen(config.num_hidden_layers, layers)?,
            None => Stack::new(config.num_hidden_layers, *num_recursions, pattern, *remainder)?,
        };
        let lora = conversion.lora.as_ref().map(|lora| named_ranks(lora, config, stack.map())).transpose()?.flatten();
        check_tensors(config, source)?;
        let expected: HashSet<String> = config.tensors().iter().map(TensorSpec::name).collect();
        let redundant = source.names().into_iter().filter(|name| !expected.contains(*name));
        let redundant = redundant.map(str::to_owned).collect();
        let mut plan = Self {
            config: target_config(config, conversion, &stack, lora),
            layer_sources: layer_sources(&stack, *init, target.seed),
            stack,
            tensors: Vec::new(),
            redundant,
        };
        plan.config.validate()?;
        if !target.tie_across_kinds {
            kinds::check(&plan.config, plan.map())?;
        }
        plan.tensors = TensorPlanner::new(&plan, source, conversion).all();
        Ok(plan)
    }

    /// The same with other LoRA.
    pub fn with_lora(mut self, source: &dyn TensorSource, conversion: &Conversion, lora: LoraConfig) -> Self {
        if let Some(recursion) = &mut self.config.recursion {
            recursion.lora = Some(lora);
        }
        self.tensors = TensorPlanner::new(&self, source, conversion).all();
        self
    }

    /// True if kept layers are fitted to what removed layers computed.
    pub fn is_compensated(&self) -> bool {
        self.tensors.iter().any(|tensor| tensor.fitted)
            && self.config.recursion.as_ref().is_none_or(|recursion| recursion.init == Init::Select)
    }

    /// True if the LoRA of depths that run kept layers again is fitted: they are compensated, and
    /// gates are open.
    pub fn fits_loops(&self) -> bool {
        let open = |lora: &PlannedLora| self.gate(lora.depth) != Some(0.0);
        self.is_compensated() && self.tensors.iter().filter(|t| t.fitted).flat_map(|t| &t.factors).any(open)
    }

    /// True if factors stand in place of matrices.
    pub fn has_replaced(&self) -> bool {
        self.tensors.iter().any(PlannedTensor::is_replaced)
    }

    /// Start of the residual gates of a depth; `None` if it has none, or they are 1.
    pub fn gate(&self, depth: Depth) -> Option<f32> {
        let owner = TensorOwner::Depth(depth);
        let vectors = DepthExtra::ResidualScale.vectors().iter();
        let mut names = vectors.map(|vector| owner.weight(TensorRole::Extra(*vector)));
        let name = names.next()?;
        let planned = self.tensors.iter().find(|tensor| tensor.name == name)?;
        planned.start.filter(|start| *start != DepthExtra::ResidualScale.start())
    }

    /// Which stored layer each depth runs.
    pub fn map(&self) -> &ShareMap {
        self.stack.map()
    }

    /// The source layer that `depth` stands for.
    pub fn source_layer(&self, depth: Depth) -> LayerIndex {
        LayerIndex(self.stack.sources()[depth.0])
    }

    /// Name and type of everything that is written, in order: each shared weight is followed by its
    /// factors, so that one pass over the source makes both. Factors that replace a weight stand in
    /// its place.
    pub fn entries(&self) -> Vec<(String, TensorInfo)> {
        let mut entries = Vec::new();
        for tensor in &self.tensors {
            if !tensor.is_replaced() {
                entries.push((tensor.name.clone(), tensor.info.clone()));
            }
            for factors in &tensor.factors {
                entries.extend([factors.a.clone(), factors.b.clone()]);
                entries.extend(factors.magnitudes.clone());
            }
        }
        entries
    }
}

/// The configuration of the model that is written; one recursion gives a plain model, if its family
/// has the names that are written and no factors replace a matrix.
fn target_config(
    config: &ModelConfig,
    conversion: &Conversion,
    stack: &Stack,
    lora: Option<LoraConfig>,
) -> ModelConfig {
    let mut target = config.with_depths(stack.sources());
    let has_names = config.architecture.tensor_names == TensorNames::Llama;
    let is_plain = conversion.num_recursions == 1 && has_names && conversion.lora.is_none();
    target.recursion = (!is_plain).then(|| RecursionConfig {
        share_norms: conversion.target.share_norms,
        lora,
        extras: conversion.target.extras.clone(),
        kv_sharing: conversion.target.kv_sharing,
        ..RecursionConfig::from_share_map(stack.map(), conversion.init)
    });
    if let Some(dtype) = stored_dtype(conversion.target.dtype) {
        // `dtype` since transformers 5, `torch_dtype` before.
        let key = if target.other.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        target.other.insert(key.into(), json!(dtype.torch_name()));
    }
    target
}

/// The type to write; `None` keeps each tensor's (F32 for a mean over tensors of different types).
pub(crate) fn stored_dtype(dtype: StoredDtype) -> Option<Dtype> {
    match dtype {
        StoredDtype::Keep => None,
        StoredDtype::F32 => Some(Dtype::F32),
        StoredDtype::Bf16 => Some(Dtype::BF16),
        StoredDtype::F16 => Some(Dtype::F16),
    }
}

/// Plans each tensor of the target from its role.
struct TensorPlanner<'a> {
    plan: &'a ConversionPlan,
    source: &'a dyn TensorSource,
    dtype: Option<Dtype>,
    conversion: &'a Conversion,
}

impl<'a> TensorPlanner<'a> {
    fn new(plan: &'a ConversionPlan, source: &'a dyn TensorSource, conversion: &'a Conversion) -> Self {
        Self { plan, source, dtype: stored_dtype(conversion.target.dtype), conversion }
    }

    /// Every tensor in the order of the file. Factors and magnitudes go with the linear that they
    /// correct.
    fn all(&self) -> Vec<PlannedTensor> {
        let specs = self.plan.config.tensors_for(self.plan.map());
        // A matrix that factors replace is planned, too: they go with it.
        let mut whole = self.plan.config.clone();
        if let Some(recursion) = whole.recursion.as_mut().filter(|_| self.replaces()) {
            recursion.lora = None;
        }
        let all = whole.tensors_for(self.plan.map());
        let own = |init| !matches!(init, TensorInit::Residual | TensorInit::RowNorms);
        let mut kept: Vec<&TensorSpec> = all.iter().filter(|spec| own(spec.init)).collect();
        kept.sort_by_key(|spec| place_in_file(spec));
        kept.into_iter().map(|spec| self.tensor(spec, &specs)).collect()
    }

    /// True if the factors of the target replace matrices.
    fn replaces(&self) -> bool {
        let recursion = self.plan.config.recursion.as_ref();
        recursion.and_then(|recursion| recursion.lora.as_ref()).is_some_and(|lora| lora.base == LoraBase::None)
    }

    fn tensor(&self, spec: &TensorSpec, specs: &[TensorSpec]) -> PlannedTensor {
        let sources = self.sources(spec);
        let start = match spec.init {
            TensorInit::Constant(value) => Some(self.gate(spec).unwrap_or(value)),
            _ => None,
        };
        let dtype = match start {
            // As the embeddings are.
            Some(_) => self.stored_dtype(&[TensorOwner::Model.weight(TensorRole::Embedding)]),
            None => self.stored_dtype(&sources),
        };
        let mut tensor = PlannedTensor {
            name: spec.name(),
            info: TensorInfo { dtype, shape: spec.shape.clone() },
            sources,
            start,
            fitted: false,
            projection: None,
            depths: Vec::new(),
            factors: Vec::new(),
        };
        if let (TensorRole::Projection(projection), TensorPart::Weight, TensorOwner::Layer(layer)) =
            (spec.role, spec.part, spec.owner)
        {
            let map = self.plan.map();
            tensor.projection = Some(projection);
            tensor.depths = map.depths_of(layer);
            let factors = tensor.depths.iter().filter_map(|depth| self.lora(layer, *depth, projection, dtype, specs));
            tensor.factors = factors.collect();
            tensor.fitted = match self.conversion.init {
                Init::Calibrated => map.is_shared(layer) || tensor.is_replaced(),
                _ => self.compensates(projection),
            };
        }
        tensor
    }

    /// True if a linear of kept layers is fitted to make up for removed layers.
    fn compensates(&self, projection: Projection) -> bool {
        self.conversion.compensation == Compensation::LeastSquares
            && !self.plan.stack.dropped().is_empty()
            && ProbePoint::read_by(projection).writes_residual(&self.plan.config)
    }

    /// Start of the residual gates of a recursion after the first, of a selection.
    fn gate(&self, spec: &TensorSpec) -> Option<f32> {
        let TensorRole::Extra(vector) = spec.role else { return None };
        let TensorOwner::Depth(depth) = spec.owner else { return None };
        let is_later = self.plan.map().depths()[depth.0].recursion > Some(0);
        let is_gate = DepthExtra::ResidualScale.vectors().contains(&vector);
        (self.conversion.init == Init::Select && is_later && is_gate).then_some(self.conversion.gate)
    }

    /// The tensors of the source that one of the target is copied from, or is the mean of.
    fn sources(&self, spec: &TensorSpec) -> Vec<String> {
        if spec.init != TensorInit::Source {
            return Vec::new();
        }
        let from = |layer| TensorOwner::Layer(layer).tensor_name(spec.role, spec.part);
        match spec.owner {
            TensorOwner::Layer(layer) => {
                self.plan.layer_sources[layer.0].iter().map(|source| from(LayerIndex(*source))).collect()
            }
            TensorOwner::Depth(depth) => vec![from(self.plan.source_layer(depth))],
            TensorOwner::Model | TensorOwner::Router(..) => vec![spec.name()],
        }
    }

    /// What was asked for, or the type of the sources; F32 if they differ.
    fn stored_dtype(&self, sources: &[String]) -> Dtype {
        let mut dtypes = sources.iter().filter_map(|source| Some(self.source.info(source)?.dtype));
        let first = dtypes.next().unwrap_or(Dtype::F32);
        let common = if dtypes.all(|dtype| dtype == first) { first } else { Dtype::F32 };
        self.dtype.unwrap_or(common)
    }

    /// The LoRA of a linear at a depth, if it has any there.
    fn lora(
        &self,
        layer: LayerIndex,
        depth: Depth,
        projection: Projection,
        dtype: Dtype,
        specs: &[TensorSpec],
    ) -> Option<PlannedLora> {
        let find = |role: TensorRole, dtype: Dtype| {
            let spec = specs.iter().find(|spec| spec.owner == TensorOwner::Depth(depth) && spec.role == role)?;
            Some((spec.name(), TensorInfo { dtype, shape: spec.shape.clone() }))
        };
        let a = find(TensorRole::LoraA(projection), dtype)?;
        let weight = TensorRole::Projection(projection);
        let shapes = self.plan.config.projection_shapes();
        // Linears are numbered as the model has them, so that a seed keeps its draws.
        let number = shapes.iter().position(|(other, _)| *other == projection)?;
        Some(PlannedLora {
            depth,
            layer,
            projection,
            shape: self.plan.config.projection_shape(projection),
            rank: a.1.shape[0],
            replaces: self.replaces(),
            source: TensorOwner::Layer(self.plan.source_layer(depth)).weight(weight),
            a,
            b: find(TensorRole::LoraB(projection), dtype)?,
            magnitudes: find(TensorRole::Magnitude(projection), Dtype::F32),
            stream: (depth.0 * Projection::ALL.len() + number) as u64,
        })
    }
}

/// Order of the file: embeddings, layers, what depths own, end. All norms and biases of depths come
/// before the extras.
fn place_in_file(spec: &TensorSpec) -> usize {
    match (spec.owner, spec.role) {
        (_, TensorRole::Embedding) => 0,
        (TensorOwner::Layer(_), _) => 1,
        (TensorOwner::Depth(_), TensorRole::Extra(_)) => 3,
        (TensorOwner::Depth(_), _) => 2,
        (TensorOwner::Router(..), _) => 4,
        (TensorOwner::Model, _) => 5,
    }
}
