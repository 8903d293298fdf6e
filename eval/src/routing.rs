//! What the routers of a model do on a text: in inference, and beside it, where recursions choose their tokens, as in training, where the
//! highest of each window are taken (Mixture-of-Recursions, <https://arxiv.org/abs/2507.10524>, Table 4 and Appendix G).
//!
//! The loss with top-k is not that of a language model: a token's depth depends on the tokens after it. The difference of the two
//! losses is what training with it leaves to be made up for.

use crate::{
    Progress,
    routed_cost::{RoutedCost, measure_cost},
    token_class::{ClassDepths, DepthsByClass, TokenClass},
};
use burn::tensor::{Int, Tensor};
use retie_config::RouterConfig;
use retie_model::{
    CausalLm, Choice, DepthChoice, Routing, RoutingSums,
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
    /// Mean negative log-likelihood of a token in inference, in nats.
    pub token_nll: f64,
    /// The same text with top-k, where recursions choose their tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_k: Option<TopK>,
    /// Where tokens choose their depth: training chooses the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub depth_choice: Option<DepthChoice>,
    /// Depths by classes of tokens.
    pub classes: Vec<ClassDepths>,
    /// What the first windows cost.
    pub cost: Option<RoutedCost>,
}

/// One recursion in inference, but for [`Chosen::sampling_accuracy`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RecursionReport {
    /// Share of the tokens that it took here.
    pub taken: f64,
    /// Share of the window's positions at which no window had a token chosen.
    pub dead_positions: f64,
    /// Entropy of the positions of the chosen tokens, as a part of the largest possible.
    pub position_entropy: f64,
    /// Where it chooses its tokens.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub chosen: Option<Chosen>,
}

/// A recursion that chooses its tokens.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Chosen {
    /// Share that it takes in training.
    pub capacity: f64,
    /// What it took here less that.
    pub drift: f64,
    /// What a token's logit has to be above; every token if absent.
    pub threshold: Option<f64>,
    /// With top-k, share of the tokens it had whose logit has the sign of what top-k chose.
    pub sampling_accuracy: f64,
}

/// With the highest of each window in place of thresholds: not causal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TopK {
    /// Mean negative log-likelihood of a token, in nats.
    pub token_nll: f64,
    /// Recursions of a token, in the mean.
    pub mean_depth: f64,
    /// Share of the tokens that have the same depth as in inference.
    pub same_depth: f64,
}

/// Reads `windows` (at least one, each of at least two tokens, of which the last is only predicted) with a routed model. Their tokens are
/// of the classes `classes`.
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
    let mut same_depth = 0;
    let batch_size = batch_size.max(1);
    let mut by_class = DepthsByClass::new(model.share_map().num_recursions());
    for (index, (batch, classes)) in windows.chunks(batch_size).zip(classes.chunks(batch_size)).enumerate() {
        let causal = read(model, batch, Choice::Threshold);
        sums.add(batch, &causal, router);
        if let (Some(expert), Some(ahead)) = (expert, &mut ahead) {
            let top_k = read(model, batch, Choice::TopK(expert.capacities.clone()));
            ahead.add(batch, &top_k, router);
            same_depth += causal.depths.iter().zip(&top_k.depths).filter(|(causal, top_k)| causal == top_k).count();
        }
        let classes = classes.iter().flat_map(|classes| &classes[..classes.len() - 1]);
        classes.zip(&causal.depths).for_each(|(class, depth)| by_class.add(*class, *depth));
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
        mean_depth: found.mean_depth,
        depths: sums.routing.depths.iter().map(|count| share(*count)).collect(),
        recursions: recursions.collect(),
        token_nll: sums.nll / tokens as f64,
        top_k: top_k.as_ref().map(|(statistics, token_nll)| TopK {
            token_nll: *token_nll,
            mean_depth: statistics.mean_depth,
            same_depth: share(same_depth),
        }),
        depth_choice: found.depth_choice,
        classes: by_class.histograms(),
        cost: measure_cost(model, &whole(windows, batch_size)),
    })
}

/// The first windows that are as long as any, without their last tokens.
fn whole<'t>(windows: &[&'t [u32]], count: usize) -> Vec<&'t [u32]> {
    let longest = windows.iter().map(|tokens| tokens.len()).max().unwrap_or(0);
    let whole = windows.iter().filter(|tokens| tokens.len() == longest);
    whole.take(count).map(|tokens| &tokens[..tokens.len() - 1]).collect()
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

#[derive(Default)]
struct Sums {
    nll: f64,
    routing: RoutingSums,
}

impl Sums {
    fn add(&mut self, batch: &[&[u32]], reading: &Reading, router: &RouterConfig) {
        self.nll += reading.nll;
        let positions: Vec<usize> = batch.iter().flat_map(|tokens| 0..tokens.len() - 1).collect();
        self.routing.add(reading.routing.decisions(), router, &positions);
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
        let depths = self.depths.iter().enumerate().filter(|(_, share)| **share > 0.0);
        let depths: Vec<_> = depths.map(|(depth, share)| format!("{depth}: {}", percent(*share))).collect();
        writeln!(f, "depth {:.3} in the mean ({})", self.mean_depth, depths.join(", "))?;
        if let Some(DepthChoice { load, selection_entropy, max_vio }) = &self.depth_choice {
            let even = (load.len() as f64).ln();
            writeln!(
                f,
                "selection entropy {selection_entropy:.3} of {even:.3}, MaxVio {max_vio:.3}; training chooses the same depths"
            )?;
        }
        let how = if chooses { "with thresholds" } else { "at these depths" };
        writeln!(f, "token_nll {:.4} {how}, as in inference", self.token_nll)?;
        if let Some(TopK { token_nll, mean_depth, same_depth }) = &self.top_k {
            writeln!(
                f,
                "token_nll {token_nll:.4} with top-k, which looks ahead: not that of a language model; depth {mean_depth:.3}, the same for {} of the tokens",
                percent(*same_depth)
            )?;
        }
        write!(f, "\n{:<14} {:>8} {:>10}", "tokens", "number", "mean depth")?;
        (0..self.depths.len()).try_for_each(|depth| write!(f, " {:>9}", format!("depth {depth}")))?;
        for ClassDepths { class, tokens, mean_depth, depths } in &self.classes {
            let mean = mean_depth.map_or_else(|| "–".to_owned(), |mean| format!("{mean:.3}"));
            write!(f, "\n{class:<14} {tokens:>8} {mean:>10}")?;
            depths.iter().try_for_each(|share| write!(f, " {:>9}", percent(*share)))?;
        }
        match &self.cost {
            Some(cost) => write!(f, "\n\n{cost}"),
            None => Ok(()),
        }
    }
}
