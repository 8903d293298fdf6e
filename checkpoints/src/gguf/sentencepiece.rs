//! Conversion of a SentencePiece vocabulary (`tokenizer.ggml.model` = `llama`) into a BPE model of
//! Hugging Face's `tokenizers`.
//!
//! Such a file has a score for each piece and no merges. Two pieces can be merged if both and the
//! result are pieces; the better the score of the result, the earlier the merge. So the merges
//! follow from the vocabulary, in the order in which `transformers` derives them (`generate_merges`
//! of `convert_slow_tokenizer`): by score, then by the lengths of left and right.

use std::collections::HashMap;

/// Values of `tokenizer.ggml.token_type`.
pub(super) const NORMAL: i64 = 1;
pub(super) const UNKNOWN: i64 = 2;
pub(super) const CONTROL: i64 = 3;
pub(super) const USER_DEFINED: i64 = 4;
pub(super) const UNUSED: i64 = 5;
pub(super) const BYTE: i64 = 6;

/// Character for a space in pieces.
pub(super) const SPACE: &str = "\u{2581}";

/// A user-defined piece in SentencePiece's form: the file writes its spaces as spaces.
pub(super) fn piece(token: &str, token_type: i64) -> String {
    if token_type == USER_DEFINED { token.replace(' ', SPACE) } else { token.to_owned() }
}

/// Every merge, the earliest first. `pieces` are distinct; `scores` and `types` have one entry for
/// each.
pub(super) fn merges<'a>(pieces: &'a [String], scores: &[f32], types: &[i64]) -> Vec<[&'a str; 2]> {
    let ids: HashMap<&str, usize> = pieces.iter().enumerate().map(|(id, piece)| (piece.as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, piece) in pieces.iter().enumerate().filter(|(id, _)| !matches!(types[*id], CONTROL | UNKNOWN | BYTE)) {
        // User-defined pieces come before all others, whatever score the file gives them.
        let score = if types[id] == USER_DEFINED { 0.0 } else { scores[id] };
        let splits = piece.char_indices().skip(1).map(|(at, _)| piece.split_at(at));
        let mut of_piece: Vec<_> =
            splits.filter_map(|(left, right)| Some((ids.get(left)?, ids.get(right)?, left, right))).collect();
        of_piece.sort_unstable_by_key(|(left, right, ..)| (**left, **right));
        merges.extend(of_piece.into_iter().map(|(_, _, left, right)| Merge { score, left, right }));
    }
    // A stable sort: among equal keys the earlier piece stays first.
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then_with(|| b.lengths().cmp(&a.lengths())));
    merges.into_iter().map(|merge| [merge.left, merge.right]).collect()
}

struct Merge<'a> {
    score: f32,
    left: &'a str,
    right: &'a str,
}

impl Merge<'_> {
    fn lengths(&self) -> (usize, usize) {
        (self.left.chars().count(), self.right.chars().count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_go_by_score_then_by_length_and_make_no_control_token() {
        let pieces = ["<s>", "a", "b", "ab", "aba", "\u{2581}\u{2581}", "\u{2581}", "ba"].map(str::to_owned);
        let scores = [-9.0, -5.0, -5.0, -1.0, -3.0, -9.0, -5.0, -3.0];
        let types = [3, 1, 1, 1, 1, 4, 1, 1];
        let expected = [["\u{2581}", "\u{2581}"], ["a", "b"], ["ab", "a"], ["a", "ba"], ["b", "a"]];
        assert_eq!(merges(&pieces, &scores, &types), expected);
    }
}
