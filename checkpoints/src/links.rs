//! Links among the files of a model: a folder that came from elsewhere may not make another file of
//! this machine part of the model, let alone of what is written from it.

use crate::CheckpointError;
use std::path::{Path, PathBuf};

/// Refuses a link from the folder `dir` to a file outside of it. In a cache of the hub, where a
/// snapshot consists of links, they lead to the `blobs` of the same repository.
pub(crate) fn check_inside(dir: &Path, name: &str) -> Result<(), CheckpointError> {
    let path = dir.join(name);
    let Ok(target) = path.read_link() else { return Ok(()) }; // a file, or nothing
    let (folder, file) = (fs_err::canonicalize(dir)?, fs_err::canonicalize(&path)?);
    if file.starts_with(&folder) || blobs(&folder).is_some_and(|blobs| file.starts_with(blobs)) {
        return Ok(());
    }
    Err(CheckpointError::LinkLeadsOut { path, target })
}

/// `REPOSITORY/blobs` for a folder `REPOSITORY/snapshots/COMMIT`.
fn blobs(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.parent()?;
    let blobs = snapshots.parent()?.join("blobs");
    (snapshots.file_name()? == "snapshots").then(|| fs_err::canonicalize(blobs).ok()).flatten()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use fs_err::os::unix::fs::symlink;

    #[test]
    fn links_lead_to_the_folder_or_to_the_blobs_of_its_repository() {
        let root = tempfile::tempdir().unwrap();
        let snapshot = root.path().join("models--a--b/snapshots/c0");
        fs_err::create_dir_all(&snapshot).unwrap();
        fs_err::create_dir(root.path().join("models--a--b/blobs")).unwrap();
        fs_err::write(root.path().join("models--a--b/blobs/e1"), "x").unwrap();
        fs_err::write(root.path().join("secret"), "x").unwrap();
        fs_err::write(snapshot.join("own"), "x").unwrap();
        for (name, target) in
            [("blob", "../../blobs/e1"), ("other", "own"), ("out", "../../../secret"), ("far", "/proc/self/environ")]
        {
            symlink(target, snapshot.join(name)).unwrap();
        }
        for name in ["own", "blob", "other", "absent"] {
            check_inside(&snapshot, name).unwrap();
        }
        for name in ["out", "far"] {
            let message = check_inside(&snapshot, name).unwrap_err().to_string();
            assert!(message.contains(&format!("{name}` is a link to `")) && message.contains("hint: "), "{message}");
        }
        let plain = root.path().join("plain");
        fs_err::create_dir(&plain).unwrap();
        symlink("../models--a--b/blobs/e1", plain.join("blob")).unwrap();
        assert!(check_inside(&plain, "blob").is_err(), "only a snapshot has blobs");
    }
}
