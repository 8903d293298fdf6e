//! Filtered ranks: a wanted answer among the entities that are no answers.

use super::Question;

/// Mean reciprocal rank and hits, each the mean over queries of the mean over wanted answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scores {
    /// Mean reciprocal rank.
    pub mrr: f64,
    /// Part with a rank of at most 10.
    pub hits_at_10: f64,
}

/// Rank of `entity` by descending score; entities in `answers` do not count, and others of the same
/// score count half.
fn rank(scores: &[f32], entity: usize, is_answer: impl Fn(usize) -> bool) -> f64 {
    let own = scores[entity];
    let others = scores.iter().enumerate().filter(|(other, _)| !is_answer(*other));
    others.fold(1.0, |rank, (_, score)| match score.total_cmp(&own) {
        std::cmp::Ordering::Greater => rank + 1.0,
        std::cmp::Ordering::Equal => rank + 0.5,
        std::cmp::Ordering::Less => rank,
    })
}

/// Scores of predictions, of which each has the score of every entity.
#[must_use]
pub fn score(questions: &[Question], predictions: &[Vec<f32>]) -> Scores {
    let mut sum = Scores::default();
    for (question, scores) in questions.iter().zip(predictions) {
        for entity in &question.wanted {
            let rank = rank(scores, *entity, |other| question.answers.contains(other));
            let share = (question.wanted.len() * questions.len()) as f64;
            sum.mrr += 1.0 / rank / share;
            sum.hits_at_10 += f64::from(u8::from(rank <= 10.0)) / share;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_tasks::{
        Random,
        graph::{Graph, QueryType},
    };

    #[test]
    fn ranks_are_filtered() {
        // Answers 0 and 3: before 3 stand 1 and, by half, 4; 0 is left out.
        let scores = [9.0, 8.0, 1.0, 5.0, 5.0];
        let answers = |entity: usize| [0, 3].contains(&entity);
        assert_eq!((rank(&scores, 3, answers), rank(&scores, 0, answers)), (2.5, 1.0));
    }

    #[test]
    fn scores_are_those_of_sorting() {
        let mut random = Random::new(8, "ranks", 0);
        let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
        let whole = Graph::random(names(30), names(2), 200, &mut random);
        let known = whole.with_facts(whole.facts().iter().step_by(2).copied().collect());
        let asked = super::super::questions(QueryType::ALL[1], &known, &whole, 15, &mut random).unwrap();
        let predictions: Vec<Vec<f32>> =
            asked.iter().map(|_| (0..30).map(|_| random.below(1_000_000) as f32).collect()).collect();
        let (mut mrr, mut hits) = (0.0, 0.0);
        for (question, scores) in asked.iter().zip(&predictions) {
            let mut reciprocal = Vec::new();
            for wanted in &question.wanted {
                // All entities but the other answers, sorted.
                let kept = |entity: &usize| entity == wanted || !question.answers.contains(*entity);
                let mut order: Vec<usize> = (0..30).filter(kept).collect();
                order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
                reciprocal.push(1 + order.iter().position(|entity| entity == wanted).unwrap());
            }
            mrr += reciprocal.iter().map(|rank| 1.0 / *rank as f64).sum::<f64>() / reciprocal.len() as f64 / 15.0;
            hits += reciprocal.iter().filter(|rank| **rank <= 10).count() as f64 / reciprocal.len() as f64 / 15.0;
        }
        let found = score(&asked, &predictions);
        // f64 sums in another order.
        assert!((found.mrr - mrr).abs() < 1e-12 && (found.hits_at_10 - hits).abs() < 1e-12, "{found:?} {mrr} {hits}");
    }
}
