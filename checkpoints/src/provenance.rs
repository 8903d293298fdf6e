//! Provenance of a folder, `retie.json`: the program that made it, its source, date and command.
//!
//! A parent file of up to [`WHOLE_FILE_BYTES`] is identified by the SHA-256 of its bytes, as
//! `sha256sum` prints it. Hashing a larger one would cost more than reading it once, so only its
//! first and last [`EDGE_BYTES`] are hashed (the first hold the header of a safetensors or GGUF
//! file), and the entry says so.

use crate::CheckpointError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    io::{Read, Seek, SeekFrom, Write},
    path::Path,
};

/// Name of the provenance file.
pub const PROVENANCE_FILE: &str = "retie.json";
/// Files up to this size are hashed whole.
pub const WHOLE_FILE_BYTES: u64 = 4 << 30;
/// Bytes hashed at each end of a larger file.
pub const EDGE_BYTES: u64 = 16 << 20;

/// Provenance of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Name of the program, `retie`.
    pub tool: String,
    /// Its version.
    pub version: String,
    /// Its git commit, if the build knew it (environment variable `RETIE_COMMIT`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// Model that it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<Parent>,
    /// Date in RFC 3339, UTC.
    pub date: String,
}

/// The model that a folder was made from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// Path or hub id, as the user gave it.
    pub model: String,
    /// Its configuration and weights.
    pub files: Vec<ParentFile>,
}

/// Identity of one file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentFile {
    /// Name without the folder.
    pub name: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Hexadecimal SHA-256 of `hashed`.
    pub sha256: String,
    /// Bytes that the hash covers.
    pub hashed: Hashed,
}

/// Bytes of a file that its hash covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hashed {
    /// All of them.
    WholeFile,
    /// The first and the last 16 MiB.
    Edges,
}

impl Provenance {
    /// Provenance of a folder that this process makes now.
    #[must_use]
    pub fn now(command: Vec<String>, parent: Option<Parent>) -> Self {
        Self {
            tool: "retie".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: option_env!("RETIE_COMMIT").map(str::to_owned),
            command,
            parent,
            date: rfc3339(std::time::SystemTime::now()),
        }
    }

    /// Writes [`PROVENANCE_FILE`] into `dir`.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn save(&self, dir: &Path) -> Result<(), CheckpointError> {
        let path = dir.join(PROVENANCE_FILE);
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|source| CheckpointError::BadJson { path: path.clone(), source })?;
        text.push('\n');
        // Whole or not at all: a run's folder is not staged.
        let temporary = dir.join(format!("{PROVENANCE_FILE}.partial"));
        fs_err::File::create(&temporary)?.write_all(text.as_bytes())?;
        Ok(fs_err::rename(temporary, path)?)
    }

    /// Reads [`PROVENANCE_FILE`] of `dir`, or `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read or is malformed.
    pub fn load(dir: &Path) -> Result<Option<Self>, CheckpointError> {
        let path = dir.join(PROVENANCE_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs_err::read(&path)?;
        serde_json::from_slice(&text).map(Some).map_err(|source| CheckpointError::BadJson { path, source })
    }
}

impl Parent {
    /// Identifies `model` by its files (configuration and weights).
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn from_files<'a>(model: &str, files: impl IntoIterator<Item = &'a Path>) -> Result<Self, CheckpointError> {
        let files = files.into_iter().map(|path| ParentFile::from_file(path, WHOLE_FILE_BYTES, EDGE_BYTES));
        Ok(Self { model: model.to_owned(), files: files.collect::<Result<_, _>>()? })
    }
}

impl ParentFile {
    fn from_file(path: &Path, whole_file_bytes: u64, edge_bytes: u64) -> Result<Self, CheckpointError> {
        let mut file = fs_err::File::open(path)?;
        let bytes = file.metadata()?.len();
        let mut sha = Sha256::new();
        let hashed = if bytes <= whole_file_bytes.max(2 * edge_bytes) {
            absorb(&mut sha, file)?;
            Hashed::WholeFile
        } else {
            absorb(&mut sha, (&mut file).take(edge_bytes))?;
            file.seek(SeekFrom::Start(bytes - edge_bytes))?;
            absorb(&mut sha, file)?;
            Hashed::Edges
        };
        let sha256 = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        Ok(Self { name, bytes, sha256, hashed })
    }
}

fn absorb(sha: &mut Sha256, mut input: impl Read) -> Result<(), CheckpointError> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(()),
            n => sha.update(&buffer[..n]),
        }
    }
}

/// Time as `2024-02-29T12:00:00Z`: the proleptic Gregorian calendar, days counted from a 1 March so
/// that leap days come last.
fn rfc3339(time: std::time::SystemTime) -> String {
    const DAYS_PER_ERA: u64 = 146_097; // 400 years
    const DAYS_TO_EPOCH: u64 = 719_468; // from 0000-03-01 to 1970-01-01
    let seconds = time.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (days, second) = (seconds / 86_400 + DAYS_TO_EPOCH, seconds % 86_400);
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    /// Goldens: `date -u -d @SECONDS +%FT%TZ`.
    #[test]
    fn dates_are_those_of_coreutils() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_small_file_has_the_hash_of_sha256sum_and_a_large_one_that_of_its_edges() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs_err::write(&path, "abc").unwrap();
        let whole = ParentFile::from_file(&path, 3, 1).unwrap();
        assert_eq!(whole.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"); // FIPS 180-2, B.1
        assert_eq!((whole.hashed, whole.bytes), (Hashed::WholeFile, 3));
        fs_err::write(&path, "a....bc").unwrap();
        let edges = |content| {
            fs_err::write(&path, content).unwrap();
            ParentFile::from_file(&path, 3, 1).unwrap()
        };
        assert_eq!(edges("a....c").sha256, edges("a.,,.c").sha256);
        assert_ne!(edges("a....c").sha256, edges("a....d").sha256);
        assert_eq!(edges("a....c").hashed, Hashed::Edges);
    }

    #[test]
    fn a_record_survives_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Provenance::load(dir.path()).unwrap(), None);
        let config = dir.path().join("config.json");
        fs_err::write(&config, "{}").unwrap();
        let parent = Parent::from_files("some/model", [config.as_path()]).unwrap();
        let record = Provenance::now(vec!["retie".into(), "convert".into()], Some(parent));
        record.save(dir.path()).unwrap();
        assert_eq!(Provenance::load(dir.path()).unwrap(), Some(record));
    }
}
