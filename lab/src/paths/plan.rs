//! Queries as paths: disjunctive normal form, and the steps in which the paths and branches of many
//! queries are encoded, from the anchors up.

use crate::{
    LabError,
    drive::{Schedule, Step},
};
use retie_tasks::graph::Query;

/// Queries without alternatives, of which any answers `query`.
#[must_use]
pub fn disjuncts(query: &Query) -> Vec<Query> {
    match query {
        Query::Anchor(_) => vec![query.clone()],
        Query::Hop(relation, inner) => {
            disjuncts(inner).into_iter().map(|inner| Query::Hop(*relation, Box::new(inner))).collect()
        }
        Query::Or(parts) => parts.iter().flat_map(disjuncts).collect(),
        Query::And(parts) => {
            // One of each part, in every way.
            let mut all = vec![Vec::new()];
            for part in parts {
                let choices = disjuncts(part);
                let with = |all: &Vec<Query>| {
                    let extended = choices.iter().map(|choice| [all.as_slice(), std::slice::from_ref(choice)].concat());
                    extended.collect::<Vec<_>>()
                };
                all = all.iter().flat_map(with).collect();
            }
            all.into_iter().map(Query::And).collect()
        }
        Query::Not(inner) => {
            let none: Vec<Query> = disjuncts(inner).into_iter().map(|inner| Query::Not(Box::new(inner))).collect();
            match none.len() {
                1 => none,
                // Not any is none of them.
                _ => vec![Query::And(none)],
            }
        }
    }
}

/// What a step encodes; all of its rows have the same form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// Paths with the relations of each, and whether their ends are negated.
    Paths {
        /// Relations of each path, `n` each.
        relations: Vec<Vec<usize>>,
        /// Whether [`Query::Not`] is around them.
        negated: bool,
    },
    /// Branches with so many parts.
    Branches(usize),
}

/// The steps of queries without alternatives.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Anchors, which are the first rows.
    pub anchors: Vec<usize>,
    /// The rows of every step.
    pub schedule: Schedule,
    /// What each step encodes.
    pub forms: Vec<Form>,
    /// The row of each query.
    pub roots: Vec<usize>,
}

/// A node of a computation tree, by the numbers of its parts.
enum Node {
    Anchor(usize),
    Path { from: usize, relations: Vec<usize>, negated: bool },
    Branch(Vec<usize>),
}

#[derive(Default)]
struct Nodes {
    nodes: Vec<Node>,
    heights: Vec<usize>,
}

impl Nodes {
    fn push(&mut self, node: Node, height: usize) -> usize {
        self.nodes.push(node);
        self.heights.push(height);
        self.nodes.len() - 1
    }

    /// Adds a query and returns its node.
    fn add(&mut self, query: &Query, size: [usize; 2]) -> Result<usize, LabError> {
        let [num_entities, num_relations] = size;
        match query {
            Query::Anchor(entity) if *entity < num_entities => Ok(self.push(Node::Anchor(*entity), 0)),
            Query::Anchor(entity) => Err(unknown("entity", *entity, num_entities)),
            Query::And(parts) if parts.is_empty() => {
                Err(LabError::Setting { found: "a branch of no path".to_owned(), expected: "at least one".to_owned() })
            }
            Query::And(parts) => {
                let parts = parts.iter().map(|part| self.add(part, size)).collect::<Result<Vec<_>, _>>()?;
                let height = parts.iter().map(|part| self.heights[*part]).max().unwrap_or(0);
                Ok(self.push(Node::Branch(parts), height + 1))
            }
            Query::Hop(..) | Query::Not(_) => {
                let (mut relations, mut inner, mut negated) = (Vec::new(), query, false);
                if let Query::Not(of) = inner {
                    (inner, negated) = (of.as_ref(), true);
                }
                while let Query::Hop(relation, of) = inner {
                    if *relation >= num_relations {
                        return Err(unknown("relation", *relation, num_relations));
                    }
                    relations.push(*relation);
                    inner = of.as_ref();
                }
                relations.reverse();
                let from = self.add(inner, size)?;
                let height = self.heights[from] + 1;
                Ok(self.push(Node::Path { from, relations, negated }, height))
            }
            Query::Or(_) => Err(LabError::Setting {
                found: "a query with alternatives".to_owned(),
                expected: "its disjuncts".to_owned(),
            }),
        }
    }

    /// What nodes of one step have in common: height, kind (0 for branches), and size.
    fn form(&self, node: usize) -> (usize, usize, usize) {
        match &self.nodes[node] {
            Node::Anchor(_) => (0, 0, 0),
            Node::Branch(parts) => (self.heights[node], 0, parts.len()),
            Node::Path { relations, negated, .. } => (self.heights[node], 1 + usize::from(*negated), relations.len()),
        }
    }
}

fn unknown(what: &'static str, index: usize, known: usize) -> LabError {
    LabError::Unknown { what, index, known }
}

impl Plan {
    /// The steps of queries over a graph with so many entities and relations.
    ///
    /// # Errors
    /// An entity or a relation that the graph does not have; a query with alternatives
    /// ([`disjuncts`] has none); a branch of no path.
    pub fn new(queries: &[&Query], num_entities: usize, num_relations: usize) -> Result<Self, LabError> {
        let mut all = Nodes::default();
        let roots =
            queries.iter().map(|query| all.add(query, [num_entities, num_relations])).collect::<Result<Vec<_>, _>>()?;
        let mut order: Vec<usize> = (0..all.nodes.len()).collect();
        order.sort_by_key(|node| all.form(*node));
        let mut rows = vec![0; order.len()];
        order.iter().enumerate().for_each(|(row, node)| rows[*node] = row);
        let (mut anchors, mut steps, mut forms) = (Vec::new(), Vec::new(), Vec::new());
        for group in order.chunk_by(|a, b| all.form(*a) == all.form(*b)) {
            let (mut inputs, mut relations_of, mut sign) = (Vec::new(), Vec::new(), false);
            let mut size = 0;
            for node in group {
                match &all.nodes[*node] {
                    Node::Anchor(entity) => anchors.push(*entity),
                    Node::Path { from, relations, negated } => {
                        inputs.push(vec![rows[*from]]);
                        relations_of.push(relations.clone());
                        sign = *negated;
                    }
                    Node::Branch(parts) => {
                        inputs.push(parts.iter().map(|part| rows[*part]).collect());
                        size = parts.len();
                    }
                }
            }
            let Some(width) = inputs.first().map(Vec::len) else { continue };
            // List number c has part number c of every row.
            let lists = (0..width).map(|c| inputs.iter().map(|row| row[c]).collect()).collect();
            steps.push(Step { rows: group.len(), inputs: lists });
            forms.push(match size {
                0 => Form::Paths { relations: relations_of, negated: sign },
                parts => Form::Branches(parts),
            });
        }
        let schedule = Schedule::new(anchors.len(), steps)?;
        Ok(Self { anchors, schedule, forms, roots: roots.into_iter().map(|node| rows[node]).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_tasks::{
        Random,
        graph::{Graph, QueryType},
    };

    fn hop(relation: usize, inner: Query) -> Query {
        Query::Hop(relation, Box::new(inner))
    }

    #[test]
    fn any_disjunct_is_what_the_query_is() {
        let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
        for seed in 0..50 {
            let mut random = Random::new(seed, "disjuncts", 0);
            let graph = Graph::random(names(9), names(3), 25, &mut random);
            for kind in QueryType::ALL {
                let query = kind.random_query(&graph, &mut random);
                let alternatives = 1 + usize::from(kind.name.contains('u'));
                let negated = Query::Not(Box::new(query.clone()));
                for (query, expected) in [(query, alternatives), (negated, 1)] {
                    let parts = disjuncts(&query);
                    assert_eq!(parts.len(), expected, "{} {query:?}", kind.name);
                    let any = Query::Or(parts).answers(&graph);
                    assert_eq!(any, query.answers(&graph), "{} {query:?}", kind.name);
                }
            }
        }
    }

    #[test]
    fn paths_are_cut_at_branches() {
        // pi with a negated second path, and 1p.
        let first = Query::And(vec![hop(2, hop(1, Query::Anchor(5))), Query::Not(Box::new(hop(0, Query::Anchor(4))))]);
        let second = hop(1, Query::Anchor(3));
        let third = hop(0, first.clone());
        let plan = Plan::new(&[&first, &second, &third], 6, 3).unwrap();
        assert_eq!(plan.anchors, [5, 4, 3, 5, 4]);
        let paths = |relations: &[&[usize]], negated| Form::Paths {
            relations: relations.iter().map(|relations| relations.to_vec()).collect(),
            negated,
        };
        let expected = [
            paths(&[&[1]], false),
            paths(&[&[1, 2], &[1, 2]], false),
            paths(&[&[0], &[0]], true),
            Form::Branches(2),
            paths(&[&[0]], false),
        ];
        assert_eq!(plan.forms, expected);
        let inputs: Vec<_> = plan.schedule.steps().iter().map(|step| step.inputs.clone()).collect();
        assert_eq!(inputs[3], [vec![6, 7], vec![8, 9]]);
        assert_eq!((inputs[4].clone(), plan.roots.clone()), (vec![vec![11]], vec![10, 5, 12]));
    }

    #[test]
    fn what_the_graph_does_not_have_is_refused() {
        let message = |query: Query| Plan::new(&[&query], 6, 3).unwrap_err().to_string();
        assert_eq!(message(hop(3, Query::Anchor(0))), "a query has relation number 3, expected one below 3");
        assert_eq!(message(hop(0, Query::Anchor(6))), "a query has entity number 6, expected one below 6");
        assert!(message(Query::Or(vec![Query::Anchor(0)])).contains("expected its disjuncts"));
        assert!(message(Query::And(vec![])).contains("a branch of no path"));
    }
}
