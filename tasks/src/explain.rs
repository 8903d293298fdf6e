//! Explanation of wrong answers by a shortcut: the cap on recursion whose answers agree with most
//! of them (the statistic of Zhang et al. 2023, <https://arxiv.org/abs/2305.14699>, who predict
//! 91 % of the failures of one function).

use crate::{Example, Grammar};
use serde::Serialize;

/// How many wrong answers the best shortcut predicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Levels of recursion of the shortcut.
    pub cap: usize,
    /// Wrong answers.
    pub wrong: usize,
    /// Those of them that are the shortcut's.
    pub predicted: usize,
    /// All answers that are the shortcut's, right ones included.
    pub agreeing: usize,
    /// All answers.
    pub answers: usize,
}

impl Explanation {
    /// The shortcut that predicts most of the wrong ones of `answers`; of several the one that
    /// agrees with most of all answers, then the one with the least recursion. `None` without a
    /// wrong answer.
    #[must_use]
    pub fn fit(grammar: &dyn Grammar, answers: &[(&Example, &str)]) -> Option<Self> {
        let right: Vec<bool> = answers.iter().map(|(example, answer)| example.is_answer(answer)).collect();
        let wrong = right.iter().filter(|right| !**right).count();
        let largest = answers.iter().map(|(example, _)| example.depth.max(example.length)).max()?;
        let fits = (0..=largest).map(|cap| {
            let (mut predicted, mut agreeing) = (0, 0);
            for ((example, answer), right) in answers.iter().zip(&right) {
                let is_shortcuts = shortcut(grammar, example, cap).is_some_and(|text| same(&text, answer));
                agreeing += usize::from(is_shortcuts);
                predicted += usize::from(is_shortcuts && !right);
            }
            Self { cap, wrong, predicted, agreeing, answers: answers.len() }
        });
        let better = |a: &Self, b: &Self| (a.predicted, a.agreeing) > (b.predicted, b.agreeing);
        fits.reduce(|best, next| if better(&next, &best) { next } else { best }).filter(|best| best.wrong > 0)
    }

    /// Part of the wrong answers that the shortcut predicts.
    #[must_use]
    pub fn share(&self) -> f64 {
        self.predicted as f64 / self.wrong as f64
    }
}

/// Answer of the shortcut, in the form of `example`.
#[must_use]
pub fn shortcut(grammar: &dyn Grammar, example: &Example, cap: usize) -> Option<String> {
    Some(grammar.solve(&example.input.list(), Some(cap))?.join(example.output.form().separator()))
}

fn same(a: &str, b: &str) -> bool {
    a.split_whitespace().eq(b.split_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Purpose, TaskSpec};

    #[test]
    fn an_oracle_that_follows_a_shortcut_is_found_and_predicted_whole() {
        for (name, cap) in
            [("succ?length=8", 3), ("succ?length=8", 0), ("tree:inorder?length=9", 2), ("dyck?length=12", 2)]
        {
            let spec = TaskSpec::parse(name).unwrap();
            let examples: Vec<Example> =
                (0..400).map(|index| spec.example(Purpose::Evaluate, index, &spec.lengths, index % 4 == 0)).collect();
            let texts: Vec<String> = examples.iter().map(|e| shortcut(spec.grammar(), e, cap).unwrap()).collect();
            let answers: Vec<(&Example, &str)> = examples.iter().zip(texts.iter().map(String::as_str)).collect();
            let found = Explanation::fit(spec.grammar(), &answers).unwrap();
            assert_eq!((found.cap, found.predicted, found.agreeing), (cap, found.wrong, 400), "{name}");
            assert!(found.wrong > 20, "{name}: {}", found.wrong);
            assert_eq!(found.share(), 1.0);
        }
    }

    #[test]
    fn random_answers_are_not_explained_and_right_ones_need_no_explanation() {
        let spec = TaskSpec::parse("succ?length=6").unwrap();
        let examples: Vec<Example> =
            (0..50).map(|index| spec.example(Purpose::Evaluate, index, &spec.lengths, true)).collect();
        let answers: Vec<(&Example, &str)> = examples.iter().map(|example| (example, "01 01")).collect();
        let found = Explanation::fit(spec.grammar(), &answers).unwrap();
        assert_eq!((found.wrong, found.predicted, found.share()), (50, 0, 0.0));
        let right: Vec<(&Example, &str)> = examples.iter().map(|example| (example, example.output.text())).collect();
        assert_eq!(Explanation::fit(spec.grammar(), &right), None);
        assert_eq!(Explanation::fit(spec.grammar(), &[]), None);
    }
}
