//! Row order of the query and key projections.
//!
//! GGUF files of the `llama` architecture store the rows of each head for the interleaved form of
//! RoPE; Hugging Face rotates halves. Inverse:
//! `w.reshape(heads, head_dim / 2, 2, in).swapaxes(1, 2).reshape(out, in)`, for biases too.

/// Copies rows of `row_bytes` bytes into Hugging Face's order. `num_heads` divides the number of
/// rows.
pub(super) fn undo(bytes: &[u8], row_bytes: usize, num_heads: usize) -> Vec<u8> {
    reorder(bytes, row_bytes, num_heads, |row, head_dim| 2 * (row % (head_dim / 2)) + row / (head_dim / 2))
}

/// Copies rows of `row_bytes` bytes from Hugging Face's order into that of the file.
pub(super) fn apply(bytes: &[u8], row_bytes: usize, num_heads: usize) -> Vec<u8> {
    reorder(bytes, row_bytes, num_heads, |row, head_dim| row % 2 * (head_dim / 2) + row / 2)
}

/// Copies rows; `source` gives the row of a head that comes to the place of a row, from this and
/// the number of rows of a head.
fn reorder(bytes: &[u8], row_bytes: usize, num_heads: usize, source: impl Fn(usize, usize) -> usize) -> Vec<u8> {
    let head_dim = bytes.len() / row_bytes / num_heads;
    let mut out = Vec::with_capacity(bytes.len());
    for head in 0..num_heads {
        for row in 0..head_dim {
            let row = head * head_dim + source(row, head_dim);
            out.extend_from_slice(&bytes[row * row_bytes..(row + 1) * row_bytes]);
        }
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
        assert_eq!(apply(&expected, 1, 2), (0..16).collect::<Vec<u8>>());
        let wide: Vec<u8> = (0..16).flat_map(|row| [row; 3]).collect();
        assert_eq!(undo(&wide, 3, 2), expected.iter().flat_map(|row| [*row; 3]).collect::<Vec<_>>());
    }
}
