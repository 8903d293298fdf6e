//! The tasks of `retie_lab::vision` for a few steps: every network learns something.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use retie_lab::vision::tasks::{Table, Task, Training};
use std::sync::Mutex;

/// Weights are drawn from one stream of the device: one task at a time.
static DEVICE: Mutex<()> = Mutex::new(());

/// The first row of the table, the network, and the mean losses of its first and last eighth.
fn learn(task: Task, steps: usize) -> (Table, [f64; 2]) {
    let _guard = DEVICE.lock().unwrap();
    let table = task.run(Training { steps, seed: 0 }).unwrap();
    let losses = &table.rows[0].trained.as_ref().unwrap().losses;
    assert_eq!(losses.len(), steps);
    let part = steps / 8;
    let mean = |losses: &[f32]| losses.iter().map(|loss| f64::from(*loss)).sum::<f64>() / part as f64;
    let ends = [mean(&losses[..part]), mean(&losses[steps - part..])];
    (table, ends)
}
