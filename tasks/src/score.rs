//! Scores of a task: exact matches by depth and recursions, in distribution, on longer problems and
//! on the edge case.

use crate::{Example, Explanation, TaskSpec, explain::shortcut};
use serde::Serialize;
use std::{collections::BTreeMap, fmt};

/// Failures that a score shows.
const SHOWN_FAILURES: usize = 20;

/// Which problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// Of the lengths of the task.
    InDistribution,
    /// Of the lengths beyond.
    Longer,
    /// Edge cases of the lengths of the task.
    Edge,
    /// Edge cases of the lengths beyond.
    LongerEdge,
}

impl Group {
    /// Whether problems of the group are edge cases.
    #[must_use]
    pub fn is_edge(self) -> bool {
        matches!(self, Self::Edge | Self::LongerEdge)
    }
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::InDistribution => "in distribution",
            Self::Longer => "longer",
            Self::Edge => "edge case",
            Self::LongerEdge => "longer edge case",
        })
    }
}

/// A problem with the answer of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// The group that the problem is of.
    pub group: Group,
    /// The problem.
    pub example: Example,
    /// Recursions of the model.
    pub recursions: usize,
    /// Its answer.
    pub answer: String,
    /// Of a routed model, for each token of the problem the depth of its symbol and its recursion
    /// count.
    pub token_counts: Vec<(u16, usize)>,
}

/// Right answers of problems of one depth.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Cell {
    /// The group.
    pub group: Group,
    /// Depth of the problems.
    pub depth: usize,
    /// Recursions of the model.
    pub recursions: usize,
    /// Problems.
    pub examples: usize,
    /// Right answers.
    pub right: usize,
}

/// A wrong answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// Recursions of the model.
    pub recursions: usize,
    /// The problem.
    pub input: String,
    /// The right answer.
    pub right: String,
    /// The model's answer.
    pub answer: String,
    /// The best shortcut's answer, with `--explain`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shortcut: Option<String>,
}

/// Correlation (Pearson's) of recursion counts with true recursion depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Correlation {
    /// Tokens of problems.
    pub tokens: usize,
    /// Of a token's recursion count with the depth of its symbol; `None` where one of them is
    /// constant.
    pub by_token: Option<f64>,
    /// Problems.
    pub examples: usize,
    /// Of a problem's mean recursion count with its depth.
    pub by_example: Option<f64>,
}

/// Scores of one task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskScore {
    /// The task as it was named.
    pub task: String,
    /// What depth counts.
    pub depth_name: &'static str,
    /// Seed of the problems.
    pub seed: u64,
    /// Solved examples before each problem; `None` where the problem stands as in a training text.
    pub shots: Option<usize>,
    /// Recursions that the model was made with.
    pub own_recursions: usize,
    /// Right answers by group, depth and recursions.
    pub cells: Vec<Cell>,
    /// For each number of recursions the best shortcut, with `--explain`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub explanations: Vec<(usize, Option<Explanation>)>,
    /// The first wrong answers.
    pub failures: Vec<Failure>,
    /// Correlation of recursion counts with depth, of a routed model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation: Option<Correlation>,
}

/// The trials of one task.
#[derive(Debug)]
pub struct Scoreboard {
    spec: TaskSpec,
    shots: Option<usize>,
    own_recursions: usize,
    trials: Vec<Trial>,
}

impl Scoreboard {
    /// A scoreboard without trials, for prompts with that many solved examples and a model of that
    /// many recursions.
    #[must_use]
    pub fn new(spec: TaskSpec, (shots, own_recursions): (Option<usize>, usize)) -> Self {
        Self { spec, shots, own_recursions, trials: Vec::new() }
    }

    /// Adds trials.
    pub fn extend(&mut self, trials: impl IntoIterator<Item = Trial>) {
        self.trials.extend(trials);
    }

    /// The scores; with explanations by shortcuts if `explain`.
    #[must_use]
    pub fn score(&self, explain: bool) -> TaskScore {
        let mut cells: BTreeMap<(Group, usize, usize), (usize, usize)> = BTreeMap::new();
        for trial in &self.trials {
            let (examples, right) = cells.entry((trial.group, trial.example.depth, trial.recursions)).or_default();
            *examples += 1;
            *right += usize::from(trial.example.is_answer(&trial.answer));
        }
        let cells = cells.into_iter().map(|((group, depth, recursions), (examples, right))| Cell {
            group,
            depth,
            recursions,
            examples,
            right,
        });
        let explanations = if explain { self.explanations() } else { Vec::new() };
        TaskScore {
            task: self.spec.name().to_owned(),
            depth_name: self.spec.grammar().depth_name(),
            seed: self.spec.seed,
            shots: self.shots,
            own_recursions: self.own_recursions,
            cells: cells.collect(),
            failures: self.failures(&explanations),
            explanations,
            correlation: correlation(&self.trials),
        }
    }

    fn explanations(&self) -> Vec<(usize, Option<Explanation>)> {
        let mut by_recursions: BTreeMap<usize, Vec<(&Example, &str)>> = BTreeMap::new();
        for trial in &self.trials {
            by_recursions.entry(trial.recursions).or_default().push((&trial.example, &trial.answer));
        }
        let fit = |answers: Vec<_>| Explanation::fit(self.spec.grammar(), &answers);
        by_recursions.into_iter().map(|(recursions, answers)| (recursions, fit(answers))).collect()
    }

    fn failures(&self, explanations: &[(usize, Option<Explanation>)]) -> Vec<Failure> {
        let cap = |trial: &Trial| {
            let (_, found) = explanations.iter().find(|(recursions, _)| *recursions == trial.recursions)?;
            found.as_ref().map(|explanation| explanation.cap)
        };
        let wrong = self.trials.iter().filter(|trial| !trial.example.is_answer(&trial.answer));
        let failure = |trial: &Trial| Failure {
            recursions: trial.recursions,
            input: trial.example.input.text().to_owned(),
            right: trial.example.output.text().to_owned(),
            answer: trial.answer.clone(),
            shortcut: cap(trial).and_then(|cap| shortcut(self.spec.grammar(), &trial.example, cap)),
        };
        wrong.take(SHOWN_FAILURES).map(failure).collect()
    }
}

/// Pearson's correlation coefficient; `None` where a side is constant or there is no pair.
fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let (mean_x, mean_y) = pairs.iter().fold((0.0, 0.0), |(x, y), pair| (x + pair.0 / n, y + pair.1 / n));
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        let (x, y) = (x - mean_x, y - mean_y);
        (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
    }
    (xx > 0.0 && yy > 0.0).then(|| xy / (xx * yy).sqrt())
}

/// `None` if no trial has recursion counts.
fn correlation(trials: &[Trial]) -> Option<Correlation> {
    let counted: Vec<&Trial> = trials.iter().filter(|trial| !trial.token_counts.is_empty()).collect();
    if counted.is_empty() {
        return None;
    }
    let tokens: Vec<(f64, f64)> = counted
        .iter()
        .flat_map(|trial| &trial.token_counts)
        .map(|(depth, count)| (f64::from(*depth), *count as f64))
        .collect();
    let mean = |trial: &Trial| {
        trial.token_counts.iter().map(|(_, count)| *count as f64).sum::<f64>() / trial.token_counts.len() as f64
    };
    let examples: Vec<(f64, f64)> = counted.iter().map(|trial| (trial.example.depth as f64, mean(trial))).collect();
    Some(Correlation {
        tokens: tokens.len(),
        by_token: pearson(&tokens),
        examples: examples.len(),
        by_example: pearson(&examples),
    })
}

impl TaskScore {
    /// Rows `task,group,depth,recursions,examples,right`.
    #[must_use]
    pub fn to_csv(&self) -> String {
        let row = |cell: &Cell| {
            let Cell { group, depth, recursions, examples, right } = cell;
            format!("\"{}\",{group},{depth},{recursions},{examples},{right}\n", self.task)
        };
        self.cells.iter().map(row).collect()
    }

    /// Numbers of recursions, ascending.
    #[must_use]
    pub fn recursions(&self) -> Vec<usize> {
        let all: std::collections::BTreeSet<usize> = self.cells.iter().map(|cell| cell.recursions).collect();
        all.into_iter().collect()
    }

    /// Groups that have problems.
    #[must_use]
    pub fn groups(&self) -> Vec<Group> {
        let all: std::collections::BTreeSet<Group> = self.cells.iter().map(|cell| cell.group).collect();
        all.into_iter().collect()
    }

    /// Part of the problems of a group that is answered rightly with `recursions`, its standard
    /// error, and the number of problems. `None` without problems.
    #[must_use]
    pub fn exact_match(&self, group: Group, recursions: usize) -> Option<(f64, f64, usize)> {
        let cells = self.cells.iter().filter(|cell| cell.group == group && cell.recursions == recursions);
        let (examples, right) =
            cells.fold((0, 0), |(examples, right), cell| (examples + cell.examples, right + cell.right));
        let share = right as f64 / examples as f64;
        let stderr = (share * (1.0 - share) / (examples as f64 - 1.0).max(1.0)).sqrt();
        (examples > 0).then_some((share, stderr, examples))
    }
}

impl fmt::Display for TaskScore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.recursions();
        let shots = self.shots.map_or_else(String::new, |shots| format!(", {shots} solved examples in the prompt"));
        writeln!(f, "{}: exact match by {}, seed {}{shots}", self.task, self.depth_name, self.seed)?;
        write!(f, "{:<16} {:>8} {:>9}", "", "depth", "examples")?;
        for recursions in &all {
            write!(f, " {:>8}", format!("R = {recursions}"))?;
        }
        for group in self.groups() {
            let depths: std::collections::BTreeSet<usize> =
                self.cells.iter().filter(|cell| cell.group == group).map(|cell| cell.depth).collect();
            write!(f, "\n{group:<16} {:>8}", "all")?;
            let total = |recursions: &usize| self.exact_match(group, *recursions);
            write!(f, " {:>9}", all.first().and_then(total).map_or(0, |(.., examples)| examples))?;
            for found in all.iter().map(total) {
                write!(f, " {:>8}", found.map_or_else(|| "–".to_owned(), |(share, ..)| format!("{share:.4}")))?;
            }
            for depth in depths {
                let cell = |recursions: &usize| {
                    let fits = |cell: &&Cell| (cell.group, cell.depth, cell.recursions) == (group, depth, *recursions);
                    self.cells.iter().find(fits)
                };
                write!(f, "\n{:<16} {depth:>8}", "")?;
                write!(f, " {:>9}", all.iter().find_map(cell).map_or(0, |cell| cell.examples))?;
                for found in all.iter().map(cell) {
                    let share = |cell: &Cell| format!("{:.4}", cell.right as f64 / cell.examples as f64);
                    write!(f, " {:>8}", found.map_or_else(|| "–".to_owned(), share))?;
                }
            }
        }
        for (recursions, explanation) in &self.explanations {
            write!(f, "\nR = {recursions}: ")?;
            match explanation {
                None => write!(f, "no answer is wrong")?,
                Some(found) => write!(
                    f,
                    "the shortcut {} predicts {} of {} wrong answers ({:.0} %), and agrees with {} of {} in all",
                    found.cap,
                    found.predicted,
                    found.wrong,
                    100.0 * found.share(),
                    found.agreeing,
                    found.answers
                )?,
            }
        }
        if let Some(found) = &self.correlation {
            let text = |r: Option<f64>| r.map_or_else(|| "none, a side is constant".to_owned(), |r| format!("{r:+.3}"));
            write!(
                f,
                "\nrecursion count and depth: correlation {} over {} tokens, {} over the means of {} problems",
                text(found.by_token),
                found.tokens,
                text(found.by_example),
                found.examples
            )?;
        }
        writeln!(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Purpose;

    fn trials(spec: &TaskSpec, recursions: usize, cap: usize) -> Vec<Trial> {
        let groups = [(Group::InDistribution, false), (Group::Edge, true)];
        let trial = |group, edge, index: u64| {
            let example = spec.example(Purpose::Evaluate, index, &spec.lengths, edge);
            let answer = shortcut(spec.grammar(), &example, cap).unwrap();
            let token_counts = vec![(1, 1 + usize::from(example.depth > 1)), (2, 2)];
            Trial { group, example, recursions, answer, token_counts }
        };
        groups
            .into_iter()
            .flat_map(|(group, edge)| (0..40).map(move |i| (group, edge, i)))
            .map(|(g, e, i)| trial(g, e, i))
            .collect()
    }

    #[test]
    fn answers_are_counted_by_group_depth_and_recursions() {
        let spec = TaskSpec::parse("succ?length=4").unwrap();
        let mut board = Scoreboard::new(spec.clone(), (Some(8), 1));
        board.extend(trials(&spec, 1, 1));
        board.extend(trials(&spec, 2, 9));
        let score = board.score(true);
        assert_eq!((score.recursions(), score.groups()), (vec![1, 2], vec![Group::InDistribution, Group::Edge]));
        assert_eq!(score.exact_match(Group::Edge, 1), Some((0.0, 0.0, 40)));
        assert_eq!(score.exact_match(Group::InDistribution, 2).unwrap().0, 1.0);
        let by_depth =
            |cell: &Cell| cell.right == if cell.depth <= 1 || cell.recursions == 2 { cell.examples } else { 0 };
        assert!(score.cells.iter().all(by_depth), "{:?}", score.cells);
        let (_, explanation) = &score.explanations[0];
        let explanation = explanation.as_ref().unwrap();
        assert_eq!((explanation.cap, explanation.share()), (1, 1.0));
        assert_eq!(score.explanations[1], (2, None));
        assert!(score.failures.iter().all(|failure| failure.shortcut.as_ref() == Some(&failure.answer)));
        assert_eq!(score.exact_match(Group::Longer, 1), None);
        let text = score.to_string();
        let start = "succ?length=4: exact match by leading X1, seed 0, 8 solved examples in the prompt\n";
        assert!(text.starts_with(start), "{text}");
        assert!(text.contains("\nR = 1: the shortcut 1 predicts ") && text.contains("\nR = 2: no answer is wrong"));
    }

    #[test]
    fn the_correlation_is_pearsons() {
        // numpy.corrcoef([1, 2, 3, 5], [2, 1, 4, 5]).
        let r = pearson(&[(1.0, 2.0), (2.0, 1.0), (3.0, 4.0), (5.0, 5.0)]).unwrap();
        // Rounding of f64.
        assert!((r - 0.855_235_974_119_758).abs() < 1e-12, "{r}");
        assert_eq!(pearson(&[(1.0, 2.0), (1.0, 3.0)]), None);
        assert_eq!(pearson(&[]), None);
    }

    #[test]
    fn counts_that_follow_depth_correlate_with_it() {
        let spec = TaskSpec::parse("succ?length=6").unwrap();
        let found = correlation(&trials(&spec, 1, 9)).unwrap();
        assert!(found.by_token.unwrap() > 0.2 && found.by_example.unwrap() > 0.5, "{found:?}");
        assert_eq!((found.tokens, found.examples), (160, 80));
    }
}
