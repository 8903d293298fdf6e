//! Stop strings, for callers that turn tokens into text.

/// Finds the first stop string in text that arrives in pieces.
///
/// A string may spread over pieces, so the longest suffix of the text that could begin one is held
/// back until this is decided.
#[derive(Clone, Debug, Default)]
pub struct StopText {
    strings: Vec<String>,
    held: String,
}

impl StopText {
    /// Looks for `strings`; empty ones are ignored.
    #[must_use]
    pub fn new(strings: Vec<String>) -> Self {
        Self { strings: strings.into_iter().filter(|string| !string.is_empty()).collect(), held: String::new() }
    }

    /// Takes a piece of text. Returns the text that is certainly not part of a stop string, and
    /// true if a stop string follows it: then the text ends there.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        let mut text = std::mem::take(&mut self.held) + piece;
        if let Some(at) = self.strings.iter().filter_map(|string| text.find(string)).min() {
            text.truncate(at);
            return (text, true);
        }
        let may_begin = |at: &usize| self.strings.iter().any(|string| string.starts_with(&text[*at..]));
        let ends = text.char_indices().map(|(at, _)| at);
        if let Some(at) = ends.into_iter().find(may_begin) {
            self.held = text.split_off(at);
        }
        (text, false)
    }

    /// Text that was held back, once there are no more pieces.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(strings: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut stop = StopText::new(strings.iter().map(|string| (*string).to_owned()).collect());
        let (mut shown, mut stopped) = (Vec::new(), false);
        for piece in pieces {
            let (text, found) = stop.push(piece);
            shown.push(text);
            stopped = found;
            if stopped {
                break;
            }
        }
        (shown, stopped, stop.finish())
    }

    #[test]
    fn the_earliest_string_ends_the_text_before_it() {
        let (shown, stopped, _) = run(&["day", "ood"], &["Good day"]);
        assert_eq!((shown.concat().as_str(), stopped), ("G", true));
        assert!(run(&["Go"], &["Go"]).1, "the first piece counts");
    }

    #[test]
    fn text_that_may_begin_a_string_is_held_back() {
        let strings = ["\n\nQ:", "aab"];
        assert_eq!(run(&strings, &["x\n", "\n", "Q:y"]), (vec!["x".into(), "".into(), "".into()], true, "".into()));
        assert_eq!(run(&strings, &["x\n", "y\n"]), (vec!["x".into(), "\ny".into()], false, "\n".into()));
        // The longest suffix that is held back: `aa` of `aaa`.
        assert_eq!(run(&strings, &["aaa", "b"]), (vec!["a".into(), "".into()], true, "".into()));
        assert_eq!(run(&["éa"], &["é", "é"]), (vec!["".into(), "é".into()], false, "é".into()));
    }

    #[test]
    fn without_strings_text_passes_through() {
        assert_eq!(run(&["", ""], &["a", "b"]), (vec!["a".into(), "b".into()], false, "".into()));
    }
}
