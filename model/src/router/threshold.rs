//! Threshold selection, as at inference. Causal: a row is selected by its own logit alone.

/// Active rows with a logit above `threshold`; all of them without a threshold.
pub(super) fn select(active: &[usize], logits: &[f32], threshold: Option<f64>) -> Vec<usize> {
    let Some(threshold) = threshold else { return active.to_vec() };
    active.iter().zip(logits).filter(|(_, u)| f64::from(**u) > threshold).map(|(row, _)| *row).collect()
}

#[cfg(test)]
mod tests {
    use super::{super::top_k, *};
    use crate::kernels::Layout;

    #[test]
    fn a_threshold_at_the_kth_logit_selects_the_top_k() {
        let layout = Layout::packed([(6, 0..0)]);
        let all: Vec<usize> = (0..6).collect();
        let logits = [0.3, -0.2, 0.8, 0.1, 0.05, -0.9];
        let top = top_k::select(&all, &logits, layout.segments(), 0.5);
        assert_eq!(select(&all, &logits, Some(f64::midpoint(0.1, 0.05))), top);
        assert_eq!(select(&all, &logits, None), all);
    }
}
