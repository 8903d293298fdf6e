//! Attention over keys in pages is that over the same keys in runs of rows, to the bit.

use super::{Heads, forward};
use crate::kernels::{
    Pages,
    layout::{Layout, Scoring, Segment},
};
use proptest::prelude::*;

/// Numbers of both signs without a pattern.
fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * i * 31 + i * 7 + seed * 13) % 997) as f32 / 400.0 - 1.2).collect()
}

/// A sequence: its keys, and which of its last keys are queries.
#[derive(Clone, Debug)]
struct Sequence {
    keys: usize,
    queries: Vec<usize>,
}

fn sequence(most: usize, most_queries: usize) -> impl Strategy<Value = Sequence> {
    (1..most, 1..=most_queries, any::<bool>(), 1..4usize).prop_map(|(keys, queries, is_last, step)| {
        let (queries, step) = (queries.min(keys), if is_last { 1 } else { step });
        let first = keys - queries;
        Sequence { keys, queries: (first..keys).rev().step_by(step).collect::<Vec<_>>().into_iter().rev().collect() }
    })
}

fn setting() -> impl Strategy<Value = (Vec<Sequence>, usize, usize, Scoring)> {
    let sequences = prop_oneof![
        // More than two blocks of keys of either kernel, with one query each and with several.
        prop::collection::vec(sequence(1200, 1), 1..4),
        prop::collection::vec(sequence(1200, 90), 1..3),
    ];
    let scoring = (any::<bool>(), prop_oneof![Just(None), (1..700usize).prop_map(Some)])
        .prop_map(|(caps, window)| Scoring { softcap: caps.then_some(2.0), window, ..Scoring::plain(8) });
    (sequences, prop_oneof![1..9usize, 16..65usize, Just(512)], 0..1000usize, scoring)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn keys_in_pages_give_the_bits_of_keys_in_rows((sequences, size, seed, scoring) in setting()) {
        let (kv_heads, head_dim) = (2, 8);
        let heads = Heads { heads: 6, kv_heads, head_dim, scoring };
        let width = kv_heads * head_dim;
        let capacity = sequences.iter().map(|sequence| sequence.keys).max().unwrap() + seed % 5;
        let mut row = 0;
        let segments: Vec<Segment> = sequences.iter().enumerate().map(|(slot, Sequence { keys, queries })| {
            let rows = row..row + queries.len();
            row = rows.end;
            let first = slot * capacity;
            Segment { own: Some(queries.clone().into()), ..Segment::last(rows, 0..0, first..first + keys) }
        }).collect();
        let q = numbers(row * heads.heads * head_dim, seed);
        let [k, v] = [1, 2].map(|more| numbers(sequences.len() * capacity * width, seed + more));
        let layout = Layout::ragged(segments);
        let expected = forward(&q, &k, &v, heads, &layout);

        // Pages in an order without a pattern, some one behind the other.
        let per_sequence = capacity.div_ceil(size);
        let count = sequences.len() * per_sequence;
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_by_key(|page| (*page as usize / 3 * 7919 + seed) % 101);
        let pages = Pages::new(order.into(), size, capacity);
        let paged = |rows: &[f32]| {
            let mut paged = vec![f32::NAN; count * size * width];
            for row in 0..sequences.len() * capacity {
                paged[pages.row(row) * width..][..width].copy_from_slice(&rows[row * width..][..width]);
            }
            paged
        };
        let found = forward(&q, &paged(&k), &paged(&v), heads, &layout.clone().in_pages(Some(pages.clone())));
        let bits = |(out, log_sums): (Vec<f32>, Vec<f32>)| out.into_iter().chain(log_sums).map(f32::to_bits).collect::<Vec<_>>();
        prop_assert_eq!(bits(found), bits(expected));
    }
}
