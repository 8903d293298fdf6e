//! Lengths that a file in Arrow's IPC format states, compared with the file: the reader of `arrow`
//! reserves memory for footers, messages and decompressed buffers by what their lengths say, before
//! it reads them. Format: <https://arrow.apache.org/docs/format/Columnar.html>, "IPC".

use arrow_ipc::{Block, CompressionType, Message, root_as_footer, root_as_message};
use arrow_schema::ArrowError;
use std::fmt::Display;
use std::io::{Read, Seek, SeekFrom};

/// First bytes of a message, before the length of its metadata; older files have the length alone.
const CONTINUATION: [u8; 4] = [0xff; 4];
/// Bytes behind the footer of the file format: its length, and `ARROW1`.
const AFTER_FOOTER: u64 = 10;
/// Bytes before a compressed buffer: its length when it is decompressed, or −1 if it is not
/// compressed.
const LENGTH_BYTES: u64 = 8;
/// Bytes of a whole block of Zstandard, which a buffer may decompress to in any case.
const BLOCK_BYTES: u64 = 1 << 17;

/// A file whose lengths are compared with its size.
#[derive(Debug)]
pub(super) struct Lengths<R> {
    reader: R,
    /// Size of the file.
    bytes: u64,
}

impl<R: Read + Seek> Lengths<R> {
    pub(super) fn new(reader: R, bytes: u64) -> Self {
        Self { reader, bytes }
    }

    /// Checks a file of the file format, whose footer says where the messages lie.
    pub(super) fn check_file(&mut self) -> Result<(), ArrowError> {
        let Some(end) = self.bytes.checked_sub(AFTER_FOOTER) else {
            return Err(damaged("it has no footer"));
        };
        let length = u64::from(u32::from_le_bytes(self.array(end, "the length of the footer")?));
        let start = end.checked_sub(length).ok_or_else(|| self.too_long("footer", length))?;
        let footer = self.read(start, length, "footer")?;
        let footer = root_as_footer(&footer).map_err(damaged)?;
        let blocks: Vec<Block> =
            [footer.dictionaries(), footer.recordBatches()].into_iter().flatten().flatten().copied().collect();
        for block in blocks {
            let [at, metadata, body] =
                [block.offset(), i64::from(block.metaDataLength()), block.bodyLength()].map(u64::try_from);
            let (Ok(at), Ok(metadata), Ok(body)) = (at, metadata, body) else {
                return Err(damaged("the footer has a negative length"));
            };
            let content = self.read(at, metadata, "message")?;
            let prefix = if content.starts_with(&CONTINUATION) { 8 } else { 4 };
            let message = root_as_message(content.get(prefix..).unwrap_or_default()).map_err(damaged)?;
            self.check_body(&message, at + metadata, body)?;
        }
        Ok(())
    }

    /// Checks a file of the streaming format, whose messages stand one behind the other. Where the
    /// file ends between two of them, the stream does.
    pub(super) fn check_stream(&mut self) -> Result<(), ArrowError> {
        let mut at = 0;
        while at + 4 <= self.bytes {
            let mut length = self.array(at, "message")?;
            at += 4;
            if length == CONTINUATION {
                length = self.array(at, "message")?;
                at += 4;
            }
            let length = u64::from(u32::from_le_bytes(length));
            if length == 0 {
                break;
            }
            let metadata = self.read(at, length, "message")?;
            at += length;
            let message = root_as_message(&metadata).map_err(damaged)?;
            let body = u64::try_from(message.bodyLength()).map_err(|_| damaged("a message has a negative length"))?;
            self.check_body(&message, at, body)?;
            at += body;
        }
        Ok(())
    }

    /// Checks the `body` bytes of a message that lie at `at`, and the buffers in them.
    fn check_body(&mut self, message: &Message<'_>, at: u64, body: u64) -> Result<(), ArrowError> {
        self.require(at, body, "body of a message")?;
        let batch = message.header_as_record_batch();
        let Some(batch) = batch.or_else(|| message.header_as_dictionary_batch()?.data()) else { return Ok(()) };
        let Some(compression) = batch.compression() else { return Ok(()) };
        // A length byte of LZ4 stands for up to 255; a block of Zstandard takes 4 bytes at least.
        let most = if compression.codec() == CompressionType::LZ4_FRAME { 255 } else { BLOCK_BYTES / 4 };
        for buffer in batch.buffers().into_iter().flatten() {
            let (Ok(offset), Ok(length)) = (u64::try_from(buffer.offset()), u64::try_from(buffer.length())) else {
                return Err(damaged("a buffer has a negative length"));
            };
            if offset.checked_add(length).is_none_or(|end| end > body) {
                return Err(damaged(format!("a buffer of {length} bytes at {offset} of a message of {body}")));
            }
            let Some(packed) = length.checked_sub(LENGTH_BYTES) else { continue };
            let unpacked = i64::from_le_bytes(self.array(at + offset, "buffer")?);
            if u64::try_from(unpacked).is_ok_and(|unpacked| unpacked > packed.saturating_mul(most) + BLOCK_BYTES) {
                return Err(damaged(format!("{packed} bytes cannot decompress to {unpacked}")));
            }
        }
        Ok(())
    }

    fn array<const N: usize>(&mut self, at: u64, what: &str) -> Result<[u8; N], ArrowError> {
        self.require(at, N as u64, what)?;
        let mut found = [0; N];
        self.reader.seek(SeekFrom::Start(at))?;
        self.reader.read_exact(&mut found)?;
        Ok(found)
    }

    fn read(&mut self, at: u64, length: u64, what: &str) -> Result<Vec<u8>, ArrowError> {
        self.require(at, length, what)?;
        let mut found = vec![0; usize::try_from(length).map_err(|_| self.too_long(what, length))?];
        self.reader.seek(SeekFrom::Start(at))?;
        self.reader.read_exact(&mut found)?;
        Ok(found)
    }

    fn require(&self, at: u64, length: u64, what: &str) -> Result<(), ArrowError> {
        match at.checked_add(length) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(self.too_long(what, length)),
        }
    }

    fn too_long(&self, what: &str, length: u64) -> ArrowError {
        damaged(format!("the {what} would have {length} bytes, and goes beyond the {} of the file", self.bytes))
    }
}

fn damaged(reason: impl Display) -> ArrowError {
    ArrowError::ParseError(format!("the file is damaged: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{io::Cursor, path::Path};

    fn golden(name: &str) -> Vec<u8> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
        fs_err::read(folder.join(name)).unwrap()
    }

    fn check(bytes: Vec<u8>) -> Result<(), String> {
        let (is_file, len) = (bytes.starts_with(b"ARROW1"), bytes.len() as u64);
        let mut lengths = Lengths::new(Cursor::new(bytes), len);
        if is_file { lengths.check_file() } else { lengths.check_stream() }.map_err(|error| error.to_string())
    }

    #[test]
    fn lengths_of_files_of_another_program_are_right() {
        for name in ["plain.arrow", "lz4.feather", "zstd.arrow", "stream.arrow", "dictionary.arrow"] {
            check(golden(name)).unwrap();
        }
    }

    #[test]
    fn a_footer_a_message_and_a_buffer_that_are_longer_than_the_file_are_errors() {
        let mut bytes = golden("plain.arrow");
        let end = bytes.len();
        bytes[end - 10..end - 6].copy_from_slice(&0x7fff_ffff_i32.to_le_bytes());
        assert!(check(bytes).unwrap_err().contains("the footer would have 2147483647 bytes"));

        let mut bytes = golden("stream.arrow");
        bytes[4..8].copy_from_slice(&0x7fff_fff0_i32.to_le_bytes());
        assert!(check(bytes).unwrap_err().contains("the message would have 2147483632 bytes"));

        // The stated length of each compressed buffer: the first that is 2 GiB is found.
        for name in ["lz4.feather", "zstd.arrow"] {
            let whole = golden(name);
            let stated = (0..whole.len() - 8).step_by(8).filter(|at| {
                let length = i64::from_le_bytes(whole[*at..at + 8].try_into().unwrap());
                // Buffers of 300 rows, before what begins a frame.
                (300..40_000).contains(&length)
                    && [0x184d_2204, 0xfd2f_b528]
                        .contains(&u32::from_le_bytes(whole[at + 8..at + 12].try_into().unwrap()))
            });
            let stated: Vec<usize> = stated.collect();
            assert!(stated.len() > 2, "{name}");
            for at in stated {
                let mut bytes = whole.clone();
                bytes[at..at + 8].copy_from_slice(&(1_i64 << 31).to_le_bytes());
                let error = check(bytes).unwrap_err();
                assert!(error.contains("cannot decompress to 2147483648"), "{name}, {at}: {error}");
            }
        }
    }
}
