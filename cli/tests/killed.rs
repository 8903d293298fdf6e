//! A killed conversion leaves nothing that loads, and nothing that blocks the next conversion; a
//! run belongs to one process. `scripts/test-faults` has all commands and all faults.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod support;

use std::{process::Stdio, thread::sleep, time::Duration};
use support::{CONVERT as CONVERT_SHORT, Place, uptrain_yaml};

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

#[test]
fn a_run_belongs_to_one_process_and_goes_on_when_that_is_killed() {
    let place = Place::new();
    place.retie(CONVERT_SHORT).ok();
    place.write("run.yaml", uptrain_yaml(100_000));
    let mut first = place.command();
    let mut first = first.args(["uptrain", "run.yaml"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while !place.path("run/ckpt/step-4").exists() {
        assert!(first.try_wait().unwrap().is_none());
        sleep(Duration::from_millis(10));
    }
    for line in ["uptrain run.yaml", "uptrain run.yaml --resume"] {
        let second = place.retie(line);
        assert_eq!(second.code, Some(2), "{second:?}");
        let expected = format!("error: process {} on ", first.id());
        assert!(second.stderr.contains(&expected) && second.stderr.contains("is writing `run`\nhint: "), "{second:?}");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    let resumed = place.retie("uptrain run.yaml --resume --time-limit 1s");
    assert_eq!(resumed.code, Some(130), "{resumed:?}");
    assert!(resumed.stderr.contains("resumed after step"), "{resumed:?}");
    assert!(!place.path("run/.retie.lock").exists());
}

#[test]
#[cfg(unix)]
fn links_are_no_places_for_outputs_and_lead_to_no_files_outside_of_a_model() {
    let place = Place::new();
    fs_err::create_dir(place.path("elsewhere")).unwrap();
    fs_err::os::unix::fs::symlink("elsewhere", place.path("out")).unwrap();
    let convert = "convert base --recursions 2 --sharing middle_cycle --init average";
    for out in ["out", "out/"] {
        let refused = place.refused(&format!("{convert} -o {out}"));
        assert!(refused.contains("out` is a link to `elsewhere`, expected a folder or nothing"), "{refused}");
    }
    fs_err::write(place.path("secret"), "not a template").unwrap();
    fs_err::os::unix::fs::symlink("../secret", place.path("base/chat_template.jinja")).unwrap();
    let refused = place.refused(&format!("{convert} -o new"));
    assert!(refused.contains("base/chat_template.jinja` is a link to `../secret`, which is outside"), "{refused}");
}
