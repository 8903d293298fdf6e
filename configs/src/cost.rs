//! What a sequence costs by formula: bytes of keys and values, and operations (Mixture-of-Recursions, Table 2,
//! <https://arxiv.org/abs/2507.10524>; with grouped queries, LoRA, routers and the head, which its count leaves out).
//!
//! `c_r` is the part of the tokens that recursion `r` takes, `S` the tokens of the sequence. Every depth of recursion `r` has
//!
//! | `kv` | keys and values | products with weights | pairs of a query and a key |
//! |---|---|---|---|
//! | `recursion_wise` | `c_r·S` | `c_r·S·F` | `c_r·S·(c_r·S + 1)/2` |
//! | `shared` | `S` if `r = 0`, else none | `c_r·S·F`, from `r = 1` on without those of k and v | `c_r·S·(S + 1)/2` |
//! | `hybrid` | `S` | `c_r·S·F` | `c_r·S·(S + 1)/2` |
//!
//! with `F` the operations of a depth's linears on one token. An unshared depth, and any of a model without routers, has `c = 1`.

use crate::{ConfigError, KvStrategy, ModelConfig, RouterConfig, RouterNetwork, ShareMap};

/// Of one sequence; not rounded to whole tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Keys and values that are kept, in f32.
    pub cache_bytes: f64,
    /// Products of hidden states and weights: linears, LoRA, routers. A multiply-add is two operations.
    pub linear: f64,
    /// Scores of queries and keys, and sums of values.
    pub attention: f64,
    /// The head, for the logits of every token.
    pub head: f64,
}

impl Cost {
    /// All operations.
    #[must_use]
    pub fn operations(&self) -> f64 {
        self.linear + self.attention + self.head
    }
}

/// Bytes of an element of a cache.
const ELEMENT: f64 = 4.0;

impl ModelConfig {
    /// The cost of a sequence of `tokens` tokens, of which recursion `r` takes the part `shares[r]`; without
    /// `shares`, of the same model without routers.
    ///
    /// # Errors
    /// When the sharing pattern does not fit the model.
    pub fn cost(&self, tokens: usize, shares: Option<&[f64]>) -> Result<Cost, ConfigError> {
        let length = tokens as f64;
        let map = match &self.recursion {
            Some(recursion) => recursion.share_map(self)?,
            None => ShareMap::identity(self.num_hidden_layers),
        };
        let router =
            self.recursion.as_ref().and_then(|recursion| recursion.router.as_ref()).filter(|_| shares.is_some());
        let kv = router.map_or(KvStrategy::RecursionWise, RouterConfig::kv);
        let share = |recursion: usize| shares.and_then(|shares| shares.get(recursion)).copied().unwrap_or(1.0);
        let head = 2.0 * (self.vocab_size * self.hidden_size) as f64;
        let mut cost = Cost { head: length * head, ..Cost::default() };
        for (index, step) in map.depths().iter().enumerate() {
            let looped = step.recursion.filter(|_| router.is_some());
            let part = looped.map_or(1.0, share);
            let later = looped.is_some_and(|recursion| recursion > 0);
            let (held, seen) = match kv {
                KvStrategy::RecursionWise => (part, part * length),
                KvStrategy::Shared if later => (0.0, length),
                KvStrategy::Shared | KvStrategy::Hybrid => (1.0, length),
            };
            let makes_keys = !(later && kv == KvStrategy::Shared);
            cost.cache_bytes += held * length * 2.0 * self.key_value_size() as f64 * ELEMENT;
            cost.linear += part * length * self.linears(&map, index, makes_keys);
            let window = self.anatomy.depths[index].window.map_or(f64::INFINITY, |window| window as f64);
            cost.attention += part * length * pairs(seen, window) * 4.0 * self.query_size() as f64;
        }
        cost.linear += length * self.routers(router, share);
        Ok(cost)
    }

    /// Operations of the linears of a depth on one token.
    fn linears(&self, map: &ShareMap, index: usize, makes_keys: bool) -> f64 {
        let step = map.depths()[index];
        let lora =
            self.recursion.as_ref().and_then(|recursion| recursion.lora.as_ref()).filter(|_| map.is_shared(step.layer));
        let shapes = self.projection_shapes().into_iter();
        let run = shapes.filter(|(name, _)| makes_keys || !matches!(*name, "self_attn.k_proj" | "self_attn.v_proj"));
        let operations = |(name, [out, input]): (&str, [usize; 2])| {
            let rank = lora.map_or(0, |lora| lora.rank_at(step.depth, name, [out, input]));
            2 * (out * input + rank * (out + input))
        };
        run.map(operations).sum::<usize>() as f64
    }

    /// Operations of the routers on one token of the sequence. Where recursions choose, each router (and its auxiliary one, by which
    /// inference goes) reads what went through the recursion before; where tokens choose, one reads every token.
    fn routers(&self, router: Option<&RouterConfig>, share: impl Fn(usize) -> f64) -> f64 {
        let hidden = self.hidden_size;
        let weights = |network: RouterNetwork, outputs: usize| match network.width(hidden) {
            _ if !network.has_weights() => 0,
            None => hidden * outputs,
            Some(width) => width * (hidden + outputs),
        };
        let (weights, read) = match router {
            None => (0, 0.0),
            Some(RouterConfig::ExpertChoice(router)) => {
                let read = (0..router.capacities.len()).map(|r| if r == 0 { 1.0 } else { share(r - 1) }).sum();
                (weights(router.network, 1) + router.auxiliary.map_or(0, |network| weights(network, 1)), read)
            }
            Some(RouterConfig::TokenChoice(router)) => {
                let outputs = self.recursion.as_ref().map_or(1, |recursion| recursion.num_recursions);
                (weights(router.network, outputs), 1.0)
            }
        };
        read * 2.0 * weights as f64
    }
}

/// Keys that a query sees in the mean, of `seen` tokens one after the other and within a window.
fn pairs(seen: f64, window: f64) -> f64 {
    if seen <= window {
        return f64::midpoint(seen, 1.0);
    }
    (window * (window + 1.0) / 2.0 + (seen - window) * window) / seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertChoiceConfig, Gating, Init, RecursionConfig, RouterInput, RouterScore, Sharing};
    use serde_json::json;
    use std::path::Path;

    const TOKENS: usize = 4096;

    fn model(num_recursions: usize, kv: KvStrategy) -> ModelConfig {
        let serde_json::Value::Object(map) = json!({
            "model_type": "llama", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 12,
            "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-5,
        }) else {
            unreachable!()
        };
        let router = RouterConfig::ExpertChoice(ExpertChoiceConfig {
            network: RouterNetwork::Random,
            input: RouterInput::Raw,
            score: RouterScore::Sigmoid,
            alpha: 1.0,
            gating: Gating::StraightThrough,
            capacities: ExpertChoiceConfig::default_capacities(num_recursions),
            kv,
            auxiliary: None,
            thresholds: None,
        });
        let recursion = RecursionConfig {
            router: Some(router),
            ..RecursionConfig::new(num_recursions, Sharing::Cycle, Init::Average)
        };
        ModelConfig { recursion: Some(recursion), ..ModelConfig::from_json(map, Path::new("x")).unwrap() }
    }

    /// Table 2 of the paper, for capacities `(R − r)/R` and shared depths alone.
    #[test]
    fn parts_of_the_whole_are_those_of_the_paper() {
        for num_recursions in [2, 3, 4] {
            let capacities = ExpertChoiceConfig::default_capacities(num_recursions);
            let (count, sum) =
                (num_recursions as f64, |f: &dyn Fn(f64) -> f64| capacities.iter().map(|c| f(*c)).sum::<f64>());
            for (kv, memory, attention) in [
                (KvStrategy::RecursionWise, (count + 1.0) / (2.0 * count), sum(&|c| c * c) / count),
                (KvStrategy::Shared, 1.0 / count, sum(&|c| c) / count),
                (KvStrategy::Hybrid, 1.0, sum(&|c| c) / count),
            ] {
                let config = model(num_recursions, kv);
                let (routed, whole) =
                    (config.cost(TOKENS, Some(&capacities)).unwrap(), config.cost(TOKENS, None).unwrap());
                assert!((routed.cache_bytes / whole.cache_bytes - memory).abs() < 1e-12, "{kv} {num_recursions}");
                // The paper has `S²` where `S(S + 1)` is meant.
                assert!(
                    (routed.attention / whole.attention - attention).abs() < 1.0 / TOKENS as f64,
                    "{kv} {num_recursions}"
                );
            }
        }
    }

    #[test]
    fn products_are_those_of_the_linears_that_run() {
        let whole = |config: &ModelConfig| config.cost(1, None).unwrap().linear;
        // q, k, v, o: 8 × 8, 4 × 8, 4 × 8, 8 × 8; three linears of 8 × 16.
        let (keys, depth) = (2.0 * 64.0, 2.0 * (192.0 + 384.0));
        assert_eq!(whole(&model(2, KvStrategy::Shared)), 12.0 * depth);
        let half = |kv| model(2, kv).cost(1, Some(&[1.0, 0.5])).unwrap().linear;
        assert_eq!(half(KvStrategy::Hybrid), 6.0 * depth + 3.0 * depth);
        assert_eq!(half(KvStrategy::Shared), 6.0 * depth + 3.0 * (depth - keys));
    }

    #[test]
    fn a_window_bounds_what_a_query_sees() {
        assert_eq!([pairs(5.0, f64::INFINITY), pairs(5.0, 5.0), pairs(5.0, 1.0)], [3.0, 3.0, 1.0]);
        assert_eq!(pairs(5.0, 2.0), (1.0 + 2.0 * 4.0) / 5.0);
    }
}
