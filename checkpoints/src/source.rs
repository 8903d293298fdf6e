//! Resolution of a model specification: a local folder, a `.gguf` file, or a name on the hub.

use crate::{
    CheckpointError, GgufFile, Hub, HubId, PROVENANCE_FILE, SafetensorsFolder, TensorSource,
    finite::Finite,
    gpt_neox::{FusedNeox, GptNeox},
    layout,
    links::check_inside,
    renamed::Renamed,
    safetensors::{ADAPTER_FILES, adapter_base, check_is_file},
    sources_agree::{GENERATION_CONFIG, add_generation_tokens, compare_dtype, untie_another_head},
};
use retie_config::{Disguise, ModelConfig, TensorNames};
use std::path::{Path, PathBuf};

/// Companion files of the weights (tokenizer and configurations); they are copied unchanged.
pub(crate) const COMPANIONS: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    GENERATION_CONFIG,
];

const CONFIG: &str = "config.json";

/// Jaro–Winkler similarity above which one name is a likely misspelling of the other.
const ALIKE: f64 = 0.8;

/// An open model.
pub struct ModelSource {
    /// Specification given by the user.
    pub spec: String,
    /// Folder or file that it refers to.
    pub path: PathBuf,
    /// Configuration of the model.
    pub config: ModelConfig,
    /// Weights of the model.
    pub tensors: Box<dyn TensorSource>,
    /// Tokenizer and other companion files, by name; rebuilt from the metadata of a GGUF file.
    pub companions: Vec<(String, Vec<u8>)>,
}

impl ModelSource {
    /// Opens `spec` with the hub that the environment variables configure.
    ///
    /// # Errors
    /// Every error of [`ModelSource::open_with`].
    pub fn open(spec: &str) -> Result<Self, CheckpointError> {
        Self::open_with(spec, &Hub::from_env())
    }

    /// Opens `spec`: a folder with `config.json` and safetensors, a `.gguf` file, or a name on
    /// `hub`. A local path takes precedence.
    ///
    /// # Errors
    /// When nothing is found (the message lists the places that were searched), or it cannot be
    /// read.
    pub fn open_with(spec: &str, hub: &Hub) -> Result<Self, CheckpointError> {
        let path = Path::new(spec);
        if path.is_dir() {
            return Self::folder(spec, path);
        }
        if path.exists() {
            return Self::file(spec, path);
        }
        let local = format!("`{}` is neither a folder nor a file", std::path::absolute(path)?.display());
        let nothing = |tried: String, source| CheckpointError::NoModel {
            spec: spec.to_owned(),
            tried: vec![local.clone(), tried],
            hint: similar(path).map(|near| format!("did you mean `{}`?", near.display())),
            source,
        };
        match HubId::parse(spec).filter(|_| !is_gguf(path)) {
            None => Err(nothing("it is not a hub id (`org/name`) either".to_owned(), None)),
            Some(id) => match hub.model(&id) {
                Ok(snapshot) => Self::folder(spec, &snapshot),
                Err(error @ CheckpointError::Hub { .. }) => {
                    Err(nothing("as a hub id it cannot be had either".to_owned(), Some(Box::new(error))))
                }
                Err(error) => Err(error),
            },
        }
    }

    fn folder(spec: &str, path: &Path) -> Result<Self, CheckpointError> {
        for name in [CONFIG, COMPANIONS[0]] {
            check_is_file(&path.join(name))?;
        }
        if !path.join(CONFIG).is_file() {
            return Err(no_config(path)?);
        }
        let mut config = ModelConfig::load(&path.join(CONFIG))?;
        let tensors = Renamed::view(under_our_names(SafetensorsFolder::open(path)?, &config), &config);
        let tensors: Box<dyn TensorSource> = Box::new(Finite(tensors));
        let mut companions = Vec::new();
        for name in COMPANIONS.iter().filter(|name| path.join(name).is_file()) {
            // They are copied to what is written of the model.
            check_inside(path, name)?;
            let (name, path) = ((*name).to_owned(), path.join(name));
            let bytes = fs_err::read(&path)?;
            if let Some(found) = Disguise::of(&bytes) {
                return Err(CheckpointError::Disguised { path, found });
            }
            if name == GENERATION_CONFIG {
                add_generation_tokens(&mut config, &bytes, &path)?;
            }
            companions.push((name, bytes));
        }
        for remark in config.remarks() {
            tracing::warn!(path = %path.join(CONFIG).display(), "{remark}");
        }
        if let Some(name) = ADAPTER_FILES.iter().find(|name| path.join(name).is_file()) {
            tracing::warn!(
                path = %path.join(name).display(),
                "an adapter beside the model is not read: merge it where it belongs to the model"
            );
        }
        // A folder that this program wrote keeps the keys of its source.
        if !path.join(PROVENANCE_FILE).is_file() {
            compare_dtype(&config, tensors.as_ref());
        }
        untie_another_head(&mut config, tensors.as_ref())?;
        Ok(Self { spec: spec.to_owned(), path: path.to_owned(), config, tensors, companions })
    }

    fn file(spec: &str, path: &Path) -> Result<Self, CheckpointError> {
        if !is_gguf(path) {
            return Err(CheckpointError::NotAModelFile { path: path.to_owned() });
        }
        let file = GgufFile::open(path)?;
        let companions = file.companions()?;
        let config = file.config().clone();
        for remark in file.remarks() {
            tracing::warn!(path = %path.display(), "{remark}");
        }
        let tensors = Box::new(Finite(Box::new(file)));
        Ok(Self { spec: spec.to_owned(), path: path.to_owned(), config, tensors, companions })
    }

    /// Bytes of `tokenizer.json`, if the model has one.
    #[must_use]
    pub fn tokenizer_json(&self) -> Option<&[u8]> {
        self.companions.iter().find(|(name, _)| name == "tokenizer.json").map(|(_, bytes)| bytes.as_slice())
    }

    /// Checks that exactly the tensors that the configuration implies exist, with their shapes.
    ///
    /// # Errors
    /// One error that lists every tensor that does not fit.
    pub fn validate(&self) -> Result<(), CheckpointError> {
        layout::check_tensors(&self.config, self.tensors.as_ref())
    }
}

/// Tensors of a checkpoint of `config` under the names of the checkpoint layout
/// (`docs/reference/checkpoint-layout.md`).
#[must_use]
pub fn under_our_names(tensors: impl TensorSource + 'static, config: &ModelConfig) -> Box<dyn TensorSource> {
    match config.architecture.tensor_names {
        TensorNames::GptNeox if config.recursion.is_none() => {
            Box::new(GptNeox::new(tensors, config.num_attention_heads))
        }
        _ => Box::new(tensors),
    }
}

/// Error for a folder without a configuration, with what it has in its place.
fn no_config(path: &Path) -> Result<CheckpointError, CheckpointError> {
    if ADAPTER_FILES.iter().any(|name| path.join(name).is_file()) {
        return Ok(CheckpointError::Adapter { path: path.to_owned(), base: adapter_base(path) });
    }
    let (mut models, mut files) = (Vec::new(), Vec::new());
    for entry in fs_err::read_dir(path)? {
        let inner = entry?.path();
        if inner.join(CONFIG).is_file() {
            models.push(inner);
        } else if is_gguf(&inner) {
            files.push(inner);
        }
    }
    models.sort();
    files.sort();
    let names =
        |paths: &[PathBuf]| paths.iter().map(|path| format!("`{}`", path.display())).collect::<Vec<_>>().join(", ");
    let hint = if !models.is_empty() {
        Some(format!("folders in it have one: {}", names(&models)))
    } else if !files.is_empty() {
        Some(format!("name the GGUF file itself: {}", names(&files)))
    } else if path.join("params.json").is_file() {
        Some(
            "it holds a model in Meta's own format: `convert_llama_weights_to_hf.py` of transformers converts it"
                .to_owned(),
        )
    } else {
        None
    };
    Ok(CheckpointError::NoConfig { path: path.to_owned(), hint })
}

/// Tensors of a plain model of `config`, which have the names of the checkpoint layout, under the
/// names of its family's checkpoints. The inverse of [`under_our_names`].
#[must_use]
pub fn under_family_names<'a>(tensors: &'a dyn TensorSource, config: &ModelConfig) -> Box<dyn TensorSource + 'a> {
    match config.architecture.tensor_names {
        TensorNames::GptNeox => Box::new(FusedNeox::new(tensors, config)),
        TensorNames::Llama => Box::new(tensors),
    }
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Path beside `path` with the most similar name, if one is similar enough.
fn similar(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let near = fs_err::read_dir(parent.unwrap_or(Path::new("."))).ok()?;
    let score =
        |entry: &fs_err::DirEntry| strsim::jaro_winkler(&entry.file_name().to_string_lossy().to_lowercase(), &name);
    let near = near.filter_map(Result::ok).map(|entry| (score(&entry), entry.file_name()));
    let (_, best) = near.filter(|(score, _)| *score >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0))?;
    Some(parent.map_or_else(|| PathBuf::from(&best), |parent| parent.join(&best)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    const CONFIG: &str = r#"{"model_type": "llama", "vocab_size": 4, "hidden_size": 8, "intermediate_size": 16,
        "num_hidden_layers": 1, "num_attention_heads": 2, "rms_norm_eps": 1e-5, "tie_word_embeddings": true}"#;

    /// A hub without cache and network.
    fn nothing() -> Hub {
        Hub::from_variables(|name| match name {
            "HF_HUB_CACHE" => Some("/nonexistent".to_owned()),
            "HF_HUB_OFFLINE" => Some("1".to_owned()),
            _ => None,
        })
    }

    fn open(path: &Path) -> Result<ModelSource, CheckpointError> {
        ModelSource::open_with(path.to_str().unwrap(), &nothing())
    }

    fn error(path: &Path) -> String {
        open(path).err().unwrap().to_string()
    }

    fn folder(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(name, text)| fs_err::write(folder.path().join(name), text).unwrap());
        folder
    }

    /// Weights with one tensor: enough to be opened, not enough to be valid.
    fn weights(path: &Path) {
        let norm = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8], &[0; 32]).unwrap();
        safetensors::serialize_to_file([("model.norm.weight", norm)], None, path).unwrap();
    }

    #[test]
    fn a_folder_is_opened_with_its_small_files_and_checked() {
        let folder = folder(&[("config.json", CONFIG), ("tokenizer.json", "{}"), ("README.md", "hello")]);
        weights(&folder.path().join("model.safetensors"));
        let source = open(folder.path()).unwrap();
        assert_eq!((source.tokenizer_json(), source.companions.len()), (Some(&b"{}"[..]), 1));
        assert_eq!(source.config.hidden_size, 8);
        let error = source.validate().unwrap_err().to_string();
        assert!(error.starts_with("10 of the checkpoint's tensors do not fit its configuration:"), "{error}");
    }

    #[test]
    fn a_folder_of_pickles_is_refused_with_the_reason() {
        let folder = folder(&[("config.json", CONFIG), ("pytorch_model.bin", "")]);
        assert!(
            error(folder.path()).contains("has only pickle weights: `pytorch_model.bin`\nhint: a pickle can run code")
        );
    }

    #[test]
    fn a_folder_without_a_configuration_says_what_it_holds() {
        let told = |files: &[(&str, &str)]| {
            let folder = tempfile::tempdir().unwrap();
            for (name, text) in files {
                let path = folder.path().join(name);
                fs_err::create_dir_all(path.parent().unwrap()).unwrap();
                fs_err::write(path, text).unwrap();
            }
            let message = error(folder.path());
            message.replace(&folder.path().display().to_string(), "DIR")
        };
        assert_eq!(told(&[("README.md", "")]), "`DIR` has no `config.json`");
        let adapter = told(&[("adapter_config.json", r#"{"base_model_name_or_path": "org/base"}"#)]);
        assert!(adapter.starts_with("`DIR` is a PEFT adapter of `org/base`, not a model\nhint: merge it"), "{adapter}");
        let inner = told(&[("checkpoint-20/config.json", "{}"), ("checkpoint-10/config.json", "{}")]);
        assert!(inner.ends_with("hint: folders in it have one: `DIR/checkpoint-10`, `DIR/checkpoint-20`"), "{inner}");
        assert!(told(&[("a.Q4_K_M.gguf", "")]).ends_with("hint: name the GGUF file itself: `DIR/a.Q4_K_M.gguf`"));
        assert!(told(&[("params.json", "{}")]).contains("hint: it holds a model in Meta's own format"));
    }

    #[test]
    fn a_pointer_in_the_place_of_any_file_is_named() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
        for name in ["config.json", "model.safetensors", "model.safetensors.index.json", "tokenizer.json"] {
            let folder = folder(&[("config.json", CONFIG)]);
            if name == "tokenizer.json" {
                weights(&folder.path().join("model.safetensors"));
            }
            fs_err::write(folder.path().join(name), pointer).unwrap();
            let message = error(folder.path());
            assert!(message.contains(&format!("{name}` is a Git LFS pointer")), "{message}");
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_refused_by_name_when_it_is_read() {
        let folder = folder(&[("config.json", CONFIG)]);
        let values: Vec<u8> = (0..8).flat_map(|i| (if i == 5 { f32::NAN } else { 1.0 }).to_le_bytes()).collect();
        let norm = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![8], &values).unwrap();
        let path = folder.path().join("model.safetensors");
        safetensors::serialize_to_file([("model.norm.weight", norm)], None, &path).unwrap();
        let source = open(folder.path()).unwrap();
        let expected = format!("tensor `model.norm.weight` in `{}` is not finite: element 5 is `NaN`", path.display());
        for error in [
            source.tensors.bytes("model.norm.weight").unwrap_err(),
            source.tensors.read_f32("model.norm.weight").unwrap_err(),
        ] {
            assert!(error.to_string().starts_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_mistyped_path_is_answered_with_the_path_that_is_there() {
        let folder = folder(&[("config.json", CONFIG)]);
        let near = folder.path().join("checkpoint");
        fs_err::create_dir(&near).unwrap();
        let message = error(&folder.path().join("chekpoint"));
        assert!(
            message.contains("is neither a folder nor a file; it is not a hub id (`org/name`) either"),
            "{message}"
        );
        assert!(message.ends_with(&format!("\nhint: did you mean `{}`?", near.display())), "{message}");
        assert!(!error(&folder.path().join("something else")).contains("hint"));
        assert!(error(&folder.path().join("none.gguf")).contains("it is not a hub id"));
    }

    #[test]
    fn an_id_that_is_not_cached_offline_says_where_it_was_looked_for() {
        let error = ModelSource::open_with("org/name", &nothing()).err().unwrap();
        let CheckpointError::NoModel { source: Some(source), .. } = &error else { panic!("{error}") };
        assert_eq!(source.to_string(), "`org/name` cannot be had from the Hugging Face hub");
        let cause = std::error::Error::source(source).unwrap().to_string();
        assert!(cause.starts_with("the hub cache lacks `/nonexistent/models--org--name/refs/main`\nhint: "), "{cause}");
    }

    #[test]
    fn a_file_that_is_not_a_model_points_to_its_folder() {
        let folder = folder(&[("config.json", CONFIG), ("model.safetensors", "")]);
        let message = error(&folder.path().join("model.safetensors"));
        assert!(message.contains("is not a model, expected a folder with `config.json`"), "{message}");
        assert!(message.ends_with("looks like one"), "{message}");
    }
}
