//! What the routers of a model do on a text: in inference, where thresholds choose, and beside it as in training, where the highest of
//! each window are taken (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, Table 4 and Appendix G).
//!
//! The loss with top-k is not that of a language model: a token's depth depends on the tokens after it. The difference of the two
//! losses is what training with it leaves to be made up for.

use crate::Progress;
use burn::tensor::{Int, Tensor};
use retie_model::{
    CausalLm, Choice, Routing,
    kernels::{HeadInput, Layout, token_log_probs},
};
use serde::Serialize;
use std::fmt;

/// The report; shares are of all tokens that were read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterReport {
    /// Tokens of a window.
    pub window: usize,
    /// Windows read.
    pub windows: usize,
    /// Tokens read.
    pub tokens: usize,
    /// Recursions of a token, in the mean.
    pub mean_depth: f64,
    /// Share of the tokens that went through 0, 1, … recursions.
    pub depths: Vec<f64>,
    /// Each recursion.
    pub recursions: Vec<RecursionReport>,
    /// Mean negative log-likelihood of a token with thresholds, in nats.
    pub token_nll: f64,
    /// The same text with top-k.
    pub top_k: TopK,
}

/// One recursion, with thresholds but for [`RecursionReport::sampling_accuracy`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecursionReport {
    /// Share that it takes in training.
    pub capacity: f64,
    /// Share that it took here.
    pub taken: f64,
    /// What a token's logit has to be above; every token if absent.
    pub threshold: Option<f64>,
    /// With top-k, share of the tokens it had whose logit has the sign of what top-k chose.
    pub sampling_accuracy: f64,
    /// Share of the window's positions at which no window had a token chosen.
    pub dead_positions: f64,
    /// Entropy of the positions of the chosen tokens, as a part of the largest possible.
    pub position_entropy: f64,
}

/// With the highest of each window in place of thresholds: not causal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopK {
    /// Mean negative log-likelihood of a token, in nats.
    pub token_nll: f64,
    /// Recursions of a token, in the mean.
    pub mean_depth: f64,
    /// Share of the tokens that have the same depth as with thresholds.
    pub same_depth: f64,
}

/// Reads `windows` (at least one, each of at least two tokens, of which the last is only predicted) with a routed model.
///
/// `None` if the model has no router.
pub fn measure_router(
    model: &CausalLm,
    windows: &[&[u32]],
    batch_size: usize,
    progress: &mut dyn FnMut(Progress),
) -> Option<RouterReport> {
    let router = model.router()?;
    let window = windows.iter().map(|tokens| tokens.len() - 1).max()?;
    let num_recursions = router.capacities.len();
    let mut sums = Sums::new(num_recursions, window);
    for (index, batch) in windows.chunks(batch_size.max(1)).enumerate() {
        let causal = read(model, batch, Choice::Threshold);
        let ahead = read(model, batch, Choice::TopK(router.capacities.clone()));
        sums.add(batch, &causal, &ahead);
        progress(Progress { done: windows.len().min((index + 1) * batch_size), total: windows.len() });
    }
    let share = |count: usize| count as f64 / sums.tokens as f64;
    let recursions = router.capacities.iter().enumerate().map(|(r, capacity)| {
        let positions = &sums.positions[r];
        let [right, judged] = sums.judged[r];
        RecursionReport {
            capacity: *capacity,
            taken: share(positions.iter().sum()),
            threshold: router.threshold(r),
            sampling_accuracy: right as f64 / judged.max(1) as f64,
            dead_positions: positions.iter().filter(|count| **count == 0).count() as f64 / window as f64,
            position_entropy: entropy(positions),
        }
    });
    let mean = |depths: &[usize]| depths.iter().enumerate().map(|(depth, count)| depth as f64 * share(*count)).sum();
    Some(RouterReport {
        window: window + 1,
        windows: windows.len(),
        tokens: sums.tokens,
        mean_depth: mean(&sums.depths),
        depths: sums.depths.iter().map(|count| share(*count)).collect(),
        recursions: recursions.collect(),
        token_nll: sums.nll / sums.tokens as f64,
        top_k: TopK {
            token_nll: sums.top_k_nll / sums.tokens as f64,
            mean_depth: mean(&sums.top_k_depths),
            same_depth: share(sums.same_depth),
        },
    })
}

struct Reading {
    nll: f64,
    routing: Routing,
    depths: Vec<usize>,
}

fn read(model: &CausalLm, batch: &[&[u32]], choice: Choice) -> Reading {
    let layout = Layout::packed(batch.iter().map(|tokens| (tokens.len() - 1, 0..0)));
    let inputs: Vec<i32> = batch.iter().flat_map(|tokens| &tokens[..tokens.len() - 1]).map(|id| *id as i32).collect();
    let targets: Vec<u32> = batch.iter().flat_map(|tokens| &tokens[1..]).copied().collect();
    let ids = Tensor::<1, Int>::from_ints(inputs.as_slice(), &model.device());
    let (hidden, routing) = model.forward_routed(ids, layout, choice);
    let (log_probs, _) = token_log_probs(&HeadInput { hidden, head: model.head() }, &targets);
    let depths = routing.depths(targets.len());
    Reading { nll: -log_probs.iter().map(|p| f64::from(*p)).sum::<f64>(), routing, depths }
}

struct Sums {
    tokens: usize,
    nll: f64,
    top_k_nll: f64,
    same_depth: usize,
    /// Tokens by depth.
    depths: Vec<usize>,
    top_k_depths: Vec<usize>,
    /// For each recursion, how many tokens were chosen at each position.
    positions: Vec<Vec<usize>>,
    /// For each recursion, how many signs were right, of how many.
    judged: Vec<[usize; 2]>,
}

impl Sums {
    fn new(num_recursions: usize, window: usize) -> Self {
        Self {
            tokens: 0,
            nll: 0.0,
            top_k_nll: 0.0,
            same_depth: 0,
            depths: vec![0; num_recursions + 1],
            top_k_depths: vec![0; num_recursions + 1],
            positions: vec![vec![0; window]; num_recursions],
            judged: vec![[0; 2]; num_recursions],
        }
    }

    fn add(&mut self, batch: &[&[u32]], causal: &Reading, ahead: &Reading) {
        self.tokens += causal.depths.len();
        self.nll += causal.nll;
        self.top_k_nll += ahead.nll;
        for (depth, top_k) in causal.depths.iter().zip(&ahead.depths) {
            self.depths[*depth] += 1;
            self.top_k_depths[*top_k] += 1;
            self.same_depth += usize::from(depth == top_k);
        }
        let position: Vec<usize> = batch.iter().flat_map(|tokens| 0..tokens.len() - 1).collect();
        for decision in causal.routing.decisions() {
            for row in decision.chosen.iter() {
                self.positions[decision.recursion][position[*row]] += 1;
            }
        }
        for decision in ahead.routing.decisions() {
            let [right, judged] = &mut self.judged[decision.recursion];
            let signs = decision.values().into_iter().map(|u| u > 0.0).zip(decision.mask());
            *judged += decision.alive.len();
            *right += signs.filter(|(sign, chosen)| sign == chosen).count();
        }
    }
}

/// Entropy of a distribution given by counts, divided by the logarithm of their number.
fn entropy(counts: &[usize]) -> f64 {
    let total = counts.iter().sum::<usize>() as f64;
    let terms = counts.iter().filter(|count| **count > 0).map(|count| {
        let part = *count as f64 / total;
        -part * part.ln()
    });
    if counts.len() < 2 { 1.0 } else { terms.sum::<f64>() / (counts.len() as f64).ln() }
}

impl fmt::Display for RouterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        writeln!(f, "routers on {} tokens, windows of {}", self.tokens, self.window)?;
        writeln!(
            f,
            "{:<10} {:>8} {:>8} {:>10} {:>9} {:>15} {:>17}",
            "recursion", "capacity", "taken", "threshold", "accuracy", "dead positions", "position entropy"
        )?;
        for (r, recursion) in self.recursions.iter().enumerate() {
            writeln!(
                f,
                "{r:<10} {:>8} {:>8} {:>10} {:>9} {:>15} {:>17.3}",
                percent(recursion.capacity),
                percent(recursion.taken),
                recursion.threshold.map_or_else(|| "–".to_owned(), |threshold| format!("{threshold:.3}")),
                percent(recursion.sampling_accuracy),
                percent(recursion.dead_positions),
                recursion.position_entropy
            )?;
        }
        let depths = self.depths.iter().enumerate().filter(|(_, share)| **share > 0.0);
        let depths: Vec<_> = depths.map(|(depth, share)| format!("{depth}: {}", percent(*share))).collect();
        writeln!(f, "depth {:.3} in the mean ({})", self.mean_depth, depths.join(", "))?;
        writeln!(f, "token_nll {:.4} with thresholds, as in inference", self.token_nll)?;
        let TopK { token_nll, mean_depth, same_depth } = &self.top_k;
        write!(
            f,
            "token_nll {token_nll:.4} with top-k, which looks ahead: not that of a language model; depth {mean_depth:.3}, the same for {} of the tokens",
            percent(*same_depth)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_choice_of_positions_has_entropy_one_and_a_single_one_zero() {
        assert!((entropy(&[3, 3, 3, 3]) - 1.0).abs() < 1e-15);
        assert_eq!(entropy(&[0, 7, 0]), 0.0);
        assert_eq!(entropy(&[5]), 1.0);
    }
}
