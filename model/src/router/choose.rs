//! Which of the tokens that are still under way go through a recursion.

use crate::kernels::Segment;
use retie_config::ExpertChoiceConfig;
use std::cmp::Ordering;

/// Those whose logit is above `threshold`, or all without one. Each token's choice depends on itself alone.
pub(crate) fn above(alive: &[usize], logits: &[f32], threshold: Option<f64>) -> Vec<usize> {
    let Some(threshold) = threshold else { return alive.to_vec() };
    alive.iter().zip(logits).filter(|(_, u)| f64::from(**u) > threshold).map(|(row, _)| *row).collect()
}

/// The highest of each sequence: `⌊capacity·S⌋`, at least one, of the `S` rows of its segment, ascending. Of equals the first. Scores
/// rise with their logits, so it is these that are compared: a sigmoid in f32 has ties where its logits have none.
pub(crate) fn highest(alive: &[usize], logits: &[f32], segments: &[Segment], capacity: f64) -> Vec<usize> {
    let mut chosen = Vec::new();
    for segment in segments {
        let from = alive.partition_point(|row| *row < segment.queries.start);
        let to = alive.partition_point(|row| *row < segment.queries.end);
        let count = ExpertChoiceConfig::tokens(capacity, segment.queries.len()).min(to - from);
        let mut order: Vec<usize> = (from..to).collect();
        let by_logit =
            |a: &usize, b: &usize| logits[*b].partial_cmp(&logits[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b));
        if count < order.len() {
            order.select_nth_unstable_by(count, by_logit);
            order.truncate(count);
        }
        order.sort_unstable();
        chosen.extend(order.into_iter().map(|i| alive[i]));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Layout;

    #[test]
    fn the_highest_are_counted_by_the_whole_sequence_and_come_in_order() {
        let layout = Layout::packed([(4, 0..0), (3, 0..0)]);
        let all: Vec<usize> = (0..7).collect();
        let logits = [0.1, 0.9, 0.5, 0.7, -1.0, -3.0, -2.0];
        assert_eq!(highest(&all, &logits, layout.segments(), 0.5), [1, 3, 4]);
        // Of the two that are left in each, a quarter of four and a third of three: one.
        assert_eq!(highest(&[1, 3, 4, 6], &[0.2, 0.3, 0.2, 0.1], layout.segments(), 0.34), [3, 4]);
        // No more than there are.
        assert_eq!(highest(&[2, 5], &[0.0, 0.0], layout.segments(), 1.0), [2, 5]);
        let equal = [0.0; 7];
        assert_eq!(highest(&all, &equal, layout.segments(), 0.5), [0, 1, 4]);
    }

    #[test]
    fn a_threshold_at_the_kth_score_chooses_the_same_as_the_kth_highest() {
        let layout = Layout::packed([(6, 0..0)]);
        let all: Vec<usize> = (0..6).collect();
        let logits = [0.3, -0.2, 0.8, 0.1, 0.05, -0.9];
        let top = highest(&all, &logits, layout.segments(), 0.5);
        assert_eq!(above(&all, &logits, Some(f64::midpoint(0.1, 0.05))), top);
        assert_eq!(above(&all, &logits, None), all);
    }
}
