//! Passages of text whose tokens are coloured by a small number, e.g. their recursion count.

use crate::escape::escape;
use std::fmt::Write;

/// A text as a list of marked tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passage {
    /// Heading.
    pub title: String,
    /// Unit of the tokens' numbers in the singular, e.g. `recursion`.
    pub unit: String,
    /// Its tokens, in order.
    pub tokens: Vec<MarkedToken>,
}

/// A token and its number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MarkedToken {
    /// Its text.
    pub text: String,
    /// Its number.
    pub number: usize,
}

/// Opacity of the colour behind the tokens with the largest number, in percent.
const STRONGEST: usize = 60;

pub(super) fn html(Passage { title, unit, tokens }: &Passage) -> String {
    let largest = tokens.iter().map(|token| token.number).max().unwrap_or(0).max(1);
    let style = |number: usize| {
        let percent = STRONGEST * number / largest;
        format!("style=\"background: color-mix(in srgb, var(--series1) {percent}%, transparent)\"")
    };
    let unit = |number: usize| format!("{number} {}{}", escape(unit), if number == 1 { "" } else { "s" });
    let mut html = format!("<h2>{}</h2>\n<ul class=\"legend marks\">", escape(title));
    for number in 0..=largest {
        let count = tokens.iter().filter(|token| token.number == number).count();
        if count > 0 {
            let tokens = if count == 1 { "token" } else { "tokens" };
            let _ = write!(html, "<li><mark {}>{}</mark> {count} {tokens}</li>", style(number), unit(number));
        }
    }
    html += "</ul>\n<div class=\"passage\">";
    for MarkedToken { text, number } in tokens.iter().filter(|token| !token.text.is_empty()) {
        // A line break alone would show no colour. Its sign comes from the style sheet and is not
        // copied with the text.
        let text = escape(text).replace('\n', "<span class=\"break\"></span>\n");
        let _ = write!(html, "<mark {} title=\"{}\">{text}</mark>", style(*number), unit(*number));
    }
    html + "</div>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_its_text_and_the_colour_of_its_number() {
        let token = |text: &str, number| MarkedToken { text: text.into(), number };
        let tokens = vec![token("The", 3), token(" <b>", 1), token("", 1), token(" cat\n", 3)];
        let html = html(&Passage { title: "A & B".into(), unit: "recursion".into(), tokens });
        let parts = [
            "<h2>A &amp; B</h2>",
            "60%, transparent)\">3 recursions</mark> 2 tokens</li>",
            "20%, transparent)\">1 recursion</mark> 2 tokens</li>",
            "20%, transparent)\" title=\"1 recursion\"> &lt;b&gt;</mark>",
            " cat<span class=\"break\"></span>\n</mark></div>",
        ];
        parts.iter().for_each(|part| assert!(html.contains(part), "{part}\n{html}"));
        assert_eq!(html.matches("<mark").count(), 2 + 3);
    }
}
