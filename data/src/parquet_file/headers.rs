//! A walk over the metadata and the page headers of a file, before `parquet` reads them. They are
//! Thrift structs, and its parser counts to the length of a list of booleans that it does not know
//! without reading anything: up to 2³¹ from six bytes. It also reads a field that it knows by its
//! number, whatever type stands before it, so that only who knows the types of all fields sees what
//! it sees.
//!
//! A struct that passes has each field of [`super::format`] in its type and no list of booleans, so
//! that every turn of the parser reads a byte.
//!
//! Protocol: <https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>.

use std::io::{BufRead, ErrorKind, Read, copy, sink};

use ::parquet::errors::ParquetError;

use super::format::{COMPRESSED_PAGE_SIZE, FILE_META_DATA, Fields, Kind, PAGE_HEADER, UNCOMPRESSED_PAGE_SIZE};

/// Structs and lists within one another, as `parquet` allows where it skips them.
const DEPTH: usize = 64;

/// What the header of a page says, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageSize {
    /// Of the header itself.
    pub(super) header: u64,
    /// Of the page behind it.
    pub(super) compressed: u64,
    /// Of the page out of its compression.
    pub(super) uncompressed: u64,
}

/// Walks the metadata of a file, all of `bytes`.
pub(super) fn check_metadata(bytes: &[u8]) -> Result<(), ParquetError> {
    let mut walk = Walk::new(bytes);
    walk.fields(FILE_META_DATA, DEPTH, |_, _| ())
}

/// Walks the header of a page, which `reader` is at.
pub(super) fn page_size(reader: impl BufRead) -> Result<PageSize, ParquetError> {
    let (mut compressed, mut uncompressed) = (None, None);
    let mut walk = Walk::new(reader);
    walk.fields(PAGE_HEADER, DEPTH, |id, value| match id {
        COMPRESSED_PAGE_SIZE => compressed = Some(value),
        UNCOMPRESSED_PAGE_SIZE => uncompressed = Some(value),
        _ => (),
    })?;
    let size = |value: Option<i64>| {
        let size = value.ok_or_else(|| error("the header of a page without its size".to_owned()))?;
        u64::try_from(size).map_err(|_| error(format!("a page of {size} bytes")))
    };
    Ok(PageSize { header: walk.read, compressed: size(compressed)?, uncompressed: size(uncompressed)? })
}

struct Walk<R> {
    reader: R,
    /// Bytes read so far.
    read: u64,
}

impl<R: BufRead> Walk<R> {
    fn new(reader: R) -> Self {
        Self { reader, read: 0 }
    }

    /// Goes behind the end of a struct. `number` gets the numbers among its fields.
    fn fields(&mut self, known: Fields, depth: usize, mut number: impl FnMut(i16, i64)) -> Result<(), ParquetError> {
        let mut last = 0_i16;
        loop {
            let header = self.byte()?;
            let (delta, wire) = (header >> 4, header & 0x0f);
            if wire == wire::STOP {
                return Ok(());
            }
            let id = match delta {
                0 => i16::try_from(self.integer()?).ok(),
                _ => last.checked_add(i16::from(delta)),
            };
            let Some(id) = id else { return Err(error("a field with a number above 32,767".to_owned())) };
            last = id;
            match known.iter().find(|(known, _)| *known == id) {
                Some((_, Kind::I32)) if wire == wire::I32 => number(id, self.integer()?),
                Some((_, kind)) => self.known(*kind, wire, depth)?,
                None => self.unknown(wire, depth)?,
            }
        }
    }

    /// Goes behind a value that `wire` says the type of, and the format too.
    fn known(&mut self, kind: Kind, wire: u8, depth: usize) -> Result<(), ParquetError> {
        let depth = deeper(depth)?;
        let expected = match kind {
            // A boolean is its type.
            Kind::Bool if wire == wire::FALSE => wire,
            Kind::Bool => wire::TRUE,
            Kind::Byte => wire::BYTE,
            Kind::I16 => wire::I16,
            Kind::I32 => wire::I32,
            Kind::I64 => wire::I64,
            Kind::Double => wire::DOUBLE,
            Kind::Binary => wire::BINARY,
            Kind::Struct(_) => wire::STRUCT,
            Kind::List(_) => wire::LIST,
        };
        if wire != expected {
            return Err(error(format!("a field of type {wire} that the format gives type {expected}")));
        }
        match kind {
            Kind::Struct(fields) => self.fields(fields, depth, |_, _| ()),
            Kind::List(element) => {
                let (count, wire) = self.list()?;
                (0..count).try_for_each(|_| self.known(*element, wire, depth))
            }
            _ => self.unknown(wire, depth),
        }
    }

    /// Goes behind a value that only `wire` says the type of.
    fn unknown(&mut self, wire: u8, depth: usize) -> Result<(), ParquetError> {
        let depth = deeper(depth)?;
        match wire {
            wire::TRUE | wire::FALSE => Ok(()),
            wire::BYTE => self.skip(1),
            wire::I16 | wire::I32 | wire::I64 => self.integer().map(drop),
            wire::DOUBLE => self.skip(8),
            wire::BINARY => {
                let len = self.varint()?;
                self.skip(len)
            }
            wire::LIST | wire::SET => {
                let (count, wire) = self.list()?;
                self.elements(count, &[wire], depth)
            }
            wire::MAP => match self.varint()? {
                0 => Ok(()),
                count => {
                    let kinds = self.byte()?;
                    self.elements(count, &[kinds >> 4, kinds & 0x0f], depth)
                }
            },
            wire::STRUCT => self.fields(&[], depth, |_, _| ()),
            wire::UUID => self.skip(16),
            _ => Err(error(format!("a field of type {wire}, which Thrift does not have"))),
        }
    }

    /// Number and type of the elements of a list, which follow.
    fn list(&mut self) -> Result<(u64, u8), ParquetError> {
        let header = self.byte()?;
        let count = match header >> 4 {
            15 => self.varint()?,
            count => u64::from(count),
        };
        Ok((count, header & 0x0f))
    }

    fn elements(&mut self, count: u64, kinds: &[u8], depth: usize) -> Result<(), ParquetError> {
        if count > 0 && kinds.iter().any(|kind| [wire::TRUE, wire::FALSE].contains(kind)) {
            return Err(error(format!("a list of {count} booleans, which the format does not have")));
        }
        (0..count).try_for_each(|_| kinds.iter().try_for_each(|kind| self.unknown(*kind, depth)))
    }

    fn byte(&mut self) -> Result<u8, ParquetError> {
        let mut byte = [0];
        self.reader.read_exact(&mut byte).map_err(ended)?;
        self.read += 1;
        Ok(byte[0])
    }

    fn skip(&mut self, len: u64) -> Result<(), ParquetError> {
        let skipped = copy(&mut self.reader.by_ref().take(len), &mut sink())?;
        self.read += skipped;
        if skipped == len { Ok(()) } else { Err(ends()) }
    }

    /// An unsigned number of seven bits a byte, the lowest first.
    fn varint(&mut self) -> Result<u64, ParquetError> {
        let mut value = 0;
        for shift in (0..u64::BITS).step_by(7) {
            let byte = self.byte()?;
            let digit = u64::from(byte & 0x7f);
            let part = digit << shift;
            if part >> shift != digit {
                break;
            }
            value |= part;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(error("a number of more than 64 bits".to_owned()))
    }

    /// A signed number: 0, -1, 1, -2, ….
    fn integer(&mut self) -> Result<i64, ParquetError> {
        let value = self.varint()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }
}

/// Types as they stand before fields and elements.
mod wire {
    pub(super) const STOP: u8 = 0;
    pub(super) const TRUE: u8 = 1;
    pub(super) const FALSE: u8 = 2;
    pub(super) const BYTE: u8 = 3;
    pub(super) const I16: u8 = 4;
    pub(super) const I32: u8 = 5;
    pub(super) const I64: u8 = 6;
    pub(super) const DOUBLE: u8 = 7;
    pub(super) const BINARY: u8 = 8;
    pub(super) const LIST: u8 = 9;
    pub(super) const SET: u8 = 10;
    pub(super) const MAP: u8 = 11;
    pub(super) const STRUCT: u8 = 12;
    pub(super) const UUID: u8 = 13;
}

fn deeper(depth: usize) -> Result<usize, ParquetError> {
    depth.checked_sub(1).ok_or_else(|| error(format!("more than {DEPTH} structs and lists within one another")))
}

fn ended(source: std::io::Error) -> ParquetError {
    match source.kind() {
        ErrorKind::UnexpectedEof => ends(),
        _ => source.into(),
    }
}

fn ends() -> ParquetError {
    ParquetError::EOF("the file ends within its metadata or the header of a page".to_owned())
}

fn error(message: String) -> ParquetError {
    ParquetError::General(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type 0, sizes 300 and -5 or 120, no statistics, field 40 of no known struct.
    fn header(compressed: &[u8]) -> Vec<u8> {
        [&[0x15, 0, 0x15, 0xd8, 0x04, 0x15], compressed, &[0x2c, 0x15, 2, 0, 0x0c, 80, 0x18, 2, b'a', b'b', 0, 0]]
            .concat()
    }

    #[test]
    fn the_sizes_of_a_page_are_read() {
        let bytes = header(&[0xf0, 0x01]);
        let expected = PageSize { header: bytes.len() as u64, compressed: 120, uncompressed: 300 };
        assert_eq!(page_size([bytes.as_slice(), b"rest"].concat().as_slice()).unwrap(), expected);
        for end in 0..bytes.len() {
            assert!(page_size(&bytes[..end]).is_err(), "{end}");
        }
        assert!(page_size(header(&[9]).as_slice()).unwrap_err().to_string().contains("a page of -5 bytes"));
        assert!(page_size([0].as_slice()).unwrap_err().to_string().contains("without its size"));
    }

    fn refused(bytes: &[u8]) -> String {
        check_metadata(bytes).unwrap_err().to_string()
    }

    #[test]
    fn values_of_every_type_are_walked() {
        // From field 20: byte, i16, i64, double, binary, list of i64, set of i8, map, struct, UUID,
        // booleans.
        let mut bytes = vec![0x03, 40, 7, 0x14, 1, 0x16, 1, 0x17];
        bytes.extend([0; 8]);
        bytes.extend([
            0x18, 2, b'a', b'b', 0x19, 0x26, 2, 4, 0x1a, 0x13, 7, 0x1b, 1, 0x58, 9, 1, b'a', 0x1c, 0x13, 7, 0,
        ]);
        bytes.push(0x1d);
        bytes.extend([0; 16]);
        bytes.extend([0x11, 0x12, 0x1b, 0, 0x19, 0x01, 0]);
        check_metadata(&bytes).unwrap();
        for end in 0..bytes.len() {
            assert!(check_metadata(&bytes[..end]).is_err(), "{end}");
        }
        assert!(refused(&[0x0e, 40, 0]).contains("type 14, which Thrift does not have"));
        assert!(refused(&[0x0c, 40].into_iter().chain([0x1c; 100]).collect::<Vec<_>>()).contains("more than 64"));
        assert!(refused(&[0x05, 0x80, 0x80, 0x04]).contains("above 32,767"));
        assert!(refused(&[0x06, 40].into_iter().chain([0xff; 10]).collect::<Vec<_>>()).contains("64 bits"));
    }

    // What costs the parser turns without bytes.
    #[test]
    fn lists_of_booleans_are_refused() {
        let message = refused(&[0x09, 40, 0xf1, 0xff, 0xff, 0xff, 0xff, 0x07, 0]);
        assert!(message.contains("a list of 2147483647 booleans"), "{message}");
        assert!(refused(&[0x0b, 40, 0xff, 0x7f, 0x11, 0]).contains("booleans"), "a map");
        assert!(refused(&[0x0c, 40, 0x19, 0x12, 0]).contains("booleans"), "in a struct");
    }

    // Field 6 of the metadata is a string: what stands in its place is not passed over by its type.
    #[test]
    fn a_known_field_of_another_type_is_refused() {
        assert!(refused(&[0x66, 2, 0]).contains("a field of type 6 that the format gives type 8"));
        assert!(refused(&[0x29, 0x18, 0, 0]).contains("a field of type 8 that the format gives type 12"), "an element");
        assert!(refused(&[0x15, 2, 0x19, 0x1c, 0x78, 0, 0, 0]).contains("type 8 that the format gives type 5"));
        // An element's struct within the list of column orders, a union.
        check_metadata(&[0x79, 0x2c, 0x1c, 0, 0, 0x2c, 0, 0, 0]).unwrap();
    }
}
