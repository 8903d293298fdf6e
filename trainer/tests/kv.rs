//! Uptraining where later recursions read the first one's keys and values.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stderr)]

mod support;

use retie_checkpoint::ModelSource;
use retie_config::{KvSharing, RouterConfig};
use retie_trainer::{MODEL_DIR, Resume, read_metrics};
use std::sync::atomic::AtomicBool;
use support::{bits, expert_choice, run, start, stop_after, token_choice, with_kv_sharing, with_shared_router};

#[test]
fn computing_each_recursion_again_changes_nothing() {
    for kv in [KvSharing::Shared, KvSharing::Hybrid] {
        for router in [None, Some(expert_choice()), Some(token_choice())] {
            let dir = tempfile::tempdir().unwrap();
            let whole = match &router {
                Some(router) => with_shared_router(dir.path(), router, kv),
                None => with_kv_sharing(dir.path(), kv),
            };
            let kind = router.as_ref().map_or("plain", RouterConfig::kind);
            let mut parts = whole.clone();
            parts.run.dir = dir.path().join("parts");
            parts.train.checkpoint_recursions = true;
            let (whole, parts) = (run(&whole, "cpu"), run(&parts, "cpu"));
            for (a, b) in whole.iter().zip(&parts) {
                for (what, a, b) in [("loss", a.loss, b.loss), ("gradient norm", a.grad_norm, b.grad_norm)] {
                    // Rounding of f32, carried through six steps.
                    assert!((a - b).abs() <= 2e-5 * a.abs(), "{kind} {kv}: {what} {a} and {b}");
                }
            }
        }
    }
}

#[test]
fn a_stopped_run_goes_on_bit_for_bit_and_later_keys_and_values_stay_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = with_shared_router(dir.path(), &expert_choice(), KvSharing::Shared);
    whole.train.checkpoint_recursions = true;
    whole.optimizer.weight_decay = 0.0;
    let rows = run(&whole, "cpu");
    let mut broken = whole.clone();
    broken.run.dir = dir.path().join("broken");
    stop_after(&broken, 3);
    start(&broken, "cpu", Resume::Latest, &AtomicBool::new(false), &mut |_| {}).unwrap();
    assert_eq!(bits(&read_metrics(&broken.run.dir).unwrap()), bits(&rows));
    let source = |folder: &str| ModelSource::open(folder).unwrap();
    let (before, after) = (source(&whole.student.model), source(whole.run.dir.join(MODEL_DIR).to_str().unwrap()));
    let same = |name: &str| before.tensors.read_f32(name).unwrap() == after.tensors.read_f32(name).unwrap();
    let block = before.config.num_hidden_layers / 2;
    for projection in ["k_proj", "v_proj"] {
        let lora = |depth: usize| format!("model.depths.{depth}.self_attn.{projection}.lora_B.weight");
        assert!(!same(&lora(0)) && same(&lora(block)), "{projection}");
    }
    assert!(!same(&format!("model.depths.{block}.self_attn.q_proj.lora_B.weight")));
}
