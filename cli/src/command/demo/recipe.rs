//! The demo's configurations: two recipes that are in the binary, with their paths moved into the
//! demo's folder.

use super::assets;
use retie_config::{ConvertConfig, Document, UptrainConfig, document};
use std::path::Path;

/// Windows that are scored at once.
pub const EVAL_BATCH_SIZE: usize = 8;

/// The conversion of `base` to `converted` under `out`.
pub fn convert(out: &Path) -> anyhow::Result<ConvertConfig> {
    let recipe = include_str!("../../../../configs/recipes/convert-demo.yaml");
    let config: ConvertConfig = parse(recipe, "convert-demo.yaml")?;
    Ok(ConvertConfig { model: assets::base(out).display().to_string(), output: out.join("converted"), ..config })
}

/// The run from `converted` to `run/model` under `out`.
pub fn uptrain(out: &Path) -> anyhow::Result<UptrainConfig> {
    let recipe = include_str!("../../../../configs/recipes/uptrain-demo.yaml");
    let mut config: UptrainConfig = parse(recipe, "uptrain-demo.yaml")?;
    config.run.dir = out.join("run");
    config.student.model = out.join("converted").display().to_string();
    if let Some(teacher) = &mut config.teacher {
        teacher.model = Some(assets::base(out).display().to_string());
    }
    (config.data.train, config.data.heldout) = (vec![assets::train(out)], vec![assets::heldout(out)]);
    Ok(config)
}

fn parse<D: Document>(recipe: &str, name: &str) -> anyhow::Result<D> {
    Ok(document::parse(recipe, Path::new(name), &[])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the folder that the demo writes by default the recipes are what it runs.
    #[test]
    fn the_recipes_are_those_of_the_default_folder() {
        let out = Path::new("retie-demo");
        let convert: ConvertConfig =
            document::parse(include_str!("../../../../configs/recipes/convert-demo.yaml"), Path::new("c.yaml"), &[])
                .unwrap();
        let uptrain: UptrainConfig =
            document::parse(include_str!("../../../../configs/recipes/uptrain-demo.yaml"), Path::new("u.yaml"), &[])
                .unwrap();
        assert_eq!((super::convert(out).unwrap(), super::uptrain(out).unwrap()), (convert, uptrain));
    }
}
