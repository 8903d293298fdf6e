//! `retie push`: a folder into a repository of the hub.

use crate::{
    args::JsonArgs,
    error::Status,
    model, output,
    progress::{Progress, Unit},
};
use anyhow::{Context, bail};
use clap::Args;
use retie_checkpoint::HubId;
use std::path::{Path, PathBuf};

/// File of the model card.
const CARD: &str = "README.md";
/// File of a GGUF export.
const GGUF: &str = "model.gguf";

/// Upload the folder of a model or an export to the hub, as one commit
#[derive(Debug, Args)]
pub struct Push {
    /// The folder, with its model card, `README.md`: see `retie card`
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// The repository, made if it is missing; `@BRANCH` behind it names another branch than `main`
    #[arg(value_name = "ORG/NAME")]
    repo: String,
    /// Make it a private one, if it is made
    #[arg(long)]
    private: bool,
    #[command(flatten)]
    json: JsonArgs,
}

impl Push {
    pub fn run(self) -> anyhow::Result<Status> {
        let Self { folder, repo, private, json } = self;
        let id = HubId::parse(&repo).with_context(|| format!("`{repo}` is no repository, expected `ORG/NAME`"))?;
        check(&folder)?;
        let mut bar = None;
        let uploaded = model::hub().upload(&id, &folder, private, &mut |file, bytes| {
            bar = Some(Progress::new(&format!("put {file}"), Unit::Bytes, bytes));
        })?;
        drop(bar);
        if json.json {
            output::json(&uploaded)?;
        } else {
            let files = uploaded.files.iter().map(|(name, bytes)| format!("{bytes:>14}  {name}"));
            output::data(files.collect::<Vec<_>>().join("\n"))?;
        }
        output::line(&format!("{} files in one commit, {}", uploaded.files.len(), uploaded.url));
        Ok(Status::Done)
    }
}

/// Refuses a folder that is no whole model, or has no card.
fn check(folder: &Path) -> anyhow::Result<()> {
    let gguf = folder.join(GGUF);
    let path = if gguf.is_file() { gguf } else { folder.to_owned() };
    let spec = path.to_str().with_context(|| format!("`{}` is not UTF-8", path.display()))?;
    model::open(spec).with_context(|| format!("`{}` is not uploaded: it is no whole model", folder.display()))?;
    if !folder.join(CARD).is_file() {
        let folder = output::word(folder);
        bail!("`{folder}` has no `{CARD}`, which the hub shows\nhint: `retie card {folder}` writes one");
    }
    Ok(())
}
