//! Binary trees over a sentence, drawn as SVG: tokens below, a node for each span above its middle,
//! and those that another tree has too in colour.

use crate::escape::escape;
use std::{collections::HashMap, fmt::Write};

/// A binary tree over tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeDrawing {
    /// Heading.
    pub title: String,
    /// The tokens.
    pub tokens: Vec<String>,
    /// Nodes: first token, first token of the right part, first token behind. Their parts are
    /// tokens or nodes.
    pub nodes: Vec<[usize; 3]>,
    /// Spans to mark: first token and first token behind.
    pub marked: Vec<(usize, usize)>,
}

/// Width of a character of the tokens, in pixels.
const CHARACTER: usize = 8;
/// Space between two tokens.
const GAP: usize = 14;
/// Height of a level.
const LEVEL: usize = 22;
/// Height of the line of tokens.
const LINE: usize = 22;
/// Radius of a node.
const RADIUS: usize = 3;

pub(super) fn html(tree: &TreeDrawing) -> String {
    let mut html = format!("<h2>{}</h2>\n<div class=\"scroll\">", escape(&tree.title));
    html += &svg(tree);
    html += "</div>\n";
    html
}

fn svg(tree: &TreeDrawing) -> String {
    let (mut middles, mut right) = (Vec::with_capacity(tree.tokens.len()), GAP);
    for token in &tree.tokens {
        let width = token.chars().count() * CHARACTER;
        middles.push(right + width / 2);
        right += width + GAP;
    }
    // Parts come before wholes.
    let mut nodes = tree.nodes.clone();
    nodes.sort_by_key(|[start, _, end]| end - start);
    let mut places: HashMap<(usize, usize), (usize, usize)> =
        middles.iter().enumerate().map(|(token, x)| ((token, token + 1), (*x, 0))).collect();
    let (mut lines, mut dots, mut highest) = (String::new(), String::new(), 0);
    let drawn = |level: usize, highest: usize| RADIUS + 1 + (highest - level) * LEVEL;
    let mut edges = Vec::new();
    for [start, split, end] in nodes {
        let (Some(left), Some(right)) = (places.get(&(start, split)), places.get(&(split, end))) else { continue };
        let place = (usize::midpoint(left.0, right.0), 1 + left.1.max(right.1));
        highest = highest.max(place.1);
        edges.push((place, [*left, *right], tree.marked.contains(&(start, end))));
        places.insert((start, end), place);
    }
    for ((x, level), parts, is_marked) in edges {
        let y = drawn(level, highest);
        for (part_x, part_level) in parts {
            let part_y = drawn(part_level, highest);
            let _ = write!(lines, "<path d=\"M{x} {y}L{part_x} {part_y}\"/>");
        }
        let colour = if is_marked { "var(--series1)" } else { "var(--line)" };
        let _ = write!(dots, "<circle cx=\"{x}\" cy=\"{y}\" r=\"{RADIUS}\" fill=\"{colour}\"/>");
    }
    let baseline = drawn(0, highest);
    let height = baseline + LINE;
    let mut svg = format!(
        "<svg width=\"{right}\" height=\"{height}\" viewBox=\"0 0 {right} {height}\" role=\"img\" \
         aria-label=\"{}\">\n<g fill=\"none\" stroke=\"var(--line)\">{lines}</g>\n<g>{dots}</g>\n\
         <g font-family=\"monospace\" font-size=\"13\" text-anchor=\"middle\" fill=\"var(--ink)\">",
        escape(&tree.title)
    );
    for (token, x) in tree.tokens.iter().zip(middles) {
        let _ = write!(svg, "<text x=\"{x}\" y=\"{}\">{}</text>", baseline + LINE - 6, escape(token));
    }
    svg += "</g>\n</svg>";
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_stand_above_their_parts_and_marked_ones_have_colour() {
        let tree = TreeDrawing {
            title: "1 < 2".into(),
            tokens: ["<", "b", "cc"].map(str::to_owned).to_vec(),
            nodes: vec![[0, 1, 3], [1, 2, 3]],
            marked: vec![(1, 3)],
        };
        let html = html(&tree);
        // Tokens in the middles 18, 40 and 66; the node over two of them in the middle, 53, on
        // level 1, the root in the middle of that and the first token on level 2.
        for part in [
            "<h2>1 &lt; 2</h2>",
            "<path d=\"M53 26L40 48\"/><path d=\"M53 26L66 48\"/>",
            "<path d=\"M35 4L18 48\"/><path d=\"M35 4L53 26\"/>",
            "<circle cx=\"53\" cy=\"26\" r=\"3\" fill=\"var(--series1)\"/>",
            "<circle cx=\"35\" cy=\"4\" r=\"3\" fill=\"var(--line)\"/>",
            "<text x=\"18\" y=\"64\">&lt;</text>",
        ] {
            assert!(html.contains(part), "{part}\n{html}");
        }
    }

    #[test]
    fn a_node_without_its_parts_is_left_out() {
        let tree =
            TreeDrawing { tokens: vec!["a".into(), "b".into()], nodes: vec![[0, 5, 9]], ..TreeDrawing::default() };
        assert!(!html(&tree).contains("circle"));
    }
}
