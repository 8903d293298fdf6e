//! One model on each rank: a batch is divided among them, and each comes to have all scores.

use retie_eval::{ScoreRequest, Scorer, TokenAgreement, TokenScores};
use retie_trainer::Collective;
use std::ops::Range;

/// A scorer and those of the other ranks, which are asked the same.
pub struct Divided<'r, S> {
    pub scorer: S,
    /// Whether the scorers compare a model with its teacher; a rank without a request has no score that says so.
    pub beside_teacher: bool,
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
        let (before, tokens) = (counts().take(own.start).sum(), counts().sum());
        // The sum of what each rank has and zeros is exact.
        let gather = |own: Vec<f32>| {
            let mut all = vec![0.0; tokens];
            all[before..before + own.len()].copy_from_slice(&own);
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
