//! A text whose tokens are marked by a small number: the larger, the stronger the colour behind them.

use super::escape;
use std::fmt::Write;

/// A text, token by token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passage {
    /// Heading.
    pub title: String,
    /// What the number of a token is, e.g. `recursions`.
    pub unit: String,
    /// Its tokens, in order.
    pub tokens: Vec<Marked>,
}

/// A token and its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// Its text.
    pub text: String,
    /// Its number.
    pub number: usize,
}

/// The strongest colour, in percent.
const STRONGEST: usize = 75;

pub(super) fn html(Passage { title, unit, tokens }: &Passage) -> String {
    let largest = tokens.iter().map(|token| token.number).max().unwrap_or(0).max(1);
    let style = |number: usize| {
        let percent = STRONGEST * number / largest;
        format!("style=\"background: color-mix(in srgb, var(--series1) {percent}%, transparent)\"")
    };
    let mut html = format!("<h2>{}</h2>\n<ul class=\"legend marks\">", escape(title));
    for number in 0..=largest {
        let count = tokens.iter().filter(|token| token.number == number).count();
        if count > 0 {
            let _ = write!(html, "<li><mark {}>{number} {}</mark> {count} tokens</li>", style(number), escape(unit));
        }
    }
    html += "</ul>\n<div class=\"passage\">";
    for Marked { text, number } in tokens.iter().filter(|token| !token.text.is_empty()) {
        let _ = write!(html, "<mark {} title=\"{number} {}\">{}</mark>", style(*number), escape(unit), escape(text));
    }
    html + "</div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_its_text_and_the_colour_of_its_number() {
        let token = |text: &str, number| Marked { text: text.into(), number };
        let tokens = vec![token("The", 3), token(" <b>", 1), token("", 1), token(" cat\n", 3)];
        let html = html(&Passage { title: "A & B".into(), unit: "recursions".into(), tokens });
        let parts = [
            "<h2>A &amp; B</h2>",
            "75%, transparent)\">3 recursions</mark> 2 tokens</li>",
            "25%, transparent)\">1 recursions</mark> 2 tokens</li>",
            "25%, transparent)\" title=\"1 recursions\"> &lt;b&gt;</mark>",
            " cat\n</mark></div>",
        ];
        parts.iter().for_each(|part| assert!(html.contains(part), "{part}\n{html}"));
        assert_eq!(html.matches("<mark").count(), 2 + 3);
    }
}
