//! Token classes by surface form, and the recursion counts of each class: parts of speech as far as
//! they can be told without a tagger.
//!
//! | class | tokens |
//! |---|---|
//! | `punctuation` | without a letter or digit: marks, spaces, line ends |
//! | `number` | with a digit and without a letter |
//! | `function_word` | an English function word: article, pronoun, preposition, auxiliary, … |
//! | `rare` | any other whose id occurs once in all texts |
//! | `other` | the rest |

use serde::Serialize;
use std::{collections::HashMap, fmt};

/// Class of a token by its surface form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenClass {
    Punctuation,
    Number,
    FunctionWord,
    Rare,
    Other,
}

impl TokenClass {
    /// Every class, in the order of the documentation.
    pub const ALL: [Self; 5] = [Self::Punctuation, Self::Number, Self::FunctionWord, Self::Rare, Self::Other];

    fn name(self) -> &'static str {
        match self {
            Self::Punctuation => "punctuation",
            Self::Number => "number",
            Self::FunctionWord => "function_word",
            Self::Rare => "rare",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for TokenClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// English function words, sorted: few in number and used often.
#[rustfmt::skip]
const FUNCTION_WORDS: &[&str] = &[
    "a", "about", "above", "across", "after", "against", "all", "although", "am", "among", "an", "and", "any", "are", "as", "at", "be",
    "because", "been", "before", "behind", "being", "below", "beneath", "beside", "between", "both", "but", "by", "can", "could", "did",
    "do", "does", "during", "each", "either", "every", "for", "from", "had", "has", "have", "he", "her", "hers", "him", "his", "how", "i",
    "if", "in", "into", "is", "it", "its", "itself", "may", "me", "might", "mine", "must", "my", "neither", "no", "nor", "not", "of", "off",
    "on", "onto", "or", "our", "ours", "over", "shall", "she", "should", "since", "so", "some", "such", "than", "that", "the", "their",
    "theirs", "them", "then", "there", "these", "they", "this", "those", "though", "through", "to", "toward", "towards", "under", "unless",
    "until", "up", "upon", "us", "was", "we", "were", "what", "when", "where", "whether", "which", "while", "who", "whom", "whose", "why",
    "will", "with", "within", "without", "would", "you", "your", "yours",
];

/// Classes of the tokens of several texts. A text is the ids and the decoded text of each token in
/// its place.
#[must_use]
pub fn classify(texts: &[(&[u32], Vec<String>)]) -> Vec<Vec<TokenClass>> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    texts.iter().flat_map(|(ids, _)| *ids).for_each(|id| *counts.entry(*id).or_default() += 1);
    let classes = |(ids, pieces): &(&[u32], Vec<String>)| {
        let class = |(i, id): (usize, &u32)| {
            let before = i.checked_sub(1).and_then(|i| pieces[i].chars().next_back());
            let after = pieces.get(i + 1).and_then(|piece| piece.chars().next());
            token_class(&pieces[i], before, after, counts[id] == 1)
        };
        ids.iter().enumerate().map(class).collect()
    };
    texts.iter().map(classes).collect()
}

fn token_class(piece: &str, before: Option<char>, after: Option<char>, once: bool) -> TokenClass {
    let letters = piece.chars().any(char::is_alphabetic);
    if !letters {
        let digits = piece.chars().any(char::is_numeric);
        return if digits { TokenClass::Number } else { TokenClass::Punctuation };
    }
    let in_word = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    let word = piece.trim();
    let starts = piece.starts_with(char::is_whitespace) || !in_word(before);
    let ends = piece.ends_with(char::is_whitespace) || !in_word(after);
    if starts && ends && FUNCTION_WORDS.binary_search(&word.to_lowercase().as_str()).is_ok() {
        TokenClass::FunctionWord
    } else if once {
        TokenClass::Rare
    } else {
        TokenClass::Other
    }
}

/// Recursion counts of the tokens of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassRecursions {
    /// The class.
    pub class: TokenClass,
    /// Number of tokens of the class.
    pub tokens: usize,
    /// Mean recursion count; `None` for a class without tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_recursions: Option<f64>,
    /// Fraction of them with a recursion count of 0, 1, ….
    #[serde(rename = "depths")]
    pub recursion_counts: Vec<f64>,
}

/// Counts of tokens by class and recursion count.
#[derive(Clone, Debug)]
pub struct RecursionsByClass(Vec<Vec<usize>>);

impl RecursionsByClass {
    /// Counts for a model of `num_recursions` recursions, all 0.
    #[must_use]
    pub fn new(num_recursions: usize) -> Self {
        Self(vec![vec![0; num_recursions + 1]; TokenClass::ALL.len()])
    }

    /// Counts a token.
    pub fn add(&mut self, class: TokenClass, recursion_count: usize) {
        self.0[class as usize][recursion_count] += 1;
    }

    /// Histogram of recursion counts for each class.
    #[must_use]
    pub fn histograms(&self) -> Vec<ClassRecursions> {
        let histogram = |(class, counts): (&TokenClass, &Vec<usize>)| {
            let tokens = counts.iter().sum::<usize>();
            let sum: usize = counts.iter().enumerate().map(|(recursions, tokens)| recursions * tokens).sum();
            ClassRecursions {
                class: *class,
                tokens,
                mean_recursions: (tokens > 0).then(|| sum as f64 / tokens as f64),
                recursion_counts: counts.iter().map(|count| *count as f64 / tokens.max(1) as f64).collect(),
            }
        };
        TokenClass::ALL.iter().zip(&self.0).map(histogram).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_token_depends_on_its_neighbours() {
        let pieces =
            ["The", " cat", " in", "side", " of", " 12", ",", "5", "\n", " them", "a", "!", " cat", "in", " b2"];
        let ids: Vec<u32> = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 1, 3, 3].to_vec();
        let texts = [(ids.as_slice(), pieces.map(str::to_owned).to_vec())];
        use TokenClass::{FunctionWord as F, Number as N, Other as O, Punctuation as P, Rare as R};
        assert_eq!(classify(&texts), [vec![F, O, R, O, F, N, P, N, P, R, R, P, O, O, O]]);
    }

    #[test]
    fn the_list_can_be_searched() {
        assert!(FUNCTION_WORDS.is_sorted());
    }

    #[test]
    fn a_histogram_has_the_shares_of_its_class() {
        let mut counts = RecursionsByClass::new(2);
        [1, 2, 2, 0].into_iter().for_each(|depth| counts.add(TokenClass::Number, depth));
        let histograms = counts.histograms();
        assert_eq!((histograms[1].tokens, histograms[1].mean_recursions), (4, Some(1.25)));
        assert_eq!(histograms[1].recursion_counts, [0.25, 0.25, 0.5]);
        assert_eq!((histograms[0].tokens, histograms[0].mean_recursions), (0, None));
    }
}
