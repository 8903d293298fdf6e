//! Workload of a server: sizes, prompts and arrival times of requests. All is drawn from a seed, so
//! that every target gets the same requests.

use anyhow::{Context, ensure};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};
use std::{ops::Range, path::Path, time::Duration};

/// Tokens of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub prompt: usize,
    pub new: usize,
}

/// A request of the workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// Time of its arrival after the start, in an open loop.
    pub arrives: Duration,
    pub prompt: Vec<u32>,
    pub new_tokens: usize,
}

/// Tokens of the prompts.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompts {
    /// Drawn from a range of ids.
    Drawn(Range<u32>),
    /// Parts of a text, which begin anywhere in it.
    Text(Vec<u32>),
}

impl Prompts {
    /// # Errors
    /// There are not enough ids to draw from, or tokens of a text.
    fn draw(&self, len: usize, rng: &mut ChaCha8Rng) -> anyhow::Result<Vec<u32>> {
        match self {
            Self::Drawn(ids) => {
                let num_ids = u64::from(ids.end).checked_sub(ids.start.into()).filter(|num| *num > 0);
                let num_ids = num_ids.with_context(|| format!("a vocabulary of {} tokens is too small", ids.end))?;
                Ok((0..len).map(|_| ids.start + (rng.next_u64() % num_ids) as u32).collect())
            }
            Self::Text(tokens) => {
                let places = tokens.len().checked_sub(len).map(|last| last as u64 + 1);
                let places = places.with_context(|| {
                    format!("`--text` has {} tokens, expected at least the {len} of a prompt", tokens.len())
                })?;
                let start = (rng.next_u64() % places) as usize;
                Ok(tokens[start..start + len].to_vec())
            }
        }
    }
}

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Load {
    /// Closed loop: each of so many clients sends a request when its last one is answered.
    Clients(usize),
    /// Open loop: a Poisson process with so many requests per second, whatever the server does.
    Rate(f64),
}

/// Reads sizes of requests: a prompt's tokens and new tokens on each line, with a space or a comma
/// between.
pub fn read_sizes(path: &Path) -> anyhow::Result<Vec<Size>> {
    let text = fs_err::read_to_string(path)?;
    let size = |(index, line): (usize, &str)| {
        let mut numbers = line.split([' ', ',', '\t']).filter(|word| !word.is_empty()).map(str::parse);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(prompt)), Some(Ok(new)), None) if prompt > 0 && new > 0 => Ok(Size { prompt, new }),
            _ => anyhow::bail!(
                "line {} of `{}` is `{line}`, expected two numbers of at least 1\nhint: the tokens of a prompt, and new tokens, e.g. `128 64`",
                index + 1,
                path.display()
            ),
        }
    };
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let sizes = lines.map(size).collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(!sizes.is_empty(), "`{}` has no line, expected at least one\nhint: e.g. `128 64`", path.display());
    Ok(sizes)
}

/// `count` requests with `sizes` in turn.
///
/// # Errors
/// Nothing can be drawn for a prompt.
pub fn plan(sizes: &[Size], count: usize, load: Load, prompts: &Prompts, seed: u64) -> anyhow::Result<Vec<Planned>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut at = 0.0;
    let planned = sizes.iter().cycle().take(count).map(|size| {
        if let Load::Rate(rate) = load {
            // Times between the arrivals of a Poisson process are exponential; 53 random bits make
            // a uniform number in [0, 1).
            let uniform = (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
            at -= (1.0 - uniform).ln() / rate;
        }
        let prompt = prompts.draw(size.prompt, &mut rng)?;
        Ok(Planned { arrives: Duration::from_secs_f64(at), prompt, new_tokens: size.new })
    });
    planned.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_of_an_open_loop_have_the_rate_and_the_spread_of_a_poisson_process() {
        let sizes = [Size { prompt: 3, new: 2 }, Size { prompt: 1, new: 5 }];
        let drawn = Prompts::Drawn(10..12);
        let found = plan(&sizes, 4000, Load::Rate(8.0), &drawn, 1).unwrap();
        let gaps: Vec<f64> = found.windows(2).map(|pair| (pair[1].arrives - pair[0].arrives).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // Mean and deviation are both 1/8; of 4,000 gaps they are known to about 1.6 %.
        assert!((mean * 8.0 - 1.0).abs() < 0.06 && (deviation * 8.0 - 1.0).abs() < 0.08, "{mean} {deviation}");
        assert_eq!((found[0].prompt.len(), found[1].prompt.len(), found[2].new_tokens), (3, 1, 2));
        assert!(found.iter().flat_map(|planned| &planned.prompt).all(|id| (10..12).contains(id)));
        assert_eq!(plan(&sizes, 2, Load::Rate(8.0), &drawn, 1).unwrap(), found[..2]);
        let closed = plan(&sizes, 3, Load::Clients(2), &drawn, 1).unwrap();
        assert!(closed.iter().all(|planned| planned.arrives.is_zero()));
        let none = Prompts::Drawn(Range { start: 10, end: 9 });
        assert!(plan(&sizes, 1, Load::Clients(2), &none, 1).is_err());
    }

    #[test]
    fn prompts_of_a_text_are_parts_of_it() {
        let text: Vec<u32> = (0..7).collect();
        let sizes = [Size { prompt: 3, new: 1 }];
        let found = plan(&sizes, 64, Load::Clients(2), &Prompts::Text(text.clone()), 1).unwrap();
        let starts: std::collections::BTreeSet<u32> = found.iter().map(|planned| planned.prompt[0]).collect();
        assert_eq!(starts.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        assert!(found.iter().all(|planned| text.windows(3).any(|part| part == planned.prompt)));
        let short = plan(&sizes, 1, Load::Clients(2), &Prompts::Text(vec![1, 2]), 1).unwrap_err().to_string();
        assert_eq!(short, "`--text` has 2 tokens, expected at least the 3 of a prompt");
    }

    #[test]
    fn sizes_are_two_numbers_on_a_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lengths");
        fs_err::write(&path, "128 64\n\n7,\t9\n").unwrap();
        assert_eq!(read_sizes(&path).unwrap(), [Size { prompt: 128, new: 64 }, Size { prompt: 7, new: 9 }]);
        for text in ["128 0", "1 2 3", "a b", "5"] {
            fs_err::write(&path, format!("1 1\n{text}\n")).unwrap();
            let error = read_sizes(&path).unwrap_err().to_string();
            assert!(error.starts_with("line 2 of ") && error.contains(text), "{error}");
        }
        fs_err::write(&path, "\n").unwrap();
        assert!(read_sizes(&path).unwrap_err().to_string().contains("has no line"));
    }
}
