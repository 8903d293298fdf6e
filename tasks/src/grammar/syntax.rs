//! Syntax trees of texts that grammars generate, as spans of symbols.

use std::ops::Range;

/// A text with its constituents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyntaxTree {
    /// The text.
    pub symbols: Vec<String>,
    /// Constituents of two symbols or more, each once, by their end and then from short to long.
    /// No two of them cross.
    pub spans: Vec<Range<usize>>,
}

impl SyntaxTree {
    /// A text whose constituents are what stands between brackets, with these. `kind` says whether
    /// a symbol opens or closes one.
    pub(super) fn of_brackets<'s>(
        symbols: impl IntoIterator<Item = &'s str>,
        kind: impl Fn(&str) -> Option<Bracket>,
    ) -> Self {
        let mut tree = Self::default();
        let mut open = Vec::new();
        for (index, symbol) in symbols.into_iter().enumerate() {
            tree.symbols.push(symbol.to_owned());
            match kind(symbol) {
                Some(Bracket::Open) => open.push(index),
                Some(Bracket::Close) => tree.spans.extend(open.pop().map(|start| start..index + 1)),
                None => {}
            }
        }
        tree
    }

    /// Puts the constituents in order: of two symbols or more, each once.
    pub(super) fn sort(mut self) -> Self {
        self.spans.retain(|span| span.len() > 1);
        self.spans.sort_by_key(|span| (span.end, span.len()));
        self.spans.dedup();
        self
    }
}

/// What a symbol does to the brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bracket {
    Open,
    Close,
}

#[cfg(test)]
mod tests {
    use crate::{Example, Purpose, TASKS, TaskSpec, example::Symbols};
    use std::ops::Range;

    /// The constituents of a text as they are written.
    fn constituents(task: &str, input: &str, output: &str) -> Vec<String> {
        let symbols = |text: &str| {
            let mut symbols = Symbols::default();
            text.split_whitespace().for_each(|symbol| symbols.push(symbol, 0));
            symbols
        };
        let example = Example { input: symbols(input), output: symbols(output), ..Example::default() };
        let tree = TaskSpec::parse(task).unwrap().grammar().syntax(&example).unwrap();
        tree.spans.iter().map(|span| tree.symbols[span.clone()].join(" ")).collect()
    }

    #[test]
    fn constituents_are_those_that_are_read_by_hand() {
        let listops = constituents("listops", "[MAX 2 [MIN 4 7 ] 0 ]", "4");
        assert_eq!(listops, ["[MIN 4 7 ]", "[MAX 2 [MIN 4 7 ] 0 ]"]);
        assert_eq!(constituents("dyck", "( ) [ { }", "]"), ["( )", "{ }", "[ { } ]"]);
        let arithmetic = constituents("arithmetic", "( 1 + 2 ) * 3", "9");
        assert_eq!(arithmetic, ["1 + 2", "( 1 + 2 )", "( 1 + 2 ) * 3"]);
        let json = constituents("json", "{ \"a\" : [ 1 , 2 ] , \"b\" : null } | \"b\"", "null");
        let all = "{ \"a\" : [ 1 , 2 ] , \"b\" : null }";
        assert_eq!(json, ["[ 1 , 2 ]", "\"a\" : [ 1 , 2 ]", "\"b\" : null", all]);
        assert_eq!(constituents("json", "[ [ 1 ] , { \"a\" : 2 } ] | 0 0", "1").len(), 4);
    }

    #[test]
    fn constituents_are_spans_of_one_tree() {
        let crossing = |a: &Range<usize>, b: &Range<usize>| a.start < b.start && b.start < a.end && a.end < b.end;
        for name in ["listops", "dyck", "arithmetic", "json"] {
            let spec = TaskSpec::parse(name).unwrap();
            for index in 0..500 {
                let example = spec.example(Purpose::Train, index, &spec.lengths, index % 5 == 0);
                let tree = spec.grammar().syntax(&example).unwrap();
                for a in &tree.spans {
                    assert!(a.len() > 1 && a.end <= tree.symbols.len(), "{a:?} of {example:?}");
                    assert!(!tree.spans.iter().any(|b| crossing(a, b) || crossing(b, a)), "{a:?} of {example:?}");
                    assert_eq!(tree.spans.iter().filter(|b| *b == a).count(), 1);
                }
            }
        }
    }

    #[test]
    fn four_grammars_have_trees() {
        let tree = |name: &str| TaskSpec::parse(name).unwrap().grammar().syntax(&Example::default());
        let with: Vec<&str> = TASKS.iter().map(|task| task.name).filter(|name| tree(name).is_some()).collect();
        assert_eq!(with, ["arithmetic", "dyck", "listops", "json"]);
    }
}
