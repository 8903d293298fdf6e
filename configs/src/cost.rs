//! Cost of a sequence by formula: bytes of keys and values, and operations (Mixture-of-Recursions,
//! Table 2, <https://arxiv.org/abs/2507.10524>; with grouped queries, LoRA, routers and the head,
//! which its count leaves out). It is the one cost model, with the memory of a training step
//! beside it (`memory.rs`): `inspect`, `uptrain --dry-run`, `plan` and `--router-report` ask it.
//!
//! `c_r` is the fraction of the tokens that recursion `r` selects, `S` the tokens of the sequence.
//! Every depth of recursion `r` has
//!
//! | `kv_sharing` | keys and values | operations of linears | query-key pairs |
//! |---|---|---|---|
//! | `recursion_wise` | `c_r·S` | `c_r·S·F` | `c_r·S·(c_r·S + 1)/2` |
//! | `shared` | `S`; 0 for `r > 0` | `c_r·S·F`; no k, v for `r > 0` | `c_r·S·(S + 1)/2` |
//! | `hybrid` | `S` | `c_r·S·F` | `c_r·S·(S + 1)/2` |
//!
//! with `F` the operations of a depth's linears on one token. An unshared depth has `c = 1`, and a
//! recursion over coarse tokens has as many as `S` tokens make in the place of `S`.
//! Mechanisms of steps ([`StepMechanism`](crate::StepMechanism)) add their matrix products and may
//! change the pairs.

use crate::{
    DepthAssignment, KvSharing, ModelConfig, Place, Projection, RecursionConfig, Relax, RouterConfig, RouterNetworks,
    ShareMap, StepConfig,
};
use serde::Serialize;

/// Cost of one sequence's forward pass; not rounded to whole tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Cost {
    /// Bytes of the cached keys and values, in f32.
    pub cache_bytes: f64,
    /// Products of hidden states and weights in the layers: linears and LoRA. A multiply-add is two
    /// operations.
    pub linear: f64,
    /// Products of hidden states and weights of routers.
    pub routers: f64,
    /// Scores of queries and keys, and sums of values.
    pub attention: f64,
    /// Operations of the head, for the logits of every token.
    pub head: f64,
}

impl Cost {
    /// Sum of all operations.
    #[must_use]
    pub fn operations(&self) -> f64 {
        self.layers() + self.head
    }

    /// Operations of the layers and their routers, without the head.
    #[must_use]
    pub fn layers(&self) -> f64 {
        self.linear + self.routers + self.attention
    }
}

/// Bytes of an element of the cache (f32).
const ELEMENT: f64 = 4.0;

impl ModelConfig {
    /// Part of the tokens that each recursion takes in training, and is expected to take in
    /// inference; `None` without routers. Recursion counts of token choice are taken to be even.
    #[must_use]
    pub fn expected_shares(&self) -> Option<Vec<f64>> {
        let recursion = self.recursion.as_ref()?;
        let (router, count) = (recursion.router.as_ref()?.spec(), recursion.num_recursions);
        Some((0..count).map(|index| router.training_fraction(index, count)).collect())
    }

    /// Operations of the norms of all `W' + B A` with a DoRA magnitude, which a forward pass
    /// computes once, whatever the number of tokens.
    #[must_use]
    pub fn dora_norm_operations(&self) -> f64 {
        let map = self.share_map();
        let lora = self.recursion.as_ref().and_then(|recursion| recursion.lora.as_ref());
        let Some(lora) = lora.filter(|lora| lora.relax == Relax::Dora) else { return 0.0 };
        let shared = map.depths().iter().filter(|step| map.is_shared(step.layer));
        let ranks = shared.flat_map(|step| {
            let shapes = self.projection_shapes().into_iter();
            shapes.map(|(projection, shape)| (lora.rank_at(step.depth, projection, shape), shape))
        });
        let operations = |(rank, [out, input]): (usize, [usize; 2])| match rank {
            0 => 0,
            rank => 2 * (rank + 1) * out * input,
        };
        ranks.map(operations).sum::<usize>() as f64
    }

    /// Cost of a sequence of `tokens` tokens, of which recursion `r` takes the part `shares[r]`;
    /// without `shares`, of the same model without routers: every token goes through every
    /// recursion.
    #[must_use]
    pub fn cost(&self, tokens: usize, shares: Option<&[f64]>) -> Cost {
        let length = tokens as f64;
        let map = self.share_map();
        let kv = self.recursion.as_ref().map_or(KvSharing::RecursionWise, |recursion| recursion.kv_sharing);
        let share = |recursion: usize| shares.and_then(|shares| shares.get(recursion)).copied().unwrap_or(1.0);
        let head = 2.0 * (self.vocab_size * self.hidden_size) as f64;
        let mut cost = Cost { head: length * head, ..Cost::default() };
        for (index, step) in map.depths().iter().enumerate() {
            let part = step.recursion.map_or(1.0, share);
            let factor = self.step_factor(step);
            let (length, room) = ((tokens / factor) as f64, self.step_room(step, tokens));
            let later = step.recursion.is_some_and(|recursion| recursion > 0);
            let (stored, keys) = match kv {
                KvSharing::RecursionWise => (part, part * length),
                KvSharing::Shared if later => (0.0, length),
                KvSharing::Shared | KvSharing::Hybrid => (1.0, length),
            };
            let makes_keys = !(later && kv == KvSharing::Shared);
            let held = self.step_cached(step, room).unwrap_or(stored * room as f64);
            cost.cache_bytes += (held * 2.0 * self.key_value_size() as f64 + self.step_state(&map, step)) * ELEMENT;
            cost.linear += part * length * (self.linears(&map, index, makes_keys) + self.step_operations(&map, step));
            if keys == 0.0 {
                continue;
            }
            let window = self.anatomy.depths[index].window.map_or(f64::INFINITY, |window| window as f64);
            let mean_keys = self.step_keys(step, keys).unwrap_or_else(|| pairs(keys, window));
            cost.attention += part * length * mean_keys * 4.0 * self.query_size() as f64;
        }
        if let Some(recursion) = self.recursion.as_ref().filter(|_| shares.is_some()) {
            cost.routers = length * self.router_operations(recursion, &share);
        }
        cost
    }

    /// Cost of the same model without routers, KV sharing and steps, as a baseline: every token
    /// goes through every recursion, and each recursion computes its own keys and values.
    #[must_use]
    pub fn full_recursion_cost(&self, tokens: usize) -> Cost {
        let mut full = self.clone();
        if let Some(recursion) = &mut full.recursion {
            recursion.kv_sharing = KvSharing::RecursionWise;
            recursion.steps.clear();
        }
        full.cost(tokens, None)
    }

    /// Operations of the linears of a depth on one token; `makes_keys` includes k and v.
    fn linears(&self, map: &ShareMap, index: usize, makes_keys: bool) -> f64 {
        let step = map.depths()[index];
        let lora = self.lora_at(&step, map);
        let shapes = self.projection_shapes().into_iter();
        let attends = self.step_attends(&step);
        let run = shapes.filter(|(projection, _)| match projection {
            Projection::K | Projection::V => attends && makes_keys,
            Projection::Q | Projection::O => attends,
            Projection::Gate | Projection::Up | Projection::Down => true,
        });
        let operations = |(projection, [out, input]): (Projection, [usize; 2])| {
            let rank = lora.map_or(0, |lora| lora.rank_at(step.depth, projection, [out, input]));
            let weight = if self.is_replaced(step.layer, projection, map) { 0 } else { out * input };
            2 * (weight + rank * (out + input))
        };
        run.map(operations).sum::<usize>() as f64
    }

    /// Operations of the mechanisms of a depth on one token.
    fn step_operations(&self, map: &ShareMap, depth: &DepthAssignment) -> f64 {
        let Some(recursion) = &self.recursion else { return 0.0 };
        let place = Place { model: self, recursion, map, depth };
        let mechanisms = recursion.step(depth).into_iter().flat_map(StepConfig::mechanisms);
        mechanisms.map(|mechanism| mechanism.parameters().operations(&place)).sum()
    }

    /// Numbers that a cache holds of a depth beside keys and values.
    fn step_state(&self, map: &ShareMap, depth: &DepthAssignment) -> f64 {
        let Some(recursion) = &self.recursion else { return 0.0 };
        let place = Place { model: self, recursion, map, depth };
        let states = recursion.step(depth).into_iter().flat_map(StepConfig::mechanisms);
        states.map(|mechanism| mechanism.parameters().state(&place)).sum::<usize>() as f64
    }

    /// Tokens of what a depth runs over.
    pub(crate) fn step_factor(&self, depth: &DepthAssignment) -> usize {
        let step = self.recursion.as_ref().and_then(|recursion| recursion.step(depth));
        step.map_or(1, StepConfig::factor).max(1)
    }

    /// Tokens, or coarse tokens, that a depth has room for in a cache for `tokens` tokens.
    #[must_use]
    pub fn step_room(&self, depth: &DepthAssignment, tokens: usize) -> usize {
        match self.step_factor(depth) {
            1 => tokens,
            factor => (tokens / factor).max(1),
        }
    }

    /// True if a depth computes attention.
    fn step_attends(&self, depth: &DepthAssignment) -> bool {
        let step = self.recursion.as_ref().and_then(|recursion| recursion.step(depth));
        step.into_iter().flat_map(StepConfig::mechanisms).all(|mechanism| mechanism.parameters().runs_attention())
    }

    /// Number of keys that a cache for `tokens` tokens holds of a depth, if a mechanism changes it.
    fn step_cached(&self, depth: &DepthAssignment, tokens: usize) -> Option<f64> {
        let attention = self.recursion.as_ref()?.step(depth)?.attention.as_ref()?;
        Some(attention.parameters().cached_keys(tokens)? as f64)
    }

    /// Mean number of keys that a query of a depth attends to, if a mechanism changes it.
    fn step_keys(&self, depth: &DepthAssignment, keys: f64) -> Option<f64> {
        let attention = self.recursion.as_ref()?.step(depth)?.attention.as_ref()?;
        attention.parameters().mean_keys(keys)
    }

    /// Operations of the routers on one token of the sequence.
    fn router_operations(&self, recursion: &RecursionConfig, share: &dyn Fn(usize) -> f64) -> f64 {
        let Some(router) = recursion.router.as_ref().map(RouterConfig::spec) else { return 0.0 };
        let hidden = self.hidden_size;
        let weights = |RouterNetworks { outputs, network, .. }: RouterNetworks| match network.width(hidden) {
            _ if !network.has_weights() => 0,
            None => hidden * outputs,
            Some(width) => width * (hidden + outputs),
        };
        // An auxiliary router has the same inputs as the router beside it.
        let main = weights(router.routers(recursion.num_recursions));
        let auxiliary = router.auxiliary_routers(recursion.num_recursions).map_or(0, weights);
        router.inputs_per_token(share) * 2.0 * (main + auxiliary) as f64
    }
}

/// Mean number of keys that a query attends to, over `keys` consecutive tokens, within `window`.
fn pairs(keys: f64, window: f64) -> f64 {
    if keys <= window {
        return f64::midpoint(keys, 1.0);
    }
    (window * (window + 1.0) / 2.0 + (keys - window) * window) / keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ExpertChoiceConfig, Gating, Init, RouterNetwork, Sharing, tiny::tiny_llama};

    const TOKENS: usize = 4096;

    fn model(num_recursions: usize, kv_sharing: KvSharing) -> ModelConfig {
        let router = RouterConfig::ExpertChoice(ExpertChoiceConfig {
            network: RouterNetwork::Random,
            alpha: 1.0,
            gating: Gating::StraightThrough,
            ..ExpertChoiceConfig::new(num_recursions)
        });
        let recursion = RecursionConfig {
            router: Some(router),
            kv_sharing,
            ..RecursionConfig::new(num_recursions, Sharing::Cycle, Init::Average)
        };
        ModelConfig { recursion: Some(recursion), ..tiny_llama(12) }
    }

    /// Table 2 of the paper, for capacities `(R − r)/R` and shared depths only.
    #[test]
    fn fractions_of_the_full_cost_are_those_of_the_paper() {
        for num_recursions in [2, 3, 4] {
            let capacities = ExpertChoiceConfig::default_capacities(num_recursions);
            let (count, sum) =
                (num_recursions as f64, |f: &dyn Fn(f64) -> f64| capacities.iter().map(|c| f(*c)).sum::<f64>());
            for (kv, memory, attention) in [
                (KvSharing::RecursionWise, (count + 1.0) / (2.0 * count), sum(&|c| c * c) / count),
                (KvSharing::Shared, 1.0 / count, sum(&|c| c) / count),
                (KvSharing::Hybrid, 1.0, sum(&|c| c) / count),
            ] {
                let config = model(num_recursions, kv);
                let (routed, whole) = (config.cost(TOKENS, Some(&capacities)), config.full_recursion_cost(TOKENS));
                assert!((routed.cache_bytes / whole.cache_bytes - memory).abs() < 1e-12, "{kv} {num_recursions}");
                // The paper writes `S²` for `S(S + 1)`.
                assert!(
                    (routed.attention / whole.attention - attention).abs() < 1.0 / TOKENS as f64,
                    "{kv} {num_recursions}"
                );
            }
        }
    }

    #[test]
    fn operations_are_those_of_the_linears_that_run() {
        let whole = |config: &ModelConfig| config.full_recursion_cost(1).linear;
        // q, k, v, o: 8 × 8, 4 × 8, 4 × 8, 8 × 8; three linears of 8 × 16.
        let (keys, depth) = (2.0 * 64.0, 2.0 * (192.0 + 384.0));
        assert_eq!(whole(&model(2, KvSharing::Shared)), 12.0 * depth);
        let half = |kv| model(2, kv).cost(1, Some(&[1.0, 0.5])).linear;
        assert_eq!(half(KvSharing::Hybrid), 6.0 * depth + 3.0 * depth);
        assert_eq!(half(KvSharing::Shared), 6.0 * depth + 3.0 * (depth - keys));
        let without_routers = |kv| model(2, kv).cost(1, None).linear;
        assert_eq!(without_routers(KvSharing::Hybrid), 12.0 * depth);
        assert_eq!(without_routers(KvSharing::Shared), 6.0 * depth + 6.0 * (depth - keys));
    }

    #[test]
    fn shares_are_those_of_training_and_none_without_routers() {
        let mut config = model(3, KvSharing::RecursionWise);
        assert_eq!(config.expected_shares().unwrap(), ExpertChoiceConfig::default_capacities(3));
        config.recursion.as_mut().unwrap().router = None;
        assert_eq!(config.expected_shares(), None);
    }

    #[test]
    fn a_window_bounds_what_a_query_sees() {
        assert_eq!([pairs(5.0, f64::INFINITY), pairs(5.0, 5.0), pairs(5.0, 1.0)], [3.0, 3.0, 1.0]);
        assert_eq!(pairs(5.0, 2.0), (1.0 + 2.0 * 4.0) / 5.0);
    }
}
