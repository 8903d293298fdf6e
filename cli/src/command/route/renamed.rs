//! `retie convert --router` was this command: the old spelling is refused with the new one.

use crate::output;
use std::path::Path;

/// Options of `retie convert --router`, and what they are called here; the others kept their names.
const RENAMED: [(&str, &str); 7] = [
    ("--router", "--kind"),
    ("--router-network", "--network"),
    ("--router-input", "--input"),
    ("--router-score", "--score"),
    ("--router-alpha", "--alpha"),
    ("--auxiliary-router", "--auxiliary"),
    ("--kv", "--kv-sharing"),
];

/// The error for a command line in the old spelling; `None` for any other. `words` are those after
/// the program's name.
pub fn renamed(words: impl IntoIterator<Item = String>) -> Option<anyhow::Error> {
    let mut words = words.into_iter().skip_while(|word| word.starts_with('-'));
    words.next().filter(|command| command == "convert")?;
    let words: Vec<String> = words.collect();
    words.iter().find(|word| split(word).0 == "--router")?;
    let now: Vec<String> = words.iter().map(|word| new_spelling(word)).collect();
    Some(anyhow::anyhow!(
        "`retie convert --router` is a command of its own, `retie route`\nhint: retie route {}",
        now.join(" ")
    ))
}

/// An option and the value behind its `=`.
fn split(word: &str) -> (&str, Option<&str>) {
    word.split_once('=').map_or((word, None), |(option, value)| (option, Some(value)))
}

fn new_spelling(word: &str) -> String {
    let quoted = |text: &str| output::word(Path::new(text));
    let (option, value) = split(word);
    match (RENAMED.iter().find(|(old, _)| *old == option), value) {
        (Some((_, new)), Some(value)) => format!("{new}={}", quoted(value)),
        (Some((_, new)), None) => (*new).to_owned(),
        (None, _) => quoted(word),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(line: &str) -> Option<String> {
        let error = renamed(line.split_whitespace().map(str::to_owned))?.to_string();
        Some(error.lines().last().unwrap().to_owned())
    }

    #[test]
    fn the_old_spelling_is_refused_with_the_new_one() {
        let old = "convert looped --router expert_choice --router-network mlp --capacities 1,0.5 --kv=shared \
                   --auxiliary-router linear --router-alpha 0.2 --gating delta --seed 3 -o out --json";
        let new = "hint: retie route looped --kind expert_choice --network mlp --capacities 1,0.5 --kv-sharing=shared \
                   --auxiliary linear --alpha 0.2 --gating delta --seed 3 -o out --json";
        assert_eq!(hint(old).as_deref(), Some(new));
        assert_eq!(
            hint("convert a --router=token_choice -o b").as_deref(),
            Some("hint: retie route a --kind=token_choice -o b")
        );
        for other in ["convert a --recursions 2", "route a --router x", "generate convert --router", ""] {
            assert_eq!(hint(other), None, "{other}");
        }
    }
}
