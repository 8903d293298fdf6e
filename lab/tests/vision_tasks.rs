//! The tasks of `retie_lab::vision` for a few steps: every network learns what no constant output
//! can be.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retie_lab::vision::tasks::{Task, Training};
use std::sync::Mutex;

/// Weights are drawn from one stream of the device: one task at a time.
static DEVICE: Mutex<()> = Mutex::new(());

/// Mean loss of the last eighth of a network's training with seed 0.
fn last_loss(task: Task, steps: usize) -> f64 {
    let _guard = DEVICE.lock().unwrap();
    let table = task.run(Training { steps, seed: 0, is_alone: true }).unwrap();
    let losses = &table.rows[0].trained.as_ref().unwrap().losses;
    assert_eq!(losses.len(), steps);
    let last = &losses[steps - steps / 8..];
    last.iter().map(|loss| f64::from(*loss)).sum::<f64>() / last.len() as f64
}

/// The least cross-entropy that a classifier of 8 classes has without looking is `ln 8`, 2.08.
fn knows_textures(task: Task, steps: usize) {
    let loss = last_loss(task, steps);
    assert!(loss < 1.8, "{loss}");
}

#[test]
fn sret_learns_textures() {
    knows_textures(Task::Sret, 64);
}

#[test]
fn hornet_learns_textures() {
    knows_textures(Task::Hornet, 64);
}

/// Half the pixels are at about 0.1 and half at about 0.9: the best constant is off by 0.3.
#[test]
fn rgt_learns_to_enlarge_pictures() {
    let loss = last_loss(Task::Rgt, 40);
    assert!(loss < 0.2, "{loss}");
}

/// Of the pixels 14 % are in a blob. The best constant probability, 3 %, has a cross-entropy of 0.52
/// and an uncertainty of 0.12, which counts in full at the end.
#[test]
fn msrnet_learns_to_find_blobs() {
    let loss = last_loss(Task::Msrnet, 64);
    assert!(loss < 0.55, "{loss}");
}

/// The least cross-entropy without looking is below `ln 64`, 4.16, by what motions leave more likely.
#[test]
fn flash_vggt_learns_to_find_patches() {
    let loss = last_loss(Task::FlashVggt, 48);
    assert!(loss < 3.0, "{loss}");
}
