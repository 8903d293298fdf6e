//! What a conversion refuses: the message, and that nothing is left on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use retie_checkpoint::{CheckpointError, Dtype, FolderWriter, SafetensorsFolder, TensorInfo, TensorSource};
use retie_config::{ConvertConfig, Init, ModelConfig, Sharing, StoredDtype};
use retie_convert::ConvertError;
use small_model::{SHAPE, options, run, write};
use std::{
    borrow::Cow,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

fn refused(source: &dyn TensorSource, config: &ModelConfig, options: &ConvertConfig) -> ConvertError {
    let root = tempfile::tempdir().unwrap();
    let error = run(source, config, options, &root.path().join("new/out")).unwrap_err();
    assert_eq!(fs_err::read_dir(root.path()).unwrap().count(), 0, "left behind after `{error}`");
    error
}

fn message(change: impl Fn(&mut ConvertConfig)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut options = options(2, Sharing::Cycle, Init::Average);
    change(&mut options);
    refused(&source, &config, &options).to_string()
}

/// The message about keys that are refused before a source is opened.
fn impossible(change: impl Fn(&mut ConvertConfig)) -> String {
    let mut options = options(2, Sharing::Cycle, Init::Average);
    change(&mut options);
    options.validate().unwrap_err().to_string()
}

#[test]
fn recursions_that_do_not_divide_name_those_that_do() {
    let text = message(|o| o.recursions = Some(3));
    assert!(text.contains("hint: these numbers of recursions do: 1, 2, 4, 8;"), "{text}");
    let text = message(|o| (o.recursions, o.sharing) = (Some(4), Some(Sharing::MiddleCycle)));
    assert!(text.contains("hint: these numbers of recursions do: 1, 2, 3, 6;"), "{text}");
}

#[test]
fn ranks_out_of_range_name_the_range() {
    for rank in [17, 1000] {
        let text = message(|o| o.lora_rank = Some(rank));
        assert!(text.starts_with(&format!("LoRA rank `{rank}` is out of range, expected 1 to 16")), "{text}");
    }
    let text = impossible(|o| o.lora_rank = Some(0));
    assert!(text.starts_with("`lora_rank` is `0`, expected a positive integer"), "{text}");
    let text = impossible(|o| (o.lora_rank, o.recursions) = (Some(4), Some(1)));
    assert!(text.starts_with("LoRA needs at least 2 recursions"), "{text}");
}

#[test]
fn ranks_that_cannot_be_name_what_is_wrong() {
    let text = message(|o| o.lora_ranks = [("kv_proj".to_owned(), 4), ("up_proj".to_owned(), 4)].into());
    assert!(
        text.starts_with("the model has no linear `kv_proj`\nhint: its linears are `self_attn.q_proj`, "),
        "{text}"
    );
    let text = impossible(|o| (o.lora_rank, o.lora_from) = (Some(4), 2));
    assert!(text.starts_with("LoRA from recursion 2 on is none: they are 0 to 1"), "{text}");
    let text = impossible(|o| (o.lora_rank, o.lora_budget) = (Some(4), Some(1000)));
    assert!(text.starts_with("both ranks and a budget of the LoRA are given"), "{text}");
    let text = message(|o| o.lora_budget = Some(20));
    assert!(text.starts_with("20 parameters of LoRA buy nothing: one rank has at least 28"), "{text}");
}

#[test]
fn depths_that_differ_in_kind_are_tied_only_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut map = config.to_json();
    map.insert("model_type".into(), "smollm3".into());
    map.insert("no_rope_layers".into(), vec![1, 0, 1, 1, 1, 0, 1, 1].into());
    let config = ModelConfig::from_json(map, Path::new("config.json")).unwrap();
    let cycle = |recursions| options(recursions, Sharing::Cycle, Init::Average);
    let text = refused(&source, &config, &cycle(4)).to_string();
    assert_eq!(
        text,
        "`cycle` with 4 recursions ties depths that differ in kind: layer 1 would run depth 1 (all tokens, no rope) and depth 3 \
         (all tokens, rope base 2000000)\n\
         hint: these tie depths of one kind: `cycle` with 2; `tie_across_kinds` (`--tie-across-kinds`) ties them all the same: each \
         depth keeps its own window and rotation"
    );
    // Where the wanted number of recursions fits a part of the stack, the longest such part is
    // named.
    let mut map = config.to_json();
    map.insert("no_rope_layers".into(), vec![0, 1, 1, 0, 1, 0, 0, 1].into());
    let other = ModelConfig::from_json(map, Path::new("config.json")).unwrap();
    let text = refused(&source, &other, &cycle(2)).to_string();
    assert!(
        text.contains("hint: these tie depths of one kind: `cycle` with 2, `prelude` 2 and `coda` 2; `tie"),
        "{text}"
    );
    run(&source, &other, &ConvertConfig { prelude: Some(2), coda: Some(2), ..cycle(2) }, &dir.path().join("between"))
        .unwrap();
    run(&source, &config, &cycle(2), &dir.path().join("two")).unwrap();
    let allowed = ConvertConfig { tie_across_kinds: true, ..cycle(4) };
    let report = run(&source, &config, &allowed, &dir.path().join("four")).unwrap();
    assert!(
        report.notes.iter().any(|note| note.starts_with("depths of different kinds share layers 1:")),
        "{:?}",
        report.notes
    );
    let again = ModelConfig::load(&dir.path().join("four/config.json")).unwrap();
    assert_eq!(again.anatomy, config.anatomy);
}

#[test]
fn a_recursive_source_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let out = dir.path().join("out");
    run(&source, &config, &options(2, Sharing::Cycle, Init::Average), &out).unwrap();
    let (source, config) =
        (SafetensorsFolder::open(&out).unwrap(), ModelConfig::load(&out.join("config.json")).unwrap());
    let error = refused(&source, &config, &options(2, Sharing::Cycle, Init::Average));
    assert!(error.to_string().starts_with("the model is recursive already (`cycle`, 2 recursions)"), "{error}");
}

#[test]
fn all_bad_tensors_are_listed_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let bad = dir.path().join("bad");
    fs_err::create_dir(&bad).unwrap();
    copy(&source, &bad, |name, info| match name {
        "model.layers.2.mlp.up_proj.weight" => vec![(name.to_owned(), vec![info.shape[1], info.shape[0]])],
        "model.norm.weight" => vec![],
        "model.layers.5.input_layernorm.weight" => {
            vec![(name.to_owned(), info.shape.clone()), ("extra.weight".to_owned(), info.shape.clone())]
        }
        _ => vec![(name.to_owned(), info.shape.clone())],
    });
    let source = SafetensorsFolder::open(&bad).unwrap();
    let text = refused(&source, &config, &options(2, Sharing::Cycle, Init::Average)).to_string();
    assert!(text.contains("`model.layers.2.mlp.up_proj.weight`"), "{text}");
    assert!(text.contains("has shape [16, 24], expected [24, 16]"), "{text}");
    assert!(text.contains("`model.norm.weight`") && text.contains("`extra.weight`"), "{text}");
}

#[test]
fn tensors_that_hold_nothing_are_left_out_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let more = dir.path().join("more");
    fs_err::create_dir(&more).unwrap();
    copy(&source, &more, |name, info| {
        let mut names = vec![(name.to_owned(), info.shape.clone())];
        if name == "model.embed_tokens.weight" {
            names.push(("lm_head.weight".to_owned(), info.shape.clone()));
            names.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), info.shape.clone()));
        }
        names
    });
    let source = SafetensorsFolder::open(&more).unwrap();
    let out = dir.path().join("out");
    let report = run(&source, &config, &options(1, Sharing::Cycle, Init::Average), &out).unwrap();
    assert_eq!(report.left_out, ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]);
    assert!(SafetensorsFolder::open(&out).unwrap().info("lm_head.weight").is_none());
}

/// Writes `source` again under other names or shapes.
fn copy(source: &dyn TensorSource, dir: &Path, rename: impl Fn(&str, &TensorInfo) -> Vec<(String, Vec<usize>)>) {
    let mut entries = Vec::new();
    let mut contents = Vec::new();
    for name in source.names() {
        for (new_name, shape) in rename(name, source.info(name).unwrap()) {
            entries.push((new_name, TensorInfo { dtype: Dtype::F32, shape }));
            contents.push(source.bytes(name).unwrap());
        }
    }
    let mut writer = FolderWriter::create(dir, &entries, u64::MAX).unwrap();
    entries.iter().zip(contents).for_each(|((name, _), bytes)| writer.write(name, &bytes).unwrap());
    writer.finish().unwrap();
}

/// A source whose tensor `name` has `value` in front, from the `since`-th time on that it is read.
struct Changed {
    source: SafetensorsFolder,
    name: &'static str,
    value: f32,
    since: usize,
    reads: AtomicUsize,
}

impl TensorSource for Changed {
    fn names(&self) -> Vec<&str> {
        self.source.names()
    }

    fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.source.info(name)
    }

    fn path_of(&self, name: &str) -> &Path {
        self.source.path_of(name)
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, CheckpointError> {
        let mut bytes = self.source.bytes(name)?;
        if name == self.name && self.reads.fetch_add(1, Ordering::Relaxed) >= self.since {
            bytes.to_mut()[..4].copy_from_slice(&self.value.to_le_bytes());
        }
        Ok(bytes)
    }
}

fn with_change(name: &'static str, value: f32, since: usize) -> ConvertError {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut options = options(2, Sharing::Cycle, Init::Lower);
    options.lora_rank = Some(2);
    refused(&Changed { source, name, value, since, reads: AtomicUsize::new(0) }, &config, &options)
}

#[test]
fn weights_that_are_not_finite_have_no_lora() {
    let text = with_change("model.layers.5.mlp.up_proj.weight", f32::NAN, 0).to_string();
    assert!(
        text.starts_with("a tensor holds values that are not finite: `model.layers.5.mlp.up_proj.weight`"),
        "{text}"
    );
}

#[test]
fn a_number_that_the_written_type_does_not_hold_is_refused_by_the_name_of_its_tensor() {
    const NAME: &str = "model.layers.0.mlp.up_proj.weight";
    for (recursions, init) in [(1, Init::Average), (2, Init::Lower), (2, Init::Average)] {
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), SHAPE, |i| i);
        let mut options = options(recursions, Sharing::Cycle, init);
        options.dtype = StoredDtype::F16;
        let changed = Changed { source, name: NAME, value: 1e6, since: 0, reads: AtomicUsize::new(0) };
        let text = refused(&changed, &config, &options).to_string();
        assert!(text.starts_with(&format!("tensor `{NAME}` cannot be written to `")), "{text}");
        assert!(text.contains("as F16: element 0 would be `inf`, too large"), "{text}");
    }
}

/// The checks read the source again: a weight that is another one by then stands for a fault of the
/// writer.
#[test]
fn a_folder_that_does_not_match_its_source_fails_the_checks_and_is_not_kept() {
    for (name, check) in [("model.norm.weight", "copies"), ("model.layers.5.mlp.up_proj.weight", "lora")] {
        let error = with_change(name, 1.0, 1);
        let ConvertError::ChecksFailed { failures } = &error else { panic!("{error}") };
        assert_eq!(failures.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), [check]);
        assert!(error.to_string().contains("not so for 1 of"), "{error}");
    }
}

#[test]
fn a_folder_that_holds_something_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let error = run(&source, &config, &options(2, Sharing::Cycle, Init::Lower), dir.path()).unwrap_err();
    assert!(error.to_string().contains("already holds `model.safetensors`"), "{error}");
    assert_eq!(fs_err::read_dir(dir.path()).unwrap().count(), 1);
}
