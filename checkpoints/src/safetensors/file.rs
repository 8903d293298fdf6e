//! Reader of one `.safetensors` file of any name.
//!
//! Layout: 8 bytes little-endian header length, a JSON header (`name → dtype, shape, data_offsets`,
//! and `__metadata__`), the data. Reference: <https://github.com/huggingface/safetensors#format>.

use crate::{CheckpointError, Dtype, TensorInfo, TensorSource};
use retie_config::{DISGUISE_BYTES, Disguise};
use safetensors::{SafeTensorError, tensor::Metadata};
use std::{
    borrow::Cow,
    collections::BTreeMap,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Bytes of the header length at the start of a file.
const LENGTH_BYTES: u64 = 8;
/// Largest header that the reference implementation accepts.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Bytes read at a time by a comparison.
const COMPARED_BYTES: usize = 1 << 20;

/// A float tensor: type, shape and the offset of its bytes in the file.
#[derive(Debug)]
struct TensorEntry {
    info: TensorInfo,
    start: u64,
}

/// A safetensors file that is open for reading. Tensors whose elements are not F32, BF16 or F16 are
/// not listed; reading one is an error that names its type.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: Mutex<fs_err::File>,
    floats: BTreeMap<String, TensorEntry>,
    others: BTreeMap<String, String>,
    metadata: BTreeMap<String, String>,
}

impl SafetensorsFile {
    /// Reads the header of `path`.
    ///
    /// # Errors
    /// When the file cannot be read, is shorter or longer than its header says, or has a malformed
    /// header.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let mut file = fs_err::File::open(path)?;
        let found = file.metadata()?.len();
        let check = |expected: u64| match found < expected {
            true => Err(CheckpointError::Truncated { path: path.to_owned(), found, expected }),
            false => Ok(()),
        };
        let mut start = Vec::new();
        file.by_ref().take(DISGUISE_BYTES as u64).read_to_end(&mut start)?;
        file.seek(SeekFrom::Start(0))?;
        if let Some(found) = Disguise::of(&start) {
            return Err(CheckpointError::Disguised { path: path.to_owned(), found });
        }
        check(LENGTH_BYTES)?;
        let mut length = [0; LENGTH_BYTES as usize];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        let bad = |source| CheckpointError::BadHeader { path: path.to_owned(), source };
        if length > MAX_HEADER_BYTES {
            return Err(bad(SafeTensorError::HeaderTooLarge));
        }
        let data_start = LENGTH_BYTES + length;
        check(data_start)?;
        let mut header = vec![0; usize::try_from(length).map_err(|_| bad(SafeTensorError::HeaderTooLarge))?];
        file.read_exact(&mut header)?;
        let header: Metadata =
            serde_json::from_slice(&header).map_err(|e| bad(SafeTensorError::InvalidHeaderDeserialization(e)))?;
        // `Metadata::new` checks that offsets are contiguous and match dtype and shape.
        let ordered =
            header.offset_keys().into_iter().filter_map(|name| Some((name.clone(), header.info(&name)?.clone())));
        let header = Metadata::new(header.metadata().clone(), ordered.collect()).map_err(bad)?;
        let expected = data_start + header.data_len() as u64;
        check(expected)?;
        if found > expected {
            return Err(CheckpointError::TrailingBytes { path: path.to_owned(), found, expected });
        }
        let mut opened = Self {
            path: path.to_owned(),
            file: Mutex::new(file),
            floats: BTreeMap::new(),
            others: BTreeMap::new(),
            metadata: header.metadata().clone().unwrap_or_default().into_iter().collect(),
        };
        for (name, info) in header.tensors() {
            let dtype = match info.dtype {
                safetensors::Dtype::F32 => Dtype::F32,
                safetensors::Dtype::BF16 => Dtype::BF16,
                safetensors::Dtype::F16 => Dtype::F16,
                other => {
                    opened.others.insert(name, other.to_string());
                    continue;
                }
            };
            let start = data_start + info.data_offsets.0 as u64;
            opened.floats.insert(name, TensorEntry { info: TensorInfo { dtype, shape: info.shape.clone() }, start });
        }
        Ok(opened)
    }

    /// Path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Content of `__metadata__` in the header.
    #[must_use]
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Tensors that are not listed because their elements are not F32, BF16 or F16, with the name
    /// of the type.
    #[must_use]
    pub fn others(&self) -> &BTreeMap<String, String> {
        &self.others
    }
}

impl SafetensorsFile {
    fn entry(&self, name: &str) -> Result<&TensorEntry, CheckpointError> {
        self.floats.get(name).ok_or_else(|| {
            let (path, tensor) = (self.path.clone(), name.to_owned());
            match self.others.get(name) {
                Some(found) => CheckpointError::UnsupportedDtype { path, tensor, found: found.clone() },
                None => CheckpointError::NoTensor { path, tensor },
            }
        })
    }

    /// The file, positioned at the start of `entry`.
    fn at(&self, entry: &TensorEntry) -> Result<MutexGuard<'_, fs_err::File>, CheckpointError> {
        // A panic under the lock cannot leave the file in a bad state: every read seeks first.
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.seek(SeekFrom::Start(entry.start))?;
        Ok(file)
    }

    /// Compares a tensor with `bytes`; true if equal. The file is read in small pieces, so no
    /// second copy of the tensor is held.
    ///
    /// # Errors
    /// Every error of [`TensorSource::bytes`].
    pub fn equals(&self, name: &str, bytes: &[u8]) -> Result<bool, CheckpointError> {
        let entry = self.entry(name)?;
        if entry.info.num_bytes() != bytes.len() {
            return Ok(false);
        }
        let mut file = self.at(entry)?;
        let mut piece = vec![0; COMPARED_BYTES.min(bytes.len())];
        for expected in bytes.chunks(COMPARED_BYTES) {
            let piece = &mut piece[..expected.len()];
            file.read_exact(piece)?;
            if piece != expected {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl TensorSource for SafetensorsFile {
    fn names(&self) -> Vec<&str> {
        self.floats.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.floats.get(name).map(|e| &e.info)
    }

    fn path_of(&self, _name: &str) -> &Path {
        &self.path
    }

    fn unread(&self, name: &str) -> Option<&str> {
        self.others.get(name).map(String::as_str)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let entry = self.entry(name)?;
        let mut bytes = vec![0; entry.info.num_bytes()];
        self.at(entry)?.read_exact(&mut bytes)?;
        Ok(Cow::Owned(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SafetensorsWriter, narrow};

    fn write(path: &Path) {
        let entries = [
            ("b".to_owned(), TensorInfo { dtype: Dtype::BF16, shape: vec![2, 3] }),
            ("a".to_owned(), TensorInfo { dtype: Dtype::F32, shape: vec![2] }),
        ];
        let metadata = BTreeMap::from([("step".to_owned(), "7".to_owned())]);
        let mut writer = SafetensorsWriter::create(path, &entries, &metadata).unwrap();
        writer.write("b", &narrow(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], Dtype::BF16)).unwrap();
        writer.write("a", &narrow(&[0.1, -0.2], Dtype::F32)).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn what_is_written_is_read_back_and_the_reference_crate_agrees() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write(&path);
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.names(), ["a", "b"]);
        assert_eq!(file.info("b").unwrap().shape, [2, 3]);
        assert_eq!(file.read_f32("b").unwrap(), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(file.read_f32("a").unwrap(), [0.1, -0.2]);
        assert_eq!(file.metadata()["step"], "7");
        let bytes = fs_err::read(&path).unwrap();
        let reference = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(reference.tensor("a").unwrap().data(), &*file.bytes("a").unwrap());
        assert_eq!(reference.tensor("b").unwrap().data(), &*file.bytes("b").unwrap());
    }

    #[test]
    fn comparison_is_byte_for_byte_across_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let size = COMPARED_BYTES / 4 + 10;
        let mut bytes = narrow(&(0..size).map(|i| i as f32).collect::<Vec<_>>(), Dtype::F32);
        let entries = [("a".to_owned(), TensorInfo { dtype: Dtype::F32, shape: vec![size] })];
        let mut writer = SafetensorsWriter::create(&path, &entries, &BTreeMap::new()).unwrap();
        writer.write("a", &bytes).unwrap();
        writer.finish().unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert!(file.equals("a", &bytes).unwrap());
        assert!(!file.equals("a", &bytes[1..]).unwrap());
        *bytes.last_mut().unwrap() ^= 1;
        assert!(!file.equals("a", &bytes).unwrap());
        assert!(file.equals("b", &bytes).is_err());
    }

    #[test]
    fn a_cut_file_says_the_size_found_and_expected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        write(&path);
        let whole = fs_err::read(&path).unwrap();
        for keep in [whole.len() - 1, 40, 3, 0] {
            fs_err::write(&path, &whole[..keep]).unwrap();
            let error = SafetensorsFile::open(&path).unwrap_err();
            assert!(matches!(error, CheckpointError::Truncated { found, .. } if found == keep as u64), "{error}");
        }
        fs_err::write(&path, &whole[..whole.len() - 1]).unwrap();
        let message = SafetensorsFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("{} bytes, expected {}", whole.len() - 1, whole.len())), "{message}");
        fs_err::write(&path, [&whole[..], &[0]].concat()).unwrap();
        assert!(matches!(SafetensorsFile::open(&path), Err(CheckpointError::TrailingBytes { .. })));
    }

    #[test]
    fn a_malformed_header_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let with_header = |json: &str, data: usize| {
            let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
            bytes.extend(json.as_bytes());
            bytes.extend(vec![0; data]);
            fs_err::write(&path, bytes).unwrap();
            SafetensorsFile::open(&path)
        };
        assert!(matches!(with_header("not json", 0), Err(CheckpointError::BadHeader { .. })));
        let wrong_size = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#;
        assert!(matches!(with_header(wrong_size, 4), Err(CheckpointError::BadHeader { .. })));
        let hole = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}"#;
        assert!(matches!(with_header(hole, 8), Err(CheckpointError::BadHeader { .. })));
        fs_err::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(SafetensorsFile::open(&path), Err(CheckpointError::BadHeader { .. })));
    }

    #[test]
    fn what_stands_in_the_place_of_a_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let message = |bytes: &[u8]| {
            fs_err::write(&path, bytes).unwrap();
            SafetensorsFile::open(&path).unwrap_err().to_string()
        };
        let pointer = message(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n");
        assert!(
            pointer.contains("x.safetensors` is a Git LFS pointer") && pointer.contains("`git lfs pull`"),
            "{pointer}"
        );
        assert!(message(b"<!doctype html><title>Sign in</title>").contains("is a web page"));
        assert!(message(b"PK\x03\x04").contains("is a ZIP archive"));
    }

    #[test]
    fn an_integer_tensor_is_an_error_only_when_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let json = r#"{"ids":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}}"#;
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend([0; 12]);
        fs_err::write(&path, bytes).unwrap();
        let file = SafetensorsFile::open(&path).unwrap();
        assert_eq!(file.names(), ["w"]);
        assert_eq!(file.read_f32("w").unwrap(), [0.0]);
        let error = file.bytes("ids").unwrap_err();
        assert!(error.to_string().contains("`ids`") && error.to_string().contains("I64"), "{error}");
        assert!(matches!(file.read_f32("nothing"), Err(CheckpointError::NoTensor { .. })));
    }
}
