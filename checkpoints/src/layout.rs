//! Which tensors a checkpoint holds: names (Hugging Face's spelling) and shapes, as its `config.json` implies them.
//!
//! A plain model has, whatever its family (see `gpt_neox.rs` for one whose files have other names), `model.embed_tokens.weight` `[V, D]`, `model.layers.{i}.…`, `model.norm.weight` `[D]` and, unless the
//! embeddings are tied, `lm_head.weight` `[V, D]`. A recursive model has the same, with layers counted as stored, and
//! per-depth tensors under `model.depths.{d}.…`:
//!
//! | tensor | under `model.layers.{i}` | under `model.depths.{d}` |
//! |---|---|---|
//! | linears `[out, in]` | always | never |
//! | norms `[D]` (of queries and keys `[H]`, or all heads at once), biases `[out]` | if `share_norms` or not recursive | if not `share_norms` |
//! | the vectors `[D]` of `extras` | never | where the kind of extra says so |
//! | `lora_A.weight` `[r, in]`, `lora_B.weight` `[out, r]` of each linear | never | if LoRA with a rank there, and the depth's layer is shared |
//! | `lora_magnitude_vector` `[out]` of each linear | never | the same, if it is DoRA |

use crate::{CheckpointError, TensorSource, router_layout::router_tensors};
use retie_config::{ConfigError, Depth, DepthPlan, LayerIndex, ModelConfig, Relax, ShareMap};
use std::{collections::HashSet, path::PathBuf};

/// Name of the token embeddings, `[V, D]`.
pub const EMBEDDINGS: &str = "model.embed_tokens.weight";
/// Name of the final norm, `[D]`.
pub const FINAL_NORM: &str = "model.norm.weight";
/// Name of the final norm's bias, `[D]`, in families whose norms have one.
pub const FINAL_NORM_BIAS: &str = "model.norm.bias";
/// Name of the output projection, `[V, D]`; absent when the embeddings are tied.
pub const LM_HEAD: &str = "lm_head.weight";

/// Last part of the name of a linear's magnitudes, as peft spells it.
pub const MAGNITUDES: &str = "lora_magnitude_vector";

/// Name of a tensor of a stored layer; `part` is e.g. `self_attn.q_proj.weight`.
#[must_use]
pub fn layer_tensor(layer: LayerIndex, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

/// Name of a tensor that one depth owns; `part` is e.g. `input_layernorm.weight`.
#[must_use]
pub fn depth_tensor(depth: Depth, part: &str) -> String {
    format!("model.depths.{depth}.{part}")
}

/// The schedule that `config` implies: one layer a depth, or what its `recursion` says.
///
/// # Errors
/// When the pattern does not fit the number of layers.
pub fn share_map(config: &ModelConfig) -> Result<ShareMap, ConfigError> {
    match &config.recursion {
        Some(recursion) => recursion.share_map(config),
        None => Ok(ShareMap::identity(config.num_hidden_layers)),
    }
}

/// Every tensor that `config` implies, in the order of the forward pass: embeddings, layers, depths, routers, final norm, head.
///
/// # Errors
/// When the sharing pattern does not fit the number of layers.
pub fn expected_tensors(config: &ModelConfig) -> Result<Vec<(String, Vec<usize>)>, ConfigError> {
    let map = share_map(config)?;
    let lora = config.recursion.as_ref().and_then(|r| r.lora.as_ref());
    let own_vectors = config.recursion.as_ref().is_some_and(|r| !r.share_norms);
    let table = vec![config.vocab_size, config.hidden_size];
    let mut tensors = vec![(EMBEDDINGS.to_owned(), table.clone())];
    for layer in (0..map.num_layers()).map(LayerIndex) {
        for (projection, shape) in config.projection_shapes() {
            tensors.push((layer_tensor(layer, &format!("{projection}.weight")), shape.to_vec()));
        }
        if !own_vectors {
            tensors.extend(
                config.layer_vectors().into_iter().map(|(part, size)| (layer_tensor(layer, &part), vec![size])),
            );
        }
    }
    for step in map.depths() {
        if own_vectors {
            tensors.extend(
                config.layer_vectors().into_iter().map(|(part, size)| (depth_tensor(step.depth, &part), vec![size])),
            );
        }
        tensors.extend(extra_vectors(config, &map, step).map(|(name, _)| (name, vec![config.hidden_size])));
        let Some(lora) = lora.filter(|_| map.is_shared(step.layer)) else { continue };
        for (projection, [out, inp]) in config.projection_shapes() {
            let rank = lora.rank_at(step.depth, projection, [out, inp]);
            if rank == 0 {
                continue;
            }
            tensors.push((depth_tensor(step.depth, &format!("{projection}.lora_A.weight")), vec![rank, inp]));
            tensors.push((depth_tensor(step.depth, &format!("{projection}.lora_B.weight")), vec![out, rank]));
            if lora.relax == Relax::Dora {
                tensors.push((depth_tensor(step.depth, &format!("{projection}.{MAGNITUDES}")), vec![out]));
            }
        }
    }
    tensors.extend(router_tensors(config));
    tensors.push((FINAL_NORM.to_owned(), vec![config.hidden_size]));
    if config.anatomy.norm_bias() {
        tensors.push((FINAL_NORM_BIAS.to_owned(), vec![config.hidden_size]));
    }
    if !config.anatomy.tie_word_embeddings {
        tensors.push((LM_HEAD.to_owned(), table));
    }
    Ok(tensors)
}

/// Names of the extra vectors of a depth, and what their elements start with.
pub fn extra_vectors<'a>(
    config: &'a ModelConfig,
    map: &'a ShareMap,
    step: &'a DepthPlan,
) -> impl Iterator<Item = (String, f32)> + 'a {
    let extras = config.recursion.iter().flat_map(|recursion| &recursion.extras);
    let extras = extras.filter(move |extra| extra.is_at(map, step));
    extras.flat_map(move |extra| extra.parts().iter().map(|part| (depth_tensor(step.depth, part), extra.start())))
}

/// Whether a tensor that `config` does not imply may be there: it holds nothing that the model needs.
fn is_redundant(name: &str, config: &ModelConfig) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || (config.anatomy.tie_word_embeddings && name == LM_HEAD)
}

/// One tensor that does not fit the configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorProblem {
    /// The configuration implies it, the checkpoint lacks it.
    #[error("tensor `{tensor}` of shape {expected:?} is missing from `{}`", path.display())]
    Missing {
        /// File or folder that was searched.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// It has another shape.
    #[error("tensor `{tensor}` in `{}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// File that holds it.
        path: PathBuf,
        /// The name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// The configuration does not imply it.
    #[error("tensor `{tensor}` in `{}` is not part of the model that its configuration describes", path.display())]
    Unexpected {
        /// File that holds it.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
}

/// Checks that `tensors` holds what `config` implies and nothing else.
///
/// # Errors
/// One [`CheckpointError::BadTensors`] that lists every missing, misshapen and unexpected tensor.
pub fn check_tensors(config: &ModelConfig, tensors: &dyn TensorSource) -> Result<(), CheckpointError> {
    let expected = expected_tensors(config)?;
    let mut problems = Vec::new();
    for (tensor, shape) in &expected {
        let (path, tensor) = (tensors.path_of(tensor).to_owned(), tensor.clone());
        match tensors.info(&tensor) {
            None => problems.push(TensorProblem::Missing { path, tensor, expected: shape.clone() }),
            Some(info) if info.shape != *shape => {
                let (found, expected) = (info.shape.clone(), shape.clone());
                problems.push(TensorProblem::Shape { path, tensor, found, expected });
            }
            Some(_) => {}
        }
    }
    let known: HashSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
    for name in tensors.names() {
        if !known.contains(name) && !is_redundant(name, config) {
            let path = tensors.path_of(name).to_owned();
            problems.push(TensorProblem::Unexpected { path, tensor: name.to_owned() });
        }
    }
    if problems.is_empty() { Ok(()) } else { Err(CheckpointError::BadTensors { problems }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, TensorInfo};
    use retie_config::{Anatomy, DepthExtra, Init, LoraConfig, RecursionConfig, Sharing};
    use serde_json::json;
    use std::{borrow::Cow, collections::BTreeMap, path::Path};

    fn config(attention_bias: bool, recursion: Option<RecursionConfig>) -> ModelConfig {
        let serde_json::Value::Object(map) = json!({
            "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
            "attention_bias": attention_bias,
        }) else {
            unreachable!()
        };
        ModelConfig { recursion, ..ModelConfig::from_json(map, Path::new("x")).unwrap() }
    }

    fn recursion(sharing: Sharing, share_norms: bool, lora: Option<usize>) -> Option<RecursionConfig> {
        let lora = lora.map(LoraConfig::uniform);
        Some(RecursionConfig { share_norms, lora, ..RecursionConfig::new(2, sharing, Init::Stepwise) })
    }

    fn shapes(config: &ModelConfig) -> BTreeMap<String, Vec<usize>> {
        let tensors = expected_tensors(config).unwrap();
        let map: BTreeMap<_, _> = tensors.iter().cloned().collect();
        assert_eq!(map.len(), tensors.len(), "a name occurs twice");
        map
    }

    #[test]
    fn a_plain_llama_has_nine_tensors_a_layer() {
        let tied = shapes(&config(false, None));
        assert_eq!(tied.len(), 2 + 4 * 9);
        assert_eq!(tied["model.layers.3.self_attn.k_proj.weight"], [4, 8]);
        assert_eq!(tied["model.layers.0.mlp.down_proj.weight"], [8, 16]);
        assert_eq!(tied["model.norm.weight"], [8]);
        let biased = config(true, None);
        let anatomy = Anatomy { tie_word_embeddings: false, mlp_bias: true, ..biased.anatomy.clone() };
        let untied = ModelConfig { anatomy, ..biased };
        let untied = shapes(&untied);
        assert_eq!(untied.len(), 3 + 4 * 16);
        assert_eq!(untied["lm_head.weight"], [11, 8]);
        assert_eq!(untied["model.layers.1.self_attn.v_proj.bias"], [4]);
        assert_eq!(untied["model.layers.1.mlp.gate_proj.bias"], [16]);
    }

    #[test]
    fn the_parameters_of_smollm2_are_134_515_008() {
        let smollm2 = ModelConfig {
            vocab_size: 49_152,
            hidden_size: 576,
            intermediate_size: 1536,
            num_hidden_layers: 30,
            num_attention_heads: 9,
            num_key_value_heads: 3,
            head_dim: 64,
            ..config(false, None)
        };
        let tensors = expected_tensors(&smollm2).unwrap();
        assert_eq!(tensors.len(), 272);
        assert_eq!(tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(), 134_515_008);
    }

    #[test]
    fn shared_norms_and_biases_are_in_layers_and_own_ones_in_depths() {
        let shared = shapes(&config(true, recursion(Sharing::Cycle, true, None)));
        assert_eq!(shared.len(), 2 + 2 * 13);
        assert!(shared.keys().all(|name| !name.contains("depths")));
        let own = shapes(&config(true, recursion(Sharing::Cycle, false, None)));
        assert_eq!(own.len(), 2 + 2 * 7 + 4 * 6);
        assert_eq!(own["model.depths.3.post_attention_layernorm.weight"], [8]);
        assert_eq!(own["model.depths.0.self_attn.q_proj.bias"], [8]);
        assert!(own.keys().all(|name| !name.starts_with("model.layers") || name.ends_with("proj.weight")));
    }

    #[test]
    fn lora_is_at_every_depth_of_a_shared_layer_with_its_rank_clamped() {
        let cycle = shapes(&config(false, recursion(Sharing::Cycle, true, Some(6))));
        assert_eq!(cycle.len(), 2 + 2 * 9 + 4 * 14);
        assert_eq!(cycle["model.depths.0.mlp.up_proj.lora_A.weight"], [6, 8]);
        assert_eq!(cycle["model.depths.0.mlp.up_proj.lora_B.weight"], [16, 6]);
        assert_eq!(cycle["model.depths.2.self_attn.k_proj.lora_A.weight"], [4, 8]);
        assert_eq!(cycle["model.depths.2.self_attn.k_proj.lora_B.weight"], [4, 4]);
        let middle = shapes(&config(false, recursion(Sharing::MiddleCycle, true, Some(6))));
        let depths = |depth: usize| middle.keys().filter(|name| name.contains(&format!("depths.{depth}."))).count();
        assert_eq!([0, 1, 2, 3].map(depths), [0, 14, 14, 0]);
    }

    #[test]
    fn extras_are_at_the_depths_of_their_kind() {
        let middle = recursion(Sharing::MiddleCycle, true, None)
            .map(|r| RecursionConfig { extras: DepthExtra::ALL.into(), ..r });
        let shapes = shapes(&config(false, middle));
        let extras: Vec<_> = shapes.keys().filter(|name| name.contains("extras")).map(String::as_str).collect();
        assert_eq!(
            extras,
            [
                "model.depths.1.extras.attention_scale",
                "model.depths.1.extras.loop_embedding",
                "model.depths.1.extras.mlp_scale",
                "model.depths.2.extras.attention_scale",
                "model.depths.2.extras.loop_embedding",
                "model.depths.2.extras.loop_norm",
                "model.depths.2.extras.mlp_scale",
            ]
        );
        assert!(extras.iter().all(|name| shapes[*name] == [8]));
    }

    #[test]
    fn a_table_of_ranks_says_which_factors_there_are() {
        let ranks = BTreeMap::from([("mlp.up_proj".to_owned(), vec![0, 0, 2, 5])]);
        let recursion = |relax| {
            let lora = LoraConfig::table(ranks.clone()).map(|lora| lora.with(relax));
            RecursionConfig { lora, ..RecursionConfig::new(2, Sharing::Cycle, Init::Stepwise) }
        };
        let plain = shapes(&config(false, Some(recursion(Relax::Lora))));
        let dora = shapes(&config(false, Some(recursion(Relax::Dora))));
        let magnitudes: Vec<_> = dora.iter().filter(|(name, _)| !plain.contains_key(*name)).collect();
        let name = |depth| format!("model.depths.{depth}.mlp.up_proj.lora_magnitude_vector");
        assert_eq!(magnitudes, [(&name(2), &vec![16]), (&name(3), &vec![16])]);
        let shapes = plain;
        let factors: Vec<_> =
            shapes.iter().filter(|(name, _)| name.contains("lora")).map(|(n, s)| (n.as_str(), s.as_slice())).collect();
        assert_eq!(
            factors,
            [
                ("model.depths.2.mlp.up_proj.lora_A.weight", [2, 8].as_slice()),
                ("model.depths.2.mlp.up_proj.lora_B.weight", &[16, 2]),
                ("model.depths.3.mlp.up_proj.lora_A.weight", &[5, 8]),
                ("model.depths.3.mlp.up_proj.lora_B.weight", &[16, 5]),
            ]
        );
    }

    #[test]
    fn a_pattern_that_does_not_fit_is_an_error() {
        let three = ModelConfig { num_hidden_layers: 3, ..config(false, recursion(Sharing::Cycle, true, None)) };
        assert!(expected_tensors(&three).is_err());
    }

    struct Infos(BTreeMap<String, TensorInfo>);

    impl TensorSource for Infos {
        fn names(&self) -> Vec<&str> {
            self.0.keys().map(String::as_str).collect()
        }
        fn info(&self, name: &str) -> Option<&TensorInfo> {
            self.0.get(name)
        }
        fn path_of(&self, _: &str) -> &Path {
            Path::new("m")
        }
        fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
            Err(CheckpointError::NoTensor { path: "m".into(), tensor: name.to_owned() })
        }
    }

    #[test]
    fn every_tensor_that_does_not_fit_is_reported_at_once() {
        let config = config(false, None);
        let info = |shape: &[usize]| TensorInfo { dtype: Dtype::F32, shape: shape.to_vec() };
        let mut infos: BTreeMap<_, _> = shapes(&config).into_iter().map(|(name, shape)| (name, info(&shape))).collect();
        infos.insert("lm_head.weight".into(), info(&[11, 8]));
        infos.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), info(&[2]));
        check_tensors(&config, &Infos(infos.clone())).unwrap();
        infos.remove("model.norm.weight");
        infos.insert("model.layers.1.mlp.up_proj.weight".into(), info(&[8, 16]));
        infos.insert("model.layers.4.mlp.up_proj.weight".into(), info(&[16, 8]));
        let error = check_tensors(&config, &Infos(infos)).unwrap_err().to_string();
        let lines: Vec<_> = error.lines().collect();
        assert_eq!(
            lines,
            [
                "3 of the checkpoint's tensors do not fit its configuration:",
                "  tensor `model.layers.1.mlp.up_proj.weight` in `m` has shape [8, 16], expected [16, 8]",
                "  tensor `model.norm.weight` of shape [8] is missing from `m`",
                "  tensor `model.layers.4.mlp.up_proj.weight` in `m` is not part of the model that its configuration describes",
            ]
        );
    }
}
