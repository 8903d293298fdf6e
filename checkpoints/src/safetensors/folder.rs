//! Weights of a Hugging Face folder: `model.safetensors`, or `model.safetensors.index.json` and its
//! shards.
//!
//! If both exist, the single file wins, as in `transformers`.

use crate::{CheckpointError, SafetensorsFile, TensorInfo, TensorSource, links::check_inside};
use retie_config::Disguise;
use serde::Deserialize;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

/// Name of the weights in a single file.
pub const SINGLE_FILE: &str = "model.safetensors";
/// Name of the index of shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// Extensions of pickled weights.
const PICKLE_EXTENSIONS: [&str; 5] = ["bin", "pt", "pth", "ckpt", "pkl"];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The float tensors of a folder, over one or more files.
#[derive(Debug)]
pub struct SafetensorsFolder {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    /// Index into `files` by tensor name.
    owners: BTreeMap<String, usize>,
}

impl SafetensorsFolder {
    /// Opens the weights of `dir` and reads their headers.
    ///
    /// # Errors
    /// When there are none, only pickles, a shard is missing (all are named), a file is malformed
    /// (see [`SafetensorsFile::open`]), or the index names a tensor that its shard lacks.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let (single, index) = (dir.join(SINGLE_FILE), dir.join(INDEX_FILE));
        if single.is_file() {
            if index.is_file() {
                tracing::warn!(
                    path = %dir.display(),
                    "`{SINGLE_FILE}` is read, `{INDEX_FILE}` and its shards are not, as in transformers"
                );
            }
            let file = SafetensorsFile::open(&single)?;
            let owners = file.names().into_iter().map(|name| (name.to_owned(), 0)).collect();
            return Ok(Self { path: dir.to_owned(), files: vec![file], owners });
        }
        if index.is_file() {
            return Self::open_sharded(dir, &index);
        }
        [single, index].iter().try_for_each(|path| check_is_file(path))?;
        Err(no_weights(dir)?)
    }

    fn open_sharded(dir: &Path, index_path: &Path) -> Result<Self, CheckpointError> {
        let text = fs_err::read(index_path)?;
        if let Some(found) = Disguise::of(&text) {
            return Err(CheckpointError::Disguised { path: index_path.to_owned(), found });
        }
        let Index { weight_map } = serde_json::from_slice(&text)
            .map_err(|source| CheckpointError::BadJson { path: index_path.to_owned(), source })?;
        let shards: BTreeSet<&String> = weight_map.values().collect();
        if let Some(shard) = shards.iter().find(|s| Path::new(s).file_name().is_none_or(|f| f != s.as_str())) {
            return Err(CheckpointError::BadShardName { index: index_path.to_owned(), shard: (*shard).clone() });
        }
        let missing: Vec<String> = shards.iter().filter(|s| !dir.join(s).is_file()).map(|s| (*s).clone()).collect();
        if !missing.is_empty() {
            return Err(CheckpointError::MissingShards { index: index_path.to_owned(), missing });
        }
        shards.iter().try_for_each(|shard| check_inside(dir, shard))?;
        let files = shards.iter().map(|s| SafetensorsFile::open(&dir.join(s))).collect::<Result<Vec<_>, _>>()?;
        let positions: BTreeMap<&String, usize> = shards.iter().enumerate().map(|(i, s)| (*s, i)).collect();
        let mut owners = BTreeMap::new();
        let mut lacking = Vec::new();
        for (name, shard) in &weight_map {
            let owner = positions[shard];
            if files[owner].info(name).is_none() && !files[owner].others().contains_key(name) {
                lacking.push((name.clone(), shard.clone()));
            }
            owners.insert(name.clone(), owner);
        }
        if !lacking.is_empty() {
            return Err(CheckpointError::IndexMismatch { index: index_path.to_owned(), lacking });
        }
        for file in &files {
            for name in file.names().into_iter().filter(|name| !owners.contains_key(*name)) {
                tracing::warn!(tensor = name, file = %file.path().display(), "not in the index, ignored");
            }
        }
        Ok(Self { path: dir.to_owned(), files, owners })
    }

    /// Path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the weights.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(SafetensorsFile::path)
    }

    /// Compares a tensor with `bytes`; true if equal. See [`SafetensorsFile::equals`].
    ///
    /// # Errors
    /// Every error of [`TensorSource::bytes`].
    pub fn equals(&self, name: &str, bytes: &[u8]) -> Result<bool, CheckpointError> {
        self.file_of(name)?.equals(name, bytes)
    }

    /// The file that holds `name`.
    fn file_of(&self, name: &str) -> Result<&SafetensorsFile, CheckpointError> {
        match (self.owner(name), self.files.as_slice()) {
            (Some(file), _) => Ok(file),
            (None, [only]) => Ok(only), // knows the tensors that are not floats
            _ => Err(CheckpointError::NoTensor { path: self.path.clone(), tensor: name.to_owned() }),
        }
    }

    fn owner(&self, name: &str) -> Option<&SafetensorsFile> {
        self.owners.get(name).map(|i| &self.files[*i])
    }
}

/// Refuses what has the name of a file and is none: a link to nothing, a folder, a pipe.
pub(crate) fn check_is_file(path: &Path) -> Result<(), CheckpointError> {
    let Ok(metadata) = fs_err::symlink_metadata(path) else { return Ok(()) };
    let problem = match path.read_link() {
        Ok(target) if !path.exists() => format!("is a link to `{}`, which is not there", target.display()),
        _ if metadata.is_dir() || path.is_dir() => "is a folder".to_owned(),
        _ if path.is_file() => return Ok(()),
        _ => "is a pipe or a device".to_owned(),
    };
    Err(CheckpointError::NotAFile { path: path.to_owned(), problem })
}

fn no_weights(dir: &Path) -> Result<CheckpointError, CheckpointError> {
    let mut names = Vec::new();
    for entry in fs_err::read_dir(dir)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(unusable_weights(dir.to_owned(), names))
}

/// Files of a PEFT adapter.
pub(crate) const ADAPTER_FILES: [&str; 2] = ["adapter_config.json", "adapter_model.safetensors"];

/// The model that the adapter in `path` was trained on, if it names one.
pub(crate) fn adapter_base(path: &Path) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(&fs_err::read(path.join(ADAPTER_FILES[0])).ok()?).ok()?;
    config.get("base_model_name_or_path")?.as_str().filter(|base| !base.is_empty()).map(str::to_owned)
}

/// True for a name of `transformers`' for a shard, `model-00001-of-00003.safetensors`.
fn is_part(name: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let stem = name.strip_suffix(".safetensors").unwrap_or_default();
    let Some((rest, total)) = stem.rsplit_once("-of-") else { return false };
    is_number(total) && rest.rsplit_once('-').is_some_and(|(_, number)| is_number(number))
}

/// Error for a folder or repository `path` whose files `names` hold no readable weights.
pub(crate) fn unusable_weights(path: PathBuf, mut names: Vec<String>) -> CheckpointError {
    names.sort();
    let with_extension = |accepted: &[&str]| -> Vec<String> {
        let extension = |n: &String| Path::new(n).extension().map(|e| e.to_string_lossy().to_lowercase());
        names.iter().filter(|n| extension(n).is_some_and(|e| accepted.contains(&e.as_str()))).cloned().collect()
    };
    let (pickles, found) = (with_extension(&PICKLE_EXTENSIONS), with_extension(&["safetensors", "gguf"]));
    if names.iter().any(|name| ADAPTER_FILES.contains(&name.as_str())) {
        return CheckpointError::Adapter { base: adapter_base(&path), path };
    }
    let parts: Vec<String> = found.iter().filter(|name| is_part(name)).cloned().collect();
    if !parts.is_empty() {
        return CheckpointError::PartsWithoutIndex { path, parts };
    }
    if found.is_empty() && !pickles.is_empty() {
        CheckpointError::OnlyPickles { path, pickles }
    } else {
        CheckpointError::NoWeights { path, found }
    }
}

impl TensorSource for SafetensorsFolder {
    fn names(&self) -> Vec<&str> {
        self.owners.iter().filter(|(name, i)| self.files[**i].info(name).is_some()).map(|(n, _)| n.as_str()).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.owner(name)?.info(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.owner(name).map_or(&self.path, SafetensorsFile::path)
    }

    fn unread(&self, name: &str) -> Option<&str> {
        self.file_of(name).ok()?.unread(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.file_of(name)?.bytes(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dtype, FolderWriter, narrow};

    fn entries() -> Vec<(String, TensorInfo)> {
        (0..4).map(|i| (format!("t{i}"), TensorInfo { dtype: Dtype::F32, shape: vec![2, 2] })).collect()
    }

    fn write(dir: &Path, max_shard_bytes: u64) {
        let mut writer = FolderWriter::create(dir, &entries(), max_shard_bytes).unwrap();
        for (i, (name, _)) in entries().iter().enumerate() {
            writer.write(name, &narrow(&[i as f32; 4], Dtype::F32)).unwrap();
        }
        writer.finish().unwrap();
    }

    #[test]
    fn single_and_sharded_folders_read_the_same() {
        for (max_shard_bytes, num_files) in [(1000, 1), (32, 2), (40, 2), (16, 4), (1, 4)] {
            let dir = tempfile::tempdir().unwrap();
            write(dir.path(), max_shard_bytes);
            let folder = SafetensorsFolder::open(dir.path()).unwrap();
            assert_eq!(folder.files().count(), num_files);
            assert_eq!(folder.names(), ["t0", "t1", "t2", "t3"]);
            for i in 0..4 {
                assert_eq!(folder.read_f32(&format!("t{i}")).unwrap(), [i as f32; 4]);
            }
            assert!(matches!(folder.bytes("t9"), Err(CheckpointError::NoTensor { .. })));
        }
    }

    #[test]
    fn the_index_is_that_of_hugging_face() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 32);
        let index: serde_json::Value =
            serde_json::from_slice(&fs_err::read(dir.path().join(INDEX_FILE)).unwrap()).unwrap();
        assert_eq!(index["metadata"]["total_size"], 64);
        assert_eq!(index["weight_map"]["t0"], "model-00001-of-00002.safetensors");
        assert_eq!(index["weight_map"]["t3"], "model-00002-of-00002.safetensors");
    }

    #[test]
    fn all_missing_shards_and_the_index_are_named() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 16);
        for i in [2, 4] {
            fs_err::remove_file(dir.path().join(format!("model-0000{i}-of-00004.safetensors"))).unwrap();
        }
        let message = SafetensorsFolder::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(INDEX_FILE), "{message}");
        for i in [2, 4] {
            assert!(message.contains(&format!("`model-0000{i}-of-00004.safetensors`")), "{message}");
        }
    }

    #[test]
    fn an_index_that_names_a_tensor_its_shard_lacks_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), 32);
        let path = dir.path().join(INDEX_FILE);
        let mut index: serde_json::Value = serde_json::from_slice(&fs_err::read(&path).unwrap()).unwrap();
        index["weight_map"]["t8"] = "model-00001-of-00002.safetensors".into();
        fs_err::write(&path, index.to_string()).unwrap();
        let message = SafetensorsFolder::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("`t8` in `model-00001-of-00002.safetensors`"), "{message}");
        index["weight_map"]["t8"] = "../elsewhere.safetensors".into();
        fs_err::write(&path, index.to_string()).unwrap();
        assert!(matches!(SafetensorsFolder::open(dir.path()), Err(CheckpointError::BadShardName { .. })));
        fs_err::write(&path, "{").unwrap();
        assert!(matches!(SafetensorsFolder::open(dir.path()), Err(CheckpointError::BadJson { .. })));
    }

    #[test]
    fn an_adapter_and_a_part_of_a_split_model_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let message = || SafetensorsFolder::open(dir.path()).unwrap_err().to_string();
        fs_err::write(dir.path().join("model-00002-of-00003.safetensors"), "").unwrap();
        fs_err::write(dir.path().join("pytorch_model.bin"), "").unwrap();
        assert!(
            message().contains(
                "has parts of a split model, `model-00002-of-00003.safetensors`, without `model.safetensors.index.json`"
            ),
            "{}",
            message()
        );
        fs_err::write(dir.path().join("adapter_config.json"), r#"{"base_model_name_or_path": "org/base"}"#).unwrap();
        assert!(message().contains("is a PEFT adapter of `org/base`, not a model\nhint: merge it"), "{}", message());
    }

    #[cfg(unix)]
    #[test]
    fn what_has_the_name_of_weights_and_is_no_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(SINGLE_FILE);
        let message = || SafetensorsFolder::open(dir.path()).unwrap_err().to_string();
        fs_err::os::unix::fs::symlink("/absent/blob", &path).unwrap();
        assert!(
            message().contains("model.safetensors` is a link to `/absent/blob`, which is not there"),
            "{}",
            message()
        );
        fs_err::remove_file(&path).unwrap();
        fs_err::create_dir(&path).unwrap();
        assert!(message().contains("model.safetensors` is a folder, expected a file\nhint: "), "{}", message());
        check_is_file(&dir.path().join("absent")).unwrap();
        assert!(check_is_file(Path::new("/dev/null")).unwrap_err().to_string().contains("is a pipe or a device"));
    }

    #[test]
    fn pickles_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(SafetensorsFolder::open(dir.path()), Err(CheckpointError::NoWeights { .. })));
        fs_err::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
        let message = SafetensorsFolder::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains("`pytorch_model.bin`") && message.contains("run code"), "{message}");
        assert!(matches!(SafetensorsFolder::open(&dir.path().join("absent")), Err(CheckpointError::Io(_))));
    }
}
