//! Routing trace: the routers' decisions in one forward pass, for reports, statistics and losses.

use crate::kernels::{Late, RowSet};
use burn::tensor::Tensor;
use std::sync::Arc;

/// Routing decisions of a forward pass, one per recursion; empty without routers.
#[derive(Clone, Debug, Default)]
pub struct RoutingTrace {
    decisions: Vec<RoutingDecision>,
}

/// Router logits: in the graph of the forward pass, and as numbers, which a device is asked for
/// when something needs them.
#[derive(Clone, Debug)]
pub struct Logits {
    /// In the graph, if the pass has one.
    pub tensor: Tensor<2>,
    late: Late,
}

impl Logits {
    /// Logits that a router has computed.
    #[must_use]
    pub fn new(tensor: Tensor<2>) -> Self {
        let late = Late::new(tensor.clone());
        Self { tensor, late }
    }

    /// Logits that the host has made.
    #[must_use]
    pub fn known(tensor: Tensor<2>, values: Vec<f32>) -> Self {
        Self { tensor, late: Late::known(values) }
    }

    /// As numbers.
    #[must_use]
    pub fn late(&self) -> &Late {
        &self.late
    }
}

/// Decision of the router of one recursion. Rows are ascending.
#[derive(Clone, Debug)]
pub struct RoutingDecision {
    /// Index of the recursion.
    pub recursion: usize,
    /// Rows that the recursion could select from.
    pub active_rows: RowSet,
    /// Router logits `u` of the active rows, in the graph of the forward pass, if it has one:
    /// `[n, 1]` for expert choice; `[n, R]` for token choice, in the first recursion only. `None`
    /// if there were no active rows or nothing was left to select.
    pub logits: Option<Logits>,
    /// Logits of the auxiliary router, `[n, 1]`, if there is one. Their graph does not reach the
    /// body of the model.
    pub auxiliary_logits: Option<Logits>,
    /// Active rows that go through the recursion.
    pub selected_rows: RowSet,
    /// For token choice, beside logits `[n, R]`: the last recursion that the router chose for each
    /// row, without the changes of a warm-up.
    pub router_recursions: Option<Arc<[usize]>>,
}

impl RoutingTrace {
    pub(crate) fn push(&mut self, decision: RoutingDecision) {
        self.decisions.push(decision);
    }

    /// Decisions in the order of the recursions.
    #[must_use]
    pub fn decisions(&self) -> &[RoutingDecision] {
        &self.decisions
    }

    /// Recursion count of each of `num_rows` rows.
    #[must_use]
    pub fn recursion_counts(&self, num_rows: usize) -> Vec<usize> {
        let mut counts = vec![0; num_rows];
        for row in self.decisions.iter().flat_map(|decision| decision.selected_rows.host().iter()) {
            counts[*row] += 1;
        }
        counts
    }
}

impl RoutingDecision {
    /// Router logits of [`RoutingDecision::active_rows`], row by row.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        values(self.logits.as_ref())
    }

    /// Auxiliary router's logits of [`RoutingDecision::active_rows`].
    #[must_use]
    pub fn auxiliary_values(&self) -> Vec<f32> {
        values(self.auxiliary_logits.as_ref())
    }

    /// Logits that thresholds apply to: the auxiliary router's, or else the router's.
    #[must_use]
    pub fn causal_values(&self) -> Vec<f32> {
        values(self.auxiliary_logits.as_ref().or(self.logits.as_ref()))
    }

    /// For each of [`RoutingDecision::active_rows`], true if it was selected.
    #[must_use]
    pub fn mask(&self) -> Vec<bool> {
        let mut selected = self.selected_rows.host().iter().peekable();
        self.active_rows.host().iter().map(|row| selected.next_if_eq(&row).is_some()).collect()
    }

    /// What the host may have to read of the decision.
    pub fn late(&self) -> impl Iterator<Item = &Late> {
        let logits = self.logits.iter().chain(&self.auxiliary_logits).map(Logits::late);
        logits.chain(self.selected_rows.late())
    }

    /// Decision of a recursion without active rows.
    pub(crate) fn without_rows(recursion: usize) -> Self {
        Self {
            recursion,
            active_rows: [].into(),
            logits: None,
            auxiliary_logits: None,
            selected_rows: [].into(),
            router_recursions: None,
        }
    }
}

/// Values of logits, row by row.
fn values(logits: Option<&Logits>) -> Vec<f32> {
    logits.map_or_else(Vec::new, |logits| logits.late.values().to_vec())
}
