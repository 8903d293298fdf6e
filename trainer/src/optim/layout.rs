//! Division of the parameters of a run among ranks.
//!
//! Parameters whose rule is elementwise form one line, which is cut into buckets, and each bucket
//! into as many equal parts as there are ranks: of every bucket a rank owns the part of its number.
//! Matrices whose rule has to see them whole follow: each belongs to the rank that owned least so
//! far, behind what the rank has. The parts of these ranks in turn form the further buckets.

use super::parameters::ParameterList;
use std::ops::Range;

/// Elements of a parameter that one rank owns.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Number of the parameter in the list.
    pub index: usize,
    /// The rank.
    pub rank: usize,
    /// In the parameter.
    pub inner: Range<usize>,
    /// In the own parts of the rank, one after the other.
    pub own: Range<usize>,
}

/// Which rank owns what.
#[derive(Debug)]
pub struct Layout {
    /// Elements of the part of a rank in a bucket.
    part: usize,
    world: usize,
    segments: Vec<Segment>,
    /// The segments of each bucket, cut at its ends; those of a parameter in their order.
    buckets: Vec<Vec<Segment>>,
    /// Buckets that each parameter lies in.
    buckets_of: Vec<Range<usize>>,
}

impl Layout {
    /// Divides `parameters` among `world` ranks, with buckets of about `bucket` elements; those
    /// that `is_whole` names by their number are not cut.
    pub fn new(parameters: &ParameterList, is_whole: impl Fn(usize) -> bool, world: usize, bucket: usize) -> Self {
        let part = bucket.div_ceil(world).min(parameters.len().div_ceil(world)).max(1);
        let len = |index: usize| parameters.ranges()[index].range.len();
        let (whole, divided): (Vec<usize>, Vec<usize>) =
            (0..parameters.ranges().len()).partition(|index| is_whole(*index));
        let mut segments = Vec::new();
        let mut line = 0;
        for index in divided {
            let mut inner = 0..0;
            while inner.end < len(index) {
                let (bucket, rank, offset) = (line / (part * world), line / part % world, line % part);
                inner = inner.end..len(index).min(inner.end + part - offset);
                let own = bucket * part + offset;
                line += inner.len();
                segments.push(Segment { index, rank, inner: inner.clone(), own: own..own + inner.len() });
            }
        }
        let mut ends = vec![line.div_ceil(part * world) * part; world];
        for index in whole {
            let Some((rank, end)) = ends.iter_mut().enumerate().min_by_key(|(rank, end)| (**end, *rank)) else {
                unreachable!("there is a rank")
            };
            segments.push(Segment { index, rank, inner: 0..len(index), own: *end..*end + len(index) });
            *end += len(index);
        }
        let num_buckets = ends.into_iter().max().unwrap_or(0).div_ceil(part);
        let mut buckets = vec![Vec::new(); num_buckets];
        let mut buckets_of = vec![0..0; parameters.ranges().len()];
        for Segment { index, rank, inner, own } in &segments {
            let last = own.end.div_ceil(part);
            let of: &mut Range<usize> = &mut buckets_of[*index];
            *of = if of.start == of.end { own.start / part..last } else { of.start..last };
            let first = own.start / part;
            for (bucket, segments) in (first..last).zip(&mut buckets[first..]) {
                let cut = own.start.max(bucket * part)..own.end.min((bucket + 1) * part);
                let start = inner.start + cut.start - own.start;
                let inner = start..start + cut.len();
                segments.push(Segment { index: *index, rank: *rank, inner, own: cut });
            }
        }
        Self { part, world, segments, buckets, buckets_of }
    }

    /// What `rank` owns, in the order of the parameters' numbers within each kind of rule.
    pub fn segments_of(&self, rank: usize) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |segment| segment.rank == rank)
    }

    /// The segments of each bucket.
    pub fn buckets(&self) -> &[Vec<Segment>] {
        &self.buckets
    }

    /// Numbers of the buckets that a parameter lies in.
    pub fn buckets_of(&self, index: usize) -> Range<usize> {
        self.buckets_of[index].clone()
    }

    /// Place of a bucket in the own parts of a rank.
    pub fn own_part(&self, bucket: usize) -> Range<usize> {
        bucket * self.part..(bucket + 1) * self.part
    }

    /// Place of a segment of a bucket in the parts of all ranks, one after the other.
    pub fn in_bucket(&self, segment: &Segment) -> Range<usize> {
        let start = segment.rank * self.part + segment.own.start % self.part;
        start..start + segment.own.len()
    }

    /// Elements of a bucket.
    pub fn bucket_len(&self) -> usize {
        self.part * self.world
    }

    /// Elements of the own parts of a rank.
    pub fn own_len(&self) -> usize {
        self.part * self.buckets.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use retie_config::ParameterGroup;

    /// Parameters of the given numbers of elements.
    fn list(lens: &[usize]) -> ParameterList {
        let mut parameters = ParameterList::default();
        for (index, len) in lens.iter().enumerate() {
            parameters.push(&index.to_string(), ParameterGroup::Shared, vec![*len]);
        }
        parameters
    }

    #[test]
    fn every_element_has_one_owner_and_one_place_in_a_bucket() {
        let lens = [7, 30, 1, 12, 5, 0, 40, 3];
        let parameters = list(&lens);
        for (world, bucket) in [(1, 8), (2, 10), (3, 10), (4, 1000), (5, 3)] {
            for whole in [&[][..], &[1, 4, 6], &[0, 1, 2, 3, 4, 5, 6, 7]] {
                let layout = Layout::new(&parameters, |index| whole.contains(&index), world, bucket);
                let mut seen: Vec<Vec<usize>> = lens.iter().map(|len| vec![0; *len]).collect();
                for (number, segments) in layout.buckets().iter().enumerate() {
                    let mut places = vec![0; layout.bucket_len()];
                    for segment in segments {
                        assert!(layout.buckets_of(segment.index).contains(&number));
                        assert_eq!(layout.in_bucket(segment).len(), segment.inner.len());
                        let own = layout.own_part(number);
                        assert!(own.start <= segment.own.start && segment.own.end <= own.end);
                        layout.in_bucket(segment).for_each(|place| places[place] += 1);
                        segment.inner.clone().for_each(|at| seen[segment.index][at] += 1);
                    }
                    assert!(places.iter().all(|count| *count <= 1), "two elements in one place");
                }
                assert!(seen.iter().flatten().all(|count| *count == 1), "{world} ranks, buckets of {bucket}");
                for index in whole.iter().copied().filter(|index| lens[*index] > 0) {
                    let mut owners = (0..world).flat_map(|rank| layout.segments_of(rank));
                    let segment = owners.find(|segment| segment.index == index).unwrap();
                    assert_eq!(segment.inner, 0..lens[index]);
                }
            }
        }
    }

    #[test]
    fn whole_matrices_are_spread_over_the_ranks() {
        let layout = Layout::new(&list(&[10, 10, 10, 10, 10, 10]), |_| true, 3, 1 << 20);
        let owned = |rank| layout.segments_of(rank).map(|segment| segment.inner.len()).sum::<usize>();
        assert_eq!([0, 1, 2].map(owned), [20; 3]);
    }
}
