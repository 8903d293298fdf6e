//! A file whose headers can be believed. Headers are Thrift structs, and `parquet` counts to the
//! length of a list of booleans that it does not know without reading anything: up to 2³¹ from six
//! bytes. Lists of a header that have more elements than it has bytes are refused.
//!
//! Protocol: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

use std::fs::File;
use std::io::{BufReader, Read};

use ::parquet::errors::ParquetError;
use ::parquet::file::FOOTER_SIZE;
use ::parquet::file::reader::{ChunkReader, Length};

/// Bytes that are looked at for the header of a page, and for one with long statistics.
const WINDOWS: [usize; 2] = [1 << 12, 1 << 20];
/// Structs in structs, as `parquet` allows.
const DEPTH: usize = 64;

/// A file that gives its metadata, and what begins with the header of a page, if their lists fit.
pub(super) struct CheckedFile(File);

impl CheckedFile {
    pub(super) fn new(file: File) -> Self {
        Self(file)
    }
}

impl Length for CheckedFile {
    fn len(&self) -> u64 {
        self.0.len()
    }
}

impl ChunkReader for CheckedFile {
    type T = BufReader<File>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        // The last bytes say where the metadata are; everything else that is read piece by piece
        // is the header of a page.
        if start.saturating_add(FOOTER_SIZE as u64) != self.len() {
            for window in WINDOWS {
                let mut bytes = Vec::new();
                self.0.get_read(start)?.take(window as u64).read_to_end(&mut bytes)?;
                if check(&bytes)? {
                    break;
                }
            }
        }
        self.0.get_read(start)
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<bytes::Bytes, ParquetError> {
        let bytes = self.0.get_bytes(start, length)?;
        if start.saturating_add((length + FOOTER_SIZE) as u64) == self.len() {
            check(&bytes)?;
        }
        Ok(bytes)
    }
}

/// Walks the struct at the start of `bytes`, as far as it is one: what is malformed is for the
/// parser to say. True at its end.
///
/// # Errors
/// Lists with more elements in all than there are bytes.
fn check(bytes: &[u8]) -> Result<bool, ParquetError> {
    let mut walk = Walk { rest: bytes, elements: 0, most: bytes.len() };
    Ok(walk.fields(DEPTH)?.is_some())
}

struct Walk<'a> {
    rest: &'a [u8],
    /// Elements of the lists up to here.
    elements: usize,
    most: usize,
}

/// `None` where the bytes end, or are no struct.
type Step<T = ()> = Result<Option<T>, ParquetError>;

impl Walk<'_> {
    fn fields(&mut self, depth: usize) -> Step {
        loop {
            let Some(header) = self.byte() else { return Ok(None) };
            if header & 0x0f == 0 {
                return Ok(Some(()));
            }
            // The number of the field, where it is not the difference to the one before.
            if header >> 4 == 0 && self.varint().is_none() {
                return Ok(None);
            }
            if self.value(header & 0x0f, depth)?.is_none() {
                return Ok(None);
            }
        }
    }

    fn value(&mut self, kind: u8, depth: usize) -> Step {
        let Some(depth) = depth.checked_sub(1) else { return Ok(None) };
        match kind {
            // A boolean is its type.
            1 | 2 => Ok(Some(())),
            3 => Ok(self.skip(1)),
            4..=6 => Ok(self.varint().map(drop)),
            7 => Ok(self.skip(8)),
            8 => Ok(self.varint().and_then(|len| self.skip(len))),
            9 | 10 => {
                let Some(header) = self.byte() else { return Ok(None) };
                let count = if header >> 4 == 15 { self.varint() } else { Some(usize::from(header >> 4)) };
                let Some(count) = count else { return Ok(None) };
                self.elements(count, &[header & 0x0f], depth)
            }
            11 => match self.varint() {
                Some(0) => Ok(Some(())),
                Some(count) => match self.byte() {
                    Some(kinds) => self.elements(count, &[kinds >> 4, kinds & 0x0f], depth),
                    None => Ok(None),
                },
                None => Ok(None),
            },
            12 => self.fields(depth),
            13 => Ok(self.skip(16)),
            _ => Ok(None),
        }
    }

    fn elements(&mut self, count: usize, kinds: &[u8], depth: usize) -> Step {
        self.elements = self.elements.saturating_add(count);
        if self.elements > self.most {
            let (found, bytes) = (self.elements, self.most);
            return Err(ParquetError::General(format!("lists of {found} elements in a header of {bytes} bytes")));
        }
        for _ in 0..count {
            for kind in kinds {
                if self.value(*kind, depth)?.is_none() {
                    return Ok(None);
                }
            }
        }
        Ok(Some(()))
    }

    fn byte(&mut self) -> Option<u8> {
        self.rest.split_off_first().copied()
    }

    fn skip(&mut self, len: usize) -> Option<()> {
        self.rest.split_off(..len).map(drop)
    }

    /// An unsigned number of seven bits a byte, the lowest first; `usize::MAX` for one that is too
    /// large.
    fn varint(&mut self) -> Option<usize> {
        let (mut value, mut shift) = (0usize, 0);
        loop {
            let byte = self.byte()?;
            let digit = usize::from(byte & 0x7f);
            value = match digit.checked_shl(shift) {
                Some(part) if part >> shift == digit => value | part,
                _ if digit == 0 => value,
                _ => usize::MAX,
            };
            if byte & 0x80 == 0 {
                return Some(value);
            }
            shift += 7;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structs_are_walked_to_their_end() {
        // Field 1, i32 5; field 2, "ab"; field 3, [1, 2] of i64; field 4, a struct; a map of i32 to
        // booleans; field 40, true; end.
        let bytes =
            [0x15, 0x0a, 0x18, 2, b'a', b'b', 0x19, 0x26, 2, 4, 0x1c, 0x13, 7, 0, 0x1b, 1, 0x51, 9, 0x01, 80, 0];
        assert!(check(&bytes).unwrap());
        for end in 0..bytes.len() {
            assert!(!check(&bytes[..end]).unwrap(), "{end}");
        }
        assert!(!check(&[0x1e, 0]).unwrap(), "no such type");
        assert!(!check(&[0x1c; 100]).unwrap(), "too deep");
    }

    #[test]
    fn lists_longer_than_their_header_are_refused() {
        let long = [0x19, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0];
        let message = check(&long).unwrap_err().to_string();
        assert!(message.contains("lists of 2147483647 elements in a header of 8 bytes"), "{message}");
        assert!(check(&[0x1b, 0xff, 0x7f, 0x11, 0]).is_err(), "a map");
        assert!(check(&[0x19, 0x29, 0x51, 0x51, 0]).is_err(), "two lists of five");
        assert!(check(&[0x19, 0x21, 0]).unwrap());
    }
}
