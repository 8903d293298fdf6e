//! Top-k selection, as in training: the rows with the highest logits of each sequence. Not causal.

use crate::kernels::{self, Late, Quota, RowSet, Segment};
use retie_config::ExpertChoiceConfig;

/// Active rows with the highest logits of each sequence: `⌊capacity·S⌋` of the `S` rows of its
/// segment, at least one; of equal logits the first. Logits are compared instead of scores, which
/// rise with them: a sigmoid in f32 has ties where its logits have none. How many rows are selected
/// does not depend on the logits, so a device need not be asked.
pub(super) fn select(active: &RowSet, logits: &Late, segments: &[Segment], capacity: f64) -> RowSet {
    let of_segment = |(segment, active): (&Segment, usize)| Quota {
        active,
        selected: ExpertChoiceConfig::tokens(capacity, segment.queries.len()).min(active),
    };
    let quotas: Vec<Quota> = segments.iter().zip(active.per_sequence(segments)).map(of_segment).collect();
    kernels::top_k(active, logits, &quotas)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Layout;

    #[test]
    fn the_highest_are_counted_by_the_whole_sequence_and_come_in_order() {
        let layout = Layout::packed([(4, 0..0), (3, 0..0)]);
        let select = |active: RowSet, logits: &[f32], capacity| {
            super::select(&active, &Late::known(logits.to_vec()), layout.segments(), capacity).host().to_vec()
        };
        let logits = [0.1, 0.9, 0.5, 0.7, -1.0, -3.0, -2.0];
        assert_eq!(select((0..7).collect(), &logits, 0.5), [1, 3, 4]);
        // Two active rows in each sequence; a third of four rows and a third of three rows: one
        // each.
        assert_eq!(select([1, 3, 4, 6].into(), &[0.2, 0.3, 0.2, 0.1], 0.34), [3, 4]);
        // No more rows than are active.
        assert_eq!(select([2, 5].into(), &[0.0, 0.0], 1.0), [2, 5]);
        assert_eq!(select((0..7).collect(), &[0.0; 7], 0.5), [0, 1, 4]);
    }
}
