//! `index.json`: the shards of a folder that is whole.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::shard::ShardFacts;
use crate::whole_file::write_whole;

const FILE: &str = "index.json";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Index {
    /// In order.
    pub(super) shards: Vec<ShardFacts>,
}

impl Index {
    /// `None` where there is none, or something else.
    pub(super) fn load(folder: &Path) -> Result<Option<Self>, DataError> {
        match fs_err::read(folder.join(FILE)) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(super) fn store(&self, folder: &Path) -> Result<(), DataError> {
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from)?;
        Ok(write_whole(&folder.join(FILE), |file| file.write_all(&text))?)
    }
}
