//! Folders that appear completely or not at all: written beside their final place, flushed to the
//! disk, renamed.
//!
//! Leftovers of a killed process (`.NAME.partial`) are removed by the next one that writes to the
//! same place. A lock on `.NAME.lock` distinguishes them from the work of a live process.

use crate::{
    CheckpointError,
    lock::{FolderLock, refuse_link},
};
use std::path::{Path, PathBuf};

/// A folder under construction. Dropping it without [`Staging::publish`] removes everything that
/// was written.
#[derive(Debug)]
pub struct Staging {
    final_dir: PathBuf,
    temporary: PathBuf,
    published: bool,
    /// Held while the folder is in use. Parents that were made for it go with it if they are empty.
    _lock: FolderLock,
}

impl Staging {
    /// Starts a folder for the final place `final_dir`. Missing parents are created.
    ///
    /// # Errors
    /// When `final_dir` is a file, a link, or a folder that is not empty, another process is
    /// writing to it, or the disk fails.
    pub fn new(final_dir: &Path) -> Result<Self, CheckpointError> {
        let final_dir = std::path::absolute(final_dir)?;
        refuse_link(&final_dir)?;
        refuse_occupied(&final_dir)?;
        let (Some(parent), Some(name)) = (final_dir.parent(), final_dir.file_name()) else {
            return Err(CheckpointError::OutputOccupied { path: final_dir, holds: vec!["the file system".into()] });
        };
        let beside = |end: &str| parent.join(format!(".{}.{end}", name.to_string_lossy()));
        let lock = FolderLock::on(beside("lock"), &final_dir)?;
        let temporary = beside("partial");
        if temporary.symlink_metadata().is_ok() {
            tracing::info!(folder = %temporary.display(), "removing what an interrupted run left");
            remove_leftover(&temporary)?;
        }
        fs_err::create_dir(&temporary)?;
        Ok(Self { final_dir, temporary, published: false, _lock: lock })
    }

    /// Path to write to.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Final place of the folder.
    #[must_use]
    pub fn final_dir(&self) -> &Path {
        &self.final_dir
    }

    /// Flushes every file to the disk and renames the folder to its final place.
    ///
    /// # Errors
    /// When the final place was occupied meanwhile, or the disk fails; nothing is left behind then.
    pub fn publish(mut self) -> Result<(), CheckpointError> {
        sync_tree(&self.temporary)?;
        refuse_link(&self.final_dir)?;
        refuse_occupied(&self.final_dir)?;
        if self.final_dir.exists() {
            fs_err::remove_dir(&self.final_dir)?;
        }
        fs_err::rename(&self.temporary, &self.final_dir)?;
        self.published = true;
        // The folder is there and whole; what may be lost, with the power, is its name.
        if let Some(Err(error)) = self.final_dir.parent().map(sync_dir) {
            tracing::warn!(folder = %self.final_dir.display(), %error, "written, but perhaps not yet on the disk");
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.published {
            return;
        }
        if let Err(error) = fs_err::remove_dir_all(&self.temporary) {
            tracing::warn!(%error, "cannot remove an unfinished folder");
        }
    }
}

/// Removes the folder of a killed process, or the link in its place and not what it leads to.
fn remove_leftover(path: &Path) -> Result<(), CheckpointError> {
    let is_folder = path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let removed = if is_folder { fs_err::remove_dir_all(path) } else { fs_err::remove_file(path) };
    Ok(removed?)
}

fn refuse_occupied(dir: &Path) -> Result<(), CheckpointError> {
    if !dir.exists() {
        return Ok(());
    }
    if !dir.is_dir() {
        return Err(CheckpointError::OutputIsFile { path: dir.to_owned() });
    }
    let mut holds = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        holds.push(entry?.file_name().to_string_lossy().into_owned());
    }
    holds.sort();
    match holds.is_empty() {
        true => Ok(()),
        false => Err(CheckpointError::OutputOccupied { path: dir.to_owned(), holds }),
    }
}

fn sync_tree(dir: &Path) -> Result<(), CheckpointError> {
    for entry in fs_err::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            fs_err::OpenOptions::new().write(true).open(&path)?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Makes file names durable. Only Unix can open a folder as a file.
fn sync_dir(dir: &Path) -> Result<(), CheckpointError> {
    if cfg!(unix) {
        fs_err::File::open(dir)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs_err::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_published_folder_holds_what_was_written_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("a/b/out");
        let staging = Staging::new(&out).unwrap();
        fs_err::create_dir(staging.path().join("inner")).unwrap();
        fs_err::write(staging.path().join("inner/file"), b"x").unwrap();
        assert!(!out.exists());
        staging.publish().unwrap();
        assert_eq!(names(&out), ["inner"]);
        assert_eq!(names(out.parent().unwrap()), ["out"]);
    }

    #[test]
    fn a_dropped_folder_leaves_no_trace() {
        let root = tempfile::tempdir().unwrap();
        let staging = Staging::new(&root.path().join("a/b/out")).unwrap();
        fs_err::write(staging.path().join("file"), b"x").unwrap();
        drop(staging);
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn a_folder_that_holds_something_is_refused_and_named() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs_err::create_dir(&out).unwrap();
        Staging::new(&out).unwrap().publish().unwrap(); // an empty folder is fine
        fs_err::write(out.join("metrics.jsonl"), b"x").unwrap();
        let message = Staging::new(&out).unwrap_err().to_string();
        assert!(message.contains("`metrics.jsonl`") && message.contains("hint: "), "{message}");
        assert!(matches!(Staging::new(&out.join("metrics.jsonl")), Err(CheckpointError::OutputIsFile { .. })));
        assert_eq!(names(root.path()), ["out"]);
    }

    #[test]
    fn a_live_writer_is_left_alone_and_a_leftover_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let first = Staging::new(&out).unwrap();
        assert!(matches!(Staging::new(&out), Err(CheckpointError::OutputBusy { .. })));
        drop(first);
        fs_err::create_dir(root.path().join(".out.partial")).unwrap();
        fs_err::write(root.path().join(".out.partial/junk"), b"x").unwrap();
        Staging::new(&out).unwrap().publish().unwrap();
        assert!(names(&out).is_empty());
        assert_eq!(names(root.path()), ["out"]);
    }
}
