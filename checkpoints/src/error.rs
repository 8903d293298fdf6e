//! Errors of this crate.

use crate::{GgufError, HubError, layout::TensorProblem, layout_hint};
use std::path::{Path, PathBuf};

/// Errors of reading and writing checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file cannot be read or written; the message holds its path.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// `config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] retie_config::ConfigError),
    /// A GGUF file is malformed or holds what is not supported.
    #[error("`{}` cannot be read as a GGUF model", path.display())]
    Gguf {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: GgufError,
    },
    /// Files of the hub cannot be fetched.
    #[error("`{id}` cannot be had from the Hugging Face hub")]
    Hub {
        /// The repository, with its revision if that is not `main`.
        id: String,
        /// Cause.
        source: HubError,
    },
    /// A hub address that is not that of a data set's file.
    #[error(
        "`{found}` is not the address of a data set's file, expected `hf://datasets/OWNER/NAME/FILE`\nhint: a revision stands behind the name, `NAME@REVISION`; `*` may stand in the last part of FILE"
    )]
    BadHubAddress {
        /// Given address.
        found: String,
    },
    /// A name that no repository of the hub can have.
    #[error("`{found}` is not a hub id, expected `org/name` or `org/name@revision`")]
    BadHubId {
        /// The name.
        found: String,
    },
    /// Nothing is found under the given name.
    #[error("there is no model `{spec}`: {}{}", tried.join("; "), hint.as_ref().map(|h| format!("\nhint: {h}")).unwrap_or_default())]
    NoModel {
        /// Given name or path.
        spec: String,
        /// Places that were searched.
        tried: Vec<String>,
        /// Likely intention.
        hint: Option<String>,
        /// Error of the hub.
        source: Option<Box<CheckpointError>>,
    },
    /// A file that is not a model.
    #[error(
        "`{}` is not a model, expected a folder with `config.json` and safetensors, or a `.gguf` file{}",
        path.display(),
        in_a_folder(path)
    )]
    NotAModelFile {
        /// The file.
        path: PathBuf,
    },
    /// There is no tensor of that name.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    NoTensor {
        /// File or folder that was searched.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// The tensors do not match the configuration.
    #[error(
        "{} of the checkpoint's tensors do not fit its configuration:\n{}{}",
        problems.len(),
        lines(problems),
        layout_hint::hint(problems).map(|hint| format!("\nhint: {hint}")).unwrap_or_default()
    )]
    BadTensors {
        /// Every problem found.
        problems: Vec<TensorProblem>,
    },
    /// Something else stands in the place of a file.
    #[error("`{}` is {found}\nhint: {}", path.display(), found.hint())]
    Disguised {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: retie_config::Disguise,
    },
    /// A folder with a PEFT adapter in the place of a model.
    #[error(
        "`{}` is a PEFT adapter{}, not a model\n\
         hint: merge it: `PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)`",
        path.display(),
        base.as_ref().map(|base| format!(" of `{base}`")).unwrap_or_default()
    )]
    Adapter {
        /// The folder.
        path: PathBuf,
        /// The model that it belongs to.
        base: Option<String>,
    },
    /// Parts of a split model without the index of them.
    #[error(
        "`{}` has parts of a split model, {}, without `model.safetensors.index.json`\n\
         hint: copy the index and every part that it names into the folder",
        path.display(),
        quoted(parts)
    )]
    PartsWithoutIndex {
        /// The folder.
        path: PathBuf,
        /// The parts that are there.
        parts: Vec<String>,
    },
    /// A folder without a configuration.
    #[error("`{}` has no `config.json`{}", path.display(), hint.as_ref().map(|h| format!("\nhint: {h}")).unwrap_or_default())]
    NoConfig {
        /// The folder.
        path: PathBuf,
        /// What it has in its place.
        hint: Option<String>,
    },
    /// Weights with a value that is not finite.
    #[error(
        "tensor `{tensor}` in `{}` is not finite: element {index} is `{value}`\n\
         hint: the file is damaged, or its training has failed: use another one",
        path.display()
    )]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The first such element, counted from 0.
        index: usize,
        /// Its value.
        value: f32,
    },
    /// Weights that would be written with a value that is not finite.
    #[error(
        "tensor `{tensor}` cannot be written to `{}` as {}: element {index} would be `{value}`, too large or not a number\n\
         hint: `--dtype bf16` and `--dtype f32` hold numbers up to 3.4e38, F16 up to 65504",
        path.display(),
        dtype.name()
    )]
    Overflow {
        /// The folder.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Type of the written elements.
        dtype: crate::Dtype,
        /// The first such element, counted from 0.
        index: usize,
        /// Its value in that type.
        value: f32,
    },
    /// A file ends too early.
    #[error("`{}` is truncated: {found} bytes, expected {expected}\nhint: download or copy it again", path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// Size in bytes that its header states, at least.
        expected: u64,
    },
    /// A file continues after its last tensor.
    #[error("`{}` has {found} bytes, its header accounts for {expected}\nhint: download or copy it again", path.display())]
    TrailingBytes {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// The size that its header states.
        expected: u64,
    },
    /// The header of a safetensors file is malformed.
    #[error("`{}` has no valid safetensors header", path.display())]
    BadHeader {
        /// The file.
        path: PathBuf,
        /// Cause.
        source: safetensors::SafeTensorError,
    },
    /// A JSON file is malformed.
    #[error("`{}` is not valid JSON of the expected form", path.display())]
    BadJson {
        /// The file.
        path: PathBuf,
        /// Cause, with line and column.
        source: serde_json::Error,
    },
    /// A tensor whose elements are not F32, BF16 or F16.
    #[error(
        "tensor `{tensor}` in `{}` has elements of type {found}, expected F32, BF16 or F16\nhint: {}",
        path.display(),
        match found.as_str() {
            "F64" => "store the weights in F32: `model.float().save_pretrained(folder)`",
            _ => "use an unquantised checkpoint, or a GGUF file",
        }
    )]
    UnsupportedDtype {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type, as the file spells it.
        found: String,
    },
    /// What has the name of a file of a model is none.
    #[error("`{}` {problem}, expected a file\nhint: copy the file itself to its place", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What it is.
        problem: String,
    },
    /// A folder has no weights.
    #[error(
        "`{}` has no weights: expected `model.safetensors` or `model.safetensors.index.json`{}",
        path.display(),
        instead(found)
    )]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// Other weight files in the folder.
        found: Vec<String>,
    },
    /// A folder has no weights but pickles.
    #[error(
        "`{}` has only pickle weights: {}\nhint: a pickle can run code when it is read, so they are refused; \
         use a revision with `model.safetensors`, or save the model with `safe_serialization=True`",
        path.display(),
        quoted(pickles)
    )]
    OnlyPickles {
        /// The folder.
        path: PathBuf,
        /// The pickles.
        pickles: Vec<String>,
    },
    /// An index names files that are not there.
    #[error("`{}` names shards that are missing: {}\nhint: download them again", index.display(), quoted(missing))]
    MissingShards {
        /// The index.
        index: PathBuf,
        /// Every missing file.
        missing: Vec<String>,
    },
    /// An index names a shard outside its folder.
    #[error("`{}` names the shard `{shard}`, expected a file name without a folder", index.display())]
    BadShardName {
        /// The index.
        index: PathBuf,
        /// The name.
        shard: String,
    },
    /// An index names tensors that their shards do not hold.
    #[error("`{}` names tensors that their shards lack: {}", index.display(), pairs(lacking))]
    IndexMismatch {
        /// An index names tensors that their shards do not hold.
        index: PathBuf,
        /// Every such tensor and its shard.
        lacking: Vec<(String, String)>,
    },
    /// A name is used twice, or is reserved by the format.
    #[error("tensor `{tensor}` cannot be written to `{}`: the name is taken", path.display())]
    DuplicateTensor {
        /// The file.
        path: PathBuf,
        /// The name.
        tensor: String,
    },
    /// Tensors were written in another order than declared.
    #[error("tensor `{found}` was written to `{}`, expected {expected}", path.display())]
    WrongOrder {
        /// The file.
        path: PathBuf,
        /// Name of the tensor that was written.
        found: String,
        /// Name of the declared tensor.
        expected: String,
    },
    /// A tensor was written with another length than declared.
    #[error("tensor `{tensor}` was written to `{}` with {found} bytes, expected {expected}", path.display())]
    WrongLength {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Bytes given.
        found: usize,
        /// Bytes declared.
        expected: usize,
    },
    /// Declared tensors were not written.
    #[error("`{}` was closed before these tensors were written: {}", path.display(), quoted(missing))]
    Unwritten {
        /// The file.
        path: PathBuf,
        /// Every missing tensor.
        missing: Vec<String>,
    },
    /// The place for a new folder is occupied.
    #[error("`{}` already holds {}\nhint: choose another folder with `-o`, or empty this one", path.display(), some(holds))]
    OutputOccupied {
        /// The folder.
        path: PathBuf,
        /// Names of its content.
        holds: Vec<String>,
    },
    /// The place for a new folder is a file.
    #[error("`{}` is a file, expected a folder or nothing\nhint: choose another folder with `-o`", path.display())]
    OutputIsFile {
        /// The file.
        path: PathBuf,
    },
    /// The place for a new folder is a link.
    #[error("`{}` is a link to `{}`, expected a folder or nothing\nhint: name the folder that it leads to", path.display(), target.display())]
    OutputIsLink {
        /// The link.
        path: PathBuf,
        /// What it leads to.
        target: PathBuf,
    },
    /// Another process is writing the same folder.
    #[error("{holder} is writing `{}`\nhint: wait until it ends, or choose another folder", path.display())]
    OutputBusy {
        /// The folder.
        path: PathBuf,
        /// The process and its machine.
        holder: String,
    },
    /// A file of a model is a link to a place outside of its folder.
    #[error(
        "`{}` is a link to `{}`, which is outside of the model's folder\nhint: copy the file into the folder, if it belongs there",
        path.display(),
        target.display()
    )]
    LinkLeadsOut {
        /// The link.
        path: PathBuf,
        /// What it leads to.
        target: PathBuf,
    },
}

fn lines<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(|item| format!("  {item}")).collect::<Vec<_>>().join("\n")
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

fn some(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = quoted(&names[..names.len().min(SHOWN)]);
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

fn pairs(lacking: &[(String, String)]) -> String {
    lacking.iter().map(|(tensor, shard)| format!("`{tensor}` in `{shard}`")).collect::<Vec<_>>().join(", ")
}

fn instead(found: &[String]) -> String {
    match found {
        [] => String::new(),
        _ if found.iter().any(|name| name.starts_with("consolidated")) => format!(
            "\nhint: it has {}, a format of Mistral's or Meta's own: use the files of the repository for `transformers`",
            quoted(found)
        ),
        _ => format!("\nhint: it has {}", quoted(found)),
    }
}

fn in_a_folder(path: &Path) -> String {
    match path.parent() {
        Some(folder) if folder.join("config.json").is_file() => {
            format!("\nhint: its folder `{}` looks like one", folder.display())
        }
        _ => String::new(),
    }
}
