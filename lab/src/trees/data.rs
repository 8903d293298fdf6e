//! Sentences with gold trees: generated ones, and those of a file.

use super::error::TreesError;
use retie_tasks::{Example, Purpose, TASKS, TaskSpec};
use serde::Deserialize;
use std::{collections::HashMap, ops::RangeInclusive, path::Path};

/// Tokens of a sentence and the spans of its gold tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentence {
    /// Its tokens.
    pub tokens: Vec<String>,
    /// Its tokens as numbers of a vocabulary, in which rare ones may have one number.
    pub words: Vec<u32>,
    /// Gold spans, which do not cross: first token and first token behind.
    pub spans: Vec<(usize, usize)>,
}

impl Sentence {
    /// Its tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Whether its gold tree has a span of two tokens or more that is not the whole sentence.
    fn has_inner_span(&self) -> bool {
        self.spans.iter().any(|(start, end)| end - start > 1 && end - start < self.len())
    }
}

/// Sentences of one vocabulary.
#[derive(Clone, Debug, Default)]
pub struct Corpus {
    /// What was read, in words.
    pub name: String,
    /// The tokens.
    pub vocabulary: Vec<String>,
    /// Sentences to train on; their trees are never looked at.
    pub train: Vec<Sentence>,
    /// Sentences whose trees are compared.
    pub held_out: Vec<Sentence>,
}

/// What of a source becomes a corpus.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Lengths of sentences; others are left out. It starts at 2 or higher.
    pub tokens: RangeInclusive<usize>,
    /// Sentences to train on.
    pub train: usize,
    /// Sentences to compare.
    pub held_out: usize,
}

/// Tokens that a file has fewer times than this are one token, [`RARE`].
const MIN_COUNT: usize = 3;
/// The token for rare ones.
const RARE: &str = "<rare>";
/// One sentence of so many of a file is held out.
const HELD_OUT_EVERY: usize = 5;

/// A line of a file.
#[derive(Debug, Deserialize)]
struct Line {
    tokens: Vec<String>,
    spans: Vec<(usize, usize)>,
}

/// Checks that `spans` are those of one tree over `len` tokens.
///
/// # Errors
/// Fewer than two tokens, a span outside, and two that cross; `place` says where.
fn check(place: &str, len: usize, spans: &[(usize, usize)]) -> Result<(), TreesError> {
    let place = || place.to_owned();
    if len < 2 {
        return Err(TreesError::Short { place: place(), found: len });
    }
    let is_inside = |(start, end): &(usize, usize)| start < end && *end <= len;
    if let Some((start, end)) = spans.iter().find(|span| !is_inside(span)) {
        return Err(TreesError::Outside { place: place(), start: *start, end: *end, len });
    }
    let mut sorted = spans.to_vec();
    // A span comes after those that hold it.
    sorted.sort_by_key(|(start, end)| (*start, std::cmp::Reverse(*end)));
    let mut open: Vec<(usize, usize)> = Vec::new();
    for span in sorted {
        while open.last().is_some_and(|(_, end)| *end <= span.0) {
            open.pop();
        }
        match open.last() {
            Some(around) if around.1 < span.1 => {
                return Err(TreesError::Crossing { place: place(), first: *around, second: span });
            }
            _ => open.push(span),
        }
    }
    Ok(())
}

impl Selection {
    fn none(&self, name: &str) -> TreesError {
        let (shortest, longest) = (*self.tokens.start(), *self.tokens.end());
        TreesError::NoSentences { source_name: name.to_owned(), shortest, longest }
    }

    fn accepts(&self, sentence: &Sentence) -> bool {
        self.tokens.contains(&sentence.len())
    }
}

/// Examples that are generated for each one that is asked for, before a task is given up as one
/// without sentences of the lengths.
const MOST_TRIES: u64 = 200;

impl Corpus {
    /// Problems of a generated task. Training and held-out ones are from streams that have nothing
    /// in common.
    ///
    /// # Errors
    /// A task whose problems have no tree, or none of the lengths.
    pub fn of_task(spec: &TaskSpec, selection: &Selection) -> Result<Self, TreesError> {
        if spec.grammar().syntax(&Example::default()).is_none() {
            return Err(TreesError::NoTrees { task: spec.task().to_owned(), known: tasks_with_trees() });
        }
        let mut corpus = Self { name: format!("task `{spec}`"), ..Self::default() };
        let mut ids = HashMap::new();
        let mut sentences = |purpose, wanted: usize| {
            let mut found = Vec::with_capacity(wanted);
            for index in 0..wanted as u64 * MOST_TRIES {
                if found.len() == wanted {
                    break;
                }
                let example = spec.example(purpose, index, &spec.lengths, false);
                let Some(tree) = spec.grammar().syntax(&example) else { break };
                let words = tree.symbols.iter().map(|symbol| id_of(symbol, &mut ids, &mut corpus.vocabulary));
                let spans = tree.spans.iter().map(|span| (span.start, span.end)).collect();
                let sentence = Sentence { words: words.collect(), spans, tokens: tree.symbols.clone() };
                if selection.accepts(&sentence) {
                    found.push(sentence);
                }
            }
            found
        };
        let train = sentences(Purpose::Train, selection.train);
        let held_out = sentences(Purpose::Evaluate, selection.held_out);
        (corpus.train, corpus.held_out) = (train, held_out);
        corpus.with_sentences(selection)
    }

    /// Sentences of a file of lines `{"tokens": ["…"], "spans": [[start, end], …]}`. Every fifth
    /// one is held out. Tokens that come fewer than three times are one token.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is no sentence, a sentence of one token, spans that
    /// are outside or cross, and a file without sentences of the lengths.
    pub fn of_file(path: &Path, selection: &Selection) -> Result<Self, TreesError> {
        let text = fs_err::read_to_string(path)?;
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let place = format!("line {} of `{}`", index + 1, path.display());
            let read: Line =
                serde_json::from_str(line).map_err(|source| TreesError::Line { place: place.clone(), source })?;
            check(&place, read.tokens.len(), &read.spans)?;
            lines.push(read);
        }
        let mut counts: HashMap<&str, usize> = HashMap::new();
        lines.iter().flat_map(|line| &line.tokens).for_each(|token| *counts.entry(token).or_default() += 1);
        let mut corpus = Self { name: format!("`{}`", path.display()), ..Self::default() };
        let mut ids = HashMap::new();
        for line in &lines {
            let frequent = |token: &String| counts[token.as_str()] >= MIN_COUNT;
            let named = line.tokens.iter().map(|token| if frequent(token) { token.as_str() } else { RARE });
            let words = named.map(|token| id_of(token, &mut ids, &mut corpus.vocabulary)).collect();
            let sentence = Sentence { words, spans: line.spans.clone(), tokens: line.tokens.clone() };
            if !selection.accepts(&sentence) {
                continue;
            }
            let seen = corpus.train.len() + corpus.held_out.len();
            if seen % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 {
                corpus.held_out.push(sentence);
            } else {
                corpus.train.push(sentence);
            }
        }
        corpus.train.truncate(selection.train);
        corpus.held_out.truncate(selection.held_out);
        corpus.with_sentences(selection)
    }

    fn with_sentences(self, selection: &Selection) -> Result<Self, TreesError> {
        match !self.train.is_empty() && self.held_out.iter().any(Sentence::has_inner_span) {
            true => Ok(self),
            false => Err(selection.none(&self.name)),
        }
    }
}

/// Names of the generated tasks whose problems have a tree.
#[must_use]
pub fn tasks_with_trees() -> Vec<&'static str> {
    let has_tree =
        |name: &&str| TaskSpec::parse(name).is_ok_and(|spec| spec.grammar().syntax(&Example::default()).is_some());
    TASKS.iter().map(|task| task.name).filter(has_tree).collect()
}

fn id_of(token: &str, ids: &mut HashMap<String, u32>, vocabulary: &mut Vec<String>) -> u32 {
    if let Some(id) = ids.get(token) {
        return *id;
    }
    let id = vocabulary.len() as u32;
    vocabulary.push(token.to_owned());
    ids.insert(token.to_owned(), id);
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    const SELECTION: Selection = Selection { tokens: 2..=20, train: 50, held_out: 20 };

    fn of_lines(lines: &str) -> Result<Corpus, TreesError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trees.jsonl");
        fs_err::write(&path, lines).unwrap();
        Corpus::of_file(&path, &SELECTION)
    }

    fn message(lines: &str) -> String {
        of_lines(lines).unwrap_err().to_string()
    }

    #[test]
    fn generated_problems_have_the_lengths_asked_for() {
        let spec = TaskSpec::parse("listops?length=2..6").unwrap();
        let corpus = Corpus::of_task(&spec, &Selection { tokens: 6..=12, ..SELECTION }).unwrap();
        assert_eq!((corpus.train.len(), corpus.held_out.len()), (50, 20));
        assert!(corpus.train.iter().chain(&corpus.held_out).all(|s| (6..=12).contains(&s.len())));
        assert!(corpus.vocabulary.len() <= 15);
        let first = &corpus.train[0];
        let (start, end) = first.spans[0];
        assert!(first.tokens[start].starts_with('['));
        assert_eq!(first.tokens[end - 1], "]");
        assert_eq!(corpus.vocabulary[first.words[end - 1] as usize], "]");
    }

    #[test]
    fn tasks_without_trees_or_sentences_are_refused() {
        let of = |name: &str, tokens| {
            let selection = Selection { tokens, ..SELECTION };
            Corpus::of_task(&TaskSpec::parse(name).unwrap(), &selection).unwrap_err().to_string()
        };
        let message = of("copy", 2..=20);
        assert_eq!(
            message,
            "the problems of task `copy` have no tree here, expected one of arithmetic, dyck, listops, json"
        );
        assert!(
            of("listops?length=2", 9..=20).starts_with("task `listops?length=2` has no sentences of 9 to 20 tokens")
        );
    }

    #[test]
    fn a_file_is_divided_and_rare_tokens_are_one() {
        let line = r#"{"tokens": ["a", "b", "c"], "spans": [[0, 3], [1, 3]]}"#;
        let odd = r#"{"tokens": ["a", "x", "y"], "spans": [[0, 2]]}"#;
        let corpus = of_lines(&[line, line, line, odd, line, "", line].join("\n")).unwrap();
        assert_eq!((corpus.train.len(), corpus.held_out.len()), (5, 1));
        assert_eq!(corpus.vocabulary, ["a", "b", "c", RARE]);
        assert_eq!((corpus.train[3].words.as_slice(), corpus.train[3].tokens[1].as_str()), (&[0, 3, 3][..], "x"));
    }

    #[test]
    fn what_is_no_tree_is_refused_with_its_line() {
        let good = r#"{"tokens": ["a", "b", "c"], "spans": [[1, 3]]}"#;
        let after_good = |line: &str| message(&format!("{good}\n{line}"));
        let crossing = after_good(r#"{"tokens": ["a", "b", "c"], "spans": [[1, 3], [0, 2]]}"#);
        assert!(crossing.contains("line 2 of") && crossing.contains("the spans 0..2 and 1..3, which cross"));
        let outside = after_good(r#"{"tokens": ["a", "b"], "spans": [[0, 3]]}"#);
        assert!(outside.contains("the span 0..3 of 2 tokens, expected 0 <= start < end <= 2"), "{outside}");
        assert!(after_good(r#"{"tokens": ["a", "b"], "spans": [[1, 1]]}"#).contains("the span 1..1 of 2 tokens"));
        assert!(after_good(r#"{"tokens": ["a"], "spans": []}"#).contains("has 1 tokens, expected 2 or more"));
        assert!(after_good("[]").contains("is no sentence, expected {\"tokens\""));
        assert!(message("").contains("has no sentences of 2 to 20 tokens"));
    }
}
