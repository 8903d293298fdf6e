//! A task with its settings, as it is named: `succ?length=1..10&seed=1`.

use crate::{
    Example, Form, Grammar, Random, TaskError,
    grammar::{TASKS, Task},
    options::Options,
};
use std::{fmt, ops::RangeInclusive, sync::Arc};

/// What a task's name as a data file begins with.
pub const SCHEME: &str = "task://";

/// Goes up whenever the same name would give other text.
pub const GRAMMAR_VERSION: u32 = 1;

/// Documents of a training text, unless `count` says how many.
const DEFAULT_COUNT: u64 = 10_000;

/// The keys that every task has, with what they accept.
pub const COMMON_KEYS: &[(&str, &str)] = &[
    ("length", "A..B: lengths of the problems, each as likely"),
    ("longer", "C: the longest problems of an evaluation, which then has those of length B + 1 to C too"),
    ("count", "documents of a training text, 10000 by default"),
    ("seed", "0 by default"),
    ("form", "spaced (by default) or plain: what stands between symbols"),
    ("oversample_edge", "0 to 1: part of the examples that are edge cases, besides those that are drawn as one"),
];

/// A task with its settings.
#[derive(Clone, Debug)]
pub struct TaskSpec {
    /// The name as it was given, without `task://`.
    name: String,
    about: &'static Task,
    /// Task and variant, e.g. `tree:inorder`.
    task: String,
    grammar: Arc<dyn Grammar>,
    /// Lengths of problems.
    pub lengths: RangeInclusive<usize>,
    /// The longest problem of an evaluation.
    pub longer: Option<usize>,
    /// Documents of a training text.
    pub count: u64,
    /// Seed of all examples.
    pub seed: u64,
    /// Form of the text.
    pub form: Form,
    /// Part of the examples that are edge cases.
    pub oversample_edge: f64,
}

/// Which of a task's examples: streams of the same seed that have nothing in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Training text.
    Train,
    /// Problems of an evaluation.
    Evaluate,
    /// Solved examples before a problem.
    Shots,
}

impl TaskSpec {
    /// Whether `name` is meant as a generated task: it has the name of one.
    #[must_use]
    pub fn is_task(name: &str) -> bool {
        name.starts_with(SCHEME) || find(name).is_some() || name.contains('?')
    }

    /// Reads `NAME`, `NAME:VARIANT`, with `?key=value&key=value` behind; `task://` may stand
    /// before.
    ///
    /// # Errors
    /// An unknown task, variant or key; a value that a key cannot have; lengths that the grammar
    /// does not have.
    pub fn parse(text: &str) -> Result<Self, TaskError> {
        let name = text.strip_prefix(SCHEME).unwrap_or(text);
        let (head, keys) = name.split_once('?').unwrap_or((name, ""));
        let (word, variant) = match head.split_once(':') {
            Some((word, variant)) => (word, Some(variant)),
            None => (head, None),
        };
        let task = find(word).ok_or_else(|| unknown(word))?;
        let variant = variant_of(task, variant)?;
        let mut options = Options::parse(task.name, text, keys)?;
        options.check_keys(COMMON_KEYS.iter().chain(task.keys).map(|(key, _)| *key).collect())?;
        let grammar = (task.build)(variant.unwrap_or_default(), &mut options)?;
        let lengths = options.range("length", 0..=1_000_000)?.unwrap_or_else(|| grammar.default_lengths());
        let longer = options.number("longer", 0..=1_000_000)?;
        let forms = [("spaced", Form::Spaced), ("plain", Form::Plain)];
        let spec = Self {
            name: name.to_owned(),
            about: task,
            task: variant.map_or_else(|| task.name.to_owned(), |variant| format!("{}:{variant}", task.name)),
            count: options.number("count", 1..=u64::MAX)?.unwrap_or(DEFAULT_COUNT),
            seed: options.number("seed", 0..=u64::MAX)?.unwrap_or(0),
            form: options.named("form", &forms)?.unwrap_or_default(),
            oversample_edge: options.number("oversample_edge", 0.0..=1.0)?.unwrap_or(0.0),
            grammar,
            lengths,
            longer,
        };
        let longest = spec.longer.unwrap_or(*spec.lengths.end());
        if longest < *spec.lengths.end() || spec.longer == Some(*spec.lengths.end()) {
            return Err(options.bad("longer", format!("more than {}, the longest of `length`", spec.lengths.end())));
        }
        let possible = spec.grammar.lengths();
        if !possible.contains(spec.lengths.start()) || !possible.contains(&longest) {
            return Err(TaskError::Lengths { task: task.name, found: *spec.lengths.start()..=longest, possible });
        }
        Ok(spec)
    }

    /// The name as it was given, without `task://`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the task is.
    #[must_use]
    pub fn about(&self) -> &'static Task {
        self.about
    }

    /// Task and variant, e.g. `tree:inorder`.
    #[must_use]
    pub fn task(&self) -> &str {
        &self.task
    }

    /// The grammar.
    #[must_use]
    pub fn grammar(&self) -> &dyn Grammar {
        self.grammar.as_ref()
    }

    /// Lengths beyond those of [`TaskSpec::lengths`], if there are any.
    #[must_use]
    pub fn longer_lengths(&self) -> Option<RangeInclusive<usize>> {
        Some(self.lengths.end() + 1..=self.longer?)
    }

    /// Example number `index`, of one of `lengths`; an edge case if `edge`.
    #[must_use]
    pub fn example(&self, purpose: Purpose, index: u64, lengths: &RangeInclusive<usize>, edge: bool) -> Example {
        let mut example = Example::new(self.form);
        self.fill(purpose, index, (lengths, edge), &mut example);
        example
    }

    /// The training text's example number `index`, in the place of what `example` held.
    pub fn fill_training(&self, index: u64, example: &mut Example) {
        self.fill(Purpose::Train, index, (&self.lengths, false), example);
    }

    /// The reference program's answer to `example`, in its form; that of the shortcut with `cap`.
    #[must_use]
    pub fn solve(&self, example: &Example, cap: Option<usize>) -> Option<String> {
        Some(self.grammar.solve(&example.input.list(), cap)?.join(self.form.separator()))
    }

    fn fill(&self, purpose: Purpose, index: u64, (lengths, edge): (&RangeInclusive<usize>, bool), out: &mut Example) {
        let purpose = match purpose {
            Purpose::Train => "train",
            Purpose::Evaluate => "evaluate",
            Purpose::Shots => "shots",
        };
        let mut random = Random::new(self.seed, purpose, index);
        out.input.clear();
        out.output.clear();
        out.edge = edge || (self.oversample_edge > 0.0 && random.chance(self.oversample_edge));
        out.length = random.within(lengths);
        self.grammar.write(out.length, out.edge, &mut random, out);
    }
}

impl fmt::Display for TaskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The task of a name, which may have a variant and keys behind.
fn find(name: &str) -> Option<&'static Task> {
    let word = name.split(['?', ':']).next()?;
    TASKS.iter().find(|task| task.name == word)
}

fn unknown(name: &str) -> TaskError {
    let distances = TASKS.iter().map(|task| (strsim::osa_distance(name, task.name), task.name));
    let closest = distances.min().filter(|(distance, _)| *distance <= 2);
    TaskError::UnknownTask {
        name: name.to_owned(),
        did_you_mean: closest.map(|(_, name)| name),
        known: TASKS.iter().map(|task| task.name).collect(),
    }
}

fn variant_of(task: &'static Task, variant: Option<&str>) -> Result<Option<&'static str>, TaskError> {
    let Some(name) = variant else { return Ok(task.variants.first().copied()) };
    let found = task.variants.iter().find(|known| **known == name);
    found.copied().map(Some).ok_or_else(|| TaskError::UnknownVariant {
        task: task.name,
        found: name.to_owned(),
        known: task.variants.to_vec(),
    })
}

/// Training text: [`Example::document`] of one example after another.
#[derive(Debug)]
pub struct TaskDocuments {
    spec: TaskSpec,
    next: u64,
    example: Example,
}

impl TaskDocuments {
    /// The documents of a task, `spec.count` of them.
    #[must_use]
    pub fn new(spec: TaskSpec) -> Self {
        let example = Example::new(spec.form);
        Self { spec, next: 0, example }
    }

    /// Number of documents given so far.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.next
    }
}

impl Iterator for TaskDocuments {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        if self.next == self.spec.count {
            return None;
        }
        self.spec.fill_training(self.next, &mut self.example);
        self.next += 1;
        Some(self.example.document())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(spec: &str) -> String {
        TaskSpec::parse(spec).unwrap_err().to_string()
    }

    #[test]
    fn a_name_has_task_variant_and_keys() {
        let spec = TaskSpec::parse("task://tree:postorder?length=2..5&longer=9&seed=3&form=plain&count=7").unwrap();
        assert_eq!(
            (spec.task(), spec.name()),
            ("tree:postorder", "tree:postorder?length=2..5&longer=9&seed=3&form=plain&count=7")
        );
        assert_eq!((spec.lengths.clone(), spec.longer_lengths()), (2..=5, Some(6..=9)));
        assert_eq!((spec.seed, spec.count, spec.form), (3, 7, Form::Plain));
        assert_eq!(TaskDocuments::new(spec).count(), 7);
        assert_eq!(TaskSpec::parse("tree").unwrap().task(), "tree:inorder");
        assert_eq!(TaskSpec::parse("succ?length=4").unwrap().lengths, 4..=4);
    }

    #[test]
    fn what_is_wrong_in_a_name_is_said() {
        assert!(
            message("suc").contains("unknown task `suc`, did you mean `succ`?\nhint: the generated tasks are succ")
        );
        assert!(message("tree:in").contains("no variant `in`, expected one of inorder, preorder, postorder"));
        assert!(message("succ:2").contains("no variant `2`, expected none"));
        assert!(message("succ?size=3").contains("no key `size`, expected one of length, longer"));
        assert!(message("succ?length").contains("`length` in `succ?length` is not `key=value`"));
        assert!(message("succ?length=3..2").contains("`length` of task `succ` is `3..2`, expected A..B"));
        assert!(message("succ?length=1&length=2").contains("expected `length` once"));
        assert!(message("succ?length=0..3").contains("cannot have the lengths 0 to 3, expected 1 to 1000\nhint: "));
        assert!(message("recall?length=2..40").contains("cannot have the lengths 2 to 40, expected 1 to 26"));
        assert!(message("arithmetic?length=1..30").contains("expected 0 to 17"));
        assert!(TaskSpec::parse("arithmetic?length=1..30&modulus=10").is_ok());
        assert!(message("succ?length=1..9&longer=9").contains("`longer` of task `succ` is `9`, expected more than 9"));
        assert!(message("succ?oversample_edge=1.5").contains("is `1.5`, expected 0 to 1"));
        assert!(message("copy?distance=33..40").contains("expected a range with 0 or a power of two in it"));
    }

    #[test]
    fn edge_cases_are_as_frequent_as_asked() {
        let spec = TaskSpec::parse("succ?length=8&oversample_edge=0.25&count=20000").unwrap();
        let edges = TaskDocuments::new(spec).filter(|text| text.starts_with("X1 X1 X1 X1 X1 X1 X1 01 ")).count();
        // A quarter, and one in 128 of the others: 5,117 expected, standard deviation about 62.
        assert!((4_800..5_430).contains(&edges), "{edges}");
    }

    #[test]
    fn an_example_follows_from_its_number_alone() {
        let spec = TaskSpec::parse("listops?seed=5").unwrap();
        let fifth = TaskDocuments::new(spec.clone()).nth(5).unwrap();
        assert_eq!(spec.example(Purpose::Train, 5, &spec.lengths, false).document(), fifth);
        assert_ne!(spec.example(Purpose::Evaluate, 5, &spec.lengths, false).document(), fifth);
    }
}
