//! Names of repositories on the Hugging Face hub.

use std::fmt;

/// `org/name`, with `@revision` if it is not `main`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// `org/name`.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
}

/// The branch that is meant where none is named.
const DEFAULT_REVISION: &str = "main";
/// Longest `org/name` that the hub accepts.
const MAX_LEN: usize = 96;

impl HubId {
    /// Reads `org/name` or `org/name@revision`; `None` if `spec` cannot be such a name.
    #[must_use]
    pub fn parse(spec: &str) -> Option<Self> {
        let (repo, revision) = spec.split_once('@').unwrap_or((spec, DEFAULT_REVISION));
        let (org, name) = repo.split_once('/')?;
        let fits = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
                && !part.ends_with(['-', '.'])
                && !part.contains("--")
                && !part.contains("..")
        };
        let revision_fits = revision.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
            && !revision.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\');
        (fits(org) && fits(name) && repo.len() <= MAX_LEN && revision_fits)
            .then(|| Self { repo: repo.to_owned(), revision: revision.to_owned() })
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repo)?;
        if self.revision == DEFAULT_REVISION { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_an_organisation_a_name_and_perhaps_a_revision() {
        let id = HubId::parse("HuggingFaceTB/SmolLM2-135M").unwrap();
        assert_eq!((id.repo.as_str(), id.revision.as_str()), ("HuggingFaceTB/SmolLM2-135M", "main"));
        let id = HubId::parse("a/b@refs/convert/parquet").unwrap();
        assert_eq!((id.repo.as_str(), id.revision.as_str()), ("a/b", "refs/convert/parquet"));
        assert_eq!(id.to_string(), "a/b@refs/convert/parquet");
    }

    #[test]
    fn paths_are_not_ids() {
        let paths =
            ["gpt2", "./a/b", "../b", "/a/b", "a/b/c", "a/", "/b", "a b/c", "a/..", "~/b", "a/b@", "a/b@../x", ""];
        for path in paths {
            assert_eq!(HubId::parse(path), None, "{path:?}");
        }
        assert_eq!(HubId::parse(&format!("a/{}", "b".repeat(200))), None);
    }
}
