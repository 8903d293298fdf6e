//! An example: a problem and its answer as symbols.

use std::fmt;

/// How symbols become text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A space between symbols.
    #[default]
    Spaced,
    /// Nothing between symbols.
    Plain,
}

impl Form {
    /// What stands between two symbols.
    #[must_use]
    pub fn separator(self) -> &'static str {
        match self {
            Self::Spaced => " ",
            Self::Plain => "",
        }
    }
}

/// A list of symbols as one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbols {
    form: Form,
    text: String,
    /// Where each symbol ends in the text.
    ends: Vec<u32>,
    /// Recursion depth of each symbol.
    depths: Vec<u16>,
}

impl Symbols {
    /// No symbols, for a text of `form`.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { form, ..Self::default() }
    }

    /// Removes all symbols.
    pub fn clear(&mut self) {
        self.text.clear();
        self.ends.clear();
        self.depths.clear();
    }

    /// Adds a symbol that recursion depth `depth` reads or writes.
    pub fn push(&mut self, symbol: &str, depth: usize) {
        if !self.ends.is_empty() {
            self.text.push_str(self.form.separator());
        }
        self.text.push_str(symbol);
        self.ends.push(self.text.len() as u32);
        self.depths.push(u16::try_from(depth).unwrap_or(u16::MAX));
    }

    /// Adds the decimal digits of `number`, each a symbol, after a sign where it is negative.
    pub fn push_number(&mut self, number: i64, depth: usize) {
        for character in number.to_string().chars() {
            self.push(character.encode_utf8(&mut [0; 4]), depth);
        }
    }

    /// How they become text.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Number of symbols.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The symbols.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        let separator = self.form.separator().len();
        self.ends.iter().enumerate().map(move |(index, end)| {
            let start = match index {
                0 => 0,
                _ => self.ends[index - 1] as usize + separator,
            };
            &self.text[start..*end as usize]
        })
    }

    /// The symbols as a list.
    #[must_use]
    pub fn list(&self) -> Vec<&str> {
        self.iter().collect()
    }

    /// Index of the symbol that holds the byte `at` of the text, or the next one.
    #[must_use]
    pub fn symbol_at(&self, at: usize) -> Option<usize> {
        let index = self.ends.partition_point(|end| *end as usize <= at);
        (index < self.ends.len()).then_some(index)
    }

    /// Where each symbol ends in the text, in bytes.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Recursion depth of each symbol.
    #[must_use]
    pub fn depths(&self) -> &[u16] {
        &self.depths
    }
}

impl fmt::Display for Symbols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A problem and its answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// The problem.
    pub input: Symbols,
    /// Its only right answer.
    pub output: Symbols,
    /// Length of the problem, in the unit of its grammar.
    pub length: usize,
    /// True recursion depth of the problem; [`Grammar::depth_name`](crate::Grammar::depth_name)
    /// says of what.
    pub depth: usize,
    /// Whether it was drawn as the grammar's edge case.
    pub edge: bool,
}

impl Example {
    /// An example without symbols, for a text of `form`.
    #[must_use]
    pub fn new(form: Form) -> Self {
        Self { input: Symbols::new(form), output: Symbols::new(form), ..Self::default() }
    }

    /// The problem up to where its answer begins, as in [`Example::document`].
    #[must_use]
    pub fn question(&self) -> String {
        format!("{}{}=", self.input, self.input.form.separator())
    }

    /// What follows the question in [`Example::document`].
    #[must_use]
    pub fn continuation(&self) -> String {
        format!("{}{}", self.input.form.separator(), self.output)
    }

    /// Training text: `PROBLEM = ANSWER`.
    #[must_use]
    pub fn document(&self) -> String {
        self.question() + &self.continuation()
    }

    /// Whether `answer` is the right answer: the same symbols, whatever space is between and around
    /// them.
    #[must_use]
    pub fn is_answer(&self, answer: &str) -> bool {
        self.output.text.split_whitespace().eq(answer.split_whitespace())
    }
}

/// A prompt for a pretrained model: solved examples (`shots`) in the same text form, then the
/// problem.
#[must_use]
pub fn in_context(shots: &[Example], problem: &Example) -> String {
    let mut prompt = String::new();
    for shot in shots {
        prompt += &format!("Input: {}\nOutput: {}\n\n", shot.input, shot.output);
    }
    prompt + &format!("Input: {}\nOutput:", problem.input)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(form: Form) -> Example {
        let mut example = Example::new(form);
        ["X1", "01"].iter().for_each(|symbol| example.input.push(symbol, 1));
        example.output.push_number(-12, 0);
        example
    }

    #[test]
    fn symbols_come_back_from_both_forms() {
        for (form, document) in [(Form::Spaced, "X1 01 = - 1 2"), (Form::Plain, "X101=-12")] {
            let example = example(form);
            assert_eq!(example.document(), document);
            assert_eq!(example.input.list(), ["X1", "01"]);
            assert_eq!(example.output.list(), ["-", "1", "2"]);
            assert_eq!(example.input.depths(), [1, 1]);
            let last = example.input.text().len() - 1;
            let found = [0, 1, last, last + 1].map(|at| example.input.symbol_at(at));
            assert_eq!(found, [Some(0), Some(0), Some(1), None]);
        }
    }

    #[test]
    fn an_answer_is_compared_by_its_symbols() {
        let spaced = example(Form::Spaced);
        assert!(spaced.is_answer(" - 1  2\n") && !spaced.is_answer("- 12") && !spaced.is_answer("- 1 2 3"));
        let plain = example(Form::Plain);
        assert!(plain.is_answer("-12") && !plain.is_answer("- 1 2"));
    }

    #[test]
    fn shots_stand_before_the_problem() {
        let example = example(Form::Spaced);
        let prompt = in_context(std::slice::from_ref(&example), &example);
        assert_eq!(prompt, "Input: X1 01\nOutput: - 1 2\n\nInput: X1 01\nOutput:");
    }
}
