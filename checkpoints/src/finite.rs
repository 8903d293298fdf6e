//! Values that are not finite: no number of a model's forward pass is one after them, so weights
//! that have one are neither read nor written.

use crate::{CheckpointError, Dtype, TensorInfo, TensorSource, widen};
use std::{borrow::Cow, path::Path};

/// Elements that are looked at together; few enough to find the one that is meant in no time.
const BLOCK: usize = 4096;

/// Index and value of the first element that is not finite. An element of these types is not finite
/// where every bit of its exponent is set.
pub(crate) fn first_not_finite(bytes: &[u8], dtype: Dtype) -> Option<(usize, f32)> {
    let is_bad = |block: &[u8]| match dtype {
        Dtype::F32 => any(block.as_chunks::<4>().0, |b| u32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::BF16 => any(block.as_chunks::<2>().0, |b| u16::from_le_bytes(*b) & 0x7f80 == 0x7f80),
        Dtype::F16 => any(block.as_chunks::<2>().0, |b| u16::from_le_bytes(*b) & 0x7c00 == 0x7c00),
    };
    let (number, block) = bytes.chunks(BLOCK * dtype.size()).enumerate().find(|(_, block)| is_bad(block))?;
    let values = widen(block, dtype);
    let index = values.iter().position(|x| !x.is_finite())?;
    Some((number * BLOCK + index, values[index]))
}

/// True if `test` holds for an item; all of them are looked at, several at a time.
fn any<T>(items: &[T], test: impl Fn(&T) -> bool) -> bool {
    items.iter().fold(false, |found, item| found | test(item))
}

/// A source; reading a tensor that is not finite is an error that names it.
pub(crate) struct Finite(pub Box<dyn TensorSource>);

impl Finite {
    fn refused(&self, name: &str, (index, value): (usize, f32)) -> CheckpointError {
        CheckpointError::NotFinite { path: self.0.path_of(name).to_owned(), tensor: name.to_owned(), index, value }
    }
}

impl TensorSource for Finite {
    fn names(&self) -> Vec<&str> {
        self.0.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.0.info(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.0.path_of(name)
    }

    fn unread(&self, name: &str) -> Option<&str> {
        self.0.unread(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let bytes = self.0.bytes(name)?;
        match self.info(name).and_then(|info| first_not_finite(&bytes, info.dtype)) {
            None => Ok(bytes),
            Some(found) => Err(self.refused(name, found)),
        }
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, CheckpointError> {
        let values = self.0.read_f32(name)?;
        match values.iter().position(|x| !x.is_finite()) {
            None => Ok(values),
            Some(index) => Err(self.refused(name, (index, values[index]))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::narrow;

    #[test]
    fn the_first_value_that_is_not_finite_is_found_in_every_type() {
        for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
            let mut values = vec![-65504.0f32; BLOCK + 100];
            assert_eq!(first_not_finite(&narrow(&values, dtype), dtype), None);
            values[BLOCK + 7] = f32::NEG_INFINITY;
            values[BLOCK + 9] = f32::NAN;
            assert_eq!(first_not_finite(&narrow(&values, dtype), dtype), Some((BLOCK + 7, f32::NEG_INFINITY)));
            values[3] = f32::NAN;
            let (index, value) = first_not_finite(&narrow(&values, dtype), dtype).unwrap();
            assert!(index == 3 && value.is_nan());
        }
    }
}
