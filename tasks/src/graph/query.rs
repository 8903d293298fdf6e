//! Logical queries over a knowledge graph: the fourteen types of Ren and Leskovec 2020
//! (<https://arxiv.org/abs/2010.11465>), their answers by set algebra, and queries with answers by
//! walking backwards from one.

use super::{EntitySet, Graph};
use crate::Random;

/// A query: what is asked is a set of entities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// One entity.
    Anchor(usize),
    /// Objects of a relation whose subject answers a query.
    Hop(usize, Box<Query>),
    /// What answers all queries.
    And(Vec<Query>),
    /// What answers any query.
    Or(Vec<Query>),
    /// What does not answer a query.
    Not(Box<Query>),
}

/// Type of a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryType {
    /// Its name: `p` hop, `i` intersection, `u` union, `n` negation.
    pub name: &'static str,
    shape: Shape,
}

/// Form of a query without entities and relations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Anchor,
    Hop(&'static Shape),
    And(&'static [Shape]),
    Or(&'static [Shape]),
    Not(&'static Shape),
}

const P1: Shape = Shape::Hop(&Shape::Anchor);
const P2: Shape = Shape::Hop(&P1);

impl QueryType {
    /// All fourteen.
    pub const ALL: [Self; 14] = [
        Self { name: "1p", shape: P1 },
        Self { name: "2p", shape: P2 },
        Self { name: "3p", shape: Shape::Hop(&P2) },
        Self { name: "2i", shape: Shape::And(&[P1, P1]) },
        Self { name: "3i", shape: Shape::And(&[P1, P1, P1]) },
        Self { name: "ip", shape: Shape::Hop(&Shape::And(&[P1, P1])) },
        Self { name: "pi", shape: Shape::And(&[P2, P1]) },
        Self { name: "2u", shape: Shape::Or(&[P1, P1]) },
        Self { name: "up", shape: Shape::Hop(&Shape::Or(&[P1, P1])) },
        Self { name: "2in", shape: Shape::And(&[P1, Shape::Not(&P1)]) },
        Self { name: "3in", shape: Shape::And(&[P1, P1, Shape::Not(&P1)]) },
        Self { name: "inp", shape: Shape::Hop(&Shape::And(&[P1, Shape::Not(&P1)])) },
        Self { name: "pin", shape: Shape::And(&[P2, Shape::Not(&P1)]) },
        Self { name: "pni", shape: Shape::And(&[Shape::Not(&P2), P1]) },
    ];

    /// The type of a name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name == name)
    }

    /// Most hops on the way from an anchor.
    #[must_use]
    pub fn hops(self) -> usize {
        self.shape.hops()
    }

    /// A random query of this type over `graph`, with `answer` among the answers of every part of
    /// it that is not negated or one of several alternatives. `None` if nothing leads there.
    #[must_use]
    pub fn query_for(self, graph: &Graph, answer: usize, random: &mut Random) -> Option<Query> {
        self.shape.towards(graph, answer, random)
    }

    /// A query of this type with random entities and relations.
    #[must_use]
    pub fn random_query(self, graph: &Graph, random: &mut Random) -> Query {
        self.shape.fill(graph, random)
    }
}

impl Shape {
    fn hops(&self) -> usize {
        match self {
            Self::Anchor => 0,
            Self::Hop(inner) => 1 + inner.hops(),
            Self::Not(inner) => inner.hops(),
            Self::And(parts) | Self::Or(parts) => parts.iter().map(Self::hops).max().unwrap_or(0),
        }
    }

    fn towards(&self, graph: &Graph, answer: usize, random: &mut Random) -> Option<Query> {
        match self {
            Self::Anchor => Some(Query::Anchor(answer)),
            Self::Hop(inner) => {
                let leading = || graph.facts().iter().filter(|fact| fact.object == answer);
                let count = leading().count();
                let fact = (count > 0).then(|| leading().nth(random.below(count))).flatten()?;
                Some(Query::Hop(fact.relation, Box::new(inner.towards(graph, fact.subject, random)?)))
            }
            Self::And(parts) => {
                let part = |part: &Self| match part {
                    Self::Not(_) => Some(part.fill(graph, random)),
                    _ => part.towards(graph, answer, random),
                };
                Some(Query::And(parts.iter().map(part).collect::<Option<_>>()?))
            }
            Self::Or(parts) => {
                let (first, others) = parts.split_first()?;
                let mut all = vec![first.towards(graph, answer, random)?];
                all.extend(others.iter().map(|part| part.fill(graph, random)));
                Some(Query::Or(all))
            }
            Self::Not(_) => Some(self.fill(graph, random)),
        }
    }

    fn fill(&self, graph: &Graph, random: &mut Random) -> Query {
        match self {
            Self::Anchor => Query::Anchor(random.below(graph.entities.len())),
            Self::Hop(inner) => {
                let relation = random.below(graph.relations.len());
                Query::Hop(relation, Box::new(inner.fill(graph, random)))
            }
            Self::And(parts) => Query::And(parts.iter().map(|part| part.fill(graph, random)).collect()),
            Self::Or(parts) => Query::Or(parts.iter().map(|part| part.fill(graph, random)).collect()),
            Self::Not(inner) => Query::Not(Box::new(inner.fill(graph, random))),
        }
    }
}

impl Query {
    /// The answers, by set algebra from the anchors on.
    #[must_use]
    pub fn answers(&self, graph: &Graph) -> EntitySet {
        let num_entities = graph.entities.len();
        let all = |parts: &[Self], with: fn(u64, u64) -> u64| {
            let sets = parts.iter().map(|part| part.answers(graph));
            sets.reduce(|a, b| a.combine(&b, with)).unwrap_or_else(|| EntitySet::empty(num_entities))
        };
        match self {
            Self::Anchor(entity) => {
                let mut set = EntitySet::empty(num_entities);
                set.insert(*entity);
                set
            }
            Self::Hop(relation, inner) => graph.hop(*relation, &inner.answers(graph)),
            Self::And(parts) => all(parts, |a, b| a & b),
            Self::Or(parts) => all(parts, |a, b| a | b),
            Self::Not(inner) => {
                let mut everyone = EntitySet::empty(num_entities);
                (0..num_entities).for_each(|entity| everyone.insert(entity));
                everyone.combine(&inner.answers(graph), |all, answers| all & !answers)
            }
        }
    }
}

/// Answers that need a fact that `known` does not have: those over `whole` that are none over
/// `known`.
#[must_use]
pub fn hard_answers(query: &Query, known: &Graph, whole: &Graph) -> EntitySet {
    query.answers(whole).combine(&query.answers(known), |whole, known| whole & !known)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `entity` answers the query, from the meaning of its words alone.
    fn holds(query: &Query, graph: &Graph, entity: usize) -> bool {
        match query {
            Query::Anchor(anchor) => *anchor == entity,
            Query::Hop(relation, inner) => (0..graph.entities.len()).any(|subject| {
                let is_fact = |fact: &crate::graph::Fact| {
                    (fact.relation, fact.subject, fact.object) == (*relation, subject, entity)
                };
                graph.facts().iter().any(is_fact) && holds(inner, graph, subject)
            }),
            Query::And(parts) => parts.iter().all(|part| holds(part, graph, entity)),
            Query::Or(parts) => parts.iter().any(|part| holds(part, graph, entity)),
            Query::Not(inner) => !holds(inner, graph, entity),
        }
    }

    fn graph(seed: u64) -> (Graph, Random) {
        let mut random = Random::new(seed, "graph", 0);
        let names = |count: usize, prefix: &str| (0..count).map(|i| format!("{prefix}{i}")).collect();
        (Graph::random(names(7, "e"), names(3, "r"), 18, &mut random), random)
    }

    #[test]
    fn set_algebra_gives_what_the_words_mean() {
        for seed in 0..100 {
            let (graph, mut random) = graph(seed);
            for kind in QueryType::ALL {
                let query = kind.random_query(&graph, &mut random);
                let answers = query.answers(&graph);
                let meant: Vec<usize> = (0..7).filter(|entity| holds(&query, &graph, *entity)).collect();
                assert_eq!(answers.iter().collect::<Vec<_>>(), meant, "{} {query:?}", kind.name);
            }
        }
    }

    #[test]
    fn a_query_for_an_answer_has_it_unless_a_negation_takes_it() {
        let mut found = 0;
        for seed in 0..50 {
            let (graph, mut random) = graph(seed);
            for kind in QueryType::ALL.into_iter().filter(|kind| !kind.name.contains('n')) {
                let answer = random.below(7);
                let Some(query) = kind.query_for(&graph, answer, &mut random) else { continue };
                assert!(query.answers(&graph).contains(answer), "{} {query:?}", kind.name);
                found += 1;
            }
        }
        assert!(found > 300, "{found}");
    }

    #[test]
    fn hard_answers_are_no_answers_of_the_known_graph() {
        let mut hard = 0;
        for seed in 0..50 {
            let (whole, mut random) = graph(seed);
            let known = whole.with_facts(whole.facts().iter().skip(3).copied().collect());
            let query = QueryType::ALL[1].random_query(&whole, &mut random);
            for entity in hard_answers(&query, &known, &whole).iter() {
                assert!(holds(&query, &whole, entity) && !holds(&query, &known, entity));
                hard += 1;
            }
        }
        assert!(hard > 10, "{hard}");
    }

    #[test]
    fn hops_are_counted_along_the_longest_way() {
        let hops: Vec<usize> = QueryType::ALL.iter().map(|kind| kind.hops()).collect();
        assert_eq!(hops, [1, 2, 3, 1, 1, 2, 2, 1, 2, 1, 1, 2, 2, 2]);
        assert_eq!(QueryType::named("pni"), Some(QueryType::ALL[13]));
        assert_eq!(QueryType::named("4p"), None);
    }
}
