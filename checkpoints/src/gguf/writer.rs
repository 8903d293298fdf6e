//! Streaming writer of GGUF files, version 3: header, metadata and tensor table first, then one
//! tensor at a time, each at the next multiple of the alignment.

use super::{GgufValue, parse, value::text};
use crate::CheckpointError;
use std::{
    io::Write,
    path::{Path, PathBuf},
};

/// Entry of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TableEntry {
    pub name: String,
    /// Dimensions, fastest first.
    pub dimensions: Vec<u64>,
    pub type_id: u32,
    pub num_bytes: usize,
}

/// Writes one GGUF file.
#[derive(Debug)]
pub(super) struct GgufWriter {
    path: PathBuf,
    file: fs_err::File,
    /// Names and lengths in bytes of the tensors still to come, last first.
    pending: Vec<(String, usize)>,
}

impl GgufWriter {
    /// Creates `path` with its metadata and a table of `tensors`, whose data must follow in that
    /// order.
    pub fn create(
        path: &Path,
        metadata: &[(String, GgufValue)],
        tensors: &[TableEntry],
    ) -> Result<Self, CheckpointError> {
        let mut header = parse::MAGIC.to_vec();
        header.extend(parse::NEWEST_VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            let (type_id, bytes) = value.encode();
            header.extend(text(key));
            header.extend(type_id.to_le_bytes());
            header.extend(bytes);
        }
        let (mut offset, mut pending) = (0u64, Vec::with_capacity(tensors.len()));
        for tensor in tensors {
            header.extend(text(&tensor.name));
            header.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|dimension| header.extend(dimension.to_le_bytes()));
            header.extend(tensor.type_id.to_le_bytes());
            header.extend(offset.to_le_bytes());
            offset += (tensor.num_bytes as u64).next_multiple_of(parse::DEFAULT_ALIGNMENT);
            pending.push((tensor.name.clone(), tensor.num_bytes));
        }
        header.resize(header.len().next_multiple_of(parse::DEFAULT_ALIGNMENT as usize), 0);
        pending.reverse();
        let mut file = fs_err::File::create(path)?;
        file.write_all(&header)?;
        Ok(Self { path: path.to_owned(), file, pending })
    }

    /// Appends the data of the next tensor, and zeros up to the alignment.
    ///
    /// # Errors
    /// When `name` is not the next one, the length is not that of the table, or the disk is full.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let (path, tensor) = (|| self.path.clone(), name.to_owned());
        match self.pending.pop() {
            Some((next, expected)) if next == name && expected == bytes.len() => {
                let padding = bytes.len().next_multiple_of(parse::DEFAULT_ALIGNMENT as usize) - bytes.len();
                self.file.write_all(bytes)?;
                Ok(self.file.write_all(&vec![0; padding])?)
            }
            Some((next, expected)) if next == name => {
                Err(CheckpointError::WrongLength { path: path(), tensor, found: bytes.len(), expected })
            }
            other => {
                let expected = other.map_or_else(|| "nothing more".to_owned(), |(next, _)| format!("`{next}`"));
                Err(CheckpointError::WrongOrder { path: path(), found: tensor, expected })
            }
        }
    }

    /// Flushes to the disk.
    ///
    /// # Errors
    /// When tensors of the table were not written, or the disk fails.
    pub fn finish(self) -> Result<(), CheckpointError> {
        if !self.pending.is_empty() {
            let missing = self.pending.into_iter().rev().map(|(name, _)| name).collect();
            return Err(CheckpointError::Unwritten { path: self.path, missing });
        }
        Ok(self.file.sync_all()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{MetaValue, parse::parse};

    #[test]
    fn a_written_file_is_read_back_with_its_data_aligned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let metadata = [
            ("a.size", GgufValue::U32(7)),
            ("a.eps", GgufValue::F32(1e-5)),
            ("a.flag", GgufValue::Bool(true)),
            ("a.names", GgufValue::Texts(vec!["x".into(), String::new()])),
            ("a.types", GgufValue::Integers(vec![-1, 3])),
        ]
        .map(|(key, value)| (key.to_owned(), value));
        let entry = |name: &str, dimensions: &[u64], num_bytes| TableEntry {
            name: name.to_owned(),
            dimensions: dimensions.to_vec(),
            type_id: 0,
            num_bytes,
        };
        let tensors = [entry("t", &[3, 1], 12), entry("u", &[1], 4)];
        let mut writer = GgufWriter::create(&path, &metadata, &tensors).unwrap();
        assert!(matches!(writer.write("t", &[0; 8]), Err(CheckpointError::WrongLength { found: 8, .. })));
        let mut writer = GgufWriter::create(&path, &metadata, &tensors).unwrap();
        assert!(matches!(writer.write("u", &[0; 4]), Err(CheckpointError::WrongOrder { .. })));
        let mut writer = GgufWriter::create(&path, &metadata, &tensors).unwrap();
        writer.write("t", &[1; 12]).unwrap();
        assert!(matches!(writer.finish(), Err(CheckpointError::Unwritten { missing, .. }) if missing == ["u"]));
        let mut writer = GgufWriter::create(&path, &metadata, &tensors).unwrap();
        writer.write("t", &[1; 12]).unwrap();
        writer.write("u", &[2; 4]).unwrap();
        writer.finish().unwrap();
        let bytes = fs_err::read(&path).unwrap();
        let header = parse(&bytes).unwrap();
        for (key, value) in &metadata {
            assert_eq!(header.metadata.get(key), Some(&value.read()), "{key}");
        }
        assert_eq!(header.metadata.get("a.eps"), Some(&MetaValue::Float(1e-5)));
        let [t, u] = &header.tensors[..] else { panic!("two tensors") };
        assert_eq!((&t.dimensions[..], t.start % 32, u.start - t.start), (&[3, 1][..], 0, 32));
        assert_eq!(&bytes[t.start as usize..][..12], [1; 12]);
        assert_eq!(&bytes[u.start as usize..][..4], [2; 4]);
        assert_eq!(bytes.len() as u64, u.start + 32);
    }
}
