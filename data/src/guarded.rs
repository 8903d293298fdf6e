//! Parsers of others on damaged files: some of them panic where they should refuse. A panic in
//! [`guarded`] is an error, and says nothing on stderr where the program has called
//! [`quiet_guarded_panics`].

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `parse`; the message of a panic is the error. What `parse` changes may be half changed
/// then, and must not be used.
pub(crate) fn guarded<T>(parse: impl FnOnce() -> T) -> Result<T, String> {
    let before = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(parse));
    GUARDED.set(before);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it gave no reason").to_owned()
    })
}

/// Keeps panics of parsers of damaged files, which become errors, off stderr.
pub fn quiet_guarded_panics() {
    let hook = take_hook();
    set_hook(Box::new(move |panic| {
        if !GUARDED.get() {
            hook(panic);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        assert_eq!(guarded(|| 7), Ok(7));
        let index = std::hint::black_box(9);
        assert_eq!(guarded(|| [1, 2][index]), Err("index out of bounds: the len is 2 but the index is 9".to_owned()));
        assert_eq!(guarded(|| -> u8 { panic!("plain") }), Err("plain".to_owned()));
        assert!(!GUARDED.get());
    }
}
