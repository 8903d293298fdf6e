//! Memory allocator of the binaries: mimalloc, set to keep freed memory.
//!
//! A training step allocates and frees gigabytes of activations. By default mimalloc returns freed
//! memory to the system after a second, and the next step pays for every page again: a twelfth of a
//! step's time was the system clearing pages.

#![expect(unsafe_code, reason = "the option is set through the allocator's C interface, which checks its arguments")]

pub use mimalloc::MiMalloc as Allocator;

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// `mi_option_purge_delay` of mimalloc 3, which the binding does not name. In milliseconds; −1
/// means never.
const PURGE_DELAY: mi_option_t = 15;

/// Makes the allocator keep freed memory for later allocations, unless the environment variable
/// `MIMALLOC_PURGE_DELAY` is set.
pub fn keep_freed_memory() {
    if std::env::var_os("MIMALLOC_PURGE_DELAY").is_none() {
        // SAFETY: an option that exists and a number; the function may be called at any time.
        unsafe { mi_option_set(PURGE_DELAY, -1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_the_delay_of_a_purge() {
        // SAFETY: reads a number.
        let get = || unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(get(), 1000, "mimalloc's default: another number means that the options have moved");
        keep_freed_memory();
        assert_eq!(get(), -1);
    }
}
