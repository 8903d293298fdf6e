//! A file that is there whole or not at all.
//!
//! A file under construction is locked. What a killed process has left has no lock, and
//! [`remove_abandoned`] removes it.

use std::io;
use std::path::Path;

const PREFIX: &str = "writing-";
const SUFFIX: &str = ".tmp";

/// Writes `path` under another name beside it and renames it when `write` is done; its folder is
/// made where it is missing.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut fs_err::File) -> io::Result<()>) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    fs_err::create_dir_all(dir)?;
    let (file, temporary) = begin(dir)?.into_parts();
    let mut file = fs_err::File::from_parts(file, &temporary);
    write(&mut file)?;
    // Renamed while it is locked. `temporary` removes the file on every way out but this one, after
    // which its name is gone.
    fs_err::rename(&temporary, path)
}

/// A locked file in `dir`.
fn begin(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // Less the umask, as of any new file: other users may share the folder.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    loop {
        let file = builder.tempfile_in(dir)?;
        // Where files cannot be locked, none is taken for abandoned. One that was, before it was
        // locked, is gone.
        if file.as_file().lock().is_err() || file.path().exists() {
            return Ok(file);
        }
    }
}

/// Removes files of `dir` that processes were writing when they were killed.
///
/// # Errors
/// The folder cannot be read, or a file not be removed.
pub(crate) fn remove_abandoned(dir: &Path) -> io::Result<()> {
    let entries = match fs_err::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours = name.starts_with(PREFIX) && name.ends_with(SUFFIX);
        if !is_ours || !path.symlink_metadata().is_ok_and(|found| found.is_file()) {
            continue;
        }
        // One that is gone meanwhile was finished.
        let Ok(file) = fs_err::File::open(&path) else { continue };
        if file.file().try_lock().is_ok() {
            tracing::info!(path = %path.display(), "removing what an interrupted process left");
            match fs_err::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs_err::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_killed_process_left_goes_and_the_work_of_a_live_one_stays() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        for name in ["writing-a1B2c3.tmp", "writing-x", "other.tmp", "0.tokens"] {
            fs_err::write(dir.join(name), "a part").unwrap();
        }
        write_whole(&dir.join("whole"), |file| {
            file.write_all(b"first")?;
            remove_abandoned(dir)?;
            assert_eq!(names(dir).len(), 4, "three others, and that of this writer");
            file.write_all(b", second")
        })
        .unwrap();
        assert_eq!(names(dir), ["0.tokens", "other.tmp", "whole", "writing-x"]);
        assert_eq!(fs_err::read_to_string(dir.join("whole")).unwrap(), "first, second");
        remove_abandoned(&dir.join("not there")).unwrap();
    }

    #[test]
    fn an_error_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole");
        write_whole(&path, |_| Err(io::Error::other("full"))).unwrap_err();
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }
}
