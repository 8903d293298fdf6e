//! Router report: the recursion counts of a text in inference and, under expert choice, beside them
//! those of training, where each window's highest logits are selected (Mixture-of-Recursions,
//! <https://arxiv.org/abs/2507.10524>, Table 4 and Appendix G).
//!
//! The loss with top-k selection is not that of a language model: a token's recursion count depends
//! on later tokens. The difference of the two losses measures the gap that top-k training leaves to
//! causal inference.

use crate::{
    Progress,
    routed_cost::{RoutedCost, measure_cost},
    token_class::{ClassRecursions, RecursionsByClass, TokenClass},
};
use burn::tensor::{Int, Tensor};
use retie_config::RouterConfig;
use retie_model::{
    CausalLm, RoutingSums, RoutingTrace, SelectionRule, TokenChoiceStatistics,
    kernels::{HeadInput, Layout, token_log_probs},
};
use serde::Serialize;
use std::fmt;

/// Router report; fractions are of all tokens that were read.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RouterReport {
    /// Tokens of a window, the last one included, which is only predicted.
    pub window: usize,
    /// Number of windows read.
    pub windows: usize,
    /// Number of tokens read.
    pub tokens: usize,
    /// Mean recursion count of a token.
    pub mean_recursions: f64,
    /// Fraction of the tokens with a recursion count of 0, 1, ….
    #[serde(rename = "depths")]
    pub recursion_counts: Vec<f64>,
    /// Report on each recursion.
    pub recursions: Vec<RecursionReport>,
    /// Mean negative log-likelihood of a token in inference, in nats.
    pub token_nll: f64,
    /// Results on the same text with top-k selection; `None` under token choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<TopK>,
    /// Statistics of token choice, where training selects as inference does; `None` under expert
    /// choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_choice: Option<TokenChoiceStatistics>,
    /// Recursion counts by classes of tokens.
    pub classes: Vec<ClassRecursions>,
    /// Measured cost on the first windows.
    pub cost: Option<RoutedCost>,
}

/// One recursion in inference, except for [`Chosen::sampling_accuracy`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecursionReport {
    /// Fraction of the tokens that it selected.
    pub taken: f64,
    /// Fraction of the window's positions at which it selected no token in any window.
    pub dead_positions: f64,
    /// Entropy of the positions of the selected tokens, as a fraction of the largest possible.
    pub position_entropy: f64,
    /// Capacity and threshold, under expert choice.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
}

/// Selection of a recursion under expert choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// Capacity: the fraction of the tokens that it selects in training.
    pub capacity: f64,
    /// Measured fraction of selected tokens minus the capacity.
    pub drift: f64,
    /// Threshold that a token's logit has to exceed; `None` selects every token.
    pub threshold: Option<f64>,
    /// With top-k, fraction of the active tokens whose logit has the sign of the top-k decision.
    pub sampling_accuracy: f64,
}

/// Results with top-k selection in each window instead of thresholds: not causal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopK {
    /// Mean negative log-likelihood of a token, in nats.
    pub token_nll: f64,
    /// Mean recursion count of a token.
    pub mean_recursions: f64,
    /// Share of the tokens that have the same recursion count as in inference.
    pub same_recursions: f64,
}

/// Measures the routers of a model on `windows`: at least one, each of at least two tokens, of
/// which the last is only predicted. `classes` has the class of every token.
///
/// `None` if the model has no router.
pub fn measure_router(
    model: &CausalLm,
    windows: &[&[u32]],
    classes: &[Vec<TokenClass>],
    batch_size: usize,
    progress: &mut dyn FnMut(Progress),
) -> Option<RouterReport> {
    let router = model.router()?;
    let window = windows.iter().map(|tokens| tokens.len() - 1).max()?;
    let expert = model.expert_choice();
    let (mut sums, mut ahead) = (Sums::default(), expert.map(|_| Sums::default()));
    let mut same = 0;
    let batch_size = batch_size.max(1);
    let mut by_class = RecursionsByClass::new(model.share_map().num_recursions());
    for (index, (batch, classes)) in windows.chunks(batch_size).zip(classes.chunks(batch_size)).enumerate() {
        let causal = read(model, batch, SelectionRule::Causal);
        sums.add(batch, &causal, router);
        if let (Some(expert), Some(ahead)) = (expert, &mut ahead) {
            let top_k = read(model, batch, SelectionRule::TopK(expert.capacities.clone()));
            ahead.add(batch, &top_k, router);
            let counts = causal.recursion_counts.iter().zip(&top_k.recursion_counts);
            same += counts.filter(|(causal, top_k)| causal == top_k).count();
        }
        let classes = classes.iter().flat_map(|classes| &classes[..classes.len() - 1]);
        classes.zip(&causal.recursion_counts).for_each(|(class, count)| by_class.add(*class, *count));
        progress(Progress { done: windows.len().min((index + 1) * batch_size), total: windows.len() });
    }
    let tokens = sums.routing.tokens;
    let share = |count: usize| count as f64 / tokens as f64;
    let found = sums.routing.statistics();
    let top_k = ahead.map(|ahead| (ahead.routing.statistics(), ahead.nll / tokens as f64));
    let recursions = found.taken.iter().enumerate().map(|(r, taken)| RecursionReport {
        taken: *taken,
        dead_positions: found.dead_positions[r],
        position_entropy: found.position_entropy[r],
        chosen: expert.zip(top_k.as_ref()).map(|(expert, (top_k, _))| Chosen {
            capacity: expert.capacities[r],
            drift: taken - expert.capacities[r],
            threshold: expert.threshold(r),
            sampling_accuracy: top_k.sampling_accuracy[r],
        }),
    });
    Some(RouterReport {
        window: window + 1,
        windows: windows.len(),
        tokens,
        mean_recursions: found.mean_recursions,
        recursion_counts: sums.routing.recursion_counts.iter().map(|count| share(*count)).collect(),
        recursions: recursions.collect(),
        token_nll: sums.nll / tokens as f64,
        top_k: top_k.as_ref().map(|(statistics, token_nll)| TopK {
            token_nll: *token_nll,
            mean_recursions: statistics.mean_recursions,
            same_recursions: share(same),
        }),
        token_choice: found.token_choice,
        classes: by_class.histograms(),
        cost: measure_cost(model, &whole(windows, batch_size)),
    })
}

/// The first `count` windows of the maximum length, without their last tokens.
fn whole<'t>(windows: &[&'t [u32]], count: usize) -> Vec<&'t [u32]> {
    let longest = windows.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
    let whole = windows.iter().filter(|tokens| tokens.len() == longest);
    whole.take(count).map(|tokens| &tokens[..tokens.len() - 1]).collect()
}

struct Reading {
    nll: f64,
    trace: RoutingTrace,
    recursion_counts: Vec<usize>,
}

fn read(model: &CausalLm, batch: &[&[u32]], rule: SelectionRule) -> Reading {
    let layout = Layout::packed(batch.iter().map(|tokens| (tokens.len() - 1, 0..0)));
    let inputs: Vec<i32> = batch.iter().flat_map(|tokens| &tokens[..tokens.len() - 1]).map(|id| *id as i32).collect();
    let targets: Vec<u32> = batch.iter().flat_map(|tokens| &tokens[1..]).copied().collect();
    let ids = Tensor::<1, Int>::from_ints(inputs.as_slice(), &model.device());
    let (hidden, trace) = model.forward_routed(ids, layout, rule);
    let (log_probs, _) = token_log_probs(&HeadInput { hidden, head: model.head() }, &targets);
    let recursion_counts = trace.recursion_counts(targets.len());
    Reading { nll: -log_probs.iter().map(|p| f64::from(*p)).sum::<f64>(), trace, recursion_counts }
}

#[derive(Default)]
struct Sums {
    nll: f64,
    routing: RoutingSums,
}

impl Sums {
    fn add(&mut self, batch: &[&[u32]], reading: &Reading, router: &RouterConfig) {
        self.nll += reading.nll;
        let positions: Vec<usize> = batch.iter().flat_map(|tokens| 0..tokens.len() - 1).collect();
        self.routing.add(reading.trace.decisions(), router, &positions);
    }
}

impl fmt::Display for RouterReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        writeln!(f, "routers on {} tokens, windows of {}", self.tokens, self.window)?;
        let chooses = self.recursions.iter().any(|recursion| recursion.chosen.is_some());
        write!(f, "{:<10} {:>8} {:>15} {:>17}", "recursion", "taken", "dead positions", "position entropy")?;
        if chooses {
            write!(f, " {:>8} {:>8} {:>10} {:>9}", "capacity", "drift", "threshold", "accuracy")?;
        }
        writeln!(f)?;
        for (r, recursion) in self.recursions.iter().enumerate() {
            let RecursionReport { taken, dead_positions, position_entropy, chosen } = recursion;
            write!(f, "{r:<10} {:>8} {:>15} {position_entropy:>17.3}", percent(*taken), percent(*dead_positions))?;
            if let Some(Chosen { capacity, drift, threshold, sampling_accuracy }) = chosen {
                let drift = format!("{:+.1} %", 100.0 * drift);
                let threshold = threshold.map_or_else(|| "–".to_owned(), |threshold| format!("{threshold:.3}"));
                let (capacity, accuracy) = (percent(*capacity), percent(*sampling_accuracy));
                write!(f, " {capacity:>8} {drift:>8} {threshold:>10} {accuracy:>9}")?;
            }
            writeln!(f)?;
        }
        let counts = self.recursion_counts.iter().enumerate().filter(|(_, share)| **share > 0.0);
        let counts: Vec<_> = counts.map(|(count, share)| format!("{count}: {}", percent(*share))).collect();
        writeln!(f, "mean recursions {:.3} ({})", self.mean_recursions, counts.join(", "))?;
        if let Some(TokenChoiceStatistics { load, selection_entropy, max_vio }) = &self.token_choice {
            let even = (load.len() as f64).ln();
            writeln!(
                f,
                "selection entropy {selection_entropy:.3} of {even:.3}, MaxVio {max_vio:.3}; training selects the same recursion counts"
            )?;
        }
        let how = if chooses { "with thresholds" } else { "at these recursion counts" };
        writeln!(f, "token_nll {:.4} {how}, as in inference", self.token_nll)?;
        if let Some(TopK { token_nll, mean_recursions, same_recursions }) = &self.top_k {
            writeln!(
                f,
                "token_nll {token_nll:.4} with top-k, which looks ahead: not that of a language model; mean recursions {mean_recursions:.3}, the same for {} of the tokens",
                percent(*same_recursions)
            )?;
        }
        write!(f, "\n{:<14} {:>8} {:>15}", "tokens", "number", "mean recursions")?;
        (0..self.recursion_counts.len()).try_for_each(|count| write!(f, " {count:>9}"))?;
        for ClassRecursions { class, tokens, mean_recursions, recursion_counts } in &self.classes {
            let mean = mean_recursions.map_or_else(|| "–".to_owned(), |mean| format!("{mean:.3}"));
            write!(f, "\n{class:<14} {tokens:>8} {mean:>15}")?;
            recursion_counts.iter().try_for_each(|share| write!(f, " {:>9}", percent(*share)))?;
        }
        match &self.cost {
            Some(cost) => write!(f, "\n\n{cost}"),
            None => Ok(()),
        }
    }
}
