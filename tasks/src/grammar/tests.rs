//! Generators beside reference programs, and both beside arithmetic.

use crate::{Example, Purpose, TASKS, TaskSpec};
use std::collections::BTreeSet;

fn spec(name: &str) -> TaskSpec {
    TaskSpec::parse(name).unwrap()
}

/// `count` examples, every tenth an edge case.
fn examples(spec: &TaskSpec, count: u64) -> impl Iterator<Item = Example> + '_ {
    (0..count).map(|index| spec.example(Purpose::Evaluate, index, &spec.lengths, index % 10 == 0))
}

fn every_variant() -> impl Iterator<Item = String> {
    TASKS.iter().flat_map(|task| match task.variants {
        [] => vec![task.name.to_owned()],
        variants => variants.iter().map(|variant| format!("{}:{variant}", task.name)).collect(),
    })
}

#[test]
fn the_reference_program_agrees_with_every_generator() {
    for name in every_variant() {
        let spec = spec(&name);
        for example in examples(&spec, 3_000) {
            let input = example.input.list();
            let solved = spec.grammar().solve(&input, None).unwrap();
            assert_eq!(solved, example.output.list(), "{name}: {}", example.input);
            assert!(spec.lengths.contains(&example.length));
            // A cap that is not reached changes nothing.
            assert_eq!(spec.grammar().solve(&input, Some(input.len())), Some(solved), "{name}: {}", example.input);
        }
    }
}

#[test]
fn both_forms_have_the_same_symbols() {
    for name in every_variant() {
        let (spaced, plain) = (spec(&name), spec(&format!("{name}?form=plain")));
        for (a, b) in examples(&spaced, 50).zip(examples(&plain, 50)) {
            assert_eq!((a.input.list(), a.output.list()), (b.input.list(), b.output.list()));
            assert_eq!(b.input.text(), a.input.list().concat());
        }
    }
}

#[test]
fn what_is_no_problem_of_the_grammar_has_no_answer() {
    for name in every_variant() {
        let spec = spec(&name);
        for example in examples(&spec, 200) {
            let mut input = example.input.list();
            input.push("?");
            assert_eq!(spec.grammar().solve(&input, None), None, "{name}: {input:?}");
            input.pop();
            input.insert(0, "?");
            assert_eq!(spec.grammar().solve(&input, None), None, "{name}: {input:?}");
        }
        assert_eq!(spec.grammar().solve(&[], None), None, "{name}");
    }
}

#[test]
fn the_successor_is_that_of_integers() {
    let value = |symbols: &[&str]| {
        symbols.iter().rev().fold(0_u64, |value, symbol| match *symbol {
            "01" => 1,
            "X0" => 2 * value,
            _ => 2 * value + 1,
        })
    };
    let spec = spec("succ?length=1..40");
    for example in examples(&spec, 100_000) {
        let (input, output) = (example.input.list(), example.output.list());
        assert_eq!(value(&output), value(&input) + 1, "{input:?}");
        assert_eq!(
            example.depth,
            value(&input).trailing_ones() as usize
                - usize::from(value(&input).count_zeros() == value(&input).leading_zeros())
        );
        assert!(!example.edge || input[..input.len() - 1].iter().all(|symbol| *symbol == "X1"));
    }
}

#[test]
fn carries_are_as_long_as_those_of_random_numbers() {
    let spec = spec("succ?length=12&count=20000");
    let mut counts = [0_u32; 12];
    (0..20_000).for_each(|index| counts[spec.example(Purpose::Train, index, &spec.lengths, false).depth] += 1);
    // P(d) = 2^-(d+1), and the rest at d = 11. Depths of 7 and more are taken together.
    let expected = |d: i32| 20_000.0 * 0.5f64.powi(if d < 7 { d + 1 } else { 7 });
    let found = |d: usize| if d < 7 { f64::from(counts[d]) } else { counts[7..].iter().map(|c| f64::from(*c)).sum() };
    let chi_squared: f64 = (0..8).map(|d| (found(d) - expected(d as i32)).powi(2) / expected(d as i32)).sum();
    // The 99.9 % quantile with 7 degrees of freedom.
    assert!(chi_squared < 24.3, "{chi_squared} {counts:?}");
}

/// Letters of a tree by another way than the generator's: strings are cut at brackets.
fn inorder(text: &str) -> String {
    let Some(inner) = text.strip_prefix('(') else { return String::new() };
    let mut open = 0;
    let end_of_left = inner[1..].char_indices().find(|(_, c)| {
        open += i32::from(*c == '(') - i32::from(*c == ')');
        open == 0
    });
    let (left, right) = inner[1..inner.len() - 1].split_at(end_of_left.unwrap().0 + 1);
    format!("{}{}{}", inorder(left), &inner[..1], inorder(right))
}

#[test]
fn traversals_are_those_of_a_walk_over_the_text() {
    let trees = spec("tree:inorder?length=1..30&form=plain");
    for example in examples(&trees, 5_000) {
        assert_eq!(example.output.text(), inorder(example.input.text()), "{}", example.input);
        assert!(!example.edge || example.depth == example.length);
    }
    let last = |name: &str, index: usize| {
        spec(name).example(Purpose::Evaluate, 7, &(5..=5), false).output.list()[index].to_owned()
    };
    let root = spec("tree?length=5").example(Purpose::Evaluate, 7, &(5..=5), false).input.list()[1].to_owned();
    assert_eq!((last("tree:preorder", 0), last("tree:postorder", 4)), (root.clone(), root));
}

#[test]
fn enough_steps_of_reduction_are_the_traversal() {
    let (all, whole) = (spec("reduce:all?length=1..12"), spec("tree:inorder?length=1..12"));
    let eight = spec("reduce:8?length=1..12");
    for ((a, b), c) in examples(&all, 2_000).zip(examples(&whole, 2_000)).zip(examples(&eight, 2_000)) {
        assert_eq!((a.input.text(), a.output.text()), (b.input.text(), b.output.text()));
        // The step after the lowest letter removes the calls on empty trees.
        assert_eq!(c.output.text().contains("UNROLL"), c.depth >= 8, "{}", c.input);
    }
    let one = spec("reduce:1?length=1").example(Purpose::Evaluate, 0, &(1..=1), false);
    let letter = one.input.list()[1].to_owned();
    assert_eq!(one.output.text(), format!("UNROLL [ . ] {letter} UNROLL [ . ]"));
}

#[test]
fn a_distance_stands_between_pairs_and_the_key() {
    let (near, far) = (spec("recall?length=4"), spec("recall?length=4&distance=0..512"));
    let mut depths = BTreeSet::new();
    for (near, far) in examples(&near, 500).zip(examples(&far, 500)) {
        let (near, far) = (near.input.list(), (far.input.list(), far.output.list(), far.depth));
        // The same pairs, and digits in a power of two between bars.
        assert_eq!(near[..9], far.0[..9]);
        let between = &far.0[9..far.0.len() - 2];
        assert_eq!((between.len(), far.0[far.0.len() - 2]), (far.2, "|"));
        assert!(between.iter().all(|symbol| super::digit(symbol).is_some()));
        let at = far.0[..8].iter().position(|symbol| *symbol == far.0[far.0.len() - 1]).unwrap();
        assert_eq!(far.1, [far.0[at + 1]]);
        depths.insert(far.2);
    }
    assert_eq!(depths.into_iter().collect::<Vec<_>>(), [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
    let solved = |name: &str, input: &str| spec(name).grammar().solve(&input.split(' ').collect::<Vec<_>>(), None);
    assert_eq!(solved("recall", "a 1 | 2 | a"), None);
    assert_eq!(solved("recall?distance=1", "a 1 | a"), None);
    assert_eq!(solved("recall?distance=1", "a 1 | b | a"), None);
}

#[test]
fn shortcuts_stop_the_recursion_where_they_say() {
    let capped = |name: &str, input: &str, cap| {
        let input: Vec<&str> = input.split(' ').collect();
        spec(name).grammar().solve(&input, Some(cap)).unwrap().join(" ")
    };
    assert_eq!(capped("succ", "X1 X1 X0 01", 2), "X0 X0 X1 01");
    assert_eq!(capped("succ", "X1 X1 X1 01", 2), "X0 X0 X1 01");
    assert_eq!(capped("succ", "X1 X1 01", 2), "X0 X0 X0 01");
    let tree = "( a ( b ( c . . ) . ) ( d . . ) )";
    assert_eq!(capped("tree", tree, 3), "c b a d");
    assert_eq!(capped("tree", tree, 1), "b c a d");
    assert_eq!(capped("reduce:2", "( a . . )", 1), "UNROLL [ . ] a UNROLL [ . ]");
    assert_eq!(capped("arithmetic", "( 1 + 2 ) * ( 4 - ( 5 - 6 ) )", 2), "- 3");
    assert_eq!(capped("arithmetic", "( 1 + 2 ) * ( 4 - ( 5 - 6 ) )", 3), "1 5");
    assert_eq!(capped("arithmetic", "( 1 + 2 ) * 3", 0), "1");
    assert_eq!(capped("dyck", "( [ { }", 1), "]");
    let facts = "a mother b . b friend c . ?";
    assert_eq!(capped("query:2p", &format!("{facts} friend of mother of a"), 2), "c");
    assert_eq!(capped("query:2p", &format!("{facts} friend of mother of a"), 1), "b");
    assert_eq!(capped("query:2in", &format!("{facts} ( friend of b and not mother of a )"), 1), "c");
    assert_eq!(capped("copy", "a b c | 1 2 |", 2), "a b");
    assert_eq!(capped("recall", "a 1 b 2 c 3 | a", 3), "1");
    assert_eq!(capped("recall", "a 1 b 2 c 3 | a", 2), "3");
    assert_eq!(capped("recall?distance=2", "a 1 b 2 c 3 | 7 8 | b", 2), "2");
    assert_eq!(capped("listops", "[MAX 2 [MIN 4 7 ] [MED 1 9 9 ] 0 ]", 2), "9");
    assert_eq!(capped("listops", "[MAX 2 [MIN 4 7 ] [MED 1 9 9 ] 0 ]", 1), "4");
    assert_eq!(capped("json", "{ \"a\" : [ 1 , { \"b\" : 2 } ] } | \"a\" 1 \"b\"", 3), "2");
    assert_eq!(capped("json", "{ \"a\" : [ 1 , { \"b\" : 2 } ] } | \"a\" 1 \"b\"", 1), "1");
}

#[test]
fn queries_over_a_file_have_facts_of_it_and_the_relations_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("facts.tsv");
    let facts: String = (0..40).map(|i| format!("n{}\tr{}\tn{}\n", i % 9, i % 4, (i * 5 + 1) % 11)).collect();
    fs_err::write(&path, &facts).unwrap();
    let named = |rest: &str| TaskSpec::parse(&format!("query:2p?graph={}{rest}", path.display()));
    let spec = named("&relations=r1+r3&length=5").unwrap();
    for example in examples(&spec, 200) {
        let input = example.input.list();
        assert_eq!(spec.grammar().solve(&input, None).unwrap(), example.output.list(), "{}", example.input);
        assert!(!input.contains(&"r0") && input.iter().filter(|symbol| **symbol == ".").count() == 5);
    }
    let message = named("&relations=r1+uncle").unwrap_err().to_string();
    assert_eq!(message, "the graph has no relation `uncle`\nhint: its relations are r0, r1, r2, r3");
    assert!(named("&entities=3").unwrap_err().to_string().contains("`entities` of task `query` is `3`"));
    assert!(TaskSpec::parse("query:2p?graph=/nowhere.tsv").unwrap_err().to_string().contains("nowhere.tsv"));
}

#[test]
fn operations_on_lists_are_those_of_the_paper() {
    // The paper's first example.
    let solve = |input: &str| spec("listops").grammar().solve(&input.split(' ').collect::<Vec<_>>(), None).unwrap();
    assert_eq!(solve("[MAX 2 9 [MIN 4 7 ] 0 ]"), ["9"]);
    assert_eq!(solve("[MED 1 5 8 9 2 ]"), ["5"]);
    assert_eq!(solve("[MED 1 4 ]"), ["2"]);
    assert_eq!(solve("[SM 7 [MED 9 9 9 ] ]"), ["6"]);
}

#[test]
fn edge_cases_are_as_deep_as_a_problem_of_their_length_can_be() {
    let deepest =
        [("tree", 7, 7), ("arithmetic", 7, 7), ("dyck", 7, 7), ("listops", 7, 6), ("recall", 7, 6), ("json", 7, 6)];
    for (name, length, depth) in deepest {
        let spec = spec(name);
        let all = |edge| (0..200).map(move |index| (index, edge));
        let depth_of = |(index, edge)| spec.example(Purpose::Evaluate, index, &(length..=length), edge).depth;
        assert!(all(true).all(|example| depth_of(example) == depth), "{name}");
        assert!(all(false).all(|example| depth_of(example) <= depth), "{name}");
    }
}

/// Records the speed of the generators: `cargo test --release … -- --ignored --nocapture speed`.
#[test]
#[ignore = "measures speed"]
#[allow(clippy::print_stdout)]
fn speed_of_the_generators() {
    for name in every_variant() {
        let spec = spec(&name);
        let mut example = Example::new(spec.form);
        let (start, mut symbols, mut index) = (std::time::Instant::now(), 0, 0);
        while start.elapsed().as_millis() < 300 {
            for _ in 0..1_000 {
                spec.fill_training(index, &mut example);
                symbols += example.input.len() + example.output.len() + 1;
                index += 1;
            }
        }
        println!("{name:<18} {:>7.1} M symbols/s", symbols as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
}
