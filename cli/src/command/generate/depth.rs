//! Generated text as it comes, token by token, with the recursion depth of each.

use crate::{model::TextModel, output::Style};
use retie_data::DecodeStream;
use retie_eval::{Marked, Passage, Report};
use retie_model::Routing;
use serde::Serialize;

/// Recursions of each token.
#[derive(Debug, Default, Serialize)]
pub struct Depths {
    prompt: Vec<usize>,
    new: Vec<usize>,
    /// The text of each, the prompt's first.
    #[serde(skip)]
    pieces: Vec<String>,
}

impl Depths {
    /// How many tokens there are of each depth, in their colours.
    pub fn legend(&self, style: Style) -> String {
        let all = || self.prompt.iter().chain(&self.new);
        let count = |depth: usize| all().filter(|other| **other == depth).count();
        let last = all().max().copied().unwrap_or(0);
        let parts = (0..=last).map(|depth| (depth, count(depth))).filter(|(_, count)| *count > 0);
        let parts: Vec<_> =
            parts.map(|(depth, count)| style.depth(depth, &format!("{depth} ({count} tokens)"))).collect();
        let mean = all().sum::<usize>() as f64 / all().count().max(1) as f64;
        format!("recursions {}, {mean:.2} in the mean", parts.join(", "))
    }

    /// A web page with prompt and text of `model`, token by token.
    pub fn page(&self, model: &str) -> anyhow::Result<String> {
        let depths = self.prompt.iter().chain(&self.new);
        let marked: Vec<_> =
            self.pieces.iter().zip(depths).map(|(text, depth)| Marked { text: text.clone(), number: *depth }).collect();
        let (prompt, new) = marked.split_at(self.prompt.len().min(marked.len()));
        let passage = |title: &str, tokens: &[Marked]| Passage {
            title: title.to_owned(),
            unit: "recursions".to_owned(),
            tokens: tokens.to_vec(),
        };
        let report = Report {
            title: format!("Recursion depths of {model}"),
            summary: vec![self.legend(Style::Plain)],
            passages: vec![passage("Prompt", prompt), passage("Text", new)],
            ..Report::default()
        };
        Ok(retie_eval::render_report(&report)?)
    }
}

/// Where text goes.
type Show<'a> = &'a mut dyn FnMut(&str) -> std::io::Result<()>;

/// Text that is shown piece by piece; in the colours of depths, each piece when its depth is known.
pub struct Pieces<'a> {
    model: &'a TextModel,
    decoder: DecodeStream<'a>,
    show: Show<'a>,
    depths: Option<Depths>,
    /// Whether depths are shown, or noted only.
    coloured: bool,
    style: Style,
    /// A piece whose depth is not known yet.
    pending: String,
    text: String,
}

impl<'a> Pieces<'a> {
    pub fn new(model: &'a TextModel, show: Show<'a>, with_depths: bool, coloured: bool) -> Self {
        let decoder = model.tokenizer.decode_stream(true);
        let depths = with_depths.then(Depths::default);
        let (style, pending, text) = (Style::of_stdout(), String::new(), String::new());
        Self { model, decoder, show, depths, coloured, style, pending, text }
    }

    /// The prompt was read: it is shown if depths are.
    pub fn prompt(&mut self, ids: &[u32], routing: &Routing) -> anyhow::Result<()> {
        let Some(depths) = &mut self.depths else { return Ok(()) };
        depths.prompt = routing.depths(ids.len());
        let mut decoder = self.model.tokenizer.decode_stream(true);
        for (id, depth) in ids.iter().zip(&depths.prompt) {
            let piece = decoder.step(*id)?;
            if self.coloured {
                (self.show)(&self.style.depth(*depth, &piece))?;
            }
            depths.pieces.push(piece);
        }
        let rest = decoder.finish()?;
        if self.coloured {
            (self.show)(&rest)?;
        }
        if let Some(last) = depths.pieces.last_mut() {
            *last += &rest;
        }
        Ok(())
    }

    /// A new token.
    pub fn token(&mut self, id: u32) -> anyhow::Result<()> {
        let piece = self.decoder.step(id)?;
        self.text += &piece;
        if !self.coloured {
            (self.show)(&piece)?;
        }
        if self.depths.is_some() {
            self.pending = piece;
        }
        Ok(())
    }

    /// The last token was read.
    pub fn depth(&mut self, routing: &Routing) -> anyhow::Result<()> {
        let Some(depths) = &mut self.depths else { return Ok(()) };
        let depth = routing.depths(1).into_iter().sum();
        let piece = std::mem::take(&mut self.pending);
        if self.coloured {
            (self.show)(&self.style.depth(depth, &piece))?;
        }
        depths.new.push(depth);
        depths.pieces.push(piece);
        Ok(())
    }

    /// Shows what is left; gives the new text, and depths if they were asked for.
    pub fn finish(mut self) -> anyhow::Result<(String, Option<Depths>)> {
        let rest = self.decoder.finish()?;
        (self.show)(&rest)?;
        if let Some(last) = self.depths.as_mut().and_then(|depths| depths.pieces.last_mut()) {
            *last += &rest;
        }
        self.text += &rest;
        Ok((self.text, self.depths))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_legend_counts_tokens_by_depth() {
        let pieces = ["A", " b", "<", " c", "."].map(str::to_owned).to_vec();
        let depths = Depths { prompt: vec![1, 3, 1], new: vec![3, 2], pieces };
        let legend = depths.legend(Style::PLAIN);
        assert_eq!(legend, "recursions 1 (2 tokens), 2 (1 tokens), 3 (2 tokens), 2.00 in the mean");
        assert!(depths.legend(Style::Colour).contains("\x1b[38;5;178m3 (2 tokens)\x1b[0m"));
        let page = depths.page("m").unwrap();
        assert!(page.contains("title=\"1 recursions\">&lt;</mark></div>\n<h2>Text</h2>"), "{page}");
        assert!(page.contains("title=\"2 recursions\">.</mark></div>"), "{page}");
    }
}
