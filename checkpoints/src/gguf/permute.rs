//! Row order of the query and key projections.
//!
//! GGUF files of the `llama` architecture store the rows of each head for the interleaved form of
//! RoPE; Hugging Face rotates halves. Inverse:
//! `w.reshape(heads, head_dim / 2, 2, in).swapaxes(1, 2).reshape(out, in)`, for biases too.

/// Copies rows of `row_bytes` bytes into Hugging Face's order. `num_heads` divides the number of
/// rows.
pub(super) fn undo(bytes: &[u8], row_bytes: usize, num_heads: usize) -> Vec<u8> {
    let head_dim = bytes.len() / row_bytes / num_heads;
    let rows = (0..num_heads).flat_map(|head| {
        (0..head_dim).map(move |row| {
            let (half, pair) = (row / (head_dim / 2), row % (head_dim / 2));
            head * head_dim + 2 * pair + half
        })
    });
    let mut out = Vec::with_capacity(bytes.len());
    for row in rows {
        out.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected rows: `np.arange(16).reshape(2, 4, 2, 1).swapaxes(1, 2).reshape(-1)`.
    #[test]
    fn rows_come_out_as_numpy_orders_them() {
        let expected = [0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15];
        assert_eq!(undo(&(0..16).collect::<Vec<u8>>(), 1, 2), expected);
        let wide: Vec<u8> = (0..16).flat_map(|row| [row; 3]).collect();
        assert_eq!(undo(&wide, 3, 2), expected.iter().flat_map(|row| [*row; 3]).collect::<Vec<_>>());
    }
}
