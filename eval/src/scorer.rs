//! Scoring: the interface between an evaluation and a model, log-probabilities of the last tokens
//! of sequences.

use crate::{
    EvalError, RunError,
    grouping::{SharedPrefix, groups},
};

/// A sequence whose last tokens are scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScoreRequest {
    /// Context and continuation. The last token is only scored, never read, so a model of context
    /// `n` takes `n + 1` of them.
    pub tokens: Vec<u32>,
    /// Index of the first scored token, at least 1: each of `tokens[scored_from..]` is scored given
    /// everything before it.
    pub scored_from: usize,
}

impl ScoreRequest {
    /// Number of scored tokens.
    #[must_use]
    pub fn num_scored(&self) -> usize {
        self.tokens.len().saturating_sub(self.scored_from)
    }
}

/// Scores of one [`ScoreRequest`], one entry for each scored token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenScores {
    /// Natural logarithm of the token's probability.
    pub log_probs: Vec<f32>,
    /// True if the token is the most probable one (the first of equal ones).
    pub greedy: Vec<bool>,
    /// Agreement with a teacher, if the model is scored beside one.
    pub agreement: Option<TokenAgreement>,
}

/// Agreement of a model with its teacher, one entry for each scored token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenAgreement {
    /// `KL(teacher ‖ model)`, in nats.
    pub forward_kl: Vec<f32>,
    /// True if both have the same most probable token.
    pub same_top: Vec<bool>,
}

impl TokenScores {
    /// Joint log-probability of the scored tokens.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.log_probs.iter().map(|x| f64::from(*x)).sum()
    }

    /// True if greedy decoding would give the scored tokens.
    #[must_use]
    pub fn all_greedy(&self) -> bool {
        self.greedy.iter().all(|g| *g)
    }
}

/// A model that scores requests.
pub trait Scorer {
    /// Error of the model.
    type Error: std::error::Error + 'static;

    /// Scores one batch, in the order of `requests`. A request's scores do not depend on the others
    /// in the batch.
    ///
    /// # Errors
    /// When the model fails.
    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<TokenScores>, Self::Error>;
}

/// Progress of a scoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Requests scored.
    pub done: usize,
    /// Requests in all.
    pub total: usize,
}

/// Scores `requests` in batches of at most as many tokens as `batch_size` of the longest have, and
/// returns the scores in the order of `requests`. Requests with a common prefix share a batch, so
/// that a model can read the prefix once. Otherwise the longest come first, so that a lack of
/// memory shows at once.
///
/// # Errors
/// When the model fails or returns impossible scores.
pub fn score_all<S: Scorer>(
    scorer: &mut S,
    requests: &[ScoreRequest],
    batch_size: usize,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TokenScores>, RunError<S::Error>> {
    if batch_size == 0 {
        return Err(EvalError::Zero { option: "batch_size" }.into());
    }
    let mut scores = vec![TokenScores::default(); requests.len()];
    let mut done = 0;
    for indices in batches(requests, batch_size) {
        let batch: Vec<ScoreRequest> = indices.iter().map(|i| requests[*i].clone()).collect();
        let given = scorer.score(&batch).map_err(RunError::Scorer)?;
        check_count(given.len(), batch.len())?;
        for ((index, request), score) in indices.iter().zip(&batch).zip(given) {
            check_count(score.log_probs.len(), request.num_scored())?;
            check_count(score.greedy.len(), request.num_scored())?;
            if let Some(TokenAgreement { forward_kl, same_top }) = &score.agreement {
                check_count(forward_kl.len(), request.num_scored())?;
                check_count(same_top.len(), request.num_scored())?;
            }
            scores[*index] = score;
        }
        done += batch.len();
        progress(Progress { done, total: requests.len() });
    }
    Ok(scores)
}

/// Indices of the requests of each batch: whole groups, those with the longest members first, up to
/// as many rows as `batch_size` of the batch's longest request take.
fn batches(requests: &[ScoreRequest], batch_size: usize) -> Vec<Vec<usize>> {
    let mut groups = groups(requests, batch_size);
    let longest = |group: &SharedPrefix| group.members.iter().map(|i| requests[*i].read().len()).max().unwrap_or(0);
    groups.sort_by_key(|group| std::cmp::Reverse(longest(group)));
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for group in groups {
        match batches.last_mut() {
            Some(batch) if group.rows <= room => batch.extend(&group.members),
            _ => {
                room = batch_size * longest(&group);
                batches.push(group.members);
            }
        }
        room -= group.rows;
    }
    batches
}

fn check_count(found: usize, expected: usize) -> Result<(), EvalError> {
    if found == expected { Ok(()) } else { Err(EvalError::ScoreCount { found, expected }) }
}

/// Refuses NaN and probabilities above 1 (by more than rounding).
pub(crate) fn check_log_probs(scores: &TokenScores, place: impl Fn() -> String) -> Result<(), EvalError> {
    // A log-softmax in f32 can exceed 0 by a few 1e-7.
    match scores.log_probs.iter().find(|x| x.is_nan() || **x > 1e-5) {
        Some(found) => Err(EvalError::NotALogProb { place: place(), found: *found }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Formula;

    fn requests() -> Vec<ScoreRequest> {
        (0..23_u32)
            .map(|i| ScoreRequest { tokens: (0..2 + (i * 7) % 11).map(|t| t * 5 + i).collect(), scored_from: 1 })
            .collect()
    }

    #[test]
    fn order_and_scores_do_not_depend_on_the_batch_size() {
        let requests = requests();
        let score = |batch_size| score_all(&mut Formula::default(), &requests, batch_size, &mut |_| ()).unwrap();
        let one = score(1);
        for batch_size in [2, 5, 23, 100] {
            assert_eq!(score(batch_size), one);
        }
    }

    #[test]
    fn batches_go_from_long_to_short_and_progress_counts_requests() {
        let mut scorer = Formula::default();
        let mut progress = Vec::new();
        score_all(&mut scorer, &requests(), 5, &mut |p| progress.push((p.done, p.total))).unwrap();
        // Five long requests leave room for more short ones.
        assert_eq!(progress, [(5, 23), (11, 23), (18, 23), (23, 23)]);
        assert!(scorer.longest.is_sorted_by(|a, b| a >= b), "{:?}", scorer.longest);
    }

    #[test]
    fn a_scorer_that_loses_a_score_and_a_batch_size_of_0_are_errors() {
        struct Lossy;
        impl Scorer for Lossy {
            type Error = std::convert::Infallible;

            fn score(&mut self, _: &[ScoreRequest]) -> Result<Vec<TokenScores>, Self::Error> {
                Ok(Vec::new())
            }
        }
        let error = score_all(&mut Lossy, &requests(), 4, &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "the scorer gave 0 scores, expected 4");
        let error = score_all(&mut Lossy, &requests(), 0, &mut |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "`batch_size` is 0, expected at least 1");
    }
}
