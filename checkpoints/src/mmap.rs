//! Read-only memory maps: the crate's one `unsafe` block.

use crate::CheckpointError;
use memmap2::Mmap;
use std::path::Path;

/// Maps the whole of the file at `path`.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub(crate) fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let file = fs_err::File::open(path)?;
    #[expect(unsafe_code, reason = "a memory map has no safe constructor")]
    // SAFETY: the map is read-only and only ever viewed as plain bytes, for which every bit pattern
    // is valid. Another process that truncates the file meanwhile makes a later read fault
    // (SIGBUS): it ends this process, as it would end any reader of a file that shrinks under it.
    let map = unsafe { Mmap::map(file.file()) }
        .map_err(|e| std::io::Error::new(e.kind(), format!("cannot map `{}` into memory: {e}", path.display())))?;
    Ok(map)
}
