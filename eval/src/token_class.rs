//! Classes of tokens by what they look like, and how deep each class goes: parts of speech as far as they can be told without a tagger.
//!
//! | class | tokens |
//! |---|---|
//! | `punctuation` | without a letter or digit: marks, spaces, line ends |
//! | `number` | with a digit and without a letter |
//! | `function_word` | a whole English word that stands for grammar rather than for a thing: articles, pronouns, prepositions, auxiliaries, … |
//! | `rare` | any other whose id occurs once in all that is read |
//! | `other` | the rest |

use serde::Serialize;
use std::{collections::HashMap, fmt};

/// What a token looks like.
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
    /// Every one, in the order of the documentation.
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

/// Words that English has few of and uses often.
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

/// The classes of the tokens of several texts; of each, the ids and the text of each token where it stands.
#[must_use]
pub fn classify(texts: &[(&[u32], Vec<String>)]) -> Vec<Vec<TokenClass>> {
    let mut counts: HashMap<u32, usize> = HashMap::new();
    texts.iter().flat_map(|(ids, _)| *ids).for_each(|id| *counts.entry(*id).or_default() += 1);
    let of_text = |(ids, pieces): &(&[u32], Vec<String>)| {
        let class = |(i, id): (usize, &u32)| {
            let before = i.checked_sub(1).and_then(|i| pieces[i].chars().next_back());
            let after = pieces.get(i + 1).and_then(|piece| piece.chars().next());
            of_token(&pieces[i], before, after, counts[id] == 1)
        };
        ids.iter().enumerate().map(class).collect()
    };
    texts.iter().map(of_text).collect()
}

fn of_token(piece: &str, before: Option<char>, after: Option<char>, once: bool) -> TokenClass {
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

/// Depths of one class.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClassDepths {
    /// The class.
    pub class: TokenClass,
    /// How many tokens are of it.
    pub tokens: usize,
    /// Recursions of one, in the mean; absent if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mean_depth: Option<f64>,
    /// Share of them that went through 0, 1, … recursions.
    pub depths: Vec<f64>,
}

/// Counts of tokens by class and depth.
#[derive(Clone, Debug)]
pub struct DepthsByClass(Vec<Vec<usize>>);

impl DepthsByClass {
    /// Of a model of so many recursions.
    #[must_use]
    pub fn new(num_recursions: usize) -> Self {
        Self(vec![vec![0; num_recursions + 1]; TokenClass::ALL.len()])
    }

    /// Counts a token.
    pub fn add(&mut self, class: TokenClass, depth: usize) {
        self.0[class as usize][depth] += 1;
    }

    /// A histogram for each class.
    #[must_use]
    pub fn histograms(&self) -> Vec<ClassDepths> {
        let of = |(class, counts): (&TokenClass, &Vec<usize>)| {
            let tokens = counts.iter().sum::<usize>();
            let sum: usize = counts.iter().enumerate().map(|(depth, count)| depth * count).sum();
            ClassDepths {
                class: *class,
                tokens,
                mean_depth: (tokens > 0).then(|| sum as f64 / tokens as f64),
                depths: counts.iter().map(|count| *count as f64 / tokens.max(1) as f64).collect(),
            }
        };
        TokenClass::ALL.iter().zip(&self.0).map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_have_the_class_that_they_have_in_their_place() {
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
        let mut counts = DepthsByClass::new(2);
        [1, 2, 2, 0].into_iter().for_each(|depth| counts.add(TokenClass::Number, depth));
        let histograms = counts.histograms();
        assert_eq!((histograms[1].tokens, histograms[1].mean_depth), (4, Some(1.25)));
        assert_eq!(histograms[1].depths, [0.25, 0.25, 0.5]);
        assert_eq!((histograms[0].tokens, histograms[0].mean_depth), (0, None));
    }
}
