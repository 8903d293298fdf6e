//! A YAML text as a tree in which every node knows its position.
//!
//! Events and their positions come from the parser under `serde-saphyr`. The tree is read by
//! [`super::reader`] and changed by `--set`. YAML 1.2: <https://yaml.org/spec/1.2.2/>.

use super::{
    problem::{Origin, Problem},
    scalar::Scalar,
};
use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use std::collections::HashMap;

/// Limit on nodes: aliases are copied, and a file that grows beyond this by them is refused.
const MAX_NODES: usize = 100_000;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) struct KeyValue {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) node: Node,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar(Scalar),
    List(Vec<Node>),
    Map(Vec<KeyValue>),
    /// Placeholder for a wrong or missing value that was already reported; reads as any type.
    Hole,
}

impl Node {
    /// The node at `path`, or the deepest one on the way to it.
    pub(super) fn nearest(&self, path: &[String]) -> &Self {
        let Some((first, rest)) = path.split_first() else { return self };
        self.child(first).map_or(self, |child| child.nearest(rest))
    }

    fn child(&self, segment: &str) -> Option<&Self> {
        match &self.value {
            Value::List(items) => items.get(segment.parse::<usize>().ok()?),
            Value::Map(entries) => entries.iter().find(|e| e.key == segment).map(|e| &e.node),
            Value::Scalar(_) | Value::Hole => None,
        }
    }

    /// The node at `path`.
    pub(super) fn get_mut(&mut self, path: &[String]) -> Option<&mut Self> {
        let Some((first, rest)) = path.split_first() else { return Some(self) };
        match &mut self.value {
            Value::List(items) => items.get_mut(first.parse::<usize>().ok()?),
            Value::Map(entries) => entries.iter_mut().find(|e| e.key == *first).map(|e| &mut e.node),
            Value::Scalar(_) | Value::Hole => None,
        }?
        .get_mut(rest)
    }

    /// Description of the value for a message: `5` in backticks, `a list`, `a mapping`, `empty`.
    pub(super) fn describe(&self) -> String {
        match &self.value {
            Value::Scalar(s) if s.is_null() => "empty".into(),
            Value::Scalar(s) if s.plain => format!("`{}`", s.text),
            Value::Scalar(s) => format!("the string `{}`", s.text),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
            Value::Hole => "a value that was refused".into(),
        }
    }
}

/// Reads one YAML document. `set` is the number of the `--set` that `text` comes from, `None` for a
/// file. Problems that do not prevent a tree (a duplicate key) are pushed to `problems`.
///
/// # Errors
/// The first place that is not YAML, or not YAML that a configuration can hold.
pub(super) fn parse(text: &str, set: Option<usize>, problems: &mut Vec<Problem>) -> Result<Node, Problem> {
    let events = Parser::new_from_str(text);
    let mut builder = Builder { events, set, anchors: HashMap::new(), num_nodes: 0, problems };
    let start = set.map_or(Origin::File { line: 1, column: 1 }, Origin::Set);
    let mut root = Node { origin: start, value: Value::Scalar(Scalar::plain("")) };
    let mut num_documents = 0;
    loop {
        let (event, span) = builder.next()?;
        match event {
            Event::StreamEnd => return Ok(root),
            Event::DocumentStart(..) if num_documents == 1 => {
                return Err(Problem::syntax(builder.origin(span), "a second document begins here, expected one"));
            }
            Event::DocumentStart(..) => num_documents += 1,
            Event::StreamStart | Event::DocumentEnd => {}
            event => root = builder.node(event, span, Some(start))?,
        }
    }
}

struct Builder<'t, 'p> {
    events: Parser<'t, StrInput<'t>>,
    set: Option<usize>,
    /// Node and its size, by anchor.
    anchors: HashMap<usize, (Node, usize)>,
    num_nodes: usize,
    problems: &'p mut Vec<Problem>,
}

impl<'t> Builder<'t, '_> {
    fn origin(&self, span: Span) -> Origin {
        self.set.map_or(Origin::File { line: span.start.line(), column: span.start.col() + 1 }, Origin::Set)
    }

    /// The next event that is not a comment.
    fn next(&mut self) -> Result<(Event<'t>, Span), Problem> {
        loop {
            match self.events.next() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok(event)) => return Ok(event),
                Some(Err(error)) => {
                    let (line, column) = (error.marker().line(), error.marker().col() + 1);
                    let origin = self.set.map_or(Origin::File { line, column }, Origin::Set);
                    return Err(Problem::syntax(origin, error.info()));
                }
                None => return Ok((Event::StreamEnd, Span::default())),
            }
        }
    }

    /// The node that begins with `event`. Collections and empty values get the position `at` of
    /// their key, if they have one.
    fn node(&mut self, event: Event<'t>, span: Span, at: Option<Origin>) -> Result<Node, Problem> {
        let here = self.origin(span);
        let size_before = self.num_nodes;
        self.num_nodes += 1;
        let (node, anchor) = match event {
            Event::Scalar(text, style, anchor, None) => {
                let scalar = Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                let origin = if scalar.text.is_empty() { at.unwrap_or(here) } else { here };
                (Node { origin, value: Value::Scalar(scalar) }, anchor)
            }
            Event::SequenceStart(_, anchor, None) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span, None)?),
                    }
                }
                (Node { origin: at.unwrap_or(here), value: Value::List(items) }, anchor)
            }
            Event::MappingStart(_, anchor, None) => {
                (Node { origin: at.unwrap_or(here), value: Value::Map(self.entries()?) }, anchor)
            }
            Event::Alias(anchor) => {
                let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                    return Err(Problem::syntax(here, "an alias inside the node that it names"));
                };
                self.num_nodes += size;
                (node, 0)
            }
            Event::Scalar(..) | Event::SequenceStart(..) | Event::MappingStart(..) => {
                return Err(Problem::syntax(here, "a tag (`!…`), which a configuration cannot hold"));
            }
            _ => return Err(Problem::syntax(here, "expected a value")),
        };
        if self.num_nodes > MAX_NODES {
            return Err(Problem::syntax(here, format!("more than {MAX_NODES} values")));
        }
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), self.num_nodes - size_before));
        }
        Ok(node)
    }

    fn entries(&mut self) -> Result<Vec<KeyValue>, Problem> {
        let mut entries: Vec<KeyValue> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key_origin = self.origin(span);
            let key = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(text, _, _, None) => text.into_owned(),
                _ => return Err(Problem::syntax(key_origin, "a key that is not plain text")),
            };
            let (event, span) = self.next()?;
            let node = self.node(event, span, Some(key_origin))?;
            if entries.iter().any(|e| e.key == key) {
                self.problems.push(Problem::new(key_origin, format!("key `{key}` is given twice")));
            } else {
                entries.push(KeyValue { key, key_origin, node });
            }
        }
    }
}
