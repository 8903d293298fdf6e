//! The recursive path encoder beside torch, its symmetries, and fits to generated graphs.

#![expect(clippy::unwrap_used, reason = "what fails here is a test")]

mod support;

use burn::tensor::{Device, Int, Tensor};
use retie_lab::{
    LabError, Noise,
    paths::{
        Composition, FitSettings, LinkKind, Pathformer, PathformerConfig, Plan, fit_links, fit_pathformer, questions,
        score,
    },
    seeded,
};
use retie_tasks::{
    Random,
    graph::{Fact, Graph, Query, QueryType},
};
use retie_testing::values;
use support::{golden, loaded};

fn tiny() -> PathformerConfig {
    PathformerConfig {
        hidden_size: 16,
        intermediate_size: 24,
        num_attention_heads: 4,
        dropout: 0.0,
        ..PathformerConfig::default()
    }
}

fn anchor(entity: usize) -> Query {
    Query::Anchor(entity)
}

fn hop(relation: usize, inner: Query) -> Query {
    Query::Hop(relation, Box::new(inner))
}

fn not(inner: Query) -> Query {
    Query::Not(Box::new(inner))
}

fn encode(network: &Pathformer, queries: &[&Query]) -> Vec<f32> {
    values(network.encode(queries, &mut Noise::default()).unwrap())
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |most, (a, b)| most.max((a - b).abs()))
}

#[test]
fn encoded_queries_and_scores_are_those_of_torch() {
    let golden = golden("pathformer");
    let network = loaded(Pathformer::new(5, 3, &tiny(), &Device::flex()), &golden);
    let queries = [
        ("2p", hop(2, hop(1, anchor(3)))),
        ("pni", Query::And(vec![not(hop(0, hop(2, anchor(0)))), hop(1, anchor(4))])),
        ("ip", hop(2, Query::And(vec![hop(0, anchor(1)), hop(1, anchor(2))]))),
        ("2u", Query::Or(vec![hop(0, anchor(1)), hop(2, anchor(3))])),
    ];
    for (name, query) in &queries {
        if !matches!(query, Query::Or(_)) {
            let apart = largest_difference(&encode(&network, &[query]), &golden.floats(&format!("golden.{name}.h")));
            // f32 through at most five layers, beside f64.
            assert!(apart < 1e-5, "{name}: {apart}");
        }
        let scores = network.scores(&[query]).unwrap();
        // The same, divided by 0.05.
        let apart = largest_difference(&scores[0], &golden.floats(&format!("golden.{name}.scores")));
        assert!(apart < 1e-4, "{name}: {apart}");
    }
}

fn network() -> Pathformer {
    seeded(Pathformer::new(5, 3, &tiny(), &Device::flex()), &mut Random::new(6, "test", 0))
}

#[test]
fn the_order_of_branches_does_not_matter_and_that_of_relations_does() {
    let network = network();
    let parts = [hop(0, anchor(1)), hop(2, hop(1, anchor(3))), not(hop(1, anchor(4)))];
    let of =
        |order: [usize; 3]| encode(&network, &[&hop(1, Query::And(order.map(|part| parts[part].clone()).to_vec()))]);
    for order in [[1, 0, 2], [2, 1, 0], [1, 2, 0]] {
        assert!(largest_difference(&of([0, 1, 2]), &of(order)) < 1e-6, "{order:?}");
    }
    let path = |first: usize, second: usize| encode(&network, &[&hop(second, hop(first, anchor(0)))]);
    assert!(largest_difference(&path(1, 2), &path(2, 1)) > 1e-2);
    // A negation is not left out.
    let negated = encode(&network, &[&not(hop(1, anchor(0)))]);
    assert!(largest_difference(&encode(&network, &[&hop(1, anchor(0))]), &negated) > 1e-2);
}

#[test]
fn a_batch_is_its_queries_one_by_one() {
    let network = network();
    let mut random = Random::new(3, "batch", 0);
    let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
    let graph = Graph::random(names(5), names(3), 20, &mut random);
    let queries: Vec<Query> =
        QueryType::ALL.iter().chain(&QueryType::ALL).map(|kind| kind.random_query(&graph, &mut random)).collect();
    let queries: Vec<&Query> = queries.iter().collect();
    let batch = network.scores(&queries).unwrap();
    for (query, batch) in queries.iter().zip(&batch) {
        let one = network.scores(&[query]).unwrap().remove(0);
        // f32 sums in another order, divided by 0.05.
        assert!(largest_difference(&one, batch) < 2e-5, "{query:?}");
    }
    assert!(network.scores(&[]).unwrap().is_empty());
}

#[test]
fn paths_that_are_too_long_and_unknown_relations_are_refused() {
    let network = network();
    let message = |query: &Query| network.scores(&[query]).unwrap_err().to_string();
    let long = hop(0, hop(0, hop(0, hop(0, anchor(0)))));
    assert_eq!(message(&long), "a path of 4 relations, expected at most 3");
    assert_eq!(message(&hop(7, anchor(0))), "a query has relation number 7, expected one below 3");
    assert!(Plan::new(&[&long], 5, 3).is_ok());
}

#[test]
fn scores_of_some_entities_are_those_of_all() {
    let network = network();
    let query = hop(1, anchor(2));
    let all = network.scores(&[&query]).unwrap().remove(0);
    for chosen in [vec![4_i32, 0, 4], vec![3, 1, 2, 0, 4, 1]] {
        let encoded = network.encode(&[&query], &mut Noise::default()).unwrap();
        let rows = Tensor::<1, Int>::from_ints(chosen.as_slice(), &Device::flex()).reshape([1, chosen.len()]);
        let found = values(network.similarities_of(encoded, rows));
        let expected: Vec<f32> = chosen.iter().map(|entity| all[*entity as usize]).collect();
        // f32 sums in another order, divided by 0.05.
        assert!(largest_difference(&found, &expected) < 2e-5, "{found:?} {expected:?}");
    }
}

/// `r₀` adds 1 and `r₁` adds 3, round a circle.
fn circle(size: usize) -> Graph {
    let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
    let fact = |subject: usize| {
        [1, 3].into_iter().enumerate().map(move |(relation, by)| Fact {
            relation,
            subject,
            object: (subject + by) % size,
        })
    };
    let graph = Graph::new(names(size), names(2), (0..size).flat_map(fact).collect());
    assert_eq!(graph.facts().len(), 2 * size);
    graph
}

fn settings(steps: usize, learning_rate: f64, seed: u64) -> FitSettings {
    FitSettings { steps, batch_size: 32, learning_rate, negatives: 16, queries: 60, seed }
}

#[test]
fn single_facts_compose_exactly_where_relations_are_rotations() {
    let graph = circle(12);
    let device = Device::flex().autodiff();
    let (links, losses) = fit_links(&graph, 24, LinkKind::ComplEx, &settings(1500, 0.02, 1), &device).unwrap();
    assert!(losses[9] < 0.2 * losses[0], "{losses:?}");
    // Every answer is wanted.
    let none = graph.with_facts(Vec::new());
    for name in ["1p", "2p", "3p", "2u", "up"] {
        let kind = QueryType::named(name).unwrap();
        let asked = questions(kind, &none, &graph, 10, &mut Random::new(2, "ask", 0)).unwrap();
        let predictions: Vec<Vec<f32>> =
            asked.iter().map(|question| links.scores(&question.query, Composition::Sets).unwrap()).collect();
        // Ten f64 sums.
        assert!((score(&asked, &predictions).mrr - 1.0).abs() < 1e-12, "{name}");
    }
}

#[test]
fn a_fit_learns_its_graph_and_follows_from_its_seed() {
    let names = |count: usize| (0..count).map(|index| index.to_string()).collect();
    let graph = Graph::random(names(12), names(2), 60, &mut Random::new(9, "graph", 0));
    let device = Device::flex().autodiff();
    let fit = |steps: usize, seed: u64| fit_pathformer(&graph, &tiny(), &settings(steps, 3e-3, seed), &device).unwrap();
    let (network, losses) = fit(300, 1);
    assert!(losses.len() == 10 && losses[9] < 0.5 * losses[0], "{losses:?}");
    let none = graph.with_facts(Vec::new());
    let asked = questions(QueryType::ALL[1], &none, &graph, 40, &mut Random::new(2, "ask", 0)).unwrap();
    let queries: Vec<&Query> = asked.iter().map(|question| &question.query).collect();
    let mrr = |network: &Pathformer| score(&asked, &network.scores(&queries).unwrap()).mrr;
    let untrained = seeded(Pathformer::new(12, 2, &tiny(), &Device::flex()), &mut Random::new(1, "test", 0));
    assert!(mrr(&network) > mrr(&untrained) + 0.2, "{} {}", mrr(&network), mrr(&untrained));
    let (one, same, other) = (fit(10, 2), fit(10, 2), fit(10, 3));
    assert_eq!(one.1, same.1);
    assert_eq!(one.0.scores(&queries).unwrap(), same.0.scores(&queries).unwrap());
    assert_ne!(one.1, other.1);
}

#[test]
fn settings_that_do_not_do_are_refused() {
    let graph = circle(12);
    let device = Device::flex().autodiff();
    let refused = |config: PathformerConfig, settings: &FitSettings| {
        fit_pathformer(&graph, &config, settings, &device).unwrap_err().to_string()
    };
    let good = settings(5, 1e-3, 0);
    assert!(refused(PathformerConfig { num_attention_heads: 3, ..tiny() }, &good).contains("3 heads in a width of 16"));
    assert!(refused(PathformerConfig { temperature: 0.0, ..tiny() }, &good).contains("a temperature of 0"));
    assert!(refused(PathformerConfig { dropout: -0.1, ..tiny() }, &good).contains("a dropout of -0.1"));
    assert!(refused(PathformerConfig { longest_path: 0, ..tiny() }, &good).contains("a size of 0"));
    assert!(refused(tiny(), &FitSettings { steps: 0, ..good.clone() }).contains("0 steps"));
    assert!(refused(tiny(), &FitSettings { learning_rate: -1.0, ..good.clone() }).contains("a learning rate of -1"));
    let error = fit_links(&graph, 5, LinkKind::DistMult, &good, &device).unwrap_err();
    assert_eq!(error.to_string(), "a width of 5, expected an even number");
    let none = graph.with_facts(Vec::new());
    let error = fit_pathformer(&none, &tiny(), &good, &device).unwrap_err();
    assert!(matches!(error, LabError::NoQuery { kind: "1p", .. }), "{error}");
}
