//! Files of data sets by their address, as `huggingface_hub` writes it:
//! `hf://datasets/OWNER/NAME/FILE`, or `hf://datasets/OWNER/NAME@REVISION/FILE`
//! (<https://huggingface.co/docs/huggingface_hub/guides/hf_file_system>).

use super::{Hub, HubError, HubId, hub_error};
use crate::CheckpointError;
use std::path::PathBuf;

const SCHEME: &str = "hf://";
const DATASETS: &str = "datasets/";
/// Revisions with slashes that the hub has for every data set.
const DEEP_REVISIONS: [&str; 2] = ["refs/convert/", "refs/pr/"];

/// A file of a data set, or several whose names match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubAddress {
    /// The data set.
    pub id: HubId,
    /// Path in the repository; `*`, `?` and `[…]` in its last part stand for others.
    pub file: String,
}

impl HubAddress {
    /// Reads an address; `None` where `text` is none of the hub.
    ///
    /// # Errors
    /// It is one of the hub, but not of a data set's file.
    pub fn parse(text: &str) -> Option<Result<Self, CheckpointError>> {
        let rest = text.strip_prefix(SCHEME)?;
        let bad = || CheckpointError::BadHubAddress { found: text.to_owned() };
        Some(Self::parse_rest(rest).ok_or_else(bad))
    }

    fn parse_rest(rest: &str) -> Option<Self> {
        let rest = rest.strip_prefix(DATASETS)?;
        let name = rest.find('/')? + 1;
        let at = rest[name..].find(['@', '/'])? + name;
        // Slashes of a revision may be written as `%2F`.
        let after = rest.get(at + 1..).filter(|_| rest.as_bytes()[at] == b'@');
        let parts =
            after.map_or(1, |after| if DEEP_REVISIONS.iter().any(|deep| after.starts_with(deep)) { 3 } else { 1 });
        let from = if after.is_some() { at + 1 } else { at };
        let slash = rest[from..].match_indices('/').nth(parts - 1)?.0 + from;
        let (repo, file) = (&rest[..slash], &rest[slash + 1..]);
        let plain_folder = !is_pattern(file.rsplit_once('/').map_or("", |(folder, _)| folder));
        let id = HubId::parse(&repo.replace("%2F", "/"))?;
        (!file.is_empty() && plain_folder).then(|| Self { id, file: file.to_owned() })
    }
}

fn is_pattern(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

impl Hub {
    /// The files of an address, sorted by name; what is missing is downloaded, as by
    /// [`Hub::dataset_file`].
    ///
    /// # Errors
    /// When nothing matches, or a file is not cached and cannot be downloaded.
    pub fn dataset_files(&self, address: &HubAddress) -> Result<Vec<PathBuf>, CheckpointError> {
        let HubAddress { id, file } = address;
        if !is_pattern(file) {
            return Ok(vec![self.dataset_file(id, file)?]);
        }
        let no_match = || hub_error(id, HubError::NoMatch { pattern: file.clone() });
        let pattern = glob::Pattern::new(file).map_err(|_| no_match())?;
        let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
        let mut names = self.dataset_folder(id, folder)?;
        names.retain(|name| pattern.matches(name));
        names.sort();
        if names.is_empty() {
            return Err(no_match());
        }
        names.iter().map(|name| self.dataset_file(id, name)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_data_set_a_file_and_perhaps_a_revision() {
        for (text, id, file) in [
            ("hf://datasets/a/b/train.jsonl", "a/b", "train.jsonl"),
            ("hf://datasets/a/b/data/x@y/train-*.parquet", "a/b", "data/x@y/train-*.parquet"),
            ("hf://datasets/a/b@v1.0/data/t.txt", "a/b@v1.0", "data/t.txt"),
            (
                "hf://datasets/a/b@refs/convert/parquet/default/train/0000.parquet",
                "a/b@refs/convert/parquet",
                "default/train/0000.parquet",
            ),
            ("hf://datasets/a/b@refs%2Fpr%2F1/t.txt", "a/b@refs/pr/1", "t.txt"),
        ] {
            let address = HubAddress::parse(text).unwrap().unwrap();
            assert_eq!((address.id.to_string().as_str(), address.file.as_str()), (id, file), "{text}");
        }
    }

    #[test]
    fn other_texts_are_no_addresses_and_others_of_the_hub_are_errors() {
        for text in ["data/a.txt", "datasets/a/b/c.txt", "https://huggingface.co/datasets/a/b"] {
            assert!(HubAddress::parse(text).is_none(), "{text}");
        }
        for text in [
            "hf://a/b/c.txt",
            "hf://datasets/a/b",
            "hf://datasets/a/b/",
            "hf://datasets/a/b@v1",
            "hf://datasets/a b/c/d.txt",
            "hf://datasets/a/b/data-*/x.txt",
            "hf://datasets/",
        ] {
            let error = HubAddress::parse(text).unwrap().unwrap_err();
            assert!(matches!(error, CheckpointError::BadHubAddress { .. }), "{text}");
        }
    }
}
