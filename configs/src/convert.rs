//! `retie convert --config FILE.yaml`: from a pretrained model to a recursive one.

use crate::{
    Init, LoraConfig, RecursionConfig, Sharing,
    document::{Checks, Document},
    run::{check_schema, check_text},
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A conversion. See `configs/recipes/convert-smollm2-r2.yaml` for a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConvertConfig {
    /// Version of these keys: 1.
    pub schema: u32,
    /// A Hugging Face folder, a `.gguf` file, or a hub id.
    pub model: String,
    /// Passes over the shared block, `R`; it has to divide the layers that `sharing` shares.
    pub recursions: usize,
    /// Which depths share a layer.
    pub sharing: Sharing,
    /// Where the shared layers come from.
    pub init: Init,
    /// Rank of the per-depth LoRA; none if absent.
    #[serde(default)]
    pub lora_rank: Option<usize>,
    /// Whether norm weights are shared too, or each depth keeps its own.
    #[serde(default = "default_share_norms")]
    pub share_norms: bool,
    /// Element type of the weights that are written.
    #[serde(default)]
    pub dtype: StoredDtype,
    /// Seed of `init: random`.
    #[serde(default)]
    pub seed: u64,
    /// Folder that is written.
    pub output: PathBuf,
}

/// Element type of written weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoredDtype {
    /// That of the source.
    #[default]
    Keep,
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
}

impl StoredDtype {
    /// Every type, in the order of the documentation.
    pub const ALL: [Self; 4] = [Self::Keep, Self::F32, Self::Bf16, Self::F16];

    /// The name in configurations and on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

impl std::fmt::Display for StoredDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for StoredDtype {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let unknown = || format!("unknown dtype `{name}`, expected one of keep, f32, bf16, f16");
        Self::ALL.into_iter().find(|d| d.name() == name).ok_or_else(unknown)
    }
}

fn default_share_norms() -> bool {
    true
}

impl ConvertConfig {
    /// The `recursion` object of the checkpoint that is written.
    #[must_use]
    pub fn recursion(&self) -> RecursionConfig {
        RecursionConfig {
            num_recursions: self.recursions,
            sharing: self.sharing,
            init: self.init,
            share_norms: self.share_norms,
            lora: self.lora_rank.map(|rank| LoraConfig { rank }),
        }
    }
}

impl Document for ConvertConfig {
    fn check(&self, checks: &mut Checks) {
        check_schema(self.schema, checks);
        check_text("model", &self.model, checks);
        check_text("output", &self.output.to_string_lossy(), checks);
        checks.require(self.recursions > 0, "recursions", self.recursions, "a positive integer");
        if self.lora_rank == Some(0) {
            checks
                .problem("lora_rank", "`lora_rank` is `0`, expected a positive integer")
                .hint("leave `lora_rank` out for a model without LoRA");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document;
    use insta::assert_snapshot;
    use std::path::Path;

    fn parse(text: &str) -> Result<ConvertConfig, crate::ConfigError> {
        document::parse(text, Path::new("convert.yaml"), &[])
    }

    const MINIMAL: &str =
        "schema: 1\nmodel: m\nrecursions: 2\nsharing: middle_cycle\ninit: average\noutput: checkpoints/store/m\n";

    #[test]
    fn defaults_fill_what_is_left_out() {
        let config = parse(MINIMAL).unwrap();
        let yaml = document::to_yaml(&config).unwrap();
        assert_snapshot!(yaml, @"
        schema: 1
        model: m
        recursions: 2
        sharing: middle_cycle
        init: average
        lora_rank: null
        share_norms: true
        dtype: keep
        seed: 0
        output: checkpoints/store/m
        ");
        assert_eq!(parse(&yaml).unwrap(), config);
        assert_eq!(config.recursion().lora, None);
    }

    #[test]
    fn impossible_and_misspelt_values_are_all_reported() {
        let text = "schema: 1\nmodel: 7\nrecursions: 0\nsharing: midle_cycle\ninit: mean\nlora_rank: 0\ndtype: fp8\n";
        assert_snapshot!(parse(text).unwrap_err(), @r#"
        `convert.yaml` has 7 problems
        convert.yaml:1:1: key `output` is missing
        convert.yaml:2:8: `model` is `7`, expected a string
          hint: write it in quotes, `"7"`
        convert.yaml:3:13: `recursions` is `0`, expected a positive integer
        convert.yaml:4:10: `sharing` is `midle_cycle`, expected one of `cycle`, `sequence`, `middle_cycle`, `middle_sequence`
          hint: did you mean `middle_cycle`?
        convert.yaml:5:7: `init` is `mean`, expected one of `stepwise`, `average`, `lower`, `upper`, `random`
        convert.yaml:6:12: `lora_rank` is `0`, expected a positive integer
          hint: leave `lora_rank` out for a model without LoRA
        convert.yaml:7:8: `dtype` is `fp8`, expected one of `keep`, `f32`, `bf16`, `f16`
        "#);
    }

    #[test]
    fn every_dtype_name_parses_to_itself() {
        for dtype in StoredDtype::ALL {
            assert_eq!(dtype.name().parse(), Ok(dtype));
        }
        assert!("int8".parse::<StoredDtype>().is_err());
    }
}
