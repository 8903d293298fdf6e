//! Tests of selection as devices run it, in plain burn on tensors of the CPU: what is selected, and
//! what the host reads.

use super::SelectionRule;
use crate::{
    CausalLm, RoutingTrace, TokenIds,
    kernels::{self, Late, Layout, Quota, f32_slice, num_reads, plainly, read_together},
};
use burn::tensor::Device;
use retie_config::{KvSharing, RouterConfig};
use retie_testing::Golden;

/// Logits and routing trace of the tokens of a golden file.
fn run(
    golden: &Golden,
    kv_sharing: KvSharing,
    layout: Layout,
    rule: Option<SelectionRule>,
) -> (Vec<f32>, RoutingTrace) {
    let mut config = golden.config();
    let recursion = config.recursion.as_mut().unwrap();
    recursion.kv_sharing = kv_sharing;
    if let (KvSharing::Shared, Some(RouterConfig::ExpertChoice(router))) = (kv_sharing, &mut recursion.router) {
        // The first recursion computes what the others read.
        router.capacities[0] = 1.0;
        router.thresholds.iter_mut().for_each(|thresholds| thresholds[0] = None);
    }
    let device = Device::flex();
    let model = CausalLm::load(&config, golden, &device).unwrap();
    let ids = TokenIds::upload(golden.rows().into_iter().flatten(), &device);
    let capacities = || model.expert_choice().unwrap().capacities.clone();
    let rule = rule.unwrap_or_else(|| SelectionRule::TopK(capacities()));
    let (hidden, trace) = model.forward_routed(ids, layout, rule);
    (f32_slice(&model.logits(hidden).into_data()).to_vec(), trace)
}

fn assert_close(what: &str, actual: &[f32], expected: &[f32]) {
    let scale = expected.iter().fold(1.0f32, |m, x| m.max(x.abs()));
    let largest = actual.iter().zip(expected).fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    // Sums in another order over a few layers of random weights.
    assert!(actual.len() == expected.len() && largest <= 2e-5 * scale, "{what}: {largest} of {scale}");
}

#[test]
fn top_k_selects_what_the_host_does_and_is_read_only_for_a_report() {
    for (name, kv_sharing) in [
        ("routed_mlp", KvSharing::RecursionWise),
        ("routed_linear", KvSharing::Shared),
        ("routed_kv", KvSharing::Hybrid),
    ] {
        let golden = Golden::named(name);
        let rows = golden.rows();
        let (batch, tokens) = (rows.len(), rows[0].len());
        let ragged = [(tokens - 2, 0..0), (2, 0..0), ((batch - 1) * tokens, 0..0)];
        for layout in [Layout::batch(batch, tokens), Layout::packed(ragged)] {
            let (expected, host) = run(&golden, kv_sharing, layout.clone(), None);
            read_together(host.decisions().iter().flat_map(|decision| decision.late()));
            plainly(|| {
                let reads = num_reads();
                let (logits, trace) = run(&golden, kv_sharing, layout.clone(), None);
                assert_eq!(num_reads(), reads, "{name}: a forward pass");
                assert_close(name, &logits, &expected);
                read_together(trace.decisions().iter().flat_map(|decision| decision.late()));
                assert_eq!(num_reads(), reads + 1, "{name}: everything that a report asks for");
                for (found, expected) in trace.decisions().iter().zip(host.decisions()) {
                    assert_eq!(found.selected_rows.host(), expected.selected_rows.host(), "{name}");
                    assert_eq!(found.mask(), expected.mask(), "{name}");
                    assert_close(name, &found.values(), &expected.values());
                }
                assert_eq!(num_reads(), reads + 1, "{name}: what was read is not read again");
            });
        }
    }
}

#[test]
fn token_choice_reads_once_a_forward_pass_and_thresholds_once_a_recursion() {
    let counts = |name: &str| {
        let golden = Golden::named(name);
        let rows = golden.rows();
        let reads = num_reads();
        let layout = Layout::batch(rows.len(), rows[0].len());
        let (_, trace) = run(&golden, KvSharing::RecursionWise, layout, Some(SelectionRule::Causal));
        (trace.recursion_counts(rows.len() * rows[0].len()), num_reads() - reads, trace.decisions().len())
    };
    for name in ["routed_softmax", "routed_mlp"] {
        let (expected, none, num_recursions) = counts(name);
        let (found, reads, _) = plainly(|| counts(name));
        assert_eq!((found, none), (expected, 0), "{name}");
        let most = if name == "routed_softmax" { 1 } else { num_recursions };
        assert!((1..=most).contains(&reads), "{name}: {reads} reads");
    }
}

#[test]
fn logits_that_the_host_has_made_are_selected_there() {
    let quota = Quota { active: 2, selected: 1 };
    let (active, logits) = ([0, 1].into(), Late::known(vec![0.0, 1.0]));
    assert_eq!(**plainly(|| kernels::top_k(&active, &logits, &[quota])).host(), [1]);
}
