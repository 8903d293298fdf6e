//! Streaming writer of safetensors files: the header first, then one tensor at a time, so that
//! memory holds one tensor.

use super::{INDEX_FILE, SINGLE_FILE};
use crate::{CheckpointError, Dtype, TensorInfo, finite::first_not_finite};
use serde_json::{Map, Value, json};
use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
};

/// Default maximum shard size: 5 GB, the default of `transformers` for years.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Alignment of the data in bytes, so that a memory map of the file is aligned.
const ALIGNMENT: usize = 8;

/// Writes one safetensors file.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    file: fs_err::File,
    /// Names and lengths in bytes of the tensors still to come, last first.
    pending: Vec<(String, usize)>,
}

impl SafetensorsWriter {
    /// Creates `path` with the header for `tensors`, whose data must follow in that order through
    /// [`SafetensorsWriter::write`].
    ///
    /// # Errors
    /// When the file cannot be written or a name occurs twice.
    pub fn create(
        path: &Path,
        tensors: &[(String, TensorInfo)],
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, CheckpointError> {
        let mut header = Map::new();
        if !metadata.is_empty() {
            header.insert("__metadata__".into(), json!(metadata));
        }
        let mut offset = 0;
        let mut pending = Vec::with_capacity(tensors.len());
        for (name, info) in tensors {
            let end = offset + info.num_bytes();
            let entry = json!({"dtype": info.dtype.name(), "shape": info.shape, "data_offsets": [offset, end]});
            if name == "__metadata__" || header.insert(name.clone(), entry).is_some() {
                return Err(CheckpointError::DuplicateTensor { path: path.to_owned(), tensor: name.clone() });
            }
            pending.push((name.clone(), info.num_bytes()));
            offset = end;
        }
        pending.reverse();
        let mut json = Value::Object(header).to_string().into_bytes();
        json.resize(json.len().next_multiple_of(ALIGNMENT), b' ');
        let mut file = fs_err::File::create(path)?;
        file.write_all(&(json.len() as u64).to_le_bytes())?;
        file.write_all(&json)?;
        Ok(Self { path: path.to_owned(), file, pending })
    }

    /// Appends the little-endian bytes of the next tensor.
    ///
    /// # Errors
    /// When `name` is not the next one, the length is not that of the header, or the disk is full.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        match self.pending.last() {
            Some((expected, length)) if expected == name => {
                if bytes.len() != *length {
                    return Err(CheckpointError::WrongLength {
                        path: self.path.clone(),
                        tensor: name.to_owned(),
                        found: bytes.len(),
                        expected: *length,
                    });
                }
            }
            other => {
                return Err(CheckpointError::WrongOrder {
                    path: self.path.clone(),
                    found: name.to_owned(),
                    expected: other.map_or_else(|| "nothing more".to_owned(), |(name, _)| format!("`{name}`")),
                });
            }
        }
        self.file.write_all(bytes)?;
        self.pending.pop();
        Ok(())
    }

    /// Flushes to the disk.
    ///
    /// # Errors
    /// When tensors of the header were not written, or the disk fails.
    pub fn finish(self) -> Result<(), CheckpointError> {
        if !self.pending.is_empty() {
            let missing = self.pending.into_iter().rev().map(|(name, _)| name).collect();
            return Err(CheckpointError::Unwritten { path: self.path, missing });
        }
        Ok(self.file.sync_all()?)
    }
}

/// Writes the weights of a Hugging Face folder: one file, or shards and their index.
#[derive(Debug)]
pub struct FolderWriter {
    dir: PathBuf,
    /// Shards still to come, last first: file name and tensors.
    pending: Vec<(String, Vec<(String, TensorInfo)>)>,
    current: Option<SafetensorsWriter>,
    index: Option<Value>,
    dtypes: BTreeMap<String, Dtype>,
}

impl FolderWriter {
    /// Plans the files for `tensors`, whose data must follow in that order through
    /// [`FolderWriter::write`]. A shard is closed when the next tensor would take it over
    /// `max_shard_bytes` (usually [`DEFAULT_MAX_SHARD_BYTES`]).
    ///
    /// # Errors
    /// Every error of [`SafetensorsWriter::create`].
    pub fn create(dir: &Path, tensors: &[(String, TensorInfo)], max_shard_bytes: u64) -> Result<Self, CheckpointError> {
        let mut shards: Vec<Vec<(String, TensorInfo)>> = vec![Vec::new()];
        let mut filled = 0;
        for (name, info) in tensors {
            let bytes = info.num_bytes() as u64;
            if filled > 0 && filled + bytes > max_shard_bytes {
                shards.push(Vec::new());
                filled = 0;
            }
            filled += bytes;
            if let Some(shard) = shards.last_mut() {
                shard.push((name.clone(), info.clone()));
            }
        }
        let count = shards.len();
        let file_name = |i: usize| match count {
            1 => SINGLE_FILE.to_owned(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let mut pending: Vec<_> = shards.into_iter().enumerate().map(|(i, shard)| (file_name(i), shard)).collect();
        let index = (count > 1).then(|| {
            let total_size: usize = tensors.iter().map(|(_, info)| info.num_bytes()).sum();
            let weight_map: BTreeMap<&String, &String> =
                pending.iter().flat_map(|(file, shard)| shard.iter().map(move |(name, _)| (name, file))).collect();
            json!({"metadata": {"total_size": total_size}, "weight_map": weight_map})
        });
        pending.reverse();
        let dtypes = tensors.iter().map(|(name, info)| (name.clone(), info.dtype)).collect();
        let mut writer = Self { dir: dir.to_owned(), pending, current: None, index, dtypes };
        writer.open_next()?;
        Ok(writer)
    }

    /// Closes the current shard, if any, and opens the next.
    fn open_next(&mut self) -> Result<(), CheckpointError> {
        if let Some(current) = self.current.take() {
            current.finish()?;
        }
        if let Some((file, tensors)) = self.pending.pop() {
            // `transformers` refuses a file without `format`.
            let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
            self.current = Some(SafetensorsWriter::create(&self.dir.join(file), &tensors, &metadata)?);
        }
        Ok(())
    }

    /// Appends the little-endian bytes of the next tensor.
    ///
    /// # Errors
    /// Every error of [`SafetensorsWriter::write`], and a value that is not finite, as one is that
    /// is too large for the type it was rounded to.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let dtype = self.dtypes.get(name).copied();
        if let Some((dtype, (index, value))) = dtype.and_then(|dtype| Some((dtype, first_not_finite(bytes, dtype)?))) {
            let (path, tensor) = (self.dir.clone(), name.to_owned());
            return Err(CheckpointError::Overflow { path, tensor, dtype, index, value });
        }
        if self.current.as_ref().is_some_and(|c| c.pending.is_empty()) && !self.pending.is_empty() {
            self.open_next()?;
        }
        match &mut self.current {
            Some(current) => current.write(name, bytes),
            None => Err(CheckpointError::WrongOrder {
                path: self.dir.clone(),
                found: name.to_owned(),
                expected: "nothing more".to_owned(),
            }),
        }
    }

    /// Closes the last shard and writes the index if there is more than one.
    ///
    /// # Errors
    /// When tensors were not written, or the disk fails.
    pub fn finish(mut self) -> Result<(), CheckpointError> {
        let unwritten: Vec<String> =
            self.pending.iter().rev().flat_map(|(_, shard)| shard.iter().map(|(name, _)| name.clone())).collect();
        if let Some(mut current) = self.current.take() {
            let later = unwritten.into_iter().rev().map(|name| (name, 0));
            current.pending = later.chain(std::mem::take(&mut current.pending)).collect();
            current.finish()?;
        }
        if let Some(index) = self.index {
            let path = self.dir.join(INDEX_FILE);
            let text = serde_json::to_string_pretty(&index)
                .map_err(|source| CheckpointError::BadJson { path: path.clone(), source })?;
            let mut file = fs_err::File::create(&path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::narrow;

    fn entries() -> Vec<(String, TensorInfo)> {
        ["a", "b", "c"].map(|n| (n.to_owned(), TensorInfo { dtype: Dtype::BF16, shape: vec![2] })).to_vec()
    }

    #[test]
    fn order_length_and_completeness_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut writer = SafetensorsWriter::create(&path, &entries(), &BTreeMap::new()).unwrap();
        let error = writer.write("b", &[0; 4]).unwrap_err().to_string();
        assert!(error.contains("`b`") && error.contains("`a`"), "{error}");
        assert!(matches!(writer.write("a", &[0; 3]), Err(CheckpointError::WrongLength { found: 3, expected: 4, .. })));
        writer.write("a", &[0; 4]).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(matches!(&error, CheckpointError::Unwritten { missing, .. } if *missing == ["b", "c"]), "{error}");
        let twice = [entries(), entries()].concat();
        let error = SafetensorsWriter::create(&path, &twice, &BTreeMap::new()).unwrap_err();
        assert!(matches!(error, CheckpointError::DuplicateTensor { .. }));
    }

    #[test]
    fn a_folder_names_what_was_not_written_in_later_shards_too() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = FolderWriter::create(dir.path(), &entries(), 4).unwrap();
        writer.write("a", &[0; 4]).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(matches!(&error, CheckpointError::Unwritten { missing, .. } if *missing == ["b", "c"]), "{error}");
    }

    #[test]
    fn a_value_that_overflows_is_refused_by_the_name_of_its_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let entries = [("a".to_owned(), TensorInfo { dtype: Dtype::F16, shape: vec![2] })];
        let mut writer = FolderWriter::create(dir.path(), &entries, 100).unwrap();
        let error = writer.write("a", &narrow(&[65504.0, 1e6], Dtype::F16)).unwrap_err().to_string();
        assert!(error.starts_with("tensor `a` cannot be written to `"), "{error}");
        assert!(error.contains("as F16: element 1 would be `inf`, too large"), "{error}");
        writer.write("a", &narrow(&[65504.0, -1.0], Dtype::F16)).unwrap();
        writer.finish().unwrap();
    }

    #[test]
    fn data_starts_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut writer = SafetensorsWriter::create(&path, &entries(), &BTreeMap::new()).unwrap();
        for (name, _) in entries() {
            writer.write(&name, &[1; 4]).unwrap();
        }
        writer.finish().unwrap();
        let bytes = fs_err::read(&path).unwrap();
        assert_eq!((bytes.len() - 12) % ALIGNMENT, 0);
    }
}
