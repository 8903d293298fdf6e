//! What will be written, from what: every tensor of the recursive model with its sources, before any weight is read.

use crate::{ConvertError, ConvertOptions, init::layer_sources, kinds, ranks::named_ranks};
use retie_checkpoint::{
    Dtype, EMBEDDINGS, FINAL_NORM, FINAL_NORM_BIAS, LM_HEAD, MAGNITUDES, TensorInfo, TensorSource, check_tensors,
    depth_tensor, expected_tensors, extra_vectors, layer_tensor,
};
use retie_config::{
    Depth, Init, LayerIndex, LoraConfig, ModelConfig, RecursionConfig, Relax, ShareMap, Stack, TensorNames,
};
use serde_json::json;
use std::collections::HashSet;

/// A tensor to write: the mean of its sources or what was fitted to them, and the factors that correct it for each depth.
#[derive(Clone, Debug)]
pub(crate) struct PlannedTensor {
    pub name: String,
    pub info: TensorInfo,
    /// Names in the source; one is copied, more are averaged, or fitted to; none where there is a `start`.
    pub sources: Vec<String>,
    /// What every element is, of a tensor that has nothing in the source.
    pub start: Option<f32>,
    /// Whether the weight and its factors come from a calibration.
    pub fitted: bool,
    /// Of a linear, its position in the configuration's `projection_shapes`.
    pub projection: Option<usize>,
    /// Of a linear, the depths that run it.
    pub depths: Vec<Depth>,
    /// One for each depth of the tied group, when it has LoRA.
    pub factors: Vec<PlannedFactors>,
}

impl PlannedTensor {
    /// The factors of a depth.
    pub fn factors_at(&self, depth: Depth) -> Option<&PlannedFactors> {
        self.factors.iter().find(|factors| factors.depth == depth)
    }
}

/// The LoRA of one projection at one depth.
#[derive(Clone, Debug)]
pub(crate) struct PlannedFactors {
    pub depth: Depth,
    pub layer: LayerIndex,
    /// Position in the configuration's `projection_shapes`.
    pub projection: usize,
    /// `[out, in]`.
    pub shape: [usize; 2],
    pub rank: usize,
    /// The weight of that depth in the source.
    pub source: String,
    pub a: (String, TensorInfo),
    pub b: (String, TensorInfo),
    /// Of DoRA, `[out]`, in F32 whatever the matrices are stored in.
    pub magnitudes: Option<(String, TensorInfo)>,
}

impl PlannedFactors {
    /// A number that no other factors of the model have.
    pub fn stream(&self) -> u64 {
        (self.depth.0 * ModelConfig::PROJECTIONS.len() + self.projection) as u64
    }
}

/// The whole conversion.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Configuration of the model that is written.
    pub config: ModelConfig,
    pub stack: Stack,
    /// For every stored layer, the source layers whose mean it is, or that it was fitted to.
    pub layer_sources: Vec<Vec<usize>>,
    pub tensors: Vec<PlannedTensor>,
    /// Source tensors that hold nothing the model needs, and are left out.
    pub redundant: Vec<String>,
}

impl Plan {
    /// Checks the source and the options against each other and lays out what will be written.
    pub fn new(
        source: &dyn TensorSource,
        config: &ModelConfig,
        options: &ConvertOptions,
    ) -> Result<Self, ConvertError> {
        if let Some(recursion) = &config.recursion {
            let (sharing, num_recursions) = (recursion.sharing, recursion.num_recursions);
            return Err(ConvertError::AlreadyRecursive { sharing, num_recursions });
        }
        let stack = Stack::new(config.num_hidden_layers, options.recursions, &options.pattern, options.fit)?;
        if options.init == Init::Calibrated && options.recursions == 1 {
            return Err(ConvertError::CalibratedWithoutSharing);
        }
        let wants_lora = options.has_ranks() || options.lora_budget.is_some();
        if wants_lora && options.recursions == 1 {
            return Err(ConvertError::LoraWithoutSharing);
        }
        if !options.extras.is_empty() && options.recursions == 1 {
            return Err(ConvertError::ExtrasWithoutSharing);
        }
        if options.has_ranks() && options.lora_budget.is_some() {
            return Err(ConvertError::BudgetAndRanks);
        }
        let lora = options.has_ranks().then(|| named_ranks(options, config, stack.map())).transpose()?;
        check_tensors(config, source)?;
        let expected = expected_tensors(config)?;
        let expected: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let redundant = source.names().into_iter().filter(|name| !expected.contains(name)).map(str::to_owned).collect();
        let mut plan = Self {
            config: target_config(config, options, &stack, lora),
            layer_sources: layer_sources(&stack, options.init, options.seed),
            stack,
            tensors: Vec::new(),
            redundant,
        };
        if !options.tie_across_kinds {
            kinds::check(&plan.config, plan.map())?;
        }
        plan.tensors = Tensors { plan: &plan, source, dtype: options.dtype, init: options.init }.all();
        Ok(plan)
    }

    /// The same with other LoRA.
    pub fn with_lora(mut self, source: &dyn TensorSource, options: &ConvertOptions, lora: LoraConfig) -> Self {
        if let Some(recursion) = &mut self.config.recursion {
            recursion.lora = Some(lora);
        }
        let tensors = Tensors { plan: &self, source, dtype: options.dtype, init: options.init }.all();
        self.tensors = tensors;
        self
    }

    /// Which stored layer each depth runs.
    pub fn map(&self) -> &ShareMap {
        self.stack.map()
    }

    /// The source layer that `depth` stands for.
    pub fn source_layer(&self, depth: Depth) -> LayerIndex {
        LayerIndex(self.stack.sources()[depth.0])
    }

    /// Name and type of everything that is written, in order: each shared weight is followed by its factors, so that one pass
    /// over the source makes both.
    pub fn entries(&self) -> Vec<(String, TensorInfo)> {
        let mut entries = Vec::new();
        for tensor in &self.tensors {
            entries.push((tensor.name.clone(), tensor.info.clone()));
            let of = |factors: &PlannedFactors| {
                [Some(factors.a.clone()), Some(factors.b.clone()), factors.magnitudes.clone()]
            };
            entries.extend(tensor.factors.iter().flat_map(of).flatten());
        }
        entries
    }
}

/// The configuration of the model that is written; one recursion gives a plain model, if its family has the names that are written.
fn target_config(
    config: &ModelConfig,
    options: &ConvertOptions,
    stack: &Stack,
    lora: Option<LoraConfig>,
) -> ModelConfig {
    let mut target = config.with_depths(stack.sources());
    let is_plain = options.recursions == 1 && config.architecture.tensor_names == TensorNames::Llama;
    target.recursion = (!is_plain).then(|| RecursionConfig {
        share_norms: options.share_norms,
        lora,
        extras: options.extras.clone(),
        ..RecursionConfig::of(stack.map(), options.init)
    });
    if let Some(dtype) = options.dtype {
        // `dtype` since transformers 5, `torch_dtype` before.
        let key = if target.other.contains_key("dtype") { "dtype" } else { "torch_dtype" };
        target.other.insert(key.into(), json!(torch_name(dtype)));
    }
    target
}

fn torch_name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "float32",
        Dtype::BF16 => "bfloat16",
        Dtype::F16 => "float16",
    }
}

/// Lays out the tensors of a plan.
struct Tensors<'a> {
    plan: &'a Plan,
    source: &'a dyn TensorSource,
    dtype: Option<Dtype>,
    init: Init,
}

impl Tensors<'_> {
    fn all(&self) -> Vec<PlannedTensor> {
        let (config, map) = (&self.plan.config, self.plan.map());
        let own_vectors = config.recursion.as_ref().is_some_and(|r| !r.share_norms);
        let lora = config.recursion.as_ref().and_then(|r| r.lora.as_ref());
        let table = vec![config.vocab_size, config.hidden_size];
        let mut tensors = vec![self.copy(EMBEDDINGS, &table)];
        for (index, sources) in self.plan.layer_sources.iter().enumerate() {
            let layer = LayerIndex(index);
            let from = |part: &str| sources.iter().map(|s| layer_tensor(LayerIndex(*s), part)).collect::<Vec<_>>();
            for (projection, (name, shape)) in config.projection_shapes().into_iter().enumerate() {
                let part = format!("{name}.weight");
                let mut tensor = self.tensor(layer_tensor(layer, &part), &shape, from(&part));
                (tensor.projection, tensor.depths) = (Some(projection), map.depths_of(layer));
                tensor.fitted = self.init == Init::Calibrated && map.is_shared(layer);
                if let Some(lora) = lora.filter(|_| map.is_shared(layer)) {
                    tensor.factors = self.factors(layer, (projection, name), shape, tensor.info.dtype, lora);
                }
                tensors.push(tensor);
            }
            if !own_vectors {
                for (part, size) in config.layer_vectors() {
                    tensors.push(self.tensor(layer_tensor(layer, &part), &[size], from(&part)));
                }
            }
        }
        if own_vectors {
            for depth in (0..map.num_depths()).map(Depth) {
                for (part, size) in config.layer_vectors() {
                    let from = vec![layer_tensor(self.plan.source_layer(depth), &part)];
                    tensors.push(self.tensor(depth_tensor(depth, &part), &[size], from));
                }
            }
        }
        for step in map.depths() {
            let extras = extra_vectors(config, map, step);
            tensors.extend(extras.map(|(name, start)| self.constant(name, config.hidden_size, start)));
        }
        tensors.push(self.copy(FINAL_NORM, &[config.hidden_size]));
        if config.anatomy.norm_bias() {
            tensors.push(self.copy(FINAL_NORM_BIAS, &[config.hidden_size]));
        }
        if !config.anatomy.tie_word_embeddings {
            tensors.push(self.copy(LM_HEAD, &table));
        }
        tensors
    }

    fn copy(&self, name: &str, shape: &[usize]) -> PlannedTensor {
        self.tensor(name.to_owned(), shape, vec![name.to_owned()])
    }

    fn tensor(&self, name: String, shape: &[usize], sources: Vec<String>) -> PlannedTensor {
        let mut dtypes = sources.iter().filter_map(|source| Some(self.source.info(source)?.dtype));
        let first = dtypes.next().unwrap_or(Dtype::F32);
        let common = if dtypes.all(|dtype| dtype == first) { first } else { Dtype::F32 };
        let info = TensorInfo { dtype: self.dtype.unwrap_or(common), shape: shape.to_vec() };
        PlannedTensor {
            name,
            info,
            sources,
            start: None,
            fitted: false,
            projection: None,
            depths: Vec::new(),
            factors: Vec::new(),
        }
    }

    /// A vector that is the same everywhere, in the type of the embeddings.
    fn constant(&self, name: String, size: usize, start: f32) -> PlannedTensor {
        let like = self.copy(EMBEDDINGS, &[size]);
        PlannedTensor { name, sources: Vec::new(), start: Some(start), ..like }
    }

    fn factors(
        &self,
        layer: LayerIndex,
        (projection, part): (usize, &str),
        [out, inp]: [usize; 2],
        dtype: Dtype,
        lora: &LoraConfig,
    ) -> Vec<PlannedFactors> {
        let named = |depth, which: &str, shape| {
            (depth_tensor(depth, &format!("{part}.{which}.weight")), TensorInfo { dtype, shape })
        };
        let depths = self.plan.map().depths_of(layer).into_iter();
        depths
            .map(|depth| (depth, lora.rank_at(depth, part, [out, inp])))
            .filter(|(_, rank)| *rank > 0)
            .map(|(depth, rank)| PlannedFactors {
                depth,
                layer,
                projection,
                shape: [out, inp],
                rank,
                source: layer_tensor(self.plan.source_layer(depth), &format!("{part}.weight")),
                a: named(depth, "lora_A", vec![rank, inp]),
                b: named(depth, "lora_B", vec![out, rank]),
                magnitudes: (lora.relax == Relax::Dora).then(|| {
                    let info = TensorInfo { dtype: Dtype::F32, shape: vec![out] };
                    (depth_tensor(depth, &format!("{part}.{MAGNITUDES}")), info)
                }),
            })
            .collect()
    }
}
