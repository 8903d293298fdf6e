//! Packing of a batch of requests into the rows of one forward pass: sequences without padding,
//! common prefixes once.

use crate::{
    ScoreRequest,
    grouping::{SharedPrefix, groups},
};
use retie_model::kernels::Layout;

/// Rows to read, and the positions of the scored tokens.
#[derive(Debug)]
pub(crate) struct Packing {
    pub ids: Vec<u32>,
    pub layout: Layout,
    /// Row whose hidden state predicts the scored token, for each scored token, request after
    /// request.
    pub rows: Vec<usize>,
    /// The scored tokens.
    pub targets: Vec<u32>,
}

impl Packing {
    pub fn new(requests: &[ScoreRequest]) -> Self {
        let groups = groups(requests, usize::MAX);
        let mut ids = Vec::new();
        let mut runs = Vec::new();
        // First row of the shared prefix and first row of the request's own tokens, for each
        // request.
        let mut places = vec![(0, 0); requests.len()];
        for SharedPrefix { members, shared, .. } in &groups {
            let start = ids.len();
            if let Some(first) = members.first() {
                ids.extend_from_slice(&requests[*first].read()[..*shared]);
                runs.push((*shared, 0..0));
            }
            for index in members {
                let own_tokens = &requests[*index].read()[*shared..];
                places[*index] = (start, ids.len());
                runs.push((own_tokens.len(), start..start + shared));
                ids.extend_from_slice(own_tokens);
            }
        }
        let shared = shared_lengths(&groups, requests.len());
        let (mut rows, mut targets) = (Vec::new(), Vec::new());
        for ((request, shared), (start, own)) in requests.iter().zip(shared).zip(places) {
            for position in request.scored_from.max(1)..request.tokens.len() {
                let read = position - 1;
                rows.push(if read < shared { start + read } else { own + read - shared });
                targets.push(request.tokens[position]);
            }
        }
        Self { layout: layout(requests, &groups, runs), ids, rows, targets }
    }
}

fn shared_lengths(groups: &[SharedPrefix], num_requests: usize) -> Vec<usize> {
    let mut shared = vec![0; num_requests];
    for group in groups {
        for index in &group.members {
            shared[*index] = group.shared;
        }
    }
    shared
}

/// Layout of the rows. Sequences of one length without common prefixes are a plain batch, which
/// devices run in one kernel.
fn layout(requests: &[ScoreRequest], groups: &[SharedPrefix], runs: Vec<(usize, std::ops::Range<usize>)>) -> Layout {
    let width = requests.first().map_or(0, |request| request.read().len());
    if groups.len() == requests.len() && requests.iter().all(|request| request.read().len() == width) {
        return Layout::batch(requests.len(), width);
    }
    Layout::packed(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tokens: &[u32], scored_from: usize) -> ScoreRequest {
        ScoreRequest { tokens: tokens.to_vec(), scored_from }
    }

    #[test]
    fn a_shared_prefix_is_read_once_and_predicts_the_first_token_of_every_choice() {
        let question = [1, 2, 3, 4, 5];
        let choice = |rest: &[u32]| request(&[&question, rest].concat(), 5);
        let packing = Packing::new(&[choice(&[20, 21]), request(&[8, 9], 1), choice(&[10])]);
        assert_eq!(packing.ids, [1, 2, 3, 4, 5, 20, 8]);
        assert_eq!(packing.layout.positions(), (1, vec![0, 1, 2, 3, 4, 5, 0]));
        // `20` and `10` are predicted by the last row of the question.
        assert_eq!(packing.targets, [20, 21, 9, 10]);
        assert_eq!(packing.rows, [4, 5, 6, 4]);
    }

    #[test]
    fn sequences_of_one_length_are_a_batch() {
        let packing = Packing::new(&[request(&[5, 6, 7], 1), request(&[1, 2, 3], 2)]);
        assert_eq!(packing.layout.grid().map(|grid| (grid.batch, grid.tokens)), Some((2, 2)));
        // Rows are in the order of the groups: ascending tokens.
        assert_eq!(packing.ids, [1, 2, 5, 6]);
        assert_eq!((packing.rows, packing.targets), (vec![2, 3, 1], vec![6, 7, 3]));
    }
}
