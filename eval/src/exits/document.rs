//! One document through the whole stack, through each early exit, and with the exits of a rule.

use burn::tensor::{Int, Tensor};
use retie_config::{Exits, RiskKind};
use retie_model::{
    CausalLm, ExitLimit, ExitRule, RowExits, SelectionRule,
    kernels::{HeadInput, Layout, agreement, f32_slice, token_log_probs},
};

/// Rows of logits that are computed at once.
const ROWS: usize = 64;

/// Largest loss of a token in nats; more counts as much.
const MOST_NATS: f32 = 1.0;

/// Measures documents with a model that has early exits.
#[derive(Clone, Debug)]
pub struct ExitScorer<'m> {
    pub model: &'m CausalLm,
    pub exits: Exits,
    pub risk: RiskKind,
}

/// A document and the whole stack's answer to it. All rows but the last, which has no next token,
/// are compared.
#[derive(Debug)]
pub struct Reference {
    tokens: Vec<u32>,
    /// After the final norm, `[T − 1, D]`.
    hidden: Tensor<2>,
    /// Most probable next tokens.
    best: Vec<u32>,
    /// Negative log-likelihood of the next tokens, nats.
    nll: Vec<f32>,
    /// Rows before this one only are the beginning of what is measured.
    start: usize,
}

/// A document through every exit.
#[derive(Debug)]
pub struct Passages {
    pub reference: Reference,
    /// Before the loop and after each recursion, `[T − 1, D]`.
    pub states: Vec<Tensor<2>>,
    /// Loss of each token at exits `1 … R − 1`.
    pub losses: Vec<Vec<f32>>,
    /// Recursion count of each token in the whole stack: `R`, or what its router selects.
    pub counts: Vec<usize>,
    /// For each token at exits `1 … R − 1`, true if its most probable token is that of the whole
    /// stack.
    pub agrees: Vec<Vec<bool>>,
}

/// A document as it is served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Served {
    /// Mean loss.
    pub loss: f64,
    /// Mean recursion count.
    pub recursions: f64,
    /// Mean negative log-likelihood, nats per token.
    pub nll: f64,
}

impl ExitScorer<'_> {
    /// Runs `tokens`, two or more, through the whole stack and through every exit.
    pub fn passages(&self, tokens: &[u32]) -> Passages {
        let model = self.model;
        let count = tokens.len() - 1;
        let mut forward = self.begin(tokens);
        forward.advance_to(model.share_map().loop_start());
        let mut states = vec![forward.hidden().clone()];
        for recursions in 1..=self.exits.num_recursions() {
            forward.advance_to(self.exits.end(recursions));
            states.push(forward.hidden().clone());
        }
        let rows = forward.rows().clone();
        let (hidden, trace) = forward.finish();
        let counts = match model.router() {
            Some(_) => trace.recursion_counts(tokens.len())[..count].to_vec(),
            None => vec![self.exits.num_recursions(); count],
        };
        let reference = self.reference(tokens, first(hidden, count));
        let early = states[1..self.exits.num_recursions()].iter();
        let (losses, agrees) = early
            .map(|state| {
                let out = model.norm(model.run_depths(state.clone(), self.exits.coda(), &rows));
                let out = first(out, count);
                (self.losses(&reference, &out), self.agrees(&reference, &out))
            })
            .unzip();
        let states = states.into_iter().map(|state| first(state, count)).collect();
        Passages { reference, states, losses, counts, agrees }
    }

    /// Runs `tokens`, two or more, through the whole stack alone.
    pub fn whole(&self, tokens: &[u32]) -> Reference {
        let (hidden, _) = self.begin(tokens).finish();
        self.reference(tokens, first(hidden, tokens.len() - 1))
    }

    /// Runs a document with exits of `rule` at `threshold`, under the policy `kv`.
    pub fn served(&self, reference: &Reference, exits: (&ExitRule, retie_config::SkippedKv), threshold: f64) -> Served {
        let (tokens, count) = (&reference.tokens, reference.nll.len());
        let limit = ExitLimit { threshold: threshold as f32, ..ExitLimit::NEVER };
        let exits = RowExits { rule: Some(exits.0), kv: exits.1, limits: vec![limit; tokens.len()] };
        let (hidden, trace) = self.begin(tokens).with_exits(exits).finish();
        let hidden = first(hidden, count);
        let counts = &trace.recursion_counts(tokens.len())[reference.start..count];
        Served {
            loss: mean(&self.losses(reference, &hidden)[reference.start..]),
            recursions: counts.iter().sum::<usize>() as f64 / counts.len() as f64,
            nll: mean(&self.nll(&hidden, &tokens[1..])[reference.start..]),
        }
    }

    fn begin(&self, tokens: &[u32]) -> retie_model::Forward<'_> {
        let ids: Vec<i32> = tokens.iter().map(|id| *id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &self.model.device());
        self.model.begin(ids, Layout::batch(1, tokens.len()), SelectionRule::Causal)
    }

    fn reference(&self, tokens: &[u32], hidden: Tensor<2>) -> Reference {
        let (mut best, vocab_size) = (Vec::new(), self.model.config().vocab_size);
        let [rows, _] = hidden.dims();
        for start in (0..rows).step_by(ROWS) {
            let logits = self.model.logits(hidden.clone().narrow(0, start, ROWS.min(rows - start))).into_data();
            best.extend(f32_slice(&logits).chunks_exact(vocab_size).map(first_best));
        }
        let nll = self.nll(&hidden, &tokens[1..]);
        Reference { tokens: tokens.to_vec(), hidden, best, nll, start: 0 }
    }

    fn nll(&self, hidden: &Tensor<2>, targets: &[u32]) -> Vec<f32> {
        token_log_probs(&self.input(hidden), targets).0.into_iter().map(|p| -p).collect()
    }

    fn agrees(&self, reference: &Reference, hidden: &Tensor<2>) -> Vec<bool> {
        token_log_probs(&self.input(hidden), &reference.best).1
    }

    /// Loss of each row of `hidden [T − 1, D]`, which is after the final norm.
    fn losses(&self, reference: &Reference, hidden: &Tensor<2>) -> Vec<f32> {
        let part = |nats: f32| nats.clamp(0.0, MOST_NATS) / MOST_NATS;
        match self.risk {
            RiskKind::Disagreement => {
                self.agrees(reference, hidden).into_iter().map(|agrees| if agrees { 0.0 } else { 1.0 }).collect()
            }
            RiskKind::Kl => {
                let (kl, _) = agreement(&self.input(hidden), &self.input(&reference.hidden));
                kl.into_iter().map(part).collect()
            }
            RiskKind::Nll => {
                let own = self.nll(hidden, &reference.tokens[1..]);
                own.into_iter().zip(&reference.nll).map(|(own, whole)| part(own - whole)).collect()
            }
        }
    }

    fn input(&self, hidden: &Tensor<2>) -> HeadInput {
        HeadInput { hidden: hidden.clone(), head: self.model.head() }
    }
}

impl Passages {
    /// Mean recursion count of the whole stack.
    pub fn mean_recursions(&self) -> f64 {
        self.counts.iter().sum::<usize>() as f64 / self.counts.len().max(1) as f64
    }
}

impl Reference {
    /// Mean negative log-likelihood of the whole stack, nats per token.
    pub fn nll(&self) -> f64 {
        mean(&self.nll[self.start..])
    }

    /// The reference without its first `start` rows, of which one has to be left.
    pub fn measured_from(self, start: usize) -> Self {
        assert!(start < self.nll.len(), "a document has {} rows, and none is left from {start} on", self.nll.len());
        Self { start, ..self }
    }

    /// Token ids of the document.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }
}

fn first(x: Tensor<2>, rows: usize) -> Tensor<2> {
    x.narrow(0, 0, rows)
}

/// Index of the first of the largest values.
fn first_best(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (i, x)| match *x > best.1 {
        true => (i, *x),
        false => best,
    });
    best.0 as u32
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len().max(1) as f64
}
