//! Threshold selection, as at inference. Causal: a row is selected by its own logit alone. How many
//! rows there are depends on the logits, and the shape of what they go through on their number: a
//! device's logits are read.

use crate::kernels::{Late, RowSet};

/// Active rows with a logit above `threshold`; all of them without a threshold.
pub(super) fn select(active: &RowSet, logits: &Late, threshold: Option<f64>) -> RowSet {
    let Some(threshold) = threshold else { return active.clone() };
    let passes = |(row, u): (&usize, &f32)| (f64::from(*u) > threshold).then_some(*row);
    active.host().iter().zip(logits.values()).filter_map(passes).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::top_k, *};
    use crate::kernels::Layout;

    #[test]
    fn a_threshold_at_the_kth_logit_selects_the_top_k() {
        let layout = Layout::packed([(6, 0..0)]);
        let all: RowSet = (0..6).collect();
        let logits = Late::known(vec![0.3, -0.2, 0.8, 0.1, 0.05, -0.9]);
        let top = top_k::select(&all, &logits, layout.segments(), 0.5);
        assert_eq!(select(&all, &logits, Some(f64::midpoint(0.1, 0.05))).host(), top.host());
        assert_eq!(select(&all, &logits, None).host(), all.host());
    }
}
