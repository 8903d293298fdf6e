//! Scheduler: the tokens that start next.
//!
//! One token budget for all; sequences that decode come first, then prompts in chunks, first come
//! first served (the rule of vLLM's V1 scheduler).

use crate::sequence::Sequence;
use retie_model::NewTokens;

/// New tokens of each sequence that start now, by slot; paused sequences have none. Every sequence
/// that decodes reads one; the prompts share the rest of `budget`, of which `prompt_rows` are
/// taken: tokens of prompts that have started before and are still on their way.
pub(crate) fn schedule<'a>(
    sequences: impl Iterator<Item = &'a Sequence>,
    budget: usize,
    prompt_rows: usize,
) -> Vec<NewTokens> {
    let (decoding, mut prefilling): (Vec<_>, Vec<_>) =
        sequences.filter(|sequence| !sequence.paused).partition(|sequence| sequence.decodes());
    let mut left = budget.saturating_sub(decoding.len() + prompt_rows);
    let starts = decoding.iter().filter(|sequence| sequence.num_unstarted() > 0);
    let mut batch: Vec<_> =
        starts.map(|sequence| NewTokens { slot: sequence.slot, tokens: sequence.num_unstarted() }).collect();
    prefilling.sort_unstable_by_key(|sequence| sequence.id);
    for sequence in prefilling {
        let tokens = sequence.num_unstarted().min(left);
        if tokens > 0 {
            left -= tokens;
            batch.push(NewTokens { slot: sequence.slot, tokens });
        }
    }
    // Sorted by slot, so that adjacent sequences of equal length form a grid.
    batch.sort_unstable_by_key(|new| new.slot);
    batch
}
