//! `query`: a logical query over facts that stand in the problem.

use super::{Grammar, LETTERS, Task};
use crate::{
    Example, Random, TaskError,
    example::Symbols,
    graph::{Fact, Graph, Query, QueryType},
    options::Options,
};
use std::{
    collections::{BTreeSet, HashMap},
    ops::RangeInclusive,
    path::Path,
    sync::Arc,
};

pub(super) const TASK: Task = Task {
    name: "query",
    variants: &["1p", "2p", "3p", "2i", "3i", "ip", "pi", "2u", "up", "2in", "3in", "inp", "pin", "pni"],
    about: "a logical query over facts: hops (p), intersection (i), union (u), negation (n)",
    grammar: "problem := fact … fact ? query     fact := subject relation object .\n\
              query := name | relation of query | ( query and query … ) | ( query or query … ) | not query\n\
              `r of q` is every object of r whose subject is in q; the answer is the names in their order, or `none`\n\
              length: facts, random ones among `entities` names, or with `graph` those around an entity of that file\n\
              depth: hops, the most relations on the way from a name\n\
              edge case: nothing answers the query\n\
              shortcut k: relations more than k hops from a name are passed over",
    keys: &[
        ("entities", "2 to 26: names of a random graph, 8 by default"),
        ("relations", "1 to 8: relations of a random graph, 3 by default; of a file: their names, with + between"),
        ("graph", "a file with a fact a line, subject, relation and object with tabs between"),
    ],
    build: |variant, options| Ok(Arc::new(QueryTask::new(variant, options)?)),
};

const RELATIONS: [&str; 8] = ["mother", "friend", "boss", "doctor", "teacher", "neighbour", "rival", "guest"];
const NONE: &str = "none";
const WORDS: [&str; 10] = [".", "?", "of", "and", "or", "not", "(", ")", NONE, "="];

/// Queries that are tried for a graph.
const TRIES: usize = 50;

/// Facts of a problem, at most.
const MOST_FACTS: usize = 200;

#[derive(Debug)]
enum Source {
    Random { entities: Arc<[String]>, relations: Arc<[String]> },
    File(Graph),
}

#[derive(Debug)]
struct QueryTask {
    kind: QueryType,
    source: Source,
}

impl QueryTask {
    fn new(variant: &str, options: &mut Options) -> Result<Self, TaskError> {
        let kind = QueryType::named(variant).unwrap_or(QueryType::ALL[0]);
        let names = |all: &[&str], count: usize| all[..count].iter().map(|name| (*name).to_owned()).collect();
        if let Some(path) = options.text("graph") {
            if options.text("entities").is_some() {
                return Err(options.bad("entities", "none: the names are those of `graph`"));
            }
            let graph = Graph::read(Path::new(path))?;
            let Some(relations) = options.text("relations") else {
                return Ok(Self { kind, source: Source::File(graph) });
            };
            let kept = graph.of_relations(&relations.split('+').collect::<Vec<_>>())?;
            return Ok(Self { kind, source: Source::File(kept) });
        }
        let entities = names(&LETTERS, options.number("entities", 2..=26)?.unwrap_or(8));
        let relations = names(&RELATIONS, options.number("relations", 1..=8)?.unwrap_or(3));
        Ok(Self { kind, source: Source::Random { entities, relations } })
    }

    /// A graph of `length` facts: random ones, or of those of the file around a random entity.
    fn graph(&self, length: usize, random: &mut Random) -> Graph {
        match &self.source {
            Source::Random { entities, relations } => {
                Graph::random(entities.clone(), relations.clone(), length, random)
            }
            Source::File(whole) => neighbourhood(whole, length, random),
        }
    }

    /// A query that has an answer, or none for the edge case, where one of [`TRIES`] is such.
    fn query(&self, graph: &Graph, edge: bool, random: &mut Random) -> Query {
        for _ in 0..TRIES {
            let answer = graph.facts()[random.below(graph.facts().len())].object;
            let query = match edge {
                true => Some(self.kind.random_query(graph, random)),
                false => self.kind.query_for(graph, answer, random),
            };
            if let Some(query) = query.filter(|query| query.answers(graph).is_empty() == edge) {
                return query;
            }
        }
        self.kind.random_query(graph, random)
    }
}

/// `length` facts of a large graph: a random one, then again and again one that shares an entity
/// with those before, or another random one where there is none.
fn neighbourhood(whole: &Graph, length: usize, random: &mut Random) -> Graph {
    let all = whole.facts();
    let mut chosen: Vec<Fact> = Vec::with_capacity(length);
    let mut names: Vec<usize> = Vec::new();
    while chosen.len() < length.min(all.len()) {
        let start = random.below(all.len());
        let around = (0..all.len()).map(|step| &all[(start + step) % all.len()]);
        let mut free = around.filter(|fact| !chosen.contains(fact));
        let first = free.next();
        let near = |fact: &&Fact| names.contains(&fact.subject) || names.contains(&fact.object);
        let fact = first.filter(near).or_else(|| free.find(near)).or(first);
        let Some(fact) = fact else { break };
        chosen.push(*fact);
        for name in [fact.subject, fact.object] {
            if !names.contains(&name) {
                names.push(name);
            }
        }
    }
    // Names of the problem only, in the order of the whole graph.
    names.sort_unstable();
    let local: HashMap<usize, usize> = names.iter().enumerate().map(|(local, name)| (*name, local)).collect();
    let facts = chosen.iter().map(|fact| Fact {
        relation: fact.relation,
        subject: local[&fact.subject],
        object: local[&fact.object],
    });
    let entities = names.iter().map(|name| whole.entities[*name].clone()).collect();
    Graph::new(entities, whole.relations.clone(), facts.collect())
}

fn write_query(query: &Query, graph: &Graph, depth: usize, out: &mut Symbols) {
    let list = |parts: &[Query], word: &str, out: &mut Symbols| {
        out.push("(", depth);
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                out.push(word, depth);
            }
            write_query(part, graph, depth, out);
        }
        out.push(")", depth);
    };
    match query {
        Query::Anchor(entity) => out.push(&graph.entities[*entity], depth),
        Query::Hop(relation, inner) => {
            out.push(&graph.relations[*relation], depth + 1);
            out.push("of", depth + 1);
            write_query(inner, graph, depth + 1, out);
        }
        Query::And(parts) => list(parts, "and", out),
        Query::Or(parts) => list(parts, "or", out),
        Query::Not(inner) => {
            out.push("not", depth);
            write_query(inner, graph, depth, out);
        }
    }
}

/// Facts of a problem that is read, and all its names.
struct Facts<'s> {
    facts: Vec<(&'s str, &'s str, &'s str)>,
    names: BTreeSet<&'s str>,
}

impl<'s> Facts<'s> {
    /// Reads the query that `input` begins with; gives the names that answer it, the relations on
    /// the way from a name, and what follows.
    fn read<'i>(&self, input: &'i [&'s str], cap: usize) -> Option<(BTreeSet<&'s str>, usize, &'i [&'s str])> {
        match input {
            ["not", rest @ ..] => {
                let (answers, hops, rest) = self.read(rest, cap)?;
                Some((self.names.difference(&answers).copied().collect(), hops, rest))
            }
            ["(", rest @ ..] => {
                let (mut answers, mut most, mut rest) = self.read(rest, cap)?;
                loop {
                    let word = *rest.first()?;
                    if word == ")" {
                        return Some((answers, most, &rest[1..]));
                    }
                    let (others, hops, after) = self.read(&rest[1..], cap)?;
                    answers = match word {
                        "and" => answers.intersection(&others).copied().collect(),
                        "or" => answers.union(&others).copied().collect(),
                        _ => return None,
                    };
                    (most, rest) = (most.max(hops), after);
                }
            }
            [relation, "of", rest @ ..] => {
                let (subjects, hops, rest) = self.read(rest, cap)?;
                if hops >= cap {
                    return Some((subjects, hops + 1, rest));
                }
                let leads =
                    |(s, r, o): &(&'s str, &'s str, &'s str)| (r == relation && subjects.contains(s)).then_some(*o);
                Some((self.facts.iter().filter_map(leads).collect(), hops + 1, rest))
            }
            [name, rest @ ..] if !WORDS.contains(name) => Some((BTreeSet::from([*name]), 0, rest)),
            _ => None,
        }
    }
}

impl Grammar for QueryTask {
    fn lengths(&self) -> RangeInclusive<usize> {
        let most = match &self.source {
            Source::Random { entities, relations } => entities.len() * (entities.len() - 1) * relations.len(),
            Source::File(graph) => graph.facts().len(),
        };
        1..=most.min(MOST_FACTS)
    }

    fn default_lengths(&self) -> RangeInclusive<usize> {
        let most = *self.lengths().end();
        6.min(most)..=12.min(most)
    }

    fn depth_name(&self) -> &'static str {
        "hops"
    }

    fn write(&self, length: usize, edge: bool, random: &mut Random, example: &mut Example) {
        let graph = self.graph(length, random);
        let query = self.query(&graph, edge, random);
        let mut facts = graph.facts().to_vec();
        random.shuffle(&mut facts);
        for Fact { relation, subject, object } in facts {
            example.input.push(&graph.entities[subject], 0);
            example.input.push(&graph.relations[relation], 0);
            example.input.push(&graph.entities[object], 0);
            example.input.push(".", 0);
        }
        example.input.push("?", 0);
        write_query(&query, &graph, 0, &mut example.input);
        let answers = query.answers(&graph);
        let mut names: Vec<&str> = answers.iter().map(|entity| graph.entities[entity].as_str()).collect();
        names.sort_unstable();
        names.iter().for_each(|name| example.output.push(name, 0));
        if names.is_empty() {
            example.output.push(NONE, 0);
        }
        example.depth = self.kind.hops();
    }

    fn solve(&self, input: &[&str], cap: Option<usize>) -> Option<Vec<String>> {
        let end = input.iter().position(|symbol| *symbol == "?")?;
        let (facts, query) = (&input[..end], &input[end + 1..]);
        let fact = |symbols: &[_]| match *symbols {
            [subject, relation, object, "."] => Some((subject, relation, object)),
            _ => None,
        };
        let facts: Vec<_> = facts.chunks(4).map(fact).collect::<Option<_>>()?;
        // A random graph has names that no fact holds, which only a negation could ask for.
        let mut names: BTreeSet<&str> = facts.iter().flat_map(|(subject, _, object)| [*subject, *object]).collect();
        if let Source::Random { entities, .. } = &self.source {
            names.extend(entities.iter().map(String::as_str));
        }
        let (answers, _, rest) = Facts { facts, names }.read(query, cap.unwrap_or(usize::MAX))?;
        let answers: Vec<String> = match answers.is_empty() {
            true => vec![NONE.to_owned()],
            false => answers.into_iter().map(str::to_owned).collect(),
        };
        rest.is_empty().then_some(answers)
    }
}
