//! The tasks of `retie_lab::vision` for a few steps: every network learns what no constant output
//! can be.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retie_lab::vision::tasks::{Task, Training};
use std::sync::Mutex;

/// Weights are drawn from one stream of the device: one task at a time.
static DEVICE: Mutex<()> = Mutex::new(());

/// What a network measures after a training with seed 0, and the mean loss of the last eighth of
/// it.
fn learn(task: Task, steps: usize) -> (f64, f64) {
    let _guard = DEVICE.lock().unwrap();
    let table = task.run(Training { steps, seed: 0, is_alone: true }).unwrap();
    let losses = &table.rows[0].trained.as_ref().unwrap().losses;
    assert_eq!((table.rows.len(), losses.len()), (1, steps));
    let last = &losses[steps - steps / 8..];
    let loss = last.iter().map(|loss| f64::from(*loss)).sum::<f64>() / last.len() as f64;
    (table.rows[0].figure, loss)
}

/// The least cross-entropy that a classifier of 8 classes has without looking is `ln 8`, 2.08.
fn knows_textures(task: Task, steps: usize) {
    let (right, loss) = learn(task, steps);
    assert!(loss < 1.8 && right > 20.0, "loss {loss}, {right} % right");
}

#[test]
fn sret_learns_textures() {
    knows_textures(Task::Sret, 80);
}

#[test]
fn hornet_learns_textures() {
    knows_textures(Task::Hornet, 80);
}

/// Half the pixels are at about 0.1 and half at about 0.9: the best constant is off by 0.3.
#[test]
fn rgt_learns_to_enlarge_pictures() {
    let (_, loss) = learn(Task::Rgt, 60);
    assert!(loss < 0.2, "{loss}");
}

/// Of the pixels 14 % are in a blob, and that is the overlap of all of them. The loss does not
/// fall: the weight of uncertainty in it rises.
#[test]
fn msrnet_learns_to_find_blobs() {
    let (overlap, _) = learn(Task::Msrnet, 60);
    assert!(overlap > 20.0, "{overlap} %");
}

/// Features that are the same for all patches have a cross-entropy of `ln 64`, 4.16.
#[test]
fn flash_vggt_learns_to_find_patches() {
    let (_, loss) = learn(Task::FlashVggt, 48);
    assert!(loss < 3.0, "{loss}");
}
