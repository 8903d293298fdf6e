//! "K" types: blocks of 256 values in sub-blocks of 16 or 32, whose scales are themselves quantised
//! relative to one f16 `d`.

fn half(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Scale and minimum (6 bits each) of sub-block `i` of 8, from 12 bytes. Those of the first four
/// are in the low six bits of bytes 0..4 and 4..8. Those of the last four have their low four bits
/// in bytes 8..12 and their high two bits on top of bytes 0..4 and 4..8.
fn scale_and_minimum(scales: &[u8], i: usize) -> (f32, f32) {
    let (scale, minimum) = if i < 4 {
        (scales[i] & 0x3f, scales[i + 4] & 0x3f)
    } else {
        let low = scales[i + 4];
        ((low & 0x0f) | ((scales[i - 4] >> 2) & 0x30), (low >> 4) | ((scales[i] >> 2) & 0x30))
    };
    (f32::from(scale), f32::from(minimum))
}

/// Layout: `d`, `dmin` (f16), 12 bytes of scales and minima, 128 bytes of nibbles: 32 bytes hold
/// sub-block `2k` in their low and `2k + 1` in their high nibbles. Value:
/// `(d·scale)·q − (dmin·minimum)`.
pub(super) fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scales, nibbles) = (&block[4..16], &block[16..]);
    for (i, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, i);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let shift = 4 * (i % 2);
        for (value, byte) in values.iter_mut().zip(&nibbles[32 * (i / 2)..]) {
            *value = scale * f32::from((byte >> shift) & 0x0f) - minimum;
        }
    }
}

/// Layout of [`q4_k`] with 32 bytes of fifth bits before the nibbles: bit `i` of byte `j` belongs
/// to value `j` of sub-block `i`.
pub(super) fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (d, dmin) = (half(block, 0), half(block, 2));
    let (scales, fifth, nibbles) = (&block[4..16], &block[16..48], &block[48..]);
    for (i, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, i);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let shift = 4 * (i % 2);
        for ((value, byte), fifth) in values.iter_mut().zip(&nibbles[32 * (i / 2)..]).zip(fifth) {
            let q = ((byte >> shift) & 0x0f) | (((fifth >> i) & 1) << 4);
            *value = scale * f32::from(q) - minimum;
        }
    }
}

/// Layout: 128 bytes of low nibbles, 64 bytes of high bit pairs, 16 signed scales, `d` (f16). In
/// each half of the block, 64 bytes of nibbles and 32 bytes of pairs hold four runs of 32 values:
/// run `k` takes byte `32·(k mod 2) + j`, low nibble for `k < 2`, and bits `2k, 2k + 1` of pair
/// byte `j`. Value: `(d·scale)·(q − 32)`, with a scale for every 16 values.
pub(super) fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let (nibbles, pairs, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half(block, 208);
    for (run, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (in_half, k) = (run / 4, run % 4);
        let nibbles = &nibbles[64 * in_half + 32 * (k % 2)..];
        let pairs = &pairs[32 * in_half..];
        let scale = [0, 1].map(|s| d * f32::from(scales[2 * run + s] as i8));
        for (j, value) in values.iter_mut().enumerate() {
            let low = (nibbles[j] >> (4 * (k / 2))) & 0x0f;
            let high = (pairs[j] >> (2 * k)) & 0x03;
            *value = scale[j / 16] * f32::from((low | (high << 4)) as i8 - 32);
        }
    }
}
