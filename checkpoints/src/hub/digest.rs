//! Hashes by which the hub names the content of files: the SHA-256 of a file in large storage (Git
//! LFS, Xet), and of a small one the id of its git object, the SHA-1 of `blob SIZE\0` and the
//! file.

use sha2::Digest as _;
use std::{fmt, io, io::Read, path::Path};

/// Bytes that are hashed at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// A hash, in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    Sha256(String),
    GitBlob(String),
}

impl Digest {
    /// The SHA-256 that `oid` is, if it is one.
    pub fn sha256(oid: &str) -> Option<Self> {
        is_hex(oid, 64).then(|| Self::Sha256(oid.to_ascii_lowercase()))
    }

    /// The id of a git object that `oid` is, if it is one.
    pub fn git_blob(oid: &str) -> Option<Self> {
        is_hex(oid, 40).then(|| Self::GitBlob(oid.to_ascii_lowercase()))
    }

    /// The hash of the same kind of the file `path`.
    pub fn of_file(&self, path: &Path) -> io::Result<Self> {
        let mut file = fs_err::File::open(path)?;
        let size = file.metadata()?.len();
        let mut pieces = |see: &mut dyn FnMut(&[u8])| -> io::Result<()> {
            let mut buffer = vec![0; BUFFER_BYTES];
            loop {
                match file.read(&mut buffer)? {
                    0 => return Ok(()),
                    read => see(&buffer[..read]),
                }
            }
        };
        Ok(match self {
            Self::Sha256(_) => {
                let mut hasher = sha2::Sha256::new();
                pieces(&mut |bytes| hasher.update(bytes))?;
                Self::Sha256(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
            }
            Self::GitBlob(_) => {
                let mut hasher = sha1_smol::Sha1::from(format!("blob {size}\0"));
                pieces(&mut |bytes| hasher.update(bytes))?;
                Self::GitBlob(hasher.digest().to_string())
            }
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(hex) => write!(f, "SHA-256 {hex}"),
            Self::GitBlob(hex) => write!(f, "git object {hex}"),
        }
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_sha256sum_and_git_hash_object() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs_err::write(&path, "hello\n").unwrap();
        // `sha256sum file`, `git hash-object file`
        for expected in [
            Digest::sha256("5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03").unwrap(),
            Digest::git_blob("ce013625030ba8dba906f756967f9e9ca394464a").unwrap(),
        ] {
            assert_eq!(expected.of_file(&path).unwrap(), expected);
        }
        assert_eq!((Digest::sha256("x"), Digest::git_blob("")), (None, None));
    }
}
