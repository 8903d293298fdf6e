//! Pages of a column whose numbers of values can be believed. A decoder reserves memory for as many
//! values as a page says that it has, before it looks for them: a damaged file of a few hundred
//! bytes would end the process. A page is compared with its bytes first.
//!
//! Encodings: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>.

use ::parquet::basic::{Encoding, Type};
use ::parquet::column::page::{Page, PageMetadata, PageReader};
use ::parquet::errors::ParquetError;
use ::parquet::schema::types::{ColumnDescPtr, ColumnDescriptor};

/// Values that a page of any size may have, above those that its bytes allow. Writers end a page
/// after 20,000 rows or a megabyte.
const VALUES: usize = 1 << 20;
/// Values for each byte of a page: one bit is the least that a run of equal lengths can stand for
/// on average in a large page.
const VALUES_PER_BYTE: usize = 8;

/// The pages of another reader, each looked at before it is decoded.
pub(super) struct CheckedPages {
    pages: Box<dyn PageReader>,
    column: ColumnDescPtr,
}

impl CheckedPages {
    pub(super) fn new(pages: Box<dyn PageReader>, column: ColumnDescPtr) -> Self {
        Self { pages, column }
    }
}

impl Iterator for CheckedPages {
    type Item = Result<Page, ParquetError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> Result<Option<Page>, ParquetError> {
        let page = self.pages.get_next_page()?;
        page.iter().try_for_each(|page| check(page, &self.column))?;
        Ok(page)
    }

    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>, ParquetError> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> Result<(), ParquetError> {
        self.pages.skip_next_page()
    }

    fn at_record_boundary(&mut self) -> Result<bool, ParquetError> {
        self.pages.at_record_boundary()
    }
}

/// Compares the number of values of a page with its bytes.
fn check(page: &Page, column: &ColumnDescriptor) -> Result<(), ParquetError> {
    let (bytes, num_values) = (page.buffer().as_ref(), page.num_values() as usize);
    let at_most = |found: usize, most: usize| match found <= most {
        true => Ok(()),
        false => Err(error(format!("a page of {} bytes says that it has {found} values", bytes.len()))),
    };
    if page.is_dictionary_page() {
        return at_most(num_values, bytes.len() / least_bytes(column));
    }
    let has_lengths = matches!(page.encoding(), Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY);
    // A row of a list is decoded at once, however long it is.
    if has_lengths || column.max_rep_level() > 0 {
        at_most(num_values, VALUES + VALUES_PER_BYTE * bytes.len())?;
    }
    if !has_lengths {
        return Ok(());
    }
    let mut lengths = Lengths::open(values_of(page, column)?)?;
    at_most(lengths.num_values, num_values)?;
    if page.encoding() == Encoding::DELTA_BYTE_ARRAY {
        // Lengths of what a value shares with the one before it; those of the rest stand behind.
        lengths.skip()?;
        at_most(Lengths::open(lengths.rest)?.num_values, num_values)?;
    }
    Ok(())
}

/// The least that a value of a dictionary takes.
fn least_bytes(column: &ColumnDescriptor) -> usize {
    match column.physical_type() {
        // Its length stands before it.
        Type::BYTE_ARRAY => size_of::<u32>(),
        Type::INT32 | Type::FLOAT => 4,
        Type::INT64 | Type::DOUBLE => 8,
        Type::INT96 => 12,
        Type::FIXED_LEN_BYTE_ARRAY => usize::try_from(column.type_length()).unwrap_or(1).max(1),
        Type::BOOLEAN => 1,
    }
}

/// The bytes of a data page behind the levels, which say where lists begin and which values are
/// null.
fn values_of<'a>(page: &'a Page, column: &ColumnDescriptor) -> Result<&'a [u8], ParquetError> {
    let mut bytes = page.buffer().as_ref();
    match page {
        Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
            let levels = *def_levels_byte_len as usize + *rep_levels_byte_len as usize;
            bytes.split_off(..levels).ok_or_else(ends)?;
        }
        Page::DataPage { num_values, def_level_encoding, rep_level_encoding, .. } => {
            let levels = [(column.max_rep_level(), rep_level_encoding), (column.max_def_level(), def_level_encoding)];
            for (max_level, encoding) in levels.into_iter().filter(|(max_level, _)| *max_level > 0) {
                let len = match encoding {
                    Encoding::RLE => {
                        let len = bytes.split_off(..size_of::<u32>()).and_then(<[u8]>::first_chunk);
                        u32::from_le_bytes(*len.ok_or_else(ends)?) as usize
                    }
                    // Bit-packed, with as many bits as the highest level takes.
                    _ => (*num_values as usize).saturating_mul((max_level.ilog2() + 1) as usize).div_ceil(8),
                };
                bytes.split_off(..len).ok_or_else(ends)?;
            }
        }
        Page::DictionaryPage { .. } => (),
    }
    Ok(bytes)
}

/// Numbers by their differences, in blocks of bit-packed miniblocks (`DELTA_BINARY_PACKED`).
struct Lengths<'a> {
    num_miniblocks: usize,
    values_per_miniblock: usize,
    num_values: usize,
    /// What is not read yet.
    rest: &'a [u8],
}

impl<'a> Lengths<'a> {
    /// Reads the header.
    fn open(mut bytes: &'a [u8]) -> Result<Self, ParquetError> {
        let mut number = || varint(&mut bytes);
        let (block, num_miniblocks, num_values, _) = (number()?, number()?, number()?, number()?);
        if num_miniblocks == 0 || block == 0 || block % num_miniblocks != 0 {
            return Err(error(format!("a block of {block} values in {num_miniblocks} miniblocks")));
        }
        Ok(Self { num_miniblocks, values_per_miniblock: block / num_miniblocks, num_values, rest: bytes })
    }

    /// Goes behind the last block. Of the last one, miniblocks without a value have a width only.
    fn skip(&mut self) -> Result<(), ParquetError> {
        // The first value stands in the header.
        let mut left = self.num_values.saturating_sub(1);
        while left > 0 {
            varint(&mut self.rest)?;
            let widths = self.rest.split_off(..self.num_miniblocks).ok_or_else(ends)?;
            for width in widths {
                if left == 0 {
                    break;
                }
                let bits = self.values_per_miniblock.checked_mul(usize::from(*width)).ok_or_else(ends)?;
                self.rest.split_off(..bits.div_ceil(8)).ok_or_else(ends)?;
                left = left.saturating_sub(self.values_per_miniblock);
            }
        }
        Ok(())
    }
}

/// An unsigned number of seven bits a byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Result<usize, ParquetError> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes.split_off_first().ok_or_else(ends)?;
        value |= usize::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(error("a number of more than 64 bits".to_owned()))
}

fn ends() -> ParquetError {
    ParquetError::EOF("a page ends within its lengths".to_owned())
}

fn error(message: String) -> ParquetError {
    ParquetError::General(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two blocks of four miniblocks of 32: 1 + 128 + 40 values, widths 1, 0, 2, 0 and 3, 1.
    #[test]
    fn blocks_are_walked_to_their_end() {
        let mut bytes = vec![0x80, 0x01, 4, 0xa9, 0x01, 0];
        bytes.extend([0, 1, 0, 2, 0]);
        bytes.extend([0xff; 4 + 8]);
        bytes.extend([0, 3, 1, 9, 9]);
        bytes.extend([0xff; 12 + 4]);
        bytes.extend(b"rest");
        let mut lengths = Lengths::open(&bytes).unwrap();
        assert_eq!(lengths.num_values, 169);
        lengths.skip().unwrap();
        assert_eq!(lengths.rest, b"rest");
        for end in 6..bytes.len() - 4 {
            assert!(Lengths::open(&bytes[..end]).unwrap().skip().is_err(), "{end}");
        }
        assert!(Lengths::open(&[0x80, 0x01, 0, 1, 0]).is_err());
        assert!(varint(&mut [0x80; 11].as_slice()).is_err());
    }

    /// A column of strings within as many lists and optional fields.
    fn strings(max_rep_level: i16, max_def_level: i16) -> ColumnDescriptor {
        let string = ::parquet::schema::types::Type::primitive_type_builder("text", Type::BYTE_ARRAY).build().unwrap();
        ColumnDescriptor::new(string.into(), max_def_level, max_rep_level, vec!["text".to_owned()].into())
    }

    fn check(page: &Page, max_def_level: i16) -> Result<(), ParquetError> {
        super::check(page, &strings(0, max_def_level))
    }

    fn data_page(bytes: Vec<u8>, num_values: u32, encoding: Encoding) -> Page {
        Page::DataPage {
            buf: bytes.into(),
            num_values,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        }
    }

    #[test]
    fn more_values_than_bytes_are_refused() {
        let dictionary = |num_values| Page::DictionaryPage {
            buf: vec![0; 12].into(),
            num_values,
            encoding: Encoding::PLAIN,
            is_sorted: false,
        };
        assert!(check(&dictionary(3), 1).is_ok());
        let message = check(&dictionary(1_440_110_425), 1).unwrap_err().to_string();
        assert!(message.contains("a page of 12 bytes says that it has 1440110425 values"), "{message}");

        let encoding = Encoding::DELTA_LENGTH_BYTE_ARRAY;
        let header = |levels: &[u8], total: &[u8]| [levels, &[0x80, 0x01, 4], total, &[0]].concat();
        assert!(check(&data_page(header(&[], &[1]), 1, encoding), 0).is_ok());
        assert!(check(&data_page(header(&[2, 0, 0, 0, 2, 1], &[1]), 1, encoding), 1).is_ok());
        assert!(check(&data_page(header(&[], &[0xff, 0xff, 0xff, 0xff, 0x7f]), 1, encoding), 0).is_err());
        assert!(check(&data_page(header(&[], &[1]), u32::MAX, encoding), 0).is_err());
        assert!(check(&data_page(vec![255, 255, 255, 255], 1, encoding), 1).is_err());
        // The second header counts too.
        let both = |total| [header(&[], &[1]), header(&[], total)].concat();
        assert!(check(&data_page(both(&[1]), 1, Encoding::DELTA_BYTE_ARRAY), 0).is_ok());
        assert!(check(&data_page(both(&[0xff, 0x7f]), 1, Encoding::DELTA_BYTE_ARRAY), 0).is_err());
    }
    #[test]
    fn levels_of_lists_stand_before_those_of_nulls() {
        let encoding = Encoding::DELTA_LENGTH_BYTE_ARRAY;
        let levels = [1, 0, 0, 0, 9, 2, 0, 0, 0, 2, 1];
        let page = |total| data_page([levels.as_slice(), &[0x80, 0x01, 4, total, 0]].concat(), 3, encoding);
        super::check(&page(3), &strings(1, 2)).unwrap();
        assert!(super::check(&page(4), &strings(1, 2)).is_err());
        // A run of equal levels would be decoded at once.
        let run = data_page(vec![0; 9], 1 << 24, Encoding::PLAIN);
        assert!(super::check(&run, &strings(1, 2)).is_err() && super::check(&run, &strings(0, 1)).is_ok());
    }
}
