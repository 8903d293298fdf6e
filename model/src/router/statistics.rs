//! Routing statistics: counts of the routers' decisions on a text (Mixture-of-Recursions,
//! <https://arxiv.org/abs/2507.10524>, Table 4 and Appendix G).

use super::trace::RoutingDecision;
use retie_config::{RouterConfig, TokenChoiceScore};
use serde::{Deserialize, Serialize};

/// Routing counts over the tokens of some forward passes. Counts of parts of a batch add up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingSums {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens by recursion count, from 0.
    pub recursion_counts: Vec<usize>,
    /// For each recursion and each position in the sequence, the number of selected tokens.
    pub positions: Vec<Vec<usize>>,
    /// For each recursion of expert choice, the number of active tokens whose logit has the sign of
    /// the selection, and the number of active tokens.
    pub judged: Vec<[usize; 2]>,
    /// For token choice, the number of tokens whose router chose each recursion count. Distributed
    /// processes have to sum these before [`RoutingSums::balanced`] reads them.
    pub loads: Vec<usize>,
    /// For token choice, sums over tokens of the normalised scores of each recursion count.
    pub probabilities: Vec<f64>,
}

/// Fractions and means of [`RoutingSums`]. Arrays have one entry per recursion, or per recursion
/// count for token choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RoutingStatistics {
    /// Mean recursion count of a token.
    #[serde(alias = "mean_depth")]
    pub mean_recursions: f64,
    /// Fraction of the tokens that went through each recursion.
    pub taken: Vec<f64>,
    /// Fraction of the positions at which no token went through the recursion.
    pub dead_positions: Vec<f64>,
    /// Entropy of the positions of the selected tokens, divided by its maximum.
    pub position_entropy: Vec<f64>,
    /// Sampling accuracy of expert choice: the fraction of a recursion's active tokens whose logit
    /// has the sign of the selection.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub sampling_accuracy: Vec<f64>,
    /// Statistics of token choice.
    #[serde(alias = "depth_choice", skip_serializing_if = "Option::is_none", default)]
    pub token_choice: Option<TokenChoiceStatistics>,
}

/// Routing statistics of token choice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenChoiceStatistics {
    /// Fraction of the tokens whose router chose each recursion count.
    pub load: Vec<f64>,
    /// Entropy of the mean probabilities of the recursion counts, in nats: `ln R` if uniform.
    pub selection_entropy: f64,
    /// Maximum violation: the largest load divided by the mean load, minus 1.
    pub max_vio: f64,
}

impl RoutingSums {
    /// Adds the decisions of the routers in a pass over tokens at `positions`.
    pub fn add(&mut self, decisions: &[RoutingDecision], router: &RouterConfig, positions: &[usize]) {
        let num_recursions = decisions.len();
        self.tokens += positions.len();
        self.recursion_counts.resize(num_recursions + 1, 0);
        self.positions.resize(num_recursions, Vec::new());
        let window = positions.iter().map(|position| position + 1).max().unwrap_or(0);
        let mut counts = vec![0usize; positions.len()];
        for (decision, taken) in decisions.iter().zip(&mut self.positions) {
            taken.resize(window.max(taken.len()), 0);
            for row in decision.selected_rows.host().iter() {
                counts[*row] += 1;
                taken[positions[*row]] += 1;
            }
        }
        counts.into_iter().for_each(|count| self.recursion_counts[count] += 1);
        if router.as_expert_choice().is_some() {
            self.judged.resize(num_recursions, [0; 2]);
            for (decision, [right, judged]) in decisions.iter().zip(&mut self.judged) {
                let signs = decision.causal_values().into_iter().map(|u| u > 0.0).zip(decision.mask());
                *judged += decision.active_rows.len();
                *right += signs.filter(|(sign, selected)| sign == selected).count();
            }
        }
        if let Some((score, _)) = router.spec().count_score() {
            self.loads.resize(num_recursions, 0);
            self.probabilities.resize(num_recursions, 0.0);
            let Some(decision) = decisions.iter().find(|decision| decision.router_recursions.is_some()) else { return };
            let chosen = decision.router_recursions.iter().flat_map(|chosen| chosen.iter());
            chosen.for_each(|recursion| self.loads[*recursion] += 1);
            for row in decision.values().chunks_exact(num_recursions) {
                let scores = probabilities(row, score);
                self.probabilities.iter_mut().zip(scores).for_each(|(sum, p)| *sum += p);
            }
        }
    }

    /// `biases` after a step of loss-free balancing (Wang et al.,
    /// <https://arxiv.org/abs/2408.15664>, Algorithm 1): biases of recursion counts with a load
    /// below the mean rise by `rate`, those above it fall by `rate`.
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

    /// Fractions and means of the counts.
    #[must_use]
    pub fn statistics(&self) -> RoutingStatistics {
        let share = |count: usize| count as f64 / self.tokens.max(1) as f64;
        let selected = |positions: &Vec<usize>| positions.iter().sum::<usize>();
        let dead = |positions: &Vec<usize>| {
            positions.iter().filter(|count| **count == 0).count() as f64 / positions.len().max(1) as f64
        };
        let accuracy = |[right, judged]: &[usize; 2]| *right as f64 / (*judged).max(1) as f64;
        RoutingStatistics {
            mean_recursions: self
                .recursion_counts
                .iter()
                .enumerate()
                .map(|(r, tokens)| r as f64 * share(*tokens))
                .sum(),
            taken: self.positions.iter().map(|positions| share(selected(positions))).collect(),
            dead_positions: self.positions.iter().map(dead).collect(),
            position_entropy: self.positions.iter().map(|positions| evenness(positions)).collect(),
            sampling_accuracy: self.judged.iter().map(accuracy).collect(),
            token_choice: (!self.loads.is_empty()).then(|| self.token_choice()),
        }
    }

    fn token_choice(&self) -> TokenChoiceStatistics {
        let total: usize = self.loads.iter().sum();
        let load: Vec<f64> = self.loads.iter().map(|count| *count as f64 / total.max(1) as f64).collect();
        let largest = load.iter().copied().fold(0.0, f64::max);
        let max_vio = largest * load.len() as f64 - 1.0;
        let mean: Vec<f64> = self.probabilities.iter().map(|sum| sum / total.max(1) as f64).collect();
        TokenChoiceStatistics { selection_entropy: entropy(&mean), max_vio, load }
    }
}

/// Scores of a token, normalised to sum to 1.
fn probabilities(row: &[f32], score: TokenChoiceScore) -> Vec<f64> {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let score = |u: &f32| match score {
        TokenChoiceScore::Softmax => f64::from(u - largest).exp(),
        TokenChoiceScore::Sigmoid => 1.0 / (1.0 + f64::from(-u).exp()),
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
    use retie_config::TokenChoiceConfig;

    #[test]
    fn an_even_choice_of_positions_has_entropy_one_and_a_single_one_zero() {
        assert!((evenness(&[3, 3, 3, 3]) - 1.0).abs() < 1e-15);
        assert_eq!(evenness(&[0, 7, 0]), 0.0);
        assert_eq!(evenness(&[5]), 1.0);
        assert_eq!(evenness(&[0, 0]), 0.0);
    }

    /// Values of the paper's code on four tokens and three recursion counts.
    #[test]
    fn violation_and_entropy_are_those_of_the_reference() {
        let logits = [1.0f32, 0.0, 0.0, 0.0, 2.0, 0.0, 0.5, 0.5, 0.0, 0.0, 0.0, -1.0];
        let sums = RoutingSums {
            tokens: 4,
            loads: vec![3, 1, 0],
            probabilities: logits.chunks(3).fold(vec![0.0; 3], |sum, row| {
                sum.iter().zip(probabilities(row, TokenChoiceScore::Softmax)).map(|(sum, p)| sum + p).collect()
            }),
            ..RoutingSums::default()
        };
        let TokenChoiceStatistics { load, selection_entropy, max_vio } = sums.statistics().token_choice.unwrap();
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
        let router = RouterConfig::TokenChoice(TokenChoiceConfig::default());
        let decisions = |chosen: [&[usize]; 2]| -> Vec<RoutingDecision> {
            let decision = |(recursion, chosen): (usize, &[usize])| RoutingDecision {
                recursion,
                active_rows: [0, 1].into(),
                logits: None,
                auxiliary_logits: None,
                selected_rows: chosen.into(),
                router_recursions: (recursion == 0).then(|| [0, 1].into()),
            };
            chosen.into_iter().enumerate().map(decision).collect()
        };
        let mut sums = RoutingSums::default();
        sums.add(&decisions([&[0, 1], &[1]]), &router, &[0, 1]);
        sums.add(&decisions([&[0, 1], &[0, 1]]), &router, &[0, 1]);
        assert_eq!((sums.tokens, &sums.recursion_counts, &sums.loads), (4, &vec![0, 1, 3], &vec![2, 2]));
        let found = sums.statistics();
        assert_eq!((found.mean_recursions, found.taken, found.dead_positions), (1.75, vec![1.0, 0.75], vec![0.0, 0.0]));
    }
}
