//! Blocks of 32 values with one f16 scale `d`, and for the `_1` types an f16 minimum `m`.
//!
//! Low nibbles hold values 0..16, high nibbles 16..32; a fifth bit, if there is one, is bit `i` of
//! a 32-bit word. `_0`: `d·(q − offset)`; `_1`: `d·q + m`.

fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Calls `value` with each 4-bit number of `nibbles` and stores the result at its index.
fn each_nibble(nibbles: &[u8], values: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = values.split_at_mut(16);
    for (i, ((byte, low), high)) in nibbles.iter().zip(low).zip(high).enumerate() {
        *low = value(i, byte & 0x0f);
        *high = value(i + 16, byte >> 4);
    }
}

/// Bit `i` of the word at `at`, as a fifth bit.
fn fifth_bits(block: &[u8], at: usize) -> impl Fn(usize) -> u8 {
    let word = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    move |i| (((word >> i) & 1) << 4) as u8
}

/// `d` (f16), 16 bytes of nibbles.
pub(super) fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = half(block, 0);
    each_nibble(&block[2..], values, |_, q| d * f32::from(q as i8 - 8));
}

/// `d`, `m` (f16), 16 bytes of nibbles.
pub(super) fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    each_nibble(&block[4..], values, |_, q| d * f32::from(q) + m);
}

/// `d` (f16), fifth bits (u32), 16 bytes of nibbles.
pub(super) fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let (d, fifth) = (half(block, 0), fifth_bits(block, 2));
    each_nibble(&block[6..], values, |i, q| d * f32::from((q | fifth(i)) as i8 - 16));
}

/// `d`, `m` (f16), fifth bits (u32), 16 bytes of nibbles.
pub(super) fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m, fifth) = (half(block, 0), half(block, 2), fifth_bits(block, 4));
    each_nibble(&block[8..], values, |i, q| d * f32::from(q | fifth(i)) + m);
}

/// `d` (f16), 32 signed bytes.
pub(super) fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let d = half(block, 0);
    for (value, q) in values.iter_mut().zip(&block[2..]) {
        *value = d * f32::from(*q as i8);
    }
}
