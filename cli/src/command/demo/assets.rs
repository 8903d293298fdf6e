//! The demo's model and text, in the binary. `scripts/make-demo-model.py` made them;
//! `cli/assets/NOTICE.md` says from what.

use std::path::{Path, PathBuf};

/// Path in the demo's folder, and content.
const FILES: &[(&str, &[u8])] = &[
    ("base/config.json", include_bytes!("../../../assets/demo-model/config.json")),
    ("base/model.safetensors", include_bytes!("../../../assets/demo-model/model.safetensors")),
    ("base/tokenizer.json", include_bytes!("../../../assets/demo-model/tokenizer.json")),
    ("text/train.jsonl", include_bytes!("../../../assets/demo-text/train.jsonl")),
    ("text/heldout.jsonl", include_bytes!("../../../assets/demo-text/heldout.jsonl")),
    ("NOTICE.md", include_bytes!("../../../assets/NOTICE.md")),
];

/// Writes all of them under `out`.
pub fn write(out: &Path) -> anyhow::Result<()> {
    for (name, content) in FILES {
        let path = out.join(name);
        if let Some(parent) = path.parent() {
            fs_err::create_dir_all(parent)?;
        }
        fs_err::write(path, content)?;
    }
    Ok(())
}

/// The folder of the original model.
pub fn base(out: &Path) -> PathBuf {
    out.join("base")
}

/// The training text.
pub fn train(out: &Path) -> PathBuf {
    out.join("text/train.jsonl")
}

/// The held-out text.
pub fn heldout(out: &Path) -> PathBuf {
    out.join("text/heldout.jsonl")
}
