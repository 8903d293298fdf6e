//! The folder that a target's files are in.

use std::{
    io,
    path::{Path, PathBuf},
};
use tempfile::TempDir;

/// A folder `…/outside/inside`; a target gets `inside`, and `outside` has to stay as it is.
pub struct Workdir {
    outside: TempDir,
    inside: PathBuf,
}

impl Workdir {
    /// An empty one, in the system's folder for temporary files.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new() -> io::Result<Self> {
        let outside = TempDir::with_prefix("retie-fuzz-")?;
        let inside = outside.path().join("inside");
        fs_err::create_dir(&inside)?;
        Ok(Self { outside, inside })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.inside
    }

    /// Writes a file into it.
    ///
    /// # Panics
    /// The disk fails.
    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.inside.join(name);
        if let Err(error) = fs_err::write(&path, bytes) {
            panic!("{error}");
        }
        path
    }

    /// Checks that nothing was written beside the folder, and that it holds nothing but `names`.
    ///
    /// # Panics
    /// Something else is there.
    pub fn check(&self, names: &[&str]) {
        let list = |folder: &Path| -> Vec<String> {
            let entries = fs_err::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        assert_eq!(list(self.outside.path()), ["inside"], "written outside of the folder");
        let unexpected: Vec<String> =
            list(&self.inside).into_iter().filter(|name| !names.contains(&name.as_str())).collect();
        assert!(unexpected.is_empty(), "written into the folder: {unexpected:?}");
    }
}
