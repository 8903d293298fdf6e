//! Documents through the whole stack, through each early exit, and with the exits of a rule;
//! several at once, as a weight is packed for a few rows as for many.

use burn::tensor::{Int, Tensor};
use retie_config::{Exits, RiskKind, SkippedKv};
use retie_model::{
    CausalLm, ExitLimit, ExitRule, RowExits, SelectionRule,
    kernels::{HeadInput, Layout, agreement, f32_slice, token_log_probs},
};
use std::ops::Range;

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

/// Rows of the documents that run through the model at once; a longer document runs alone.
const ROWS_AT_ONCE: usize = 512;

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

/// Documents, two or more tokens each, whose rows run through the model one behind the other.
struct Together<'a> {
    documents: Vec<&'a [u32]>,
}

impl<'a> Together<'a> {
    /// Divides documents, in their order.
    fn divide(documents: &[&'a [u32]]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for document in documents {
            match all.last_mut().filter(|last| last.num_rows() + document.len() <= ROWS_AT_ONCE) {
                Some(last) => last.documents.push(document),
                None => all.push(Self { documents: vec![document] }),
            }
        }
        all
    }

    fn num_rows(&self) -> usize {
        self.documents.iter().map(|document| document.len()).sum()
    }

    fn tokens(&self) -> Vec<u32> {
        self.documents.concat()
    }

    fn layout(&self) -> Layout {
        match self.documents.as_slice() {
            [document] => Layout::batch(1, document.len()),
            documents => Layout::packed(documents.iter().map(|document| (document.len(), 0..0))),
        }
    }

    /// Next tokens of the rows that have one.
    fn targets(&self) -> Vec<u32> {
        self.documents.iter().flat_map(|document| &document[1..]).copied().collect()
    }

    /// Rows of `x [M, D]` that have a next token.
    fn compared(&self, x: &Tensor<2>) -> Tensor<2> {
        let mut at = 0;
        let parts = self.documents.iter().map(|document| {
            let part = x.clone().narrow(0, at, document.len() - 1);
            at += document.len();
            part
        });
        Tensor::cat(parts.collect(), 0)
    }

    /// Recursion counts of the rows that have a next token.
    fn counts(&self, counts: &[usize]) -> Vec<usize> {
        let mut rest = counts;
        let mut compared = Vec::new();
        for document in &self.documents {
            let (own, others) = rest.split_at(document.len());
            compared.extend_from_slice(&own[..own.len() - 1]);
            rest = others;
        }
        compared
    }

    /// Ranges of the documents among the rows that have a next token.
    fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.documents.iter().scan(0, |at, document| {
            let start = *at;
            *at += document.len() - 1;
            Some(start..*at)
        })
    }
}

impl ExitScorer<'_> {
    /// Runs documents, two or more tokens each, through the whole stack and through every exit.
    pub fn passages(&self, documents: &[&[u32]]) -> Vec<Passages> {
        Together::divide(documents).iter().flat_map(|together| self.passages_at_once(together)).collect()
    }

    fn passages_at_once(&self, together: &Together<'_>) -> Vec<Passages> {
        let model = self.model;
        let mut forward = self.begin(together);
        forward.advance_to(model.share_map().loop_start());
        let mut states = vec![forward.hidden().clone()];
        for recursions in 1..=self.exits.num_recursions() {
            forward.advance_to(self.exits.end(recursions));
            states.push(forward.hidden().clone());
        }
        let rows = forward.rows().clone();
        let (hidden, trace) = forward.finish();
        let counts = match model.router() {
            Some(_) => trace.recursion_counts(together.num_rows()),
            None => vec![self.exits.num_recursions(); together.num_rows()],
        };
        let counts = together.counts(&counts);
        let references = self.references(together, &hidden);
        let of: Vec<&Reference> = references.iter().collect();
        let early = states[1..self.exits.num_recursions()].iter();
        let at_exits: Vec<_> = early
            .map(|state| {
                let out = model.norm(model.run_depths(state.clone(), self.exits.coda(), &rows));
                let out = together.compared(&out);
                (self.losses(&of, &out), self.agrees(&of, &out))
            })
            .collect();
        let states: Vec<_> = states.iter().map(|state| together.compared(state)).collect();
        let passages = references.into_iter().zip(together.ranges()).map(|(reference, rows)| Passages {
            reference,
            states: states.iter().map(|state| state.clone().narrow(0, rows.start, rows.len())).collect(),
            losses: at_exits.iter().map(|(losses, _)| losses[rows.clone()].to_vec()).collect(),
            counts: counts[rows.clone()].to_vec(),
            agrees: at_exits.iter().map(|(_, agrees)| agrees[rows.clone()].to_vec()).collect(),
        });
        passages.collect()
    }

    /// Runs documents, two or more tokens each, through the whole stack alone.
    pub fn whole(&self, documents: &[&[u32]]) -> Vec<Reference> {
        let of = |together: &Together<'_>| {
            let (hidden, _) = self.begin(together).finish();
            self.references(together, &hidden)
        };
        Together::divide(documents).iter().flat_map(of).collect()
    }

    /// Runs documents with exits of `rule` at `threshold`, under the policy `kv`. `advance` gets
    /// the number of those that are done since it was called.
    pub fn served(
        &self,
        references: &[&Reference],
        (rule, kv): (&ExitRule, SkippedKv),
        threshold: f64,
        advance: &mut dyn FnMut(usize),
    ) -> Vec<Served> {
        let documents: Vec<&[u32]> = references.iter().map(|reference| reference.tokens.as_slice()).collect();
        let limit = ExitLimit { threshold: threshold as f32, ..ExitLimit::NEVER };
        let mut all = Vec::with_capacity(references.len());
        for together in Together::divide(&documents) {
            let of = &references[all.len()..][..together.documents.len()];
            let exits = RowExits { rule: Some(rule), kv, limits: vec![limit; together.num_rows()] };
            let (hidden, trace) = self.begin(&together).with_exits(exits).finish();
            let hidden = together.compared(&hidden);
            let counts = together.counts(&trace.recursion_counts(together.num_rows()));
            let (losses, nll) = (self.losses(of, &hidden), self.nll(&hidden, &together.targets()));
            all.extend(of.iter().zip(together.ranges()).map(|(reference, rows)| {
                let measured = rows.start + reference.start..rows.end;
                let counts = &counts[measured.clone()];
                Served {
                    loss: mean(&losses[measured.clone()]),
                    recursions: counts.iter().sum::<usize>() as f64 / counts.len() as f64,
                    nll: mean(&nll[measured]),
                }
            }));
            advance(of.len());
        }
        all
    }

    fn begin(&self, together: &Together<'_>) -> retie_model::Forward<'_> {
        let ids: Vec<i32> = together.tokens().into_iter().map(|id| id as i32).collect();
        let ids = Tensor::<1, Int>::from_ints(ids.as_slice(), &self.model.device());
        self.model.begin(ids, together.layout(), SelectionRule::Causal)
    }

    /// References from what the whole stack makes of all rows, `hidden [M, D]`.
    fn references(&self, together: &Together<'_>, hidden: &Tensor<2>) -> Vec<Reference> {
        let hidden = together.compared(hidden);
        let (mut best, vocab_size) = (Vec::new(), self.model.config().vocab_size);
        let [rows, _] = hidden.dims();
        for start in (0..rows).step_by(ROWS) {
            let logits = self.model.logits(hidden.clone().narrow(0, start, ROWS.min(rows - start))).into_data();
            best.extend(f32_slice(&logits).chunks_exact(vocab_size).map(first_best));
        }
        let nll = self.nll(&hidden, &together.targets());
        let of = together.documents.iter().zip(together.ranges()).map(|(tokens, rows)| Reference {
            tokens: tokens.to_vec(),
            hidden: hidden.clone().narrow(0, rows.start, rows.len()),
            best: best[rows.clone()].to_vec(),
            nll: nll[rows].to_vec(),
            start: 0,
        });
        of.collect()
    }

    fn nll(&self, hidden: &Tensor<2>, targets: &[u32]) -> Vec<f32> {
        token_log_probs(&self.input(hidden), targets).0.into_iter().map(|p| -p).collect()
    }

    fn agrees(&self, of: &[&Reference], hidden: &Tensor<2>) -> Vec<bool> {
        let best: Vec<u32> = of.iter().flat_map(|reference| &reference.best).copied().collect();
        token_log_probs(&self.input(hidden), &best).1
    }

    /// Loss of each compared row of documents, `hidden` after the final norm.
    fn losses(&self, of: &[&Reference], hidden: &Tensor<2>) -> Vec<f32> {
        let part = |nats: f32| nats.clamp(0.0, MOST_NATS) / MOST_NATS;
        match self.risk {
            RiskKind::Disagreement => {
                self.agrees(of, hidden).into_iter().map(|agrees| if agrees { 0.0 } else { 1.0 }).collect()
            }
            RiskKind::Kl => {
                let whole = Tensor::cat(of.iter().map(|reference| reference.hidden.clone()).collect(), 0);
                let (kl, _) = agreement(&self.input(hidden), &self.input(&whole));
                kl.into_iter().map(part).collect()
            }
            RiskKind::Nll => {
                let targets: Vec<u32> = of.iter().flat_map(|reference| &reference.tokens[1..]).copied().collect();
                let whole = of.iter().flat_map(|reference| &reference.nll);
                self.nll(hidden, &targets).into_iter().zip(whole).map(|(own, whole)| part(own - whole)).collect()
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
