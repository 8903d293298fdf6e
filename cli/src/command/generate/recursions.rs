//! Streamed text of `retie generate`, with the recursion count of each token.

use crate::{model::TextModel, output::Style};
use retie_data::DecodeStream;
use retie_engine::StopText;
use retie_report::{MarkedToken, Page, Passage};
use serde::Serialize;

/// Recursion counts of the tokens of a prompt and of the new tokens after it.
#[derive(Debug, Default, Serialize)]
pub struct RecursionCounts {
    prompt: Vec<usize>,
    new: Vec<usize>,
    /// Text of each token, those of the prompt first.
    #[serde(skip)]
    pieces: Vec<String>,
}

impl RecursionCounts {
    /// Number of tokens for each recursion count, in the colour of the count, and the mean count.
    pub fn legend(&self, style: Style) -> String {
        let all = || self.prompt.iter().chain(&self.new);
        let num_tokens = |count: usize| all().filter(|other| **other == count).count();
        let last = all().max().copied().unwrap_or(0);
        let parts = (0..=last).map(|count| (count, num_tokens(count))).filter(|(_, tokens)| *tokens > 0);
        let parts: Vec<_> =
            parts.map(|(count, tokens)| style.recursions(count, &format!("{count} ({tokens} tokens)"))).collect();
        let mean = all().sum::<usize>() as f64 / all().count().max(1) as f64;
        format!("recursions {}, {mean:.2} in the mean", parts.join(", "))
    }

    /// HTML page with prompt and text of `model`, each token marked with its recursion count.
    pub fn page(&self, model: &str) -> anyhow::Result<String> {
        let counts = self.prompt.iter().chain(&self.new);
        let marked: Vec<_> = self
            .pieces
            .iter()
            .zip(counts)
            .map(|(text, count)| MarkedToken { text: text.clone(), number: *count })
            .collect();
        let (prompt, new) = marked.split_at(self.prompt.len().min(marked.len()));
        let passage = |title: &str, tokens: &[MarkedToken]| Passage {
            title: title.to_owned(),
            unit: "recursion".to_owned(),
            tokens: tokens.to_vec(),
        };
        let page = Page {
            title: format!("Recursion counts of {model}"),
            summary: vec![self.legend(Style::Plain)],
            passages: vec![passage("Prompt", prompt), passage("Text", new)],
            ..Page::default()
        };
        Ok(page.to_html()?)
    }
}

/// Callback that shows a piece of text.
type Show<'a> = &'a mut dyn FnMut(&str) -> std::io::Result<()>;

/// Text that is shown piece by piece. With colours, a piece is shown when the recursion count of
/// its token is known.
pub struct Pieces<'a> {
    model: &'a TextModel,
    decoder: DecodeStream<'a>,
    show: Show<'a>,
    stop: StopText,
    stopped: bool,
    counts: Option<RecursionCounts>,
    /// True if recursion counts are shown as colours, not only recorded.
    coloured: bool,
    style: Style,
    /// Piece of the last token, whose recursion count is not known yet.
    pending: String,
    text: String,
}

impl<'a> Pieces<'a> {
    /// Text that ends before the first of the strings `stop`. With `counts`, recursion counts are
    /// recorded; with `Some(true)` they are shown too.
    pub fn new(model: &'a TextModel, show: Show<'a>, stop: Vec<String>, counts: Option<bool>) -> Self {
        Self {
            model,
            decoder: DecodeStream::new(&model.tokenizer, true),
            show,
            stop: StopText::new(stop),
            stopped: false,
            counts: counts.map(|_| RecursionCounts::default()),
            coloured: counts == Some(true),
            style: Style::of_stdout(),
            pending: String::new(),
            text: String::new(),
        }
    }

    /// Goes on after the prompt. Records its recursion counts, and shows it if counts are shown.
    pub fn prompt(&mut self, ids: &[u32], recursions: &[usize]) -> anyhow::Result<()> {
        self.decoder = DecodeStream::after(&self.model.tokenizer, true, ids)?;
        let Some(counts) = &mut self.counts else { return Ok(()) };
        counts.prompt = recursions.to_vec();
        let mut decoder = DecodeStream::new(&self.model.tokenizer, true);
        for (id, count) in ids.iter().zip(&counts.prompt) {
            let piece = decoder.step(*id)?;
            if self.coloured {
                (self.show)(&self.style.recursions(*count, &piece))?;
            }
            counts.pieces.push(piece);
        }
        let rest = decoder.finish()?;
        if self.coloured {
            (self.show)(&rest)?;
        }
        if let Some(last) = counts.pieces.last_mut() {
            *last += &rest;
        }
        Ok(())
    }

    /// Adds a new token; returns true if a stop string ends the text.
    pub fn token(&mut self, id: u32) -> anyhow::Result<bool> {
        let piece = self.decoder.step(id)?;
        let (piece, stopped) = self.stop.push(&piece);
        self.stopped = stopped;
        self.text += &piece;
        if !self.coloured {
            (self.show)(&piece)?;
        }
        self.pending = piece;
        Ok(stopped)
    }

    /// Records the recursion count of the last token, which a forward pass has read now.
    pub fn recursions(&mut self, recursions: &[usize]) -> anyhow::Result<()> {
        let (Some(counts), [count]) = (&mut self.counts, recursions) else { return Ok(()) };
        let piece = std::mem::take(&mut self.pending);
        if self.coloured {
            (self.show)(&self.style.recursions(*count, &piece))?;
        }
        counts.new.push(*count);
        counts.pieces.push(piece);
        Ok(())
    }

    /// Shows the rest of the text; returns the new text, and the recursion counts if requested.
    pub fn finish(mut self) -> anyhow::Result<(String, Option<RecursionCounts>)> {
        let mut rest = String::new();
        if !self.stopped {
            let (piece, stopped) = self.stop.push(&self.decoder.finish()?);
            rest += &piece;
            if !stopped {
                rest += &self.stop.finish();
            }
        }
        self.text += &rest;
        (self.show)(&rest)?;
        if let Some(last) = self.counts.as_mut().and_then(|counts| counts.pieces.last_mut()) {
            *last += &rest;
        }
        Ok((self.text, self.counts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legend_counts_tokens_by_recursion_count() {
        let pieces = ["A", " b", "<", " c", "."].map(str::to_owned).to_vec();
        let counts = RecursionCounts { prompt: vec![1, 3, 1], new: vec![3, 2], pieces };
        let legend = counts.legend(Style::PLAIN);
        assert_eq!(legend, "recursions 1 (2 tokens), 2 (1 tokens), 3 (2 tokens), 2.00 in the mean");
        assert!(counts.legend(Style::Colour).contains("\x1b[38;5;178m3 (2 tokens)\x1b[0m"));
        let page = counts.page("m").unwrap();
        assert!(page.contains("title=\"1 recursion\">&lt;</mark></div>\n<h2>Text</h2>"), "{page}");
        assert!(page.contains("title=\"2 recursions\">.</mark></div>"), "{page}");
    }
}
