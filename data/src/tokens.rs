//! A long list of token ids, two bytes each where the vocabulary allows.

use std::ops::Range;

/// Ids in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tokens {
    /// Every id is below 65,536.
    Narrow(Vec<u16>),
    /// Some ids may not be.
    Wide(Vec<u32>),
}

impl Tokens {
    /// An empty list for ids up to `largest_id`.
    pub(crate) fn for_ids_up_to(largest_id: u32) -> Self {
        if largest_id <= u32::from(u16::MAX) { Self::Narrow(Vec::new()) } else { Self::Wide(Vec::new()) }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Narrow(ids) => ids.len(),
            Self::Wide(ids) => ids.len(),
        }
    }

    /// Bytes of an id in memory and in a cache file.
    pub(crate) fn width(&self) -> u32 {
        match self {
            Self::Narrow(_) => 2,
            Self::Wide(_) => 4,
        }
    }

    /// Adds ids; a list that began narrow widens when one needs it.
    pub(crate) fn extend(&mut self, more: &[u32]) {
        if let Self::Narrow(ids) = self
            && more.iter().any(|&id| id > u32::from(u16::MAX))
        {
            *self = Self::Wide(ids.iter().map(|&id| u32::from(id)).collect());
        }
        match self {
            // In range: checked above.
            Self::Narrow(ids) => ids.extend(more.iter().map(|&id| id as u16)),
            Self::Wide(ids) => ids.extend_from_slice(more),
        }
    }

    /// Takes all ids out.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::Narrow(ids) => ids.clear(),
            Self::Wide(ids) => ids.clear(),
        }
    }

    /// Appends the ids of `range` to `out`.
    pub(crate) fn copy_into(&self, range: Range<usize>, out: &mut Vec<u32>) {
        match self {
            Self::Narrow(ids) => out.extend(ids[range].iter().map(|&id| u32::from(id))),
            Self::Wide(ids) => out.extend_from_slice(&ids[range]),
        }
    }

    /// Gives the ids, little-endian, to `write` piece by piece.
    pub(crate) fn write_bytes<E>(&self, mut write: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        const IDS_PER_PIECE: usize = 1 << 16;
        let mut bytes = Vec::new();
        for start in (0..self.len()).step_by(IDS_PER_PIECE) {
            let range = start..self.len().min(start + IDS_PER_PIECE);
            bytes.clear();
            match self {
                Self::Narrow(ids) => bytes.extend(ids[range].iter().flat_map(|id| id.to_le_bytes())),
                Self::Wide(ids) => bytes.extend(ids[range].iter().flat_map(|id| id.to_le_bytes())),
            }
            write(&bytes)?;
        }
        Ok(())
    }

    /// Back from [`Tokens::write_bytes`]; `None` where `width` is unknown or does not divide the
    /// bytes.
    pub(crate) fn from_bytes(bytes: &[u8], width: u32) -> Option<Self> {
        match width {
            2 => {
                let (ids, rest) = bytes.as_chunks();
                rest.is_empty().then(|| Self::Narrow(ids.iter().map(|&id| u16::from_le_bytes(id)).collect()))
            }
            4 => {
                let (ids, rest) = bytes.as_chunks();
                rest.is_empty().then(|| Self::Wide(ids.iter().map(|&id| u32::from_le_bytes(id)).collect()))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_come_back_from_memory_and_bytes_in_either_width() {
        for largest in [0, 65_535, 65_536, u32::MAX] {
            let ids: Vec<u32> = (0..70_000).map(|id| id % 1000).chain([largest]).collect();
            let mut tokens = Tokens::for_ids_up_to(largest);
            tokens.extend(&ids);
            assert_eq!(tokens.width(), if largest < 65_536 { 2 } else { 4 });
            let mut out = Vec::new();
            tokens.copy_into(0..tokens.len(), &mut out);
            assert_eq!(out, ids);
            let mut bytes = Vec::new();
            tokens
                .write_bytes(|piece| {
                    bytes.extend_from_slice(piece);
                    Ok::<(), ()>(())
                })
                .unwrap();
            assert_eq!(Tokens::from_bytes(&bytes, tokens.width()), Some(tokens));
            assert_eq!(Tokens::from_bytes(&bytes[1..], 2), None);
            assert_eq!(Tokens::from_bytes(&bytes, 3), None);
        }
    }

    #[test]
    fn a_narrow_list_widens_for_a_large_id() {
        let mut tokens = Tokens::for_ids_up_to(10);
        tokens.extend(&[7]);
        tokens.extend(&[70_000]);
        assert_eq!(tokens, Tokens::Wide(vec![7, 70_000]));
    }
}
