//! Tensor specification of a model: one list from which everything that handles tensors by name
//! derives.
//!
//! [`ModelConfig::tensors`] gives a [`TensorSpec`] for each tensor of a checkpoint: its role
//! ([`TensorRole`]), its owner ([`TensorOwner`]), its shape and its initial values. Its name is
//! Hugging Face's and follows from role and owner. A plain model of any family has
//! `model.embed_tokens.weight` `[V, D]`, `model.layers.{i}.…`, `model.norm.weight` `[D]` and,
//! unless the embeddings are tied, `lm_head.weight` `[V, D]`. A recursive model has the same, with
//! `i` counting stored layers, and per-depth tensors under `model.depths.{d}.…`:
//!
//! | tensor | of a layer | of a depth |
//! |---|---|---|
//! | linears `[out, in]` | always, unless factors replace it | never |
//! | norms `[D]`, biases `[out]` | if shared, or not recursive | if not `share_norms` |
//! | extras `[D]` | never | at the depths of their kind |
//! | `lora_A.weight` `[r, in]`, `lora_B.weight` `[out, r]` | never | where LoRA has a rank |
//! | `lora_magnitude_vector` `[out]` | never | the same, with DoRA |
//! | `step.…` | never | where a [mechanism](crate::Mechanism) of its recursion has them |
//!
//! Norms of queries and keys are `[H]`, or as wide as all heads together. Only depths of shared
//! layers have LoRA; of a model whose LoRA has no base, only those of unshared ones, in place of
//! the linear.
//!
//! Routers have tensors under `model.routers.{r}.…` and `model.auxiliary_routers.{r}.…`: see
//! [`RouterKind`].

mod role;
mod routers;
#[cfg(test)]
mod tests;

pub use role::{NormPosition, Projection, TensorOwner, TensorPart, TensorRole};
pub use routers::RouterKind;

use crate::{
    DepthAssignment, LayerIndex, LoraBase, LoraConfig, ModelConfig, ParameterGroup, Place, Relax, ShareMap, StepConfig,
    StepTensor,
};
use role::TensorPart::{Bias, Weight};

/// One tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorSpec {
    /// Layer, depth or router that it belongs to, or the model.
    pub owner: TensorOwner,
    /// Its role in the owner.
    pub role: TensorRole,
    /// Weight or bias.
    pub part: TensorPart,
    /// Row-major shape; linears are `[out, in]`.
    pub shape: Vec<usize>,
    /// Initial values, before any training.
    pub init: TensorInit,
    /// Parameter group of the optimizer.
    pub group: ParameterGroup,
}

impl TensorSpec {
    /// Name in a checkpoint, and path of the parameter in the module tree.
    #[must_use]
    pub fn name(&self) -> String {
        self.owner.tensor_name(self.role, self.part)
    }

    /// Number of elements.
    #[must_use]
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Initial values of a tensor of a converted model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum TensorInit {
    /// Computed from the tensors of the same role in the source model.
    Source,
    /// LoRA factors that best approximate the residual of tying. A direction without residual has a
    /// random row of `A` and a zero column of `B`.
    Residual,
    /// Norms of the rows of the weight with its LoRA, `‖W' + B A‖` (DoRA magnitudes).
    RowNorms,
    /// Every element has this value.
    Constant(f32),
    /// Drawn from `N(0, std²)`.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl ModelConfig {
    /// Every tensor of a checkpoint of this model, in the order of the forward pass: embeddings,
    /// layers, depths, routers, final norm, head.
    #[must_use]
    pub fn tensors(&self) -> Vec<TensorSpec> {
        self.tensors_for(&self.share_map())
    }

    /// [`ModelConfig::tensors`] for a given share map.
    #[must_use]
    pub fn tensors_for(&self, map: &ShareMap) -> Vec<TensorSpec> {
        let mut list = TensorList { map, specs: Vec::new() };
        let table = [self.vocab_size, self.hidden_size];
        list.add(TensorOwner::Model, TensorRole::Embedding, Weight, &table, TensorInit::Source);
        for layer in (0..map.num_layers()).map(LayerIndex) {
            let owner = TensorOwner::Layer(layer);
            for (projection, shape) in self.projection_shapes() {
                if !self.is_replaced(layer, projection, map) {
                    list.add(owner, TensorRole::Projection(projection), Weight, &shape, TensorInit::Source);
                }
            }
            if !self.has_depth_vectors() {
                self.add_layer_vectors(owner, &mut list);
            }
        }
        for step in map.depths() {
            if self.has_depth_vectors() {
                self.add_layer_vectors(TensorOwner::Depth(step.depth), &mut list);
            }
            self.add_extras(step, &mut list);
            self.add_lora(step, &mut list);
            self.add_step(step, &mut list);
        }
        self.add_routers(&mut list);
        list.add(TensorOwner::Model, TensorRole::FinalNorm, Weight, &[self.hidden_size], TensorInit::Source);
        if self.anatomy.norm_bias() {
            list.add(TensorOwner::Model, TensorRole::FinalNorm, Bias, &[self.hidden_size], TensorInit::Source);
        }
        if !self.anatomy.tie_word_embeddings {
            list.add(TensorOwner::Model, TensorRole::Head, Weight, &table, TensorInit::Source);
        }
        list.specs
    }

    /// Role of the matrix that the head uses: the embeddings if they are tied.
    #[must_use]
    pub fn head_role(&self) -> TensorRole {
        if self.anatomy.tie_word_embeddings { TensorRole::Embedding } else { TensorRole::Head }
    }

    /// True if norms and biases belong to depths instead of layers.
    #[must_use]
    pub fn has_depth_vectors(&self) -> bool {
        self.recursion.as_ref().is_some_and(|recursion| !recursion.share_norms)
    }

    /// True if a pair of factors stands in place of the matrix of a linear.
    #[must_use]
    pub fn is_replaced(&self, layer: LayerIndex, projection: Projection, map: &ShareMap) -> bool {
        let steps = map.depths().iter().filter(|step| step.layer == layer);
        let mut loras = steps.filter_map(|step| Some((step.depth, self.lora_at(step, map)?)));
        let shape = self.projection_shape(projection);
        loras.any(|(depth, lora)| lora.base == LoraBase::None && lora.rank_at(depth, projection, shape) > 0)
    }

    /// LoRA of a depth, if it may have it.
    pub(crate) fn lora_at(&self, step: &DepthAssignment, map: &ShareMap) -> Option<&LoraConfig> {
        self.recursion.as_ref()?.lora.as_ref().filter(|lora| lora.is_on(map, step.layer))
    }

    /// Adds norms and biases of a layer (shared norms) or of a depth.
    fn add_layer_vectors(&self, owner: TensorOwner, list: &mut TensorList<'_>) {
        for (role, part, size) in self.layer_vectors() {
            list.add(owner, role, part, &[size], TensorInit::Source);
        }
    }

    fn add_extras(&self, step: &DepthAssignment, list: &mut TensorList<'_>) {
        let (extras, map) = (self.recursion.iter().flat_map(|recursion| &recursion.extras), list.map);
        for extra in extras.filter(|extra| extra.is_at(map, step)) {
            for vector in extra.vectors() {
                let (role, start) = (TensorRole::Extra(*vector), TensorInit::Constant(extra.start()));
                list.add(TensorOwner::Depth(step.depth), role, Weight, &[self.hidden_size], start);
            }
        }
    }

    fn add_step(&self, depth: &DepthAssignment, list: &mut TensorList<'_>) {
        let Some(recursion) = &self.recursion else { return };
        let place = Place { model: self, recursion, map: list.map, depth };
        for mechanism in recursion.step(depth).into_iter().flat_map(StepConfig::mechanisms) {
            for StepTensor { path, part, shape, init } in mechanism.parameters().tensors(&place) {
                list.add(TensorOwner::Depth(depth.depth), TensorRole::Step(path), part, &shape, init);
            }
        }
    }

    fn add_lora(&self, step: &DepthAssignment, list: &mut TensorList<'_>) {
        let Some(lora) = self.lora_at(step, list.map) else { return };
        let owner = TensorOwner::Depth(step.depth);
        for (projection, [out, inp]) in self.projection_shapes() {
            let rank = lora.rank_at(step.depth, projection, [out, inp]);
            if rank == 0 {
                continue;
            }
            list.add(owner, TensorRole::LoraA(projection), Weight, &[rank, inp], TensorInit::Residual);
            list.add(owner, TensorRole::LoraB(projection), Weight, &[out, rank], TensorInit::Residual);
            if lora.relax == Relax::Dora {
                list.add(owner, TensorRole::Magnitude(projection), Weight, &[out], TensorInit::RowNorms);
            }
        }
    }
}

/// The list of tensors under construction.
struct TensorList<'a> {
    map: &'a ShareMap,
    specs: Vec<TensorSpec>,
}

impl TensorList<'_> {
    fn add(&mut self, owner: TensorOwner, role: TensorRole, part: TensorPart, shape: &[usize], init: TensorInit) {
        let group = ParameterGroup::for_role(role, owner, self.map);
        self.specs.push(TensorSpec { owner, role, part, shape: shape.to_vec(), init, group });
    }
}
