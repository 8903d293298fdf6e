//! Sharing as the bytes show it: the stored layers of a checkpoint, the depths that run them, and
//! the bytes of each.

use crate::{CheckpointError, TensorSource};
use retie_config::{Depth, LayerIndex, ModelConfig, TensorOwner};
use serde::Serialize;
use sha2::{Digest, Sha256};

/// A stored layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StoredLayer {
    /// Its index.
    pub layer: usize,
    /// Depths that run it, ascending.
    pub depths: Vec<usize>,
    /// Bytes of its tensors.
    pub bytes: usize,
    /// SHA-256 of its tensors: for each, in the order of their names, the name without the layer's
    /// prefix, a zero byte, the values.
    pub sha256: String,
    /// First earlier layer with equal values under equal names, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub same_as: Option<usize>,
    /// Bytes of the tensors that each of those depths has for itself: LoRA, extras, norms and
    /// biases.
    pub own_bytes: Vec<usize>,
}

/// Reads every layer of a checkpoint whose tensors have been checked.
///
/// # Errors
/// When the pattern does not fit or a tensor cannot be read.
pub fn stored_layers(config: &ModelConfig, tensors: &dyn TensorSource) -> Result<Vec<StoredLayer>, CheckpointError> {
    let map = config.share_map();
    let mut names = tensors.names();
    names.sort_unstable();
    let size = |name: &str| tensors.info(name).map_or(0, |info| info.num_bytes());
    let mut layers: Vec<StoredLayer> = Vec::with_capacity(map.num_layers());
    for layer in (0..map.num_layers()).map(LayerIndex) {
        let (prefix, mut sha, mut bytes) = (TensorOwner::Layer(layer).prefix(), Sha256::new(), 0);
        for name in &names {
            let Some(part) = name.strip_prefix(&prefix) else { continue };
            sha.update(part.as_bytes());
            sha.update([0]);
            sha.update(tensors.bytes(name)?);
            bytes += size(name);
        }
        let sha256: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let depth_bytes = |depth: Depth| {
            let prefix = TensorOwner::Depth(depth).prefix();
            names.iter().filter(|name| name.starts_with(&prefix)).map(|name| size(name)).sum()
        };
        let depths = map.depths_of(layer);
        layers.push(StoredLayer {
            layer: layer.0,
            depths: depths.iter().map(|depth| depth.0).collect(),
            bytes,
            same_as: layers.iter().find(|other| other.sha256 == sha256).map(|other| other.layer),
            sha256,
            own_bytes: depths.into_iter().map(depth_bytes).collect(),
        });
    }
    Ok(layers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, FolderWriter, SafetensorsFolder, TensorInfo, narrow, tiny::tiny_llama};
    use retie_config::{Init, LoraConfig, RecursionConfig, Sharing, TensorSpec};

    /// Layers 1 and 3 are equal, layer 2 differs in one value.
    #[test]
    fn layers_are_told_apart_by_their_bytes_and_every_byte_is_counted() {
        let mut config = tiny_llama(7);
        config.recursion = Some(RecursionConfig {
            prelude: Some(1),
            share_norms: false,
            lora: Some(LoraConfig::uniform(2)),
            ..RecursionConfig::new(2, Sharing::Cycle, Init::Average)
        });
        let dir = tempfile::tempdir().unwrap();
        let entry = |spec: TensorSpec| (spec.name(), TensorInfo { dtype: Dtype::BF16, shape: spec.shape });
        let entries: Vec<_> = config.tensors().into_iter().map(entry).collect();
        let mut writer = FolderWriter::create(dir.path(), &entries, 4096).unwrap();
        for (name, info) in &entries {
            let odd = name == "model.layers.2.mlp.up_proj.weight";
            let values: Vec<f32> = (0..info.num_elements()).map(|i| if odd && i == 7 { 2.0 } else { 1.0 }).collect();
            writer.write(name, &narrow(&values, Dtype::BF16)).unwrap();
        }
        writer.finish().unwrap();
        let folder = SafetensorsFolder::open(dir.path()).unwrap();
        let layers = stored_layers(&config, &folder).unwrap();
        let depths: Vec<_> = layers.iter().map(|layer| layer.depths.as_slice()).collect();
        assert_eq!(depths, [[0].as_slice(), &[1, 4], &[2, 5], &[3, 6]]);
        assert_eq!(layers.iter().map(|layer| layer.same_as).collect::<Vec<_>>(), [None, Some(0), None, Some(0)]);
        // Linears of 8·8·2 + 4·8·2 + 3·8·16; per depth norms 2·8, LoRA 2·(2·16 + 2·12 + 3·24) at
        // looped depths.
        assert!(layers.iter().all(|layer| layer.bytes == 2 * (128 + 64 + 384)));
        assert_eq!(layers[0].own_bytes, [32]);
        assert!(layers[1..].iter().all(|layer| layer.own_bytes == [2 * (16 + 256); 2]));
        let all: usize = layers.iter().map(|layer| layer.bytes + layer.own_bytes.iter().sum::<usize>()).sum();
        let stored: usize = entries.iter().map(|(_, info)| info.num_bytes()).sum();
        assert_eq!(all + 2 * (11 * 8 + 8), stored);
    }
}
