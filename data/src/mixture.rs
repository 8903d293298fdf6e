//! Texts of several sources, each with its share of what is trained on.
//!
//! The rows of a mixture are those of its sources, one source after the other. [`crate::Sampler`]
//! gives them in the ratio of the weights: the next row comes from the source that is furthest
//! behind its share, the first of them where several are. So after `n` rows a source `i` of weight
//! `w_i` is less than one row ahead of its `n·w_i / Σ w`, and less than one for each other source
//! behind it. Nothing is drawn: which source is next follows from what each has given. Sources go
//! through their own epochs; a small one with a large weight through more of them.

use sha2::{Digest, Sha256};

use crate::dataset::TokenDataset;
use crate::error::DataError;
use crate::pack::Batch;
use crate::tokenizer::hex;

/// Sources and their shares.
#[derive(Debug, Clone)]
pub struct Mixture {
    sources: Vec<MixtureSource>,
}

#[derive(Debug, Clone)]
struct MixtureSource {
    dataset: TokenDataset,
    /// Fraction of all weights; they sum to 1.
    share: f64,
    /// Rows of the sources before.
    first: usize,
}

impl From<TokenDataset> for Mixture {
    fn from(dataset: TokenDataset) -> Self {
        Self { sources: vec![MixtureSource { dataset, share: 1.0, first: 0 }] }
    }
}

impl Mixture {
    /// Sources with their weights, whose ratio counts.
    ///
    /// # Errors
    /// There is no source, a weight is not a finite number above 0, or the rows of two sources are
    /// not of the same length.
    pub fn new(sources: Vec<(TokenDataset, f64)>) -> Result<Self, DataError> {
        let weights: Vec<f64> = sources.iter().map(|(_, weight)| *weight).collect();
        let total: f64 = weights.iter().sum();
        let lengths = sources.windows(2).all(|pair| pair[0].0.sequence_length() == pair[1].0.sequence_length());
        if !(lengths && total.is_finite() && total > 0.0 && weights.iter().all(|weight| *weight > 0.0)) {
            return Err(DataError::Mixture { weights });
        }
        let mut first = 0;
        let place = |(dataset, weight): (TokenDataset, f64)| {
            let source = MixtureSource { share: weight / total, first, dataset };
            first += source.dataset.num_rows();
            source
        };
        Ok(Self { sources: sources.into_iter().map(place).collect() })
    }

    /// The sources, in order.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = &TokenDataset> {
        self.sources.iter().map(|source| &source.dataset)
    }

    /// Rows of all sources.
    pub fn num_rows(&self) -> usize {
        self.sources().map(TokenDataset::num_rows).sum()
    }

    /// SHA-256 of the rows, in hexadecimal: that of the only source, or of those of all. Weights
    /// are not part of it.
    pub fn fingerprint(&self) -> String {
        match self.sources.as_slice() {
            [only] => only.dataset.fingerprint(),
            all => {
                let fingerprints: Vec<String> = all.iter().map(|source| source.dataset.fingerprint()).collect();
                hex(&Sha256::digest(fingerprints.join("\n")))
            }
        }
    }

    /// Checks that a run which saved `fingerprint` can go on with this data.
    ///
    /// # Errors
    /// The rows are not the same.
    pub fn check_fingerprint(&self, fingerprint: &str) -> Result<(), DataError> {
        let found = self.fingerprint();
        if found != fingerprint {
            return Err(DataError::DataChanged { expected: fingerprint.to_owned(), found });
        }
        Ok(())
    }

    /// The rows of these indices, in this order.
    ///
    /// # Errors
    /// The disk fails.
    ///
    /// # Panics
    /// An index is not below [`Mixture::num_rows`].
    pub fn batch(&self, rows: &[usize]) -> Result<Batch, DataError> {
        let mut batch = self.sources[0].dataset.empty_batch(rows.len());
        for &row in rows {
            let after = self.sources.partition_point(|source| source.first <= row);
            let source = &self.sources[after - 1];
            source.dataset.add_row(row - source.first, &mut batch)?;
            batch.indices.push(row);
        }
        Ok(batch)
    }

    /// The first row of a source.
    pub(crate) fn first_row(&self, source: usize) -> usize {
        self.sources[source].first
    }

    /// The source that gives the next row, where each has given so many.
    pub(crate) fn next_source(&self, given: &[u64]) -> usize {
        let next = given.iter().sum::<u64>() as f64 + 1.0;
        let behind = self.sources.iter().zip(given).map(|(source, given)| source.share * next - *given as f64);
        let mut furthest = (0, f64::NEG_INFINITY);
        for (index, behind) in behind.enumerate() {
            if behind > furthest.1 {
                furthest = (index, behind);
            }
        }
        furthest.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A source of `num_rows` rows of one token, `token` throughout.
    fn source(num_rows: usize, token: u32) -> TokenDataset {
        TokenDataset::from_tokens(&vec![token; num_rows + 1], 1).unwrap()
    }

    proptest! {
        #[test]
        fn every_source_stays_near_its_share(weights in prop::collection::vec(1e-3..10.0_f64, 1..6)) {
            let sources = weights.iter().map(|weight| (source(3, 1), *weight)).collect();
            let mixture = Mixture::new(sources).unwrap();
            let total: f64 = weights.iter().sum();
            let mut given = vec![0; weights.len()];
            for n in 1..=1000 {
                let next = mixture.next_source(&given);
                given[next] += 1;
                // Shares are rounded numbers.
                let (ahead, behind) = (1.0 + 1e-9, (weights.len() - 1) as f64 + 1e-9);
                for (given, weight) in given.iter().zip(&weights) {
                    let surplus = *given as f64 - f64::from(n) * weight / total;
                    prop_assert!(surplus < ahead && -surplus < behind, "{given} of {n}: {surplus} more than due");
                }
            }
        }
    }

    #[test]
    fn rows_are_numbered_source_after_source() {
        let mixture = Mixture::new(vec![(source(2, 7), 1.0), (source(3, 8), 2.0)]).unwrap();
        assert_eq!(mixture.num_rows(), 5);
        let batch = mixture.batch(&[4, 0, 2, 1]).unwrap();
        assert_eq!((batch.inputs, batch.indices, batch.rows), (vec![8, 7, 8, 7], vec![4, 0, 2, 1], 4));
        assert_eq!(batch.pieces, [1; 4]);
    }

    #[test]
    fn the_fingerprint_is_that_of_the_rows_in_their_order() {
        let mixture = |a: (usize, u32), b: (usize, u32), weight| {
            Mixture::new(vec![(source(a.0, a.1), 1.0), (source(b.0, b.1), weight)]).unwrap().fingerprint()
        };
        let (a, b) = ((2, 7), (3, 8));
        assert_eq!(mixture(a, b, 1.0), mixture(a, b, 2.0));
        assert_ne!(mixture(a, b, 1.0), mixture(b, a, 1.0));
        assert_ne!(mixture(a, b, 1.0), mixture(a, (4, 8), 1.0));
        let only = source(2, 7);
        assert_eq!(Mixture::from(only.clone()).fingerprint(), only.fingerprint());
        let error = Mixture::from(only).check_fingerprint("0").unwrap_err();
        assert!(matches!(error, DataError::DataChanged { .. }));
    }

    #[test]
    fn weights_that_cannot_be_are_errors() {
        for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = Mixture::new(vec![(source(2, 7), 1.0), (source(2, 8), weight)]).unwrap_err();
            assert!(matches!(error, DataError::Mixture { .. }), "{weight}");
        }
        assert!(Mixture::new(Vec::new()).is_err());
        let longer = TokenDataset::from_tokens(&[1; 5], 2).unwrap();
        assert!(Mixture::new(vec![(source(2, 7), 1.0), (longer, 1.0)]).is_err());
    }
}
