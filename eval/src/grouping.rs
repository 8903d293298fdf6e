//! Shared prefixes: requests that begin with the same tokens, above all the choices of one
//! question, so that the common tokens are read once.

use crate::ScoreRequest;

/// Shortest prefix that is shared: a shorter one saves less than keeping it apart costs.
const MIN_SHARED: usize = 4;

/// Requests with a common prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedPrefix {
    /// Indices of the requests.
    pub members: Vec<usize>,
    /// Tokens of the common prefix; 0 for a single request.
    pub shared: usize,
    /// Rows of the forward pass for all of them together.
    pub rows: usize,
}

impl ScoreRequest {
    /// Tokens that the model reads: all but the last, which is only scored.
    pub(crate) fn read(&self) -> &[u32] {
        self.tokens.split_last().map_or(&[], |(_, read)| read)
    }
}

/// Groups `requests` by shared prefix, at most `max_members` in a group. The order of the groups
/// depends on the requests alone.
pub(crate) fn groups(requests: &[ScoreRequest], max_members: usize) -> Vec<SharedPrefix> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    // Requests with equal prefixes are then adjacent.
    order.sort_by(|a, b| requests[*a].read().cmp(requests[*b].read()));
    let mut groups: Vec<SharedPrefix> = Vec::new();
    for index in order {
        let read = requests[index].read();
        if let Some(group) = groups.last_mut()
            && group.members.len() < max_members
            && let Some(joined) = group.with(requests, index)
        {
            *group = joined;
        } else {
            groups.push(SharedPrefix { members: vec![index], shared: 0, rows: read.len() });
        }
    }
    groups
}

impl SharedPrefix {
    /// The group with one more request, if together they take fewer rows.
    fn with(&self, requests: &[ScoreRequest], index: usize) -> Option<Self> {
        let read = requests[index].read();
        let last = requests[*self.members.last()?].read();
        let common = last.iter().zip(read).take_while(|(a, b)| a == b).count();
        let shared = if self.members.len() == 1 { common } else { common.min(self.shared) };
        let members: Vec<usize> = self.members.iter().copied().chain([index]).collect();
        let rows = members.iter().map(|i| requests[*i].read().len() - shared).sum::<usize>() + shared;
        (shared >= MIN_SHARED && rows < self.rows + read.len()).then_some(Self { members, shared, rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(tokens: &[u32]) -> ScoreRequest {
        ScoreRequest { tokens: tokens.to_vec(), scored_from: 1 }
    }

    #[test]
    fn choices_of_one_question_are_one_group_and_other_requests_are_alone() {
        let requests = [
            request(&[1, 2, 3, 4, 5, 10, 11, 0]),
            request(&[7, 7, 7, 7, 7, 0]),
            request(&[1, 2, 3, 4, 5, 12, 0]),
            request(&[1, 2, 3, 4, 5, 0]),
        ];
        let groups = groups(&requests, 8);
        assert_eq!(
            groups,
            [
                SharedPrefix { members: vec![3, 0, 2], shared: 5, rows: 5 + 2 + 1 },
                SharedPrefix { members: vec![1], shared: 0, rows: 5 }
            ]
        );
    }

    #[test]
    fn a_group_has_no_more_members_than_a_batch_and_shares_no_short_prefix() {
        let same = [request(&[1, 2, 3, 4, 5, 6]), request(&[1, 2, 3, 4, 5, 7]), request(&[1, 2, 3, 4, 5, 8])];
        let sizes: Vec<usize> = groups(&same, 2).iter().map(|group| group.members.len()).collect();
        assert_eq!(sizes, [2, 1]);
        assert_eq!(groups(&[request(&[1, 2, 3, 9, 9]), request(&[1, 2, 3, 8, 8])], 8).len(), 2);
    }

    #[test]
    fn a_long_prefix_is_not_given_up_for_a_short_one() {
        // The third shares 4 tokens with the first two, which share 20: in one group the other 16
        // would be read twice.
        let long: Vec<u32> = (0..20).collect();
        let with = |rest: &[u32]| request(&[&long, rest].concat());
        let requests = [with(&[90, 0]), with(&[91, 0]), request(&[0, 1, 2, 3, 99, 0])];
        let groups = groups(&requests, 8);
        assert_eq!(groups.iter().map(|group| group.rows).collect::<Vec<_>>(), [22, 5]);
    }
}
