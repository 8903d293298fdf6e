//! Parts of a recursive model that a plain one, or a plain loop, has no place for.

use crate::{format::ExportModel, unrolled::is_merged};
use retie_checkpoint::{CheckpointError, TensorSource};
use retie_config::{Depth, DepthExtra, ExtraVector, KvSharing, ModelConfig, TensorOwner, TensorRole};

/// Every reason why no plain model of the family computes what `model` does; empty if one does.
pub(crate) fn of_unrolling(model: &ExportModel<'_>) -> Result<Vec<String>, CheckpointError> {
    let Some(recursion) = &model.config.recursion else { return Ok(Vec::new()) };
    let mut reasons = Vec::new();
    if let Some(router) = &recursion.router {
        let kind = router.kind();
        reasons
            .push(format!("its `{kind}` routers choose the recursions of each token, a plain model runs every layer"));
    } else if recursion.kv_sharing == KvSharing::Shared {
        // Without routers `hybrid` computes what `recursion_wise` does.
        let kv = recursion.kv_sharing;
        reasons.push(format!("`kv_sharing: {kv}`: later recursions attend to the keys and values of the first"));
    }
    if let Some(reason) = of_steps(model.config) {
        reasons.push(reason);
    }
    let class = model.config.architecture.class_name;
    for extra in DepthExtra::ALL {
        for vector in extra.vectors().iter().filter(|vector| !is_merged(**vector)) {
            if let Some(depth) = depth_with(*vector, extra.start(), model)? {
                let (name, start) = (TensorOwner::Depth(depth).weight(TensorRole::Extra(*vector)), extra.start());
                reasons.push(format!("`{name}` is not {start}, and `{class}` computes nothing between its layers"));
            }
        }
    }
    Ok(reasons)
}

/// Hint for a model that has no plain one.
pub(crate) fn hint_of_unrolling(config: &ModelConfig) -> &'static str {
    match of_steps(config) {
        Some(_) => "`retie serve` runs the model as it is",
        None => "`--to hf` can, with routers at full depth",
    }
}

/// Reason why no other program computes the steps of a model; `None` without steps.
pub(crate) fn of_steps(config: &ModelConfig) -> Option<String> {
    let names = config.recursion.as_ref()?.mechanisms();
    let list: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    (!list.is_empty()).then(|| format!("its recursions have mechanisms of their own: {}", list.join(", ")))
}

/// Hint for a model that is not a plain loop.
pub(crate) const WITHOUT_LOOP: &str = "`--to hf` can, and `--to gguf-unrolled` or `hf-unrolled` at the full size";

/// Every reason why a model is not its stored layers in a loop; empty if it is.
pub(crate) fn of_loop(config: &ModelConfig) -> Vec<String> {
    let Some(recursion) = &config.recursion else { return vec!["it is not recursive".to_owned()] };
    let map = config.share_map();
    let mut reasons = Vec::new();
    if map.depths().iter().any(|step| step.layer.0 != step.depth.0 % map.num_layers()) {
        let sharing = recursion.sharing;
        reasons.push(format!(
            "`sharing: {sharing}`: a loop runs every stored layer in turn, without layers before or after"
        ));
    }
    if config.has_depth_vectors() {
        reasons.push("`share_norms: false`: depths have norms of their own".to_owned());
    }
    reasons.extend(of_steps(config));
    if recursion.lora.is_some() {
        reasons.push("depths have LoRA of their own".to_owned());
    }
    reasons.extend(recursion.extras.iter().map(|extra| format!("depths have a `{extra}` of their own")));
    if recursion.kv_sharing == KvSharing::Shared {
        reasons.push("`kv_sharing: shared`: later recursions attend to the keys and values of the first".to_owned());
    }
    if let Some(router) = &recursion.router {
        reasons.push(format!("its `{}` routers choose the recursions of each token", router.kind()));
    }
    reasons
}

/// First depth at which a vector has an effect: some element is not `start`.
fn depth_with(vector: ExtraVector, start: f32, model: &ExportModel<'_>) -> Result<Option<Depth>, CheckpointError> {
    let tensors: &dyn TensorSource = model.tensors;
    for step in model.config.share_map().depths() {
        let name = TensorOwner::Depth(step.depth).weight(TensorRole::Extra(vector));
        if tensors.info(&name).is_some() && tensors.read_f32(&name)?.iter().any(|x| *x != start) {
            return Ok(Some(step.depth));
        }
    }
    Ok(None)
}
