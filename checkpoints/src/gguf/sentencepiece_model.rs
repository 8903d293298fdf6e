//! Pieces of a SentencePiece model, `tokenizer.model`: the field `pieces` of its protocol buffer.
//!
//! Format: <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>, in
//! the encoding of <https://protobuf.dev/programming-guides/encoding/>. Other fields are passed
//! over.

use super::sentencepiece::{NORMAL, USER_DEFINED};

/// A piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub text: String,
    pub score: f32,
    /// Token type, by GGUF's numbers, which are SentencePiece's. A piece that the user defined is a
    /// normal one, as llama.cpp's converter has it.
    pub kind: i64,
}

/// Numbers of the fields.
const PIECES: u64 = 1;
const TEXT: u64 = 1;
const SCORE: u64 = 2;
const KIND: u64 = 3;

/// Value of a field.
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// Every piece, by id; `None` if the bytes are not a model.
pub(super) fn pieces(model: &[u8]) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    for field in fields(model)? {
        if let (PIECES, Value::Bytes(bytes)) = field {
            pieces.push(piece(bytes)?);
        }
    }
    Some(pieces)
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    for field in fields(bytes)? {
        match field {
            (TEXT, Value::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (SCORE, Value::Number(bits)) => piece.score = f32::from_bits(u32::try_from(bits).ok()?),
            (KIND, Value::Number(kind)) => {
                piece.kind = i64::try_from(kind).ok().filter(|kind| *kind != USER_DEFINED).unwrap_or(NORMAL)
            }
            _ => {}
        }
    }
    Some(piece)
}

/// Numbers and values of the fields of a message.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let value = match key & 7 {
            0 => Value::Number(varint(&mut bytes)?),
            1 => Value::Bytes(take(&mut bytes, 8)?),
            2 => {
                let len = usize::try_from(varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, len)?)
            }
            5 => Value::Number(u32::from_le_bytes(*take(&mut bytes, 4)?.first_chunk::<4>()?).into()),
            _ => return None,
        };
        fields.push((key >> 3, value));
    }
    Some(fields)
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)?[0];
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &[u8] = include_bytes!("../../tests/golden/sentencepiece_model.model");

    /// `tests/golden/sentencepiece_model.py` wrote the model and what the library says of it.
    #[test]
    fn pieces_scores_and_types_are_those_of_the_library() {
        let golden: serde_json::Value =
            serde_json::from_slice(include_bytes!("../../tests/golden/sentencepiece_model.json")).unwrap();
        let pieces = pieces(MODEL).unwrap();
        assert_eq!(pieces.len(), golden["pieces"].as_array().unwrap().len());
        for (id, piece) in pieces.iter().enumerate() {
            assert_eq!(golden["pieces"][id], piece.text.as_str(), "{id}");
            assert_eq!(golden["scores"][id].as_f64().unwrap() as f32, piece.score, "{id}");
            assert_eq!(golden["types"][id], piece.kind, "{id}");
        }
    }

    #[test]
    fn damaged_bytes_are_no_model_and_no_panic() {
        assert!(pieces(&MODEL[..MODEL.len() - 1]).is_none() && pieces(b"<html>").is_none());
        for at in 0..MODEL.len() {
            let mut bytes = MODEL.to_vec();
            bytes[at] ^= 0xff;
            let _ = pieces(&bytes);
        }
    }
}
