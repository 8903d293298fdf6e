//! One process at a time: a lock on a folder that is written, for as long as the writer lives.
//!
//! The lock is the operating system's (`flock` on Unix), on a file that names its holder. It ends
//! with the process, however that ends; the file of a process that was killed is taken over. Where
//! the file system has no locks (some network ones), a warning says so.

use crate::CheckpointError;
use std::{
    fs::TryLockError,
    io::{Read, Write},
    path::{Path, PathBuf},
};

/// Name of the lock's file in a folder that is locked.
const LOCK_FILE: &str = ".retie.lock";
/// Longest description of a holder that is read.
const MAX_HOLDER_BYTES: u64 = 256;

/// A folder that this process alone writes. Dropping it gives the folder free.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    /// `None` where the file system has no locks.
    file: Option<fs_err::File>,
    _made: Made,
}

/// Folders that were made for a lock's file, outermost first. Dropping it removes those in which
/// nothing else was put.
#[derive(Debug)]
struct Made(Vec<PathBuf>);

impl Drop for Made {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            if fs_err::remove_dir(folder).is_err() {
                return;
            }
        }
    }
}

impl FolderLock {
    /// Locks the folder `dir`, which is made where it is missing.
    ///
    /// # Errors
    /// [`CheckpointError::OutputBusy`] when another process has it,
    /// [`CheckpointError::OutputIsLink`] when it is a link; or the folder cannot be written.
    pub fn take(dir: &Path) -> Result<Self, CheckpointError> {
        refuse_link(dir)?;
        Self::on(dir.join(LOCK_FILE), dir)
    }

    /// Locks the file `path`, whose folder is made where it is missing, for the folder `dir`.
    pub(crate) fn on(path: PathBuf, dir: &Path) -> Result<Self, CheckpointError> {
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        let made = Made(missing(&parent));
        fs_err::create_dir_all(&parent)?;
        loop {
            let mut options = fs_err::OpenOptions::new();
            let mut file = options.read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.file().try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let holder = holder(&mut file);
                    return Err(CheckpointError::OutputBusy { path: dir.to_owned(), holder });
                }
                Err(TryLockError::Error(error)) => {
                    tracing::warn!(path = %dir.display(), %error, "no lock: a second process would not be noticed");
                    return Ok(Self { path, file: None, _made: made });
                }
            }
            // The holder before may have removed the file between its opening and its locking.
            if !is_at(&file, &path) {
                continue;
            }
            let name = format!("process {} on {}\n", std::process::id(), host());
            if let Err(error) = file.set_len(0).and_then(|()| file.write_all(name.as_bytes())) {
                tracing::debug!(%error, "the lock has no name");
            }
            return Ok(Self { path, file: Some(file), _made: made });
        }
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Removed while it is locked: who opened it meanwhile finds another file there, or none.
        if self.file.is_some()
            && let Err(error) = fs_err::remove_file(&self.path)
        {
            tracing::debug!(%error, "the file of a lock stays");
        }
    }
}

/// Folders up to `dir` that do not exist, outermost first.
fn missing(dir: &Path) -> Vec<PathBuf> {
    let missing = dir.ancestors().take_while(|folder| !folder.as_os_str().is_empty() && !folder.exists());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
    missing.reverse();
    missing
}

/// Refuses a link in the place of a folder that is to be written.
pub(crate) fn refuse_link(dir: &Path) -> Result<(), CheckpointError> {
    // Without a slash at its end, which would stand for what a link leads to.
    let path: PathBuf = dir.components().collect();
    match path.read_link() {
        Ok(target) => Err(CheckpointError::OutputIsLink { path, target }),
        Err(_) => Ok(()), // no link, or nothing
    }
}

fn holder(file: &mut fs_err::File) -> String {
    let mut text = String::new();
    let read = file.take(MAX_HOLDER_BYTES).read_to_string(&mut text);
    match (read, text.trim()) {
        (Ok(_), text) if !text.is_empty() && !text.contains(char::is_control) => text.to_owned(),
        _ => "another process".to_owned(),
    }
}

/// Name of this machine.
fn host() -> String {
    let kernel = fs_err::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = kernel.or_else(|| std::env::var("HOSTNAME").ok()).or_else(|| std::env::var("COMPUTERNAME").ok());
    name.map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).unwrap_or_else(|| "this machine".to_owned())
}

/// Whether `file` is what has the name `path` now.
#[cfg(unix)]
fn is_at(file: &fs_err::File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), fs_err::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &fs_err::File, _: &Path) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_with_the_name_of_the_first_and_let_in_after_it() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/run");
        let first = FolderLock::take(&dir).unwrap();
        let message = FolderLock::take(&dir).unwrap_err().to_string();
        let expected = format!("process {} on {} is writing `{}`\nhint: ", std::process::id(), host(), dir.display());
        assert!(message.starts_with(&expected), "{message}");
        drop(first);
        assert!(!root.path().join("a").exists(), "an unused folder goes with the lock");
        drop(FolderLock::take(&dir).unwrap());
    }

    #[test]
    fn the_file_of_a_killed_process_is_taken_over_and_what_was_written_stays() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        fs_err::create_dir(&dir).unwrap();
        fs_err::write(dir.join(LOCK_FILE), "process 1 on elsewhere, with a longer name than this one has\n").unwrap();
        let lock = FolderLock::take(&dir).unwrap();
        fs_err::write(dir.join("metrics.jsonl"), "{}").unwrap();
        let text = fs_err::read_to_string(dir.join(LOCK_FILE)).unwrap();
        assert_eq!(text, format!("process {} on {}\n", std::process::id(), host()));
        drop(lock);
        assert!(!dir.join(LOCK_FILE).exists() && dir.join("metrics.jsonl").exists());
    }

    #[test]
    fn of_many_threads_one_at_a_time_has_the_lock() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("run");
        let (held, taken) = (std::sync::atomic::AtomicUsize::new(0), std::sync::atomic::AtomicUsize::new(0));
        let order = std::sync::atomic::Ordering::SeqCst;
        fs_err::create_dir(&dir).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        if let Ok(lock) = FolderLock::take(&dir) {
                            assert_eq!(held.fetch_add(1, order), 0, "two hold it");
                            held.fetch_sub(1, order);
                            taken.fetch_add(1, order);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.load(order) > 0);
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_refused_with_what_it_leads_to() {
        let root = tempfile::tempdir().unwrap();
        let link = root.path().join("run");
        fs_err::os::unix::fs::symlink("elsewhere", &link).unwrap();
        let message = FolderLock::take(&link).unwrap_err().to_string();
        assert!(message.contains("is a link to `elsewhere`") && message.contains("\nhint: "), "{message}");
        assert!(!root.path().join("elsewhere").exists());
    }
}
