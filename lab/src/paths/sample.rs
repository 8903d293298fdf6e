//! Queries to train on and to ask, each with its answers by set algebra.

use crate::LabError;
use retie_tasks::{
    Random,
    graph::{EntitySet, Graph, Query, QueryType, hard_answers},
};

/// Types that are trained on; the others (`ip`, `pi`, `2u`, `up`) are asked without, as is usual
/// since Ren and Leskovec 2020 (<https://arxiv.org/abs/2010.11465>).
pub const TRAINING_TYPES: [&str; 10] = ["1p", "2p", "3p", "2i", "3i", "2in", "3in", "inp", "pin", "pni"];

/// A query with answers.
#[derive(Clone, Debug)]
pub struct Question {
    /// Its type.
    pub kind: QueryType,
    /// What is asked.
    pub query: Query,
    /// Answers that are looked for.
    pub wanted: Vec<usize>,
    /// All answers.
    pub answers: EntitySet,
}

/// Tries without a new query after which no more are looked for.
const TRIES: usize = 1000;

/// So many different queries of a type, with an answer over `whole` that is none over `known`, or
/// as many as are found.
///
/// # Errors
/// None is found.
pub fn questions(
    kind: QueryType,
    known: &Graph,
    whole: &Graph,
    count: usize,
    random: &mut Random,
) -> Result<Vec<Question>, LabError> {
    let wanted = |query: &Query| hard_answers(query, known, whole);
    collect(kind, whole, count, &wanted, random, "an answer that needs a fact which is held out")
}

/// So many different queries of a type over `graph`, or as many as are found; all of their answers
/// are wanted.
///
/// # Errors
/// None is found.
pub fn training_queries(
    kind: QueryType,
    graph: &Graph,
    count: usize,
    random: &mut Random,
) -> Result<Vec<Question>, LabError> {
    collect(kind, graph, count, &|query| query.answers(graph), random, "an answer")
}

fn collect(
    kind: QueryType,
    graph: &Graph,
    count: usize,
    wanted: &dyn Fn(&Query) -> EntitySet,
    random: &mut Random,
    expected: &'static str,
) -> Result<Vec<Question>, LabError> {
    let mut found: Vec<Question> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    let mut tries = 0;
    while found.len() < count && tries < TRIES {
        tries += 1;
        let answer = random.below(graph.entities.len());
        let Some(query) = kind.query_for(graph, answer, random) else { continue };
        let Some(query) = with_telling_negations(&query, graph, random) else { continue };
        let wanted: Vec<usize> = wanted(&query).iter().collect();
        if !wanted.is_empty() && seen.insert(format!("{query:?}")) {
            found.push(Question { kind, answers: query.answers(graph), query, wanted });
            tries = 0;
        }
    }
    match found.is_empty() {
        true => Err(LabError::NoQuery { kind: kind.name, expected }),
        false => Ok(found),
    }
}

/// The query with each negated path of a branch in place of one that takes an answer of its other
/// paths away: of a random path, most take none. `None` where none is found.
fn with_telling_negations(query: &Query, graph: &Graph, random: &mut Random) -> Option<Query> {
    match query {
        Query::Anchor(_) => Some(query.clone()),
        Query::Hop(relation, inner) => {
            Some(Query::Hop(*relation, Box::new(with_telling_negations(inner, graph, random)?)))
        }
        Query::Or(_) | Query::Not(_) => Some(query.clone()),
        Query::And(parts) => {
            let positive: Vec<Query> = parts.iter().filter(|part| !matches!(part, Query::Not(_))).cloned().collect();
            if positive.len() == parts.len() {
                return Some(query.clone());
            }
            let others: Vec<usize> = Query::And(positive).answers(graph).iter().collect();
            if others.is_empty() {
                return None;
            }
            let mut part = |part: &Query| match part {
                Query::Not(inner) => {
                    let path = QueryType::named(if hops(inner) == 1 { "1p" } else { "2p" })?;
                    let taken = *random.choose(&others);
                    Some(Query::Not(Box::new(path.query_for(graph, taken, random)?)))
                }
                _ => Some(part.clone()),
            };
            Some(Query::And(parts.iter().map(&mut part).collect::<Option<_>>()?))
        }
    }
}

fn hops(query: &Query) -> usize {
    match query {
        Query::Hop(_, inner) => 1 + hops(inner),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graphs() -> (Graph, Graph) {
        let mut random = Random::new(4, "graphs", 0);
        let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
        let whole = Graph::random(names(20), names(3), 150, &mut random);
        let known = whole.with_facts(whole.facts().iter().step_by(2).copied().collect());
        (known, whole)
    }

    #[test]
    fn wanted_answers_need_a_fact_that_is_held_out() {
        let (known, whole) = graphs();
        for kind in QueryType::ALL {
            let asked = questions(kind, &known, &whole, 20, &mut Random::new(1, "ask", 0)).unwrap();
            assert_eq!(asked.len(), 20, "{}", kind.name);
            for question in &asked {
                assert!(!question.wanted.is_empty());
                let over_known = question.query.answers(&known);
                assert!(question.wanted.iter().all(|a| question.answers.contains(*a) && !over_known.contains(*a)));
            }
        }
        assert!(questions(QueryType::ALL[0], &whole, &whole, 5, &mut Random::new(1, "ask", 0)).is_err());
    }

    #[test]
    fn negations_take_answers_away() {
        let (known, _) = graphs();
        for kind in QueryType::ALL.into_iter().filter(|kind| kind.name.contains('n')) {
            let trained = training_queries(kind, &known, 30, &mut Random::new(2, "train", 0)).unwrap();
            for Question { query, .. } in &trained {
                let Query::And(parts) = (match query {
                    Query::Hop(_, inner) => inner.as_ref(),
                    _ => query,
                }) else {
                    panic!("{query:?}")
                };
                let (negated, positive): (Vec<Query>, Vec<Query>) =
                    parts.iter().cloned().partition(|part| matches!(part, Query::Not(_)));
                assert_eq!(negated.len(), 1);
                let inner = Query::And(parts.clone());
                assert_ne!(Query::And(positive).answers(&known), inner.answers(&known), "{} {query:?}", kind.name);
            }
        }
    }
}
