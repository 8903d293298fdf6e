//! libFuzzer over one target, which the variable `RETIE_FUZZ_TARGET` names; see `scripts/fuzz`.
#![no_main]
#![allow(unsafe_code, reason = "the macro exports functions to libFuzzer")]
#![expect(clippy::expect_used, reason = "without a target there is nothing to run")]

use libfuzzer_sys::fuzz_target;
use retie_fuzz::{Harness, TARGETS};
use std::{cell::RefCell, env, io, io::Write, panic};

thread_local! {
    static HARNESS: RefCell<Harness> = {
        // libFuzzer's own hook ends the process before a panic is caught, which parsers of others
        // may need. One that nobody catches ends it still.
        panic::set_hook(Box::new(|panic| _ = writeln!(io::stderr(), "{panic}")));
        let name = env::var("RETIE_FUZZ_TARGET").expect("RETIE_FUZZ_TARGET names a target");
        let target = TARGETS.iter().find(|target| target.name == name).expect("RETIE_FUZZ_TARGET names a target");
        RefCell::new(Harness::new(target).expect("a folder for temporary files"))
    };
}

fuzz_target!(|input: &[u8]| HARNESS.with_borrow_mut(|harness| harness.run(input)));
