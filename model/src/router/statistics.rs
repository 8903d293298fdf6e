//! What routers do with the tokens of a text, counted (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, Table 4 and Appendix G).

use super::forward::Decision;
use retie_config::{DepthScore, RouterConfig};
use serde::{Deserialize, Serialize};

/// Counts over the tokens of some forward passes. Those of several parts of a batch add up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingSums {
    /// Tokens.
    pub tokens: usize,
    /// Tokens by the number of recursions that they went through.
    pub depths: Vec<usize>,
    /// For each recursion, the tokens that went through, by their position.
    pub positions: Vec<Vec<usize>>,
    /// For each recursion that chooses, how many tokens had a logit with the sign of the choice, of how many.
    pub judged: Vec<[usize; 2]>,
    /// Where tokens choose their depth, how many routers chose each. Over several processes these are what has to be summed before
    /// [`RoutingSums::balanced`] reads them.
    pub loads: Vec<usize>,
    /// The sums of their scores, each token's divided by their sum.
    pub probabilities: Vec<f64>,
}

/// Shares and means of [`RoutingSums`]. An array has an entry for each recursion, or for each depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutingStatistics {
    /// Recursions of a token, in the mean.
    pub mean_depth: f64,
    /// Share of the tokens that went through a recursion.
    pub taken: Vec<f64>,
    /// Share of the positions at which no token went through it.
    pub dead_positions: Vec<f64>,
    /// Entropy of the positions of the tokens that did, as a part of the largest possible.
    pub position_entropy: Vec<f64>,
    /// Where recursions choose their tokens, share of those that a recursion had whose logit has the sign of what was chosen.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sampling_accuracy: Vec<f64>,
    /// Where tokens choose their depth.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub depth_choice: Option<DepthChoice>,
}

/// Of tokens that choose their depth.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DepthChoice {
    /// Share of the tokens whose router chose each depth.
    pub load: Vec<f64>,
    /// Entropy of the mean probability of a depth, in nats: `ln R` where all are alike.
    pub selection_entropy: f64,
    /// How far the largest load is above the mean, in means.
    pub max_vio: f64,
}

impl RoutingSums {
    /// Adds what the routers of a pass did with tokens at `positions`.
    pub fn add(&mut self, decisions: &[Decision], router: &RouterConfig, positions: &[usize]) {
        let num_recursions = decisions.len();
        self.tokens += positions.len();
        self.depths.resize(num_recursions + 1, 0);
        self.positions.resize(num_recursions, Vec::new());
        let window = positions.iter().map(|position| position + 1).max().unwrap_or(0);
        let mut depths = vec![0usize; positions.len()];
        for (decision, taken) in decisions.iter().zip(&mut self.positions) {
            taken.resize(window.max(taken.len()), 0);
            for row in decision.chosen.iter() {
                depths[*row] += 1;
                taken[positions[*row]] += 1;
            }
        }
        depths.into_iter().for_each(|depth| self.depths[depth] += 1);
        match router {
            RouterConfig::ExpertChoice(_) => {
                self.judged.resize(num_recursions, [0; 2]);
                for (decision, [right, judged]) in decisions.iter().zip(&mut self.judged) {
                    let signs = decision.causal_values().into_iter().map(|u| u > 0.0).zip(decision.mask());
                    *judged += decision.alive.len();
                    *right += signs.filter(|(sign, chosen)| sign == chosen).count();
                }
            }
            RouterConfig::TokenChoice(router) => {
                self.loads.resize(num_recursions, 0);
                self.probabilities.resize(num_recursions, 0.0);
                let Some(decision) = decisions.iter().find(|decision| decision.own.is_some()) else { return };
                decision.own.iter().flat_map(|own| own.iter()).for_each(|depth| self.loads[*depth] += 1);
                for row in decision.values().chunks_exact(num_recursions) {
                    let scores = probabilities(row, router.score);
                    self.probabilities.iter_mut().zip(scores).for_each(|(sum, p)| *sum += p);
                }
            }
        }
    }

    /// `biases` after a step of loss-free balancing (Wang et al., <https://arxiv.org/abs/2408.15664>, Algorithm 1): those of depths that
    /// fewer tokens chose than the mean rise by `rate`, the others fall.
    #[must_use]
    pub fn balanced(&self, biases: Option<&[f32]>, rate: f64) -> Vec<f32> {
        let total: usize = self.loads.iter().sum();
        let biases = biases.map_or_else(|| vec![0.0; self.loads.len()], <[f32]>::to_vec);
        let moved = |(bias, load): (f32, &usize)| match (load * self.loads.len()).cmp(&total) {
            std::cmp::Ordering::Less => bias + rate as f32,
            std::cmp::Ordering::Equal => bias,
            std::cmp::Ordering::Greater => bias - rate as f32,
        };
        biases.into_iter().zip(&self.loads).map(moved).collect()
    }

    /// The shares.
    #[must_use]
    pub fn statistics(&self) -> RoutingStatistics {
        let share = |count: usize| count as f64 / self.tokens.max(1) as f64;
        let of = |positions: &Vec<usize>| positions.iter().sum::<usize>();
        let dead = |positions: &Vec<usize>| {
            positions.iter().filter(|count| **count == 0).count() as f64 / positions.len().max(1) as f64
        };
        let accuracy = |[right, judged]: &[usize; 2]| *right as f64 / (*judged).max(1) as f64;
        RoutingStatistics {
            mean_depth: self.depths.iter().enumerate().map(|(depth, count)| depth as f64 * share(*count)).sum(),
            taken: self.positions.iter().map(|positions| share(of(positions))).collect(),
            dead_positions: self.positions.iter().map(dead).collect(),
            position_entropy: self.positions.iter().map(|positions| evenness(positions)).collect(),
            sampling_accuracy: self.judged.iter().map(accuracy).collect(),
            depth_choice: (!self.loads.is_empty()).then(|| self.depth_choice()),
        }
    }

    fn depth_choice(&self) -> DepthChoice {
        let total: usize = self.loads.iter().sum();
        let load: Vec<f64> = self.loads.iter().map(|count| *count as f64 / total.max(1) as f64).collect();
        let largest = load.iter().copied().fold(0.0, f64::max);
        let max_vio = largest * load.len() as f64 - 1.0;
        let mean: Vec<f64> = self.probabilities.iter().map(|sum| sum / total.max(1) as f64).collect();
        DepthChoice { selection_entropy: entropy(&mean), max_vio, load }
    }
}

/// The scores of a token, divided by their sum.
fn probabilities(row: &[f32], score: DepthScore) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let score = |u: &f32| match score {
        DepthScore::Softmax => f64::from(u - largest).exp(),
        DepthScore::Sigmoid => 1.0 / (1.0 + f64::from(-u).exp()),
    };
    let scores: Vec<f64> = row.iter().map(score).collect();
    let sum: f64 = scores.iter().sum();
    scores.into_iter().map(|p| p / sum).collect()
}

fn entropy(parts: &[f64]) -> f64 {
    parts.iter().filter(|part| **part > 0.0).map(|part| -part * part.ln()).sum()
}

/// Entropy of a distribution given by counts, divided by the logarithm of their number.
fn evenness(counts: &[usize]) -> f64 {
    let total = counts.iter().sum::<usize>() as f64;
    let parts: Vec<f64> = counts.iter().map(|count| *count as f64 / total).collect();
    if counts.len() < 2 { 1.0 } else { entropy(&parts) / (counts.len() as f64).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::{Gating, IntermediateState, KvStrategy, RouterInput, RouterNetwork, TokenChoiceConfig};
    use std::sync::Arc;

    #[test]
    fn an_even_choice_of_positions_has_entropy_one_and_a_single_one_zero() {
        assert!((evenness(&[3, 3, 3, 3]) - 1.0).abs() < 1e-15);
        assert_eq!(evenness(&[0, 7, 0]), 0.0);
        assert_eq!(evenness(&[5]), 1.0);
        assert_eq!(evenness(&[0, 0]), 0.0);
    }

    /// Four tokens, three depths: values of the paper's code run on these.
    #[test]
    fn violation_and_entropy_are_those_of_the_reference() {
        let logits = [1.0f32, 0.0, 0.0, 0.0, 2.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, -1.0];
        let sums = RoutingSums {
            tokens: 4,
            loads: vec![3, 1, 0],
            probabilities: logits.chunks(3).fold(vec![0.0; 3], |sum, row| {
                sum.iter().zip(probabilities(row, DepthScore::Softmax)).map(|(sum, p)| sum + p).collect()
            }),
            ..RoutingSums::default()
        };
        let DepthChoice { load, selection_entropy, max_vio } = sums.statistics().depth_choice.unwrap();
        assert_eq!((load, max_vio), (vec![0.75, 0.25, 0.0], 1.25));
        assert!((selection_entropy - 1.033_155_633_8).abs() < 1e-10, "ten digits are given: {selection_entropy}");
    }

    #[test]
    fn biases_move_towards_even_loads_and_stay_where_those_are_even() {
        let sums = |loads: [usize; 3]| RoutingSums { loads: loads.to_vec(), ..RoutingSums::default() };
        assert_eq!(sums([6, 2, 4]).balanced(None, 0.5), [-0.5, 0.5, 0.0]);
        assert_eq!(sums([0, 1, 0]).balanced(Some(&[1.0, 2.0, 3.0]), 0.25), [1.25, 1.75, 3.25]);
        assert_eq!(sums([3, 3, 3]).balanced(Some(&[1.0, 2.0, 3.0]), 0.25), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn parts_of_a_batch_add_up() {
        let router = RouterConfig::TokenChoice(TokenChoiceConfig {
            network: RouterNetwork::Linear,
            input: RouterInput::Raw,
            score: DepthScore::Softmax,
            alpha: 1.0,
            gating: Gating::Weighted,
            intermediate: IntermediateState::Plain,
            kv: KvStrategy::RecursionWise,
            biases: None,
        });
        let decisions = |chosen: [&[usize]; 2]| -> Vec<Decision> {
            let all: Arc<[usize]> = [0, 1].into();
            let decision = |(recursion, chosen): (usize, &[usize])| Decision {
                recursion,
                alive: all.clone(),
                logits: None,
                auxiliary: None,
                chosen: chosen.into(),
                own: (recursion == 0).then(|| [0, 1].into()),
            };
            chosen.into_iter().enumerate().map(decision).collect()
        };
        let mut sums = RoutingSums::default();
        sums.add(&decisions([&[0, 1], &[1]]), &router, &[0, 1]);
        sums.add(&decisions([&[0, 1], &[0, 1]]), &router, &[0, 1]);
        assert_eq!((sums.tokens, &sums.depths, &sums.loads), (4, &vec![0, 1, 3], &vec![2, 2]));
        let found = sums.statistics();
        assert_eq!((found.mean_depth, found.taken, found.dead_positions), (1.75, vec![1.0, 0.75], vec![0.0, 0.0]));
    }
}
