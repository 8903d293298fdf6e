//! A file that is there whole or not at all.

use std::io;
use std::path::Path;

/// Writes `path` under another name beside it and renames it when `write` is done; its folder is
/// made where it is missing.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut fs_err::File) -> io::Result<()>) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(dir)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix("writing-").suffix(".tmp");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Less the umask, as of any new file: other users may share the folder.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let (file, temporary) = builder.tempfile_in(dir)?.into_parts();
    let mut file = fs_err::File::from_parts(file, &temporary);
    write(&mut file)?;
    drop(file);
    // `temporary` removes the file on every way out but this one, after which its name is gone.
    fs_err::rename(&temporary, path)
}
