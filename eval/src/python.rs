//! Python's definitions of white space and case, on which the harness's prompts and counts rely
//! (<https://docs.python.org/3/library/stdtypes.html#string-methods>).

/// `str.isspace` of one character: Unicode's white space and the four separators U+001C to U+001F.
pub(crate) fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip`.
pub(crate) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// `str.rstrip`.
pub(crate) fn strip_end(text: &str) -> &str {
    text.trim_end_matches(is_space)
}

/// `len(re.split(r"\s+", text))`: the words, with an empty one for white space at either end.
pub(crate) fn count_words(text: &str) -> usize {
    let mut count = 1;
    let mut in_space = false;
    for c in text.chars() {
        let space = is_space(c);
        count += usize::from(space && !in_space);
        in_space = space;
    }
    count
}

/// `str.capitalize`: the first character in title case, the others in lower case.
pub(crate) fn capitalize(text: &str) -> String {
    let Some(first) = text.chars().next() else { return String::new() };
    // Lower-casing the whole text first keeps the rule for a final sigma.
    let lower = text.to_lowercase();
    let rest = first.to_lowercase().map(char::len_utf8).sum();
    title_case(first) + lower.get(rest..).unwrap_or("")
}

/// Title case of one character: upper case, except for digraphs, letters that become several, and
/// Georgian, which has no title case.
fn title_case(c: char) -> String {
    match c {
        'Ǆ'..='ǆ' => 'ǅ'.into(),
        'Ǉ'..='ǉ' => 'ǈ'.into(),
        'Ǌ'..='ǌ' => 'ǋ'.into(),
        'Ǳ'..='ǳ' => 'ǲ'.into(),
        'ა'..='ჿ' => c.into(),
        _ => {
            let mut upper = c.to_uppercase();
            let first = upper.next().into_iter();
            first.chain(upper.flat_map(char::to_lowercase)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capitals_are_those_of_python() {
        for (text, expected) in [
            ("", ""),
            ("the TALLER one", "The taller one"),
            ("ßtraße IN ΟΔΟΣ", "Sstraße in οδος"),
            ("ǆungla éTUDE", "ǅungla étude"),
            ("ﬁNE", "Fine"),
            ("1 A", "1 a"),
            ("İX", "İx"),
            ("აბ", "აბ"),
        ] {
            assert_eq!(capitalize(text), expected);
        }
    }

    #[derive(serde::Deserialize)]
    struct Golden {
        word_counts: Vec<(String, usize)>,
    }

    #[test]
    fn words_are_counted_as_the_harness_counts_them() {
        let golden: Golden = serde_json::from_str(include_str!("../tests/golden/harness.json")).unwrap();
        for (text, count) in golden.word_counts {
            assert_eq!(count_words(&text), count, "{text:?}");
        }
    }

    #[test]
    fn space_is_that_of_python() {
        assert_eq!(strip("\u{1c} a\u{a0}b\u{2003}\n"), "a\u{a0}b");
        assert_eq!(strip_end(" a\u{1f} "), " a");
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
    }
}
