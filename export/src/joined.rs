//! The tensors of two sources as one.

use retie_checkpoint::{CheckpointError, TensorInfo, TensorSource};
use std::{borrow::Cow, path::Path};

/// Two sources without a name in common; every name of the first comes before those of the second.
pub struct Joined<A, B> {
    pub first: A,
    pub second: B,
}

impl<A: TensorSource, B: TensorSource> Joined<A, B> {
    fn source_of(&self, name: &str) -> &dyn TensorSource {
        if self.first.info(name).is_some() { &self.first } else { &self.second }
    }
}

impl<A: TensorSource, B: TensorSource> TensorSource for Joined<A, B> {
    fn names(&self) -> Vec<&str> {
        self.first.names().into_iter().chain(self.second.names()).collect()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source_of(name).info(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source_of(name).path_of(name)
    }

    fn unread(&self, name: &str) -> Option<&str> {
        self.source_of(name).unread(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        self.source_of(name).bytes(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        self.source_of(name).read_f32(name)
    }
}
