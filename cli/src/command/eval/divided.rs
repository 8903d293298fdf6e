//! One model on each rank: a batch is divided among them, and each comes to have all scores.

use retie_eval::{ScoreRequest, Scorer, TokenScores};
use retie_trainer::Collective;
use std::ops::Range;

/// A scorer and those of the other ranks, which are asked the same.
pub struct Divided<'r, S> {
    pub scorer: S,
    pub ranks: &'r dyn Collective,
}

impl<S: Scorer> Scorer for Divided<'_, S> {
    type Error = S::Error;

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<TokenScores>, S::Error> {
        if self.ranks.world() == 1 {
            return self.scorer.score(requests);
        }
        let own = part(requests.len(), self.ranks.rank(), self.ranks.world());
        let scores = self.scorer.score(&requests[own.clone()])?;
        let counts = || requests.iter().map(ScoreRequest::num_scored);
        // The sum of what each rank has and zeros is exact.
        let mut log_probs = vec![0.0f32; counts().sum()];
        let mut greedy = log_probs.clone();
        let mut at: usize = counts().take(own.start).sum();
        for scores in scores {
            let len = scores.log_probs.len();
            log_probs[at..at + len].copy_from_slice(&scores.log_probs);
            greedy[at..at + len].iter_mut().zip(scores.greedy).for_each(|(slot, is)| *slot = f32::from(u8::from(is)));
            at += len;
        }
        self.ranks.all_reduce(&mut log_probs);
        self.ranks.all_reduce(&mut greedy);
        let mut tokens = log_probs.into_iter().zip(greedy).map(|(log_prob, greedy)| (log_prob, greedy > 0.0));
        Ok(counts()
            .map(|count| {
                let (log_probs, greedy) = tokens.by_ref().take(count).unzip();
                TokenScores { log_probs, greedy }
            })
            .collect())
    }
}

/// The requests of a rank: the parts differ by one at most.
fn part(len: usize, rank: usize, world: usize) -> Range<usize> {
    len * rank / world..len * (rank + 1) / world
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_request_is_in_one_part() {
        for (len, world) in [(8, 2), (7, 3), (1, 4), (0, 2)] {
            let all: Vec<usize> = (0..world).flat_map(|rank| part(len, rank, world)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }
}
