//! How many parameters a model has, by what they are.

use retie_config::{ModelConfig, TensorOwner, TensorRole};
use serde::{Deserialize, Serialize};

/// Stored parameters; each shared one counts once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParameterCounts {
    /// Token embeddings, and the output projection if it is not tied to them.
    pub embedding: usize,
    /// Linears of the stored layers, their norms and biases if shared, and the final norm.
    pub layers: usize,
    /// Norms and biases that belong to one depth.
    pub depth_vectors: usize,
    /// Per-depth LoRA, with its magnitudes if it is DoRA.
    pub lora: usize,
    /// Extra vectors of depths.
    #[serde(default)]
    pub extras: usize,
    /// Mechanisms of steps.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub steps: usize,
    /// Routers, and auxiliary ones.
    #[serde(default)]
    pub routers: usize,
}

impl ParameterCounts {
    /// Counts what `config` implies.
    #[must_use]
    pub fn from_config(config: &ModelConfig) -> Self {
        let mut counts = Self::default();
        for spec in config.tensors() {
            let count = match (spec.role, spec.owner) {
                (TensorRole::Embedding | TensorRole::Head, _) => &mut counts.embedding,
                (TensorRole::LoraA(_) | TensorRole::LoraB(_) | TensorRole::Magnitude(_), _) => &mut counts.lora,
                (TensorRole::Extra(_), _) => &mut counts.extras,
                (TensorRole::Step(_), _) => &mut counts.steps,
                (TensorRole::RouterUp | TensorRole::RouterOut, _) => &mut counts.routers,
                (TensorRole::Projection(_) | TensorRole::Norm(_), TensorOwner::Depth(_)) => &mut counts.depth_vectors,
                (TensorRole::Projection(_) | TensorRole::Norm(_) | TensorRole::FinalNorm, _) => &mut counts.layers,
            };
            *count += spec.num_elements();
        }
        counts
    }

    /// Everything but the embedding.
    #[must_use]
    pub fn non_embedding(&self) -> usize {
        self.layers + self.depth_vectors + self.lora + self.extras + self.steps + self.routers
    }

    /// Everything.
    #[must_use]
    pub fn total(&self) -> usize {
        self.embedding + self.non_embedding()
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Init, LoraConfig, Projection, RecursionConfig, Sharing};
    use serde_json::json;
    use std::path::Path;

    /// `[hidden, intermediate, layers, heads, kv heads, head_dim]`, vocabulary 49152, tied.
    fn shape(sizes: [usize; 6]) -> ModelConfig {
        let keys = ["hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"];
        let keys = keys.into_iter().chain(["num_key_value_heads", "head_dim"]);
        let mut map: serde_json::Map<_, _> = keys.zip(sizes).map(|(k, v)| (k.to_owned(), json!(v))).collect();
        map.extend([("model_type".to_owned(), json!("llama")), ("vocab_size".to_owned(), json!(49152))]);
        map.extend([("rms_norm_eps".to_owned(), json!(1e-5)), ("tie_word_embeddings".to_owned(), json!(true))]);
        ModelConfig::from_json(map, Path::new("config.json")).unwrap()
    }

    fn recursive(
        config: &ModelConfig,
        num_recursions: usize,
        sharing: Sharing,
        rank: Option<usize>,
    ) -> ParameterCounts {
        let lora = rank.map(LoraConfig::uniform);
        let recursion = RecursionConfig { lora, ..RecursionConfig::new(num_recursions, sharing, Init::Average) };
        ParameterCounts::from_config(&ModelConfig { recursion: Some(recursion), ..config.clone() })
    }

    const SMOLLM_135M: [usize; 6] = [576, 1536, 30, 9, 3, 64];
    const SMOLLM_360M: [usize; 6] = [960, 2560, 32, 15, 5, 64];
    const TINYLLAMA: [usize; 6] = [2048, 5632, 22, 32, 4, 64];
    const GEMMA_2B: [usize; 6] = [2048, 16384, 18, 8, 1, 256];

    /// Tables 6 and 9 of MoR: 106.2M and 314.6M without embeddings; a layer of 135M has 3,540,096
    /// parameters.
    #[test]
    fn plain_models_have_the_sizes_of_the_paper() {
        let small = ParameterCounts::from_config(&shape(SMOLLM_135M));
        assert_eq!(
            small,
            ParameterCounts { embedding: 49152 * 576, layers: 30 * 3_540_096 + 576, ..Default::default() }
        );
        let large = ParameterCounts::from_config(&shape(SMOLLM_360M));
        assert_eq!(large.layers, 32 * 9_832_320 + 960);
        assert_eq!(large.total(), 49152 * 960 + 32 * 9_832_320 + 960);
    }

    /// Tables 7 and 9 of MoR: 360M with 15 + 2 layers has 167.1M, with 10 + 2 has 118.0M; 135M with
    /// 10 + 2 (of 32) has 42M.
    #[test]
    fn shared_layers_count_once() {
        let large = shape(SMOLLM_360M);
        assert_eq!(recursive(&large, 2, Sharing::MiddleCycle, None).layers, 17 * 9_832_320 + 960);
        assert_eq!(recursive(&large, 3, Sharing::MiddleSequence, None).layers, 12 * 9_832_320 + 960);
        let small = shape([576, 1536, 32, 9, 3, 64]);
        assert_eq!(recursive(&small, 3, Sharing::MiddleCycle, None).layers, 12 * 3_540_096 + 576);
    }

    /// Section 3.2 of the specification, which reproduces Tables G.1 and G.2 of RRT: over all
    /// depths and linears, `min(r, in, out) (in + out)`.
    #[test]
    fn lora_counts_are_those_of_the_paper() {
        let per_layer = |[d, f, _, heads, kv_heads, head_dim]: [usize; 6], r: usize| {
            let (q, kv) = (heads * head_dim, kv_heads * head_dim);
            let shapes = [(d, q), (d, kv), (d, kv), (q, d), (d, f), (d, f), (f, d)];
            shapes.iter().map(|(i, o)| r.min(*i).min(*o) * (i + o)).sum::<usize>()
        };
        let tables: [([usize; 6], usize, [f64; 4]); 3] = [
            (GEMMA_2B, 2, [1.07, 1.15, 1.30, 1.60]),
            (GEMMA_2B, 3, [0.74, 0.82, 0.97, 1.27]),
            (TINYLLAMA, 2, [0.53, 0.58, 0.68, 0.86]),
        ];
        for (sizes, num_recursions, billions) in tables {
            for (rank, billion) in [64, 128, 256, 512].into_iter().zip(billions) {
                let counts = recursive(&shape(sizes), num_recursions, Sharing::Cycle, Some(rank));
                assert_eq!(counts.lora, sizes[2] * per_layer(sizes, rank));
                // The paper rounds to 0.01, and for TinyLlama at ranks 128 and 256 rounds down.
                let difference = counts.non_embedding() as f64 / 1e9 - billion;
                assert!(difference.abs() < 0.0101, "{sizes:?} {rank} {difference}");
            }
        }
    }

    /// Table G.1 of RRT, Gemma with two recursions: ranks of q, of k and v, of o, and of the MLP;
    /// parameters in billions.
    #[test]
    fn ranks_by_projection_count_as_in_the_paper() {
        let model = shape(GEMMA_2B);
        let table = [
            ([256, 256, 256, 256], 1.305),
            ([128, 256, 128, 256], 1.286),
            ([256, 128, 256, 256], 1.294),
            ([256, 256, 256, 128], 1.177),
            ([128, 128, 128, 256], 1.275),
            ([128, 128, 128, 128], 1.148),
            ([64, 128, 64, 128], 1.138),
            ([128, 64, 128, 128], 1.143),
            ([128, 128, 128, 64], 1.084),
            ([64, 64, 64, 128], 1.133),
        ];
        for ([q, kv, o, mlp], billions) in table {
            let ranks = [q, kv, kv, o, mlp, mlp, mlp];
            let at_depths = |(projection, rank): (Projection, usize)| (projection.name().to_owned(), vec![rank; 18]);
            let ranks = Projection::ALL.into_iter().zip(ranks).map(at_depths).collect();
            let lora = LoraConfig::table(ranks);
            let recursion = RecursionConfig { lora, ..RecursionConfig::new(2, Sharing::Cycle, Init::Average) };
            let counts = ParameterCounts::from_config(&ModelConfig { recursion: Some(recursion), ..model.clone() });
            // The paper's figures are rounded to a million.
            assert!((counts.non_embedding() as f64 / 1e9 - billions).abs() < 0.0006, "{q} {kv} {o} {mlp}");
        }
    }

    #[test]
    fn own_vectors_are_counted_at_every_depth_and_unshared_ends_have_no_lora() {
        let mut config = shape(SMOLLM_135M);
        config.recursion = Some(RecursionConfig {
            share_norms: false,
            lora: Some(LoraConfig::uniform(64)),
            ..RecursionConfig::new(2, Sharing::MiddleCycle, Init::Average)
        });
        let counts = ParameterCounts::from_config(&config);
        assert_eq!(counts.depth_vectors, 30 * 2 * 576);
        assert_eq!(counts.layers, 16 * (3_540_096 - 2 * 576) + 576);
        assert_eq!(counts.lora, 28 * 64 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536)));
    }
}
