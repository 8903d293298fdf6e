//! Routing trace: the routers' decisions in one forward pass, for reports, statistics and losses.

use crate::kernels::f32_slice;
use burn::tensor::Tensor;
use std::sync::Arc;

/// Routing decisions of a forward pass, one per recursion; empty without routers.
#[derive(Clone, Debug, Default)]
pub struct RoutingTrace {
    decisions: Vec<RoutingDecision>,
}

/// Decision of the router of one recursion. Rows are ascending.
#[derive(Clone, Debug)]
pub struct RoutingDecision {
    /// Index of the recursion.
    pub recursion: usize,
    /// Rows that the recursion could select from.
    pub active_rows: Arc<[usize]>,
    /// Router logits `u` of the active rows, in the graph of the forward pass, if it has one:
    /// `[n, 1]` for expert choice; `[n, R]` for token choice, in the first recursion only. `None`
    /// if there were no active rows or nothing was left to select.
    pub logits: Option<Tensor<2>>,
    /// Logits of the auxiliary router, `[n, 1]`, if there is one. Their graph does not reach the
    /// body of the model.
    pub auxiliary_logits: Option<Tensor<2>>,
    /// Active rows that go through the recursion.
    pub selected_rows: Arc<[usize]>,
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
        for row in self.decisions.iter().flat_map(|decision| decision.selected_rows.iter()) {
            counts[*row] += 1;
        }
        counts
    }
}

impl RoutingDecision {
    /// Router logits of [`RoutingDecision::active_rows`], row by row.
    #[must_use]
    pub fn values(&self) -> Vec<f32> {
        self.logits.as_ref().map_or_else(Vec::new, values)
    }

    /// Auxiliary router's logits of [`RoutingDecision::active_rows`].
    #[must_use]
    pub fn auxiliary_values(&self) -> Vec<f32> {
        self.auxiliary_logits.as_ref().map_or_else(Vec::new, values)
    }

    /// Logits that thresholds apply to: the auxiliary router's, or else the router's.
    #[must_use]
    pub fn causal_values(&self) -> Vec<f32> {
        self.auxiliary_logits.as_ref().or(self.logits.as_ref()).map_or_else(Vec::new, values)
    }

    /// For each of [`RoutingDecision::active_rows`], true if it was selected.
    #[must_use]
    pub fn mask(&self) -> Vec<bool> {
        let mut selected = self.selected_rows.iter().peekable();
        self.active_rows.iter().map(|row| selected.next_if_eq(&row).is_some()).collect()
    }

    /// Decision of a recursion without active rows.
    pub(crate) fn without_rows(recursion: usize) -> Self {
        let none: Arc<[usize]> = Arc::default();
        Self {
            recursion,
            active_rows: none.clone(),
            logits: None,
            auxiliary_logits: None,
            selected_rows: none,
            router_recursions: None,
        }
    }
}

/// Values of logits, row by row.
pub(super) fn values(logits: &Tensor<2>) -> Vec<f32> {
    f32_slice(&logits.clone().into_data()).to_vec()
}
