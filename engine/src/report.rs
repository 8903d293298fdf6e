//! What a step has made of its rows: log-probabilities of prompts, new tokens, and how sequences go
//! on or end.

use crate::{Engine, EngineError, FinishReason, SequenceId, TokenLogprobs, sampling::check_logits, sequence::Choice};
use burn::tensor::Tensor;
use retie_model::{
    NewTokens,
    kernels::{self, f32_slice, f32_slice_mut},
};

/// Rows of logits that are computed at once for the tokens of prompts: bounds their memory, which
/// is that of the vocabulary for each row.
const LOGIT_ROWS: usize = 64;

/// What a step has computed of its rows.
#[derive(Debug)]
pub(crate) enum Computed {
    /// Hidden states after the final norm, `[M, D]`.
    Hidden(Tensor<2>),
    /// Logits of the only row, `[1, V]`.
    Logits(Tensor<2>),
}

/// A row whose logits score the next token of a prompt.
#[derive(Clone, Copy, Debug)]
struct ScoredRow {
    row: usize,
    token: u32,
    /// Number of most probable tokens to report.
    num_top: usize,
    /// Index of the sequence in the progress of the step.
    index: usize,
    /// Tokens of the sequence before `token`.
    position: usize,
}

/// Progress of one sequence in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// The sequence.
    pub sequence: SequenceId,
    /// Recursion count of each token that the step read, if the request asked for it: a part of the
    /// prompt, or the new token of the previous step.
    pub recursion_counts: Vec<usize>,
    /// The new token; `None` while the prompt is read, and in the extra step that only reads the
    /// recursion count of the last token. A token that ends the sequence is included.
    pub token: Option<u32>,
    /// Recursion count of the last token that the step read: of the computation that `token` was
    /// chosen from.
    pub recursions: usize,
    /// Log-probabilities of `token`, if the request asked for them.
    pub logprobs: Option<TokenLogprobs>,
    /// Log-probabilities of the tokens of the prompt whose predecessors the step read, if the
    /// request asked for them: over all steps those of every token but the first.
    pub prompt_logprobs: Vec<TokenLogprobs>,
    /// Reason why the sequence ended; `None` while it continues. Its slot is then free.
    pub finish: Option<FinishReason>,
    /// Why it cannot go on, where it cannot; its slot is then free, too.
    pub failed: Option<EngineError>,
}

impl Engine {
    /// Progress of the sequences of `batch`, whose tokens have been read: what was computed of
    /// them, and their recursion counts.
    pub(crate) fn report(&mut self, computed: Computed, batch: &[NewTokens], counts: &[usize]) -> Vec<Progress> {
        let mut start = 0;
        let (mut last_rows, mut scored) = (Vec::new(), Vec::new());
        let mut progress = Vec::with_capacity(batch.len());
        for NewTokens { slot, tokens } in batch {
            let Some(sequence) = &mut self.sequences[slot.index()] else { continue };
            let rows = start..start + tokens;
            start = rows.end;
            // Of tokens that are read again all has been reported.
            let reported = sequence.num_reported.saturating_sub(sequence.num_read).min(*tokens);
            if let Some(num_top) = sequence.prompt_logprobs {
                let next = &sequence.tokens[..sequence.num_prompt_tokens];
                let next = next.iter().skip(sequence.num_read + 1);
                let (index, first) = (progress.len(), sequence.num_read + 1);
                let rows = rows.clone().zip(next).enumerate().skip(reported);
                scored.extend(rows.map(|(offset, (row, token))| ScoredRow {
                    row,
                    token: *token,
                    num_top,
                    index,
                    position: first + offset,
                }));
            }
            sequence.num_read += tokens;
            if sequence.wants_token() {
                last_rows.push(rows.end - 1);
            }
            let recursions = counts[rows.end - 1];
            let of_tokens = rows.start + reported..rows.end;
            let recursion_counts = if sequence.recursion_counts { counts[of_tokens].to_vec() } else { Vec::new() };
            let ending = sequence.ending.filter(|_| sequence.num_unread() == 0);
            let finish = if sequence.is_done() { Some(FinishReason::MaxNewTokens) } else { ending };
            progress.push(Progress {
                sequence: sequence.id,
                recursion_counts,
                token: None,
                recursions,
                logprobs: None,
                prompt_logprobs: Vec::new(),
                finish,
                failed: None,
            });
        }
        if let Some(memory) = &mut self.memory {
            for NewTokens { slot, tokens } in batch {
                if let Some(sequence) = &self.sequences[slot.index()] {
                    memory.hold_filled(&mut self.cache, sequence, *tokens);
                }
            }
        }
        if let Computed::Hidden(hidden) = &computed {
            self.score(hidden, &scored, &mut progress);
        }
        self.choose(computed, &last_rows, batch, &mut progress);
        let ended = |progress: &&Progress| progress.finish.is_some() || progress.failed.is_some();
        progress.iter().filter(ended).for_each(|progress| {
            self.evict(progress.sequence);
        });
        progress
    }

    /// Log-probabilities of tokens of prompts, from the rows of `hidden [M, D]` before them.
    fn score(&self, hidden: &Tensor<2>, scored: &[ScoredRow], progress: &mut [Progress]) {
        for scored in scored.chunks(LOGIT_ROWS) {
            let rows = scored.iter().map(|scored| scored.row).collect();
            let logits = kernels::to_host(self.model.logits(kernels::gather(hidden.clone(), &rows))); // [n, V]
            let logits = f32_slice(&logits).chunks_exact(self.model.config().vocab_size);
            for (ScoredRow { token, num_top, index, position, .. }, logits) in scored.iter().zip(logits) {
                if let Err(error) = check_logits(logits, *position) {
                    progress[*index].failed.get_or_insert(error);
                    continue;
                }
                progress[*index].prompt_logprobs.push(TokenLogprobs::from_logits(logits, *token, *num_top));
            }
        }
    }

    /// Chooses the next token for each of `last_rows` of what was computed: the last rows of the
    /// sequences of `batch` that have been read to their end.
    fn choose(&mut self, computed: Computed, last_rows: &[usize], batch: &[NewTokens], progress: &mut [Progress]) {
        if last_rows.is_empty() {
            return;
        }
        let logits = match computed {
            Computed::Logits(logits) => logits,
            Computed::Hidden(hidden) => {
                let [num_rows, _] = hidden.dims();
                let all = last_rows.len() == num_rows;
                self.model.logits(if all { hidden } else { kernels::gather(hidden, &last_rows.into()) })
            }
        };
        let mut logits = kernels::to_host(logits); // [n, V]
        let mut logits = f32_slice_mut(&mut logits).chunks_exact_mut(self.model.config().vocab_size);
        for (new, progress) in batch.iter().zip(progress) {
            let sequence = self.sequences[new.slot.index()].as_mut().filter(|sequence| sequence.wants_token());
            let Some((sequence, logits)) = sequence.and_then(|sequence| Some((sequence, logits.next()?))) else {
                continue;
            };
            let Choice { token, logprobs, reason } = match sequence.choose(logits, self.options.context) {
                Ok(choice) => choice,
                Err(error) => {
                    progress.failed.get_or_insert(error);
                    continue;
                }
            };
            progress.token = Some(token);
            progress.logprobs = logprobs;
            match reason {
                Some(reason) if sequence.reads_last(reason) => sequence.ending = Some(reason),
                reason => progress.finish = reason,
            }
        }
    }
}
