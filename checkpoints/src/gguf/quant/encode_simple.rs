//! Encoding into the types of [`super::simple`], blocks of 32 values with one scale, in f32 as
//! ggml's reference does it.

/// Values of a block.
pub(super) const BLOCK: usize = 32;

/// Writes numbers of five bits: the fifth ones, then the nibbles.
fn five_bits(q: &[u8; BLOCK], bytes: &mut [u8]) {
    let fifth = q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | (u32::from(q >> 4) << i));
    let (head, nibbles) = bytes.split_at_mut(4);
    head.copy_from_slice(&fifth.to_le_bytes());
    for (byte, (low, high)) in nibbles.iter_mut().zip(q[..16].iter().zip(&q[16..])) {
        *byte = (low & 0x0f) | ((high & 0x0f) << 4);
    }
}

fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// The value of the largest size becomes −16.
pub(super) fn q5_0(x: &[f32; BLOCK], bytes: &mut [u8; 22]) {
    let d = x.iter().fold(0.0f32, |most, x| if x.abs() > most.abs() { *x } else { most }) / -16.0;
    let inverse = inverse(d);
    bytes[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
    five_bits(&x.map(|x| ((x * inverse + 16.5) as u8).min(31)), &mut bytes[2..]);
}

/// The least value becomes 0, the largest 31.
pub(super) fn q5_1(x: &[f32; BLOCK], bytes: &mut [u8; 24]) {
    let low = x.iter().copied().fold(f32::MAX, f32::min);
    let high = x.iter().copied().fold(-f32::MAX, f32::max);
    let d = (high - low) / 31.0;
    let inverse = inverse(d);
    bytes[..2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
    bytes[2..4].copy_from_slice(&half::f16::from_f32(low).to_le_bytes());
    five_bits(&x.map(|x| ((x - low) * inverse + 0.5) as u8), &mut bytes[4..]);
}

/// Scale `d = max |x| / 127` in f16, then `round(x / d)`, where ties go away from zero.
pub(super) fn q8_0(x: &[f32; BLOCK], bytes: &mut [u8; 34]) {
    let largest = x.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    let d = largest / 127.0;
    let inverse = inverse(d);
    let (scale, numbers) = bytes.split_at_mut(2);
    scale.copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
    for (number, x) in numbers.iter_mut().zip(x) {
        *number = ((x * inverse).round() as i8).cast_unsigned();
    }
}
