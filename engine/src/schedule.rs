//! Scheduler: the tokens that a step reads.
//!
//! One token budget for all; sequences that decode come first, then prompts in chunks, first come
//! first served (the rule of vLLM's V1 scheduler).

use crate::sequence::Sequence;
use retie_model::NewTokens;

/// New tokens of each sequence in the next pass, by slot; paused sequences have none. Every
/// sequence that decodes reads one; the prompts share the rest of `budget`.
pub(crate) fn schedule<'a>(sequences: impl Iterator<Item = &'a Sequence>, budget: usize) -> Vec<NewTokens> {
    let (decoding, mut prefilling): (Vec<_>, Vec<_>) =
        sequences.filter(|sequence| !sequence.paused).partition(|sequence| sequence.decodes());
    let mut batch: Vec<_> =
        decoding.iter().map(|sequence| NewTokens { slot: sequence.slot, tokens: sequence.num_unread() }).collect();
    let mut left = budget.saturating_sub(batch.len());
    prefilling.sort_unstable_by_key(|sequence| sequence.id);
    for sequence in prefilling {
        let tokens = sequence.num_unread().min(left);
        if tokens > 0 {
            left -= tokens;
            batch.push(NewTokens { slot: sequence.slot, tokens });
        }
    }
    // Sorted by slot, so that adjacent sequences of equal length form a grid.
    batch.sort_unstable_by_key(|new| new.slot);
    batch
}
