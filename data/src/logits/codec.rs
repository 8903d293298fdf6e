//! Tokens as bytes.

use super::LogitsMeta;

/// Steps of a nat.
const STEPS: f32 = 2048.0;

/// Appends a token.
pub fn encode(meta: &LogitsMeta, ids: &[u32], log_probs: &[f32], out: &mut Vec<u8>) {
    let mut push_id = |id: u32| out.extend_from_slice(&id.to_le_bytes()[..meta.id_bytes()]);
    if meta.top_p.is_some() {
        push_id(ids.len() as u32);
    }
    ids.iter().for_each(|id| push_id(*id));
    for log_prob in log_probs {
        // Saturates at 0 and at 65535; what is not a number becomes 0.
        out.extend_from_slice(&((-log_prob * STEPS).round() as u16).to_le_bytes());
    }
}

/// Gives `see` the tokens of a row; `None` where the bytes are not one.
pub fn decode(meta: &LogitsMeta, bytes: &[u8], see: &mut impl FnMut(&[u32], &[f32])) -> Option<()> {
    let width = meta.id_bytes();
    let number = |bytes: &[u8]| {
        let mut number = [0; 4];
        number[..width].copy_from_slice(bytes);
        u32::from_le_bytes(number)
    };
    let mut rest = bytes;
    let mut take = |count: usize| {
        let (taken, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(taken)
    };
    let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
    for _ in 0..meta.sequence_length {
        let count = match meta.top_p {
            Some(_) => number(take(width)?) as usize,
            None => meta.top_k,
        };
        ids.clear();
        ids.extend(take(count * width)?.chunks_exact(width).map(number));
        if ids.iter().any(|id| *id as usize >= meta.vocab_size) {
            return None;
        }
        log_probs.clear();
        let steps = take(2 * (count + 1))?.as_chunks::<2>().0.iter().map(|bytes| f32::from(u16::from_le_bytes(*bytes)));
        log_probs.extend(steps.map(|steps| -steps / STEPS));
        let log_sum = log_probs.iter().map(|log_prob| f64::from(*log_prob).exp()).sum::<f64>().ln() as f32;
        log_probs.iter_mut().for_each(|log_prob| *log_prob -= log_sum);
        see(&ids, &log_probs);
    }
    rest.is_empty().then_some(())
}
