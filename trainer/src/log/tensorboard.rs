//! `tensorboard/events.out.tfevents.retie`: the file that TensorBoard reads
//! (`tensorboard --logdir RUN_DIR`).
//!
//! Its records are framed as in a TFRecord,
//! <https://www.tensorflow.org/tutorials/load_data/tfrecord>: the length (u64, little-endian), the
//! masked CRC-32C of these 8 bytes, the content, its masked CRC. The content is a message `Event`
//! in the encoding of protocol buffers (<https://protobuf.dev/programming-guides/encoding>):
//!
//! ```text
//! Event    { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; }
//! Summary  { repeated Value value = 1; }
//! Value    { string tag = 1; float simple_value = 2; }
//! ```

use super::{Baseline, FileLogger, Logger, StepRow, columns, replace};
use crate::TrainError;
use std::{
    io::Write,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

const FILE: &str = "events.out.tfevents.retie";
/// Content of the first record of a file.
const VERSION: &str = "brain.Event:2";
/// Bytes of a record before its content.
const HEAD: usize = 12;

/// The open file.
#[derive(Debug)]
pub struct Tensorboard {
    file: fs_err::File,
}

impl FileLogger for Tensorboard {
    fn open(run_dir: &Path, step: u64, rows: &[StepRow]) -> Result<Self, TrainError> {
        let dir = run_dir.join("tensorboard");
        let path = dir.join(FILE);
        fs_err::create_dir_all(&dir)?;
        let there = path.exists();
        if there {
            let bytes = fs_err::read(&path)?;
            let mut records = records(&bytes);
            let Some(first) = records.next().filter(|(content, _)| content.ends_with(VERSION.as_bytes())) else {
                return Err(TrainError::NotALog { path, expected: "the version of TensorBoard's event files" });
            };
            // What was measured before the first step is measured again by a run that begins anew.
            let kept = records.take_while(|(content, _)| step > 0 && step_of(content).is_some_and(|s| s <= step));
            let end = kept.last().map_or(first.1, |(_, end)| end);
            replace(&path, &bytes[..end])?;
        } else {
            replace(&path, &record(&event(now(), 0, Content::Version)))?;
        }
        let mut board = Self { file: fs_err::OpenOptions::new().append(true).open(&path)? };
        if !there {
            rows.iter().try_for_each(|row| board.step(row))?;
        }
        Ok(board)
    }
}

impl Tensorboard {
    fn write(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<(), TrainError> {
        let scalars: Vec<_> = scalars.iter().map(|(name, value)| (tag(name), *value as f32)).collect();
        Ok(self.file.write_all(&record(&event(now(), step, Content::Scalars(&scalars))))?)
    }
}

impl Logger for Tensorboard {
    fn baseline(&mut self, baseline: &Baseline) -> Result<(), TrainError> {
        let exits = baseline.heldout_exits.iter().enumerate();
        let exits = exits.map(|(index, loss)| (format!("heldout_exits.{}", index + 1), *loss));
        let heldout = ("heldout_cross_entropy".to_owned(), baseline.heldout_cross_entropy);
        self.write(0, &std::iter::once(heldout).chain(exits).collect::<Vec<_>>())
    }

    fn step(&mut self, row: &StepRow) -> Result<(), TrainError> {
        let columns =
            columns(row).map_err(|source| TrainError::BadRunFile { path: self.file.path().to_owned(), source })?;
        self.write(row.step, &columns)
    }
}

/// TensorBoard draws together what has the same text before the first slash.
fn tag(column: &str) -> String {
    column.split_once('.').map_or_else(|| format!("train/{column}"), |(group, name)| format!("{group}/{name}"))
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

enum Content<'a> {
    Version,
    Scalars(&'a [(String, f32)]),
}

fn event(wall_time: f64, step: u64, content: Content<'_>) -> Vec<u8> {
    let mut event = Vec::new();
    event.push(1 << 3 | FIXED64);
    event.extend(wall_time.to_le_bytes());
    if step > 0 {
        event.push(2 << 3 | VARINT);
        varint(&mut event, step);
    }
    match content {
        Content::Version => field(&mut event, 3, VERSION.as_bytes()),
        Content::Scalars(scalars) => {
            let mut summary = Vec::new();
            for (tag, scalar) in scalars {
                let mut value = Vec::new();
                field(&mut value, 1, tag.as_bytes());
                value.push(2 << 3 | FIXED32);
                value.extend(scalar.to_le_bytes());
                field(&mut summary, 1, &value);
            }
            field(&mut event, 5, &summary);
        }
    }
    event
}

/// Wire types of protocol buffers.
const VARINT: u8 = 0;
const FIXED64: u8 = 1;
const BYTES: u8 = 2;
const FIXED32: u8 = 5;

fn varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | BYTES);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn record(content: &[u8]) -> Vec<u8> {
    let length = (content.len() as u64).to_le_bytes();
    [&length[..], &masked_crc(&length), content, &masked_crc(content)].concat()
}

/// The contents of whole records, each with where it ends; stops at the first that is not.
fn records(bytes: &[u8]) -> impl Iterator<Item = (&[u8], usize)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (length, rest) = bytes.get(at..)?.split_first_chunk::<8>()?;
        let content = rest.get(4..)?.get(..usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
        let end = at + HEAD + content.len() + 4;
        let whole = rest[..4] == masked_crc(length) && bytes.get(end - 4..end)? == masked_crc(content);
        at = end;
        whole.then_some((content, end))
    })
}

/// The step of an event as [`event`] writes it: the time, then the step.
fn step_of(content: &[u8]) -> Option<u64> {
    let (key, rest) = content.get(9..)?.split_first()?;
    if *key != 2 << 3 | VARINT {
        return Some(0);
    }
    let mut step = 0;
    for (index, byte) in rest.iter().enumerate().take(10) {
        step |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some(step);
        }
    }
    None
}

/// The mask of a TFRecord, so that a CRC over bytes that hold CRCs is sound.
fn masked_crc(bytes: &[u8]) -> [u8; 4] {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// CRC-32C (Castagnoli), <https://www.rfc-editor.org/rfc/rfc3720#appendix-B.4>; records are short,
/// a bit at a time will do.
fn crc32c(bytes: &[u8]) -> u32 {
    const REVERSED_POLYNOMIAL: u32 = 0x82f6_3b78;
    let step = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { REVERSED_POLYNOMIAL } else { 0 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::row;

    fn path(dir: &Path) -> std::path::PathBuf {
        dir.join("tensorboard").join(FILE)
    }

    /// Steps of the records behind the first.
    fn steps(dir: &Path) -> Vec<u64> {
        let bytes = fs_err::read(path(dir)).unwrap();
        records(&bytes).skip(1).map(|(content, _)| step_of(content).unwrap()).collect()
    }

    #[test]
    fn the_crc_is_that_of_the_standard() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn the_bytes_are_those_of_the_python_package() {
        // Written by tests/golden/make_events.py.
        let golden = fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/events.bin")).unwrap();
        let scalars =
            |scalars: &[(&str, f32)]| scalars.iter().map(|(tag, x)| ((*tag).to_owned(), *x)).collect::<Vec<_>>();
        let first = scalars(&[("train/loss", 3.25), ("terms/distill", 0.0)]);
        let second = scalars(&[("train/loss", -1.5e-7), ("telemetry/cosine.1", f32::INFINITY)]);
        let ours = [
            event(1_700_000_000.25, 0, Content::Version),
            event(1_700_000_001.5, 0, Content::Scalars(&first)),
            event(1_700_000_002.75, 300, Content::Scalars(&second)),
        ];
        assert_eq!(ours.iter().flat_map(|event| record(event)).collect::<Vec<u8>>(), golden);
        assert_eq!(records(&golden).map(|(content, _)| step_of(content).unwrap()).collect::<Vec<_>>(), [0, 0, 300]);
    }

    #[test]
    fn a_file_that_goes_on_loses_later_steps_and_what_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let baseline =
            Baseline { heldout_cross_entropy: 3.0, heldout_exits: Vec::new(), teacher_heldout_cross_entropy: None };
        let mut board = Tensorboard::open(dir.path(), 0, &[]).unwrap();
        board.baseline(&baseline).unwrap();
        (1..=200).for_each(|step| board.step(&row(step)).unwrap());
        let whole = fs_err::read(path(dir.path())).unwrap();
        for (done, cut) in [(200, 0), (200, 3), (130, 0), (5, 1), (0, 0)] {
            fs_err::write(path(dir.path()), &whole[..whole.len() - cut]).unwrap();
            let mut board = Tensorboard::open(dir.path(), done, &[]).unwrap();
            let expected: Vec<u64> = if done == 0 { Vec::new() } else { (0..=done).collect() };
            assert_eq!(steps(dir.path()), expected[..expected.len() - usize::from(cut > 0 && done == 200)]);
            board.step(&row(done + 1)).unwrap();
            assert_eq!(steps(dir.path()).last(), Some(&(done + 1)));
        }
        fs_err::remove_file(path(dir.path())).unwrap();
        Tensorboard::open(dir.path(), 2, &[row(1), row(2)]).unwrap();
        assert_eq!(steps(dir.path()), [1, 2]);
        fs_err::write(path(dir.path()), "something else").unwrap();
        assert!(matches!(Tensorboard::open(dir.path(), 2, &[]), Err(TrainError::NotALog { .. })));
    }
}
