//! A run of a target: what it may take, and what it may leave.
#![expect(unsafe_code, reason = "the time of this process is asked for through C")]

use crate::{Target, Workdir, allocator::measured};
use std::{io, sync::Once, time::Duration};

/// Processor time of one input, in all threads: other programs on the machine do not count.
const MOST_TIME: Duration = Duration::from_secs(1);
/// Memory of one input: a constant, for buffers that are as large for every file, and a multiple of
/// its size, for what a parser makes of a byte.
const MOST_BYTES: (usize, usize) = (24 << 20, 512);
/// Inputs after which the folder is looked at.
const CHECK_EVERY: u64 = 256;

/// Runs a target on one input after the other.
pub struct Harness {
    target: &'static Target,
    workdir: Workdir,
    done: u64,
}

impl Harness {
    /// # Errors
    /// There is no folder for temporary files.
    pub fn new(target: &'static Target) -> io::Result<Self> {
        // Backtraces of panics that become errors would count as memory of the parser.
        static QUIET: Once = Once::new();
        QUIET.call_once(retie_data::quiet_guarded_panics);
        // What stays in memory, such as lazily built tables, is built before it is counted.
        let harness = Self { target, workdir: Workdir::new()?, done: 0 };
        (target.run)(b"", &harness.workdir);
        Ok(harness)
    }

    /// Runs the target on `input`.
    ///
    /// # Panics
    /// The target panics, takes too long, takes too much memory, or writes where it should not.
    pub fn run(&mut self, input: &[u8]) {
        let start = processor_time();
        let ((), bytes) = measured(|| (self.target.run)(input, &self.workdir));
        let time = processor_time().saturating_sub(start);
        let (constant, factor) = MOST_BYTES;
        let most = constant + factor * input.len();
        assert!(bytes <= most, "{bytes} bytes of memory for {} of input, expected at most {most}", input.len());
        assert!(time <= MOST_TIME, "{time:?} for {} bytes of input", input.len());
        self.done += 1;
        if self.done.is_multiple_of(CHECK_EVERY) {
            self.workdir.check(self.target.files);
        }
    }
}

impl Drop for Harness {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.workdir.check(self.target.files);
        }
    }
}

fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a place for the answer.
    let code = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    assert_eq!(code, 0, "the clock of the process");
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
