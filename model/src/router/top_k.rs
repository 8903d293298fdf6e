//! Top-k selection, as in training: the rows with the highest logits of each sequence. Not causal.

use crate::kernels::Segment;
use retie_config::ExpertChoiceConfig;
use std::cmp::Ordering;

/// Active rows with the highest logits of each sequence, ascending: `⌊capacity·S⌋` of the `S` rows
/// of its segment, at least one; of equal logits the first. Logits are compared instead of scores,
/// which rise with them: a sigmoid in f32 has ties where its logits have none.
pub(super) fn select(active: &[usize], logits: &[f32], segments: &[Segment], capacity: f64) -> Vec<usize> {
    let mut selected = Vec::new();
    for segment in segments {
        let from = active.partition_point(|row| *row < segment.queries.start);
        let to = active.partition_point(|row| *row < segment.queries.end);
        let count = ExpertChoiceConfig::tokens(capacity, segment.queries.len()).min(to - from);
        let mut order: Vec<usize> = (from..to).collect();
        let by_logit =
            |a: &usize, b: &usize| logits[*b].partial_cmp(&logits[*a]).unwrap_or(Ordering::Equal).then(a.cmp(b));
        if count < order.len() {
            order.select_nth_unstable_by(count, by_logit);
            order.truncate(count);
        }
        order.sort_unstable();
        selected.extend(order.into_iter().map(|i| active[i]));
    }
    selected
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
        assert_eq!(select(&all, &logits, layout.segments(), 0.5), [1, 3, 4]);
        // Two active rows in each sequence; a third of four rows and a third of three rows: one
        // each.
        assert_eq!(select(&[1, 3, 4, 6], &[0.2, 0.3, 0.2, 0.1], layout.segments(), 0.34), [3, 4]);
        // No more rows than are active.
        assert_eq!(select(&[2, 5], &[0.0, 0.0], layout.segments(), 1.0), [2, 5]);
        let equal = [0.0; 7];
        assert_eq!(select(&all, &equal, layout.segments(), 0.5), [0, 1, 4]);
    }
}
