//! A model with another number of recursions than it was made with: its shared block runs fewer or
//! more times between the same layers before and after it.

use anyhow::{bail, ensure};
use retie_checkpoint::{CheckpointError, ModelSource, TensorInfo, TensorSource};
use retie_config::{Depth, ModelConfig, ShareMap, TensorOwner};
use std::{borrow::Cow, collections::BTreeMap, path::Path};

/// Tensors of a model under the names that another number of recursions gives to them.
pub struct Recounted<'s> {
    source: &'s dyn TensorSource,
    /// Names of the source by ours.
    names: BTreeMap<String, String>,
}

/// Configuration and tensors of `source` with `num_recursions`.
///
/// # Errors
/// The model has no loop, or parts that belong to a number of recursions.
pub fn recounted(source: &ModelSource, num_recursions: usize) -> anyhow::Result<(ModelConfig, Recounted<'_>)> {
    let mut config = source.config.clone();
    let old = source.config.share_map();
    let (spec, own) = (&source.spec, old.num_recursions());
    let refused = |reason: &str| {
        format!(
            "`{spec}` cannot run with {num_recursions} recursions in place of {own}: {reason}\nhint: leave `--recursions` out"
        )
    };
    let (Some(recursion), Some(block)) = (&mut config.recursion, old.block()) else {
        bail!(refused("it has no shared block that runs again"))
    };
    ensure!(recursion.router.is_none(), refused("its routers decide between its own recursions"));
    recursion.num_recursions = num_recursions;
    config.num_hidden_layers = old.num_layers() - block.len() + block.len() * num_recursions;
    let new = ShareMap::lay(&recursion.pattern()?, config.num_hidden_layers, num_recursions)?;
    let sources = old_depths(&old, &new);
    if let Some(lora) = &mut recursion.lora {
        lora.ranks.values_mut().for_each(|ranks| *ranks = sources.iter().map(|Depth(depth)| ranks[*depth]).collect());
    }
    config.anatomy.depths = sources.iter().map(|Depth(depth)| config.anatomy.depths[*depth]).collect();
    config.validate()?;
    let mut names = BTreeMap::new();
    for spec in config.tensors() {
        let mut owner = spec.owner;
        if let TensorOwner::Depth(Depth(depth)) = owner {
            let is_new = new.depths()[depth].recursion.is_some_and(|recursion| recursion >= own);
            ensure!(!is_new, refused(&format!("`{}` has no values: depths have tensors of their own", spec.name())));
            owner = TensorOwner::Depth(sources[depth]);
        }
        let name = spec.name();
        let rest = name.strip_prefix(&spec.owner.prefix()).unwrap_or(&name);
        let theirs = owner.prefix() + rest;
        names.insert(name, theirs);
    }
    Ok((config, Recounted { source: source.tensors.as_ref(), names }))
}

/// For each depth of `new` the depth of `old` that runs the same layer in the same recursion, or in
/// the last one.
fn old_depths(old: &ShareMap, new: &ShareMap) -> Vec<Depth> {
    let last = old.num_recursions() - 1;
    let same = |step: &retie_config::DepthAssignment| {
        let recursion = step.recursion.map(|recursion| recursion.min(last));
        let found = old.depths().iter().find(|other| other.layer == step.layer && other.recursion == recursion);
        found.map_or(step.depth, |found| found.depth)
    };
    new.depths().iter().map(same).collect()
}

impl Recounted<'_> {
    fn theirs<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }
}

impl TensorSource for Recounted<'_> {
    fn names(&self) -> Vec<&str> {
        self.names.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source.info(self.theirs(name))
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(self.theirs(name))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.source.bytes(self.theirs(name))
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.source.read_f32(self.theirs(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::Sharing;

    #[test]
    fn depths_keep_their_layer_and_recursion() {
        let map = |depths, recursions, sharing| ShareMap::new(depths, recursions, sharing).unwrap();
        let depths = |old, new| old_depths(&old, &new).into_iter().map(|Depth(depth)| depth).collect::<Vec<_>>();
        let cycle = Sharing::MiddleCycle;
        assert_eq!(depths(map(6, 2, cycle), map(4, 1, cycle)), [0, 1, 2, 5]);
        assert_eq!(depths(map(6, 2, cycle), map(8, 3, cycle)), [0, 1, 2, 3, 4, 3, 4, 5]);
        assert_eq!(depths(map(4, 2, Sharing::Sequence), map(6, 3, Sharing::Sequence)), [0, 1, 1, 2, 3, 3]);
    }
}
