//! The keys of a conversion as options. A field has the name and the type of a key of
//! [`ConvertConfig`], into which it is read.

use crate::choice::choice;
use clap::Args;
use retie_config::{
    Budget, ByteSize, Compensation, ConvertConfig, DepthExtra, InitChoice, KvSharing, Method, Relax, RemainderPolicy,
    SelectBy, Sharing, StoredDtype,
};
use serde::{Serialize, Serializer};
use std::path::PathBuf;

/// The keys of a conversion that a `--config` file can have.
#[derive(Debug, Args, Serialize)]
pub struct ConvertFlags {
    #[arg(skip = 1u32)]
    schema: u32,
    /// A Hugging Face folder, a .gguf file, or a hub id
    #[arg(value_name = "MODEL", required_unless_present = "config")]
    model: Option<String>,
    /// What is made of the model: a recursive one, or what it has to beat: a plain one with fewer
    /// layers (`drop`), or one whose linears have low rank (`svd`)
    #[arg(long, default_value_t, value_parser = choice::<Method>(Method::NAMES))]
    method: Method,
    /// Passes over the shared block; has to divide the layers that are shared unless there is
    /// `--fit`, 1 copies the model
    #[arg(long, value_name = "R")]
    recursions: Option<usize>,
    /// Which depths share a layer
    #[arg(long, value_parser = choice::<Sharing>(Sharing::CHOICES.map(Sharing::name)))]
    sharing: Option<Sharing>,
    /// Unshared layers before the loop of `cycle` and `sequence`
    #[arg(long, value_name = "LAYERS")]
    prelude: Option<usize>,
    /// Unshared layers after it
    #[arg(long, value_name = "LAYERS")]
    coda: Option<usize>,
    /// The stored layer of every depth, e.g. 0,1,2,1,2,3
    #[arg(long, value_name = "LAYER,…", value_delimiter = ',')]
    map: Option<Vec<usize>>,
    /// What happens to layers that the recursions do not divide: some are dropped, run twice, or
    /// stay unshared
    #[arg(long, value_parser = choice::<RemainderPolicy>(RemainderPolicy::ALL.map(RemainderPolicy::name)))]
    fit: Option<RemainderPolicy>,
    /// How the shared layers are initialised; `auto` measures candidates and takes the best, with
    /// its pattern and ranks; `select` keeps layers whole and loops a block of them, chosen by
    /// measurement
    #[arg(long, required_unless_present_any = ["config", "method"], value_parser = choice::<InitChoice>(InitChoice::NAMES))]
    init: Option<InitChoice>,
    /// The source layer of every depth, for `--init select` and `--method drop`, in place of a
    /// budget, e.g. 0,1,2,3,2,3,7
    #[arg(long, value_name = "LAYER,…", value_delimiter = ',')]
    source_layers: Option<Vec<usize>>,
    /// What kept layers are chosen by under a budget, of `--init select` and `--method drop`: the
    /// KL to the source on the text, or on sequences too that say something twice, so that layers
    /// which copy from the context stay [default: text]
    #[arg(long, value_parser = choice::<SelectBy>(SelectBy::NAMES))]
    select_by: Option<SelectBy>,
    /// What makes up for removed layers, of `--init select` and `--method drop` [default:
    /// least_squares with a text, else none]
    #[arg(long, value_parser = choice::<Compensation>(Compensation::NAMES))]
    compensation: Option<Compensation>,
    /// Residual gate of the recursions after the first, of `--init select` [default: measured with
    /// a budget, else 0]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    gate: Option<f32>,
    /// The most that all weights may be, for `--init auto`, `--init select`, `--method drop` and
    /// `--method svd`: 75% of the source, 90M parameters, 250MiB
    #[arg(long, value_parser = |text: &str| text.parse::<Budget>())]
    budget: Option<Budget>,
    /// Text on which the start is scored, and that `--init calibrated` and `--method svd` are
    /// fitted to; of .jsonl, .parquet and .arrow files the field `text`
    #[arg(long, value_name = "FILE")]
    calibration: Option<PathBuf>,
    /// Tokens of the text that are fitted to; a quarter as many others are scored [default: 8192,
    /// of a selection of layers and of `--method svd` 65536]
    #[arg(long, value_name = "N")]
    calibration_tokens: Option<usize>,
    /// What each depth adds to the linears that it shares, with `--lora-rank` or a budget: `dora`
    /// is LoRA with a magnitude for every row; `--init auto` tries `lora` only
    #[arg(long, default_value_t, value_parser = choice::<Relax>(Relax::ALL.map(Relax::name)))]
    relax: Relax,
    /// Rank of the LoRA that each depth gets; without it there is none
    #[arg(long, value_name = "RANK")]
    lora_rank: Option<usize>,
    /// Ranks of some linears, e.g. k_proj=16,v_proj=16; the others have `--lora-rank`
    #[arg(long, value_name = "LINEAR=RANK,…", value_delimiter = ',', value_parser = linear_rank)]
    #[serde(serialize_with = "as_map")]
    lora_ranks: Vec<(String, usize)>,
    /// Parameters that all LoRA may have together, in place of ranks: spread by residual energy
    #[arg(long, value_name = "PARAMETERS")]
    lora_budget: Option<usize>,
    /// First recursion that has LoRA; with 1 the first runs the bare shared weights
    #[arg(long, value_name = "RECURSION", default_value_t)]
    lora_from: usize,
    /// Per-depth vectors that the source does not have; they change nothing before training
    #[arg(long, value_name = "EXTRA,…", value_delimiter = ',', value_parser = choice::<DepthExtra>(DepthExtra::ALL.map(DepthExtra::name)))]
    extras: Vec<DepthExtra>,
    /// Whether norms and biases are shared too, or each depth keeps its own
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    share_norms: bool,
    /// Keys and values that a recursion's tokens attend to: of one another; of all tokens, as the
    /// first recursion made them; or those with its own in their places
    #[arg(long, value_name = "SHARING", default_value_t, value_parser = choice::<KvSharing>(KvSharing::NAMES))]
    kv_sharing: KvSharing,
    /// Let depths that differ in kind (a window, another rotation) share a layer; each keeps its
    /// own kind
    #[arg(long)]
    tie_across_kinds: bool,
    /// Element type of the written weights
    #[arg(long, default_value_t, value_parser = choice::<StoredDtype>(StoredDtype::NAMES))]
    dtype: StoredDtype,
    /// Size of the largest weight file, e.g. 500MiB [default: 5GB]
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| text.parse::<ByteSize>())]
    max_shard_size: Option<ByteSize>,
    /// Seed of `--init random`
    #[arg(long, default_value_t)]
    seed: u64,
    /// Folder to write; it may not hold anything yet
    #[arg(short, long, value_name = "DIR", required_unless_present = "config")]
    output: Option<PathBuf>,
}

impl ConvertFlags {
    /// The document that the options stand for.
    ///
    /// # Errors
    /// A path is not UTF-8.
    pub fn into_config(self) -> anyhow::Result<ConvertConfig> {
        Ok(serde_json::from_value(serde_json::to_value(self)?)?)
    }
}

/// `NAME=RANK`.
fn linear_rank(text: &str) -> Result<(String, usize), String> {
    let (name, rank) = text.split_once('=').ok_or("expected LINEAR=RANK")?;
    Ok((name.to_owned(), rank.parse().map_err(|_| format!("`{rank}` is no rank, expected a positive integer"))?))
}

fn as_map<S: Serializer>(pairs: &[(String, usize)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, rank)| (name, rank)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::convert::Convert;
    use clap::{Command, FromArgMatches};
    use retie_config::{ResolvedConvert, document};
    use std::path::Path;

    /// Options that say how a conversion is run, and not which one it is.
    const OF_THE_COMMAND: [&str; 5] = ["config", "plan", "report", "set", "json"];

    /// A whole conversion.
    const WHOLE: &str = "--init average --recursions 2 --sharing cycle";

    /// Every option that is a key: a value, and the options that it needs beside it.
    const SAMPLES: [(&str, &str, &str); 29] = [
        ("model", "other", WHOLE),
        ("recursions", "3", "--init average --sharing cycle"),
        ("sharing", "sequence", "--init average --recursions 2"),
        ("prelude", "1", WHOLE),
        ("coda", "1", WHOLE),
        ("map", "0,1,1,2", "--init average"),
        ("fit", "repeat", WHOLE),
        ("init", "lower", "--recursions 2 --sharing cycle"),
        ("method", "drop", "--source-layers 0,1"),
        ("source_layers", "0,1", "--method drop"),
        ("select_by", "copying", "--method drop --budget 50% --calibration text"),
        ("compensation", "none", "--method drop --source-layers 0,1 --calibration text"),
        ("gate", "0.5", "--init select --source-layers 0,0"),
        ("budget", "50%", "--init auto --calibration text"),
        ("calibration", "text", WHOLE),
        ("calibration_tokens", "100", "--init average --recursions 2 --sharing cycle --calibration text"),
        ("relax", "dora", "--init average --recursions 2 --sharing cycle --lora-rank 4"),
        ("lora_rank", "4", WHOLE),
        ("lora_ranks", "k_proj=2", WHOLE),
        ("lora_budget", "1000", WHOLE),
        ("lora_from", "1", "--init average --recursions 2 --sharing cycle --lora-rank 4"),
        ("extras", "loop_norm", WHOLE),
        ("share_norms", "false", WHOLE),
        ("kv_sharing", "shared", WHOLE),
        ("tie_across_kinds", "", WHOLE),
        ("dtype", "bf16", WHOLE),
        ("max_shard_size", "1GB", WHOLE),
        ("seed", "7", "--init random --recursions 2 --sharing cycle"),
        ("output", "there", WHOLE),
    ];

    fn command() -> Command {
        Convert::augment_args(Command::new("convert").no_binary_name(true))
    }

    fn parse(line: &str) -> Result<Convert, clap::Error> {
        let matches = command().try_get_matches_from(line.split_whitespace())?;
        Convert::from_arg_matches(&matches)
    }

    fn config(line: &str) -> ConvertConfig {
        let convert = parse(line).unwrap_or_else(|error| panic!("{error}"));
        convert.flags.into_config().unwrap()
    }

    /// The conversion of a line, with what is missing filled in; `None` where the line is refused.
    fn resolved(line: &str) -> Option<ResolvedConvert> {
        let given = |flag: &str| line.split_whitespace().any(|word| word == flag);
        let mut whole = line.to_owned();
        if !given("--init") && !given("--method") {
            whole += " --init average";
        }
        if !given("--output") {
            whole += " --output out";
        }
        let line = whole;
        config(&line).validate().ok()
    }

    #[test]
    fn every_option_is_a_key_that_changes_the_conversion() {
        let command = command();
        let ids = command.get_arguments().map(|argument| argument.get_id().as_str());
        let mut keys: Vec<&str> = ids.filter(|id| !OF_THE_COMMAND.contains(id)).collect();
        keys.sort_unstable();
        let mut sampled = SAMPLES.map(|(key, ..)| key);
        sampled.sort_unstable();
        assert_eq!(keys, sampled, "every option of `retie convert` has a line in this test");
        for (key, value, beside) in SAMPLES {
            let flag = format!("--{} {value}", key.replace('_', "-"));
            let (without, with) = match key {
                "model" => (format!("base {beside}"), format!("{value} {beside}")),
                _ => (format!("base {beside}"), format!("base {beside} {flag}")),
            };
            let (without, with) = (resolved(&without), resolved(&with));
            assert!(with.is_some(), "{flag}: refused");
            assert_ne!(without, with, "{flag}: accepted and ignored");
        }
    }

    #[test]
    fn defaults_are_those_of_a_file() {
        let text = "schema: 1\nmodel: base\nrecursions: 2\nsharing: cycle\ninit: average\noutput: out\n";
        let file: ConvertConfig = document::parse(text, Path::new("x.yaml"), &[]).unwrap();
        assert_eq!(config("base --recursions 2 --sharing cycle --init average -o out"), file);
    }

    #[test]
    fn options_and_a_file_exclude_one_another() {
        for flag in ["--recursions 2", "--dtype f32", "--tie-across-kinds", "-o out", "base", "--max-shard-size 1GB"] {
            let line = format!("--config x.yaml {flag}");
            let error = parse(&line).unwrap_err();
            assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict, "{line}");
        }
        parse("--config x.yaml --set seed=1").unwrap();
    }
}
