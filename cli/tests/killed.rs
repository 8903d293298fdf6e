//! A killed conversion leaves nothing that loads, and nothing that blocks the next conversion.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{process::Stdio, thread::sleep, time::Duration};
use support::Place;

const CONVERT: &str = "convert base --recursions 2 --sharing middle_cycle --share-norms false --lora-rank 8 --init calibrated \
                       --calibration text/train.jsonl --calibration-tokens 512";

#[test]
fn a_killed_conversion_leaves_nothing_that_loads() {
    let place = Place::new();
    let mut killed = 0;
    // Kill times from before the first byte to about the end; the progress at each depends on the
    // machine.
    for milliseconds in [0, 20, 60, 120, 250, 500, 1000] {
        let out = format!("out{milliseconds}");
        let words = CONVERT.split_whitespace().chain(["-o", &out]);
        let mut child = place.command().args(words).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        let loads = place.retie(&format!("inspect {out}")).code == Some(0);
        // The output folder exists complete or not at all.
        assert_eq!(loads, place.path(&out).exists(), "{out}");
        if !loads {
            killed += 1;
            place.retie(&format!("{CONVERT} -o {out}")).ok();
            place.retie(&format!("inspect {out}")).ok();
        }
        assert!(!place.path(&format!(".{out}.partial")).exists());
    }
    assert!(killed > 0);
}
