//! A scorer on each of several ranks: a batch is divided among them, and every rank gets all
//! scores.

use crate::{ScoreRequest, Scorer, TokenAgreement, TokenScores};
use retie_collective::Collective;
use std::ops::Range;

/// One rank's scorer; those of the other ranks are asked the same.
#[derive(Debug)]
pub struct ShardedScorer<'r, S> {
    scorer: S,
    beside_teacher: bool,
    ranks: &'r dyn Collective,
}

impl<'r, S: Scorer> ShardedScorer<'r, S> {
    /// A scorer for the shard of this rank. `beside_teacher`: the scorers compare a model with its
    /// teacher; a rank without a request has no score that says so.
    #[must_use]
    pub fn new(scorer: S, beside_teacher: bool, ranks: &'r dyn Collective) -> Self {
        Self { scorer, beside_teacher, ranks }
    }
}

impl<S: Scorer> Scorer for ShardedScorer<'_, S> {
    type Error = S::Error;

    fn score(&mut self, requests: &[ScoreRequest]) -> Result<Vec<TokenScores>, S::Error> {
        if self.ranks.world() == 1 {
            return self.scorer.score(requests);
        }
        let range = shard(requests.len(), self.ranks.rank(), self.ranks.world());
        let scores = self.scorer.score(&requests[range.clone()])?;
        let counts = || requests.iter().map(ScoreRequest::num_scored);
        let (before, tokens) = (counts().take(range.start).sum(), counts().sum());
        // Gathering by all-reduce is exact: a value of one rank is added to zeros of the others.
        let gather = |values: Vec<f32>| {
            let mut all = vec![0.0; tokens];
            all[before..before + values.len()].copy_from_slice(&values);
            self.ranks.all_reduce(&mut all);
            all.into_iter()
        };
        let flags = |flags: &[bool]| flags.iter().map(|is| f32::from(u8::from(*is))).collect::<Vec<f32>>();
        let mut log_probs = gather(scores.iter().flat_map(|scores| scores.log_probs.clone()).collect());
        let mut greedy = gather(scores.iter().flat_map(|scores| flags(&scores.greedy)).collect());
        let mut agreement = self.beside_teacher.then(|| {
            let each = || scores.iter().filter_map(|scores| scores.agreement.as_ref());
            let forward_kl = gather(each().flat_map(|each| each.forward_kl.clone()).collect());
            (forward_kl, gather(each().flat_map(|each| flags(&each.same_top)).collect()))
        });
        let is_set = |flag: f32| flag > 0.0;
        Ok(counts()
            .map(|count| TokenScores {
                log_probs: log_probs.by_ref().take(count).collect(),
                greedy: greedy.by_ref().take(count).map(is_set).collect(),
                agreement: agreement.as_mut().map(|(forward_kl, same_top)| TokenAgreement {
                    forward_kl: forward_kl.take(count).collect(),
                    same_top: same_top.take(count).map(is_set).collect(),
                }),
            })
            .collect())
    }
}

/// Requests of a rank: shards differ in length by one at most.
fn shard(len: usize, rank: usize, world: usize) -> Range<usize> {
    len * rank / world..len * (rank + 1) / world
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Formula;
    use retie_collective::{Single, Threads};

    #[test]
    fn every_request_is_in_one_shard() {
        for (len, world) in [(8, 2), (7, 3), (1, 4), (0, 2)] {
            let all: Vec<usize> = (0..world).flat_map(|rank| shard(len, rank, world)).collect();
            assert_eq!(all, (0..len).collect::<Vec<_>>());
        }
    }

    #[test]
    fn every_rank_has_the_scores_of_one_process() {
        let requests: Vec<ScoreRequest> = (0..7_u32)
            .map(|i| ScoreRequest {
                tokens: (0..3 + i % 4).map(|t| t * 5 + i).collect(),
                scored_from: 1 + (i % 2) as usize,
            })
            .collect();
        let score = |ranks: &dyn Collective| {
            let mut scorer = ShardedScorer::new(Formula::default(), false, ranks);
            scorer.score(&requests).unwrap()
        };
        let alone = score(&Single);
        for world in [2, 3, 9] {
            for scores in Threads::run(world, |ranks| score(ranks)) {
                assert_eq!(scores, alone);
            }
        }
    }
}
