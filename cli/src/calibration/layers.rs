//! The decoder of `retie-model` as what `retie-convert` asks for, on the CPU.

use retie_checkpoint::{CheckpointError, TensorSource};
use retie_config::{Depth, ModelConfig};
use retie_convert::calibrate::{Comparison, LayerModel, LayerRun, Seen, Site};
use retie_model::{LayerByLayer, Point, Run};

pub struct Layers(LayerByLayer);

impl Layers {
    /// For the architecture and sizes of `config`.
    pub fn new(config: &ModelConfig) -> anyhow::Result<Self> {
        Ok(Self(LayerByLayer::new(config, &retie_model::device("cpu")?)))
    }
}

impl LayerModel for Layers {
    fn embed(&self, rows: Vec<f32>) -> Vec<f32> {
        self.0.embed(rows)
    }

    fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        tokens: usize,
        see: &mut dyn FnMut(Seen<'_>),
    ) -> Result<Vec<f32>, CheckpointError> {
        let LayerRun { tensors, layer, depth, kind, until } = run;
        let run = Run { tensors, layer, depth, kind: Depth(kind.0), until: until.map(point) };
        self.0.run(run, hidden, tokens, &mut |seen| {
            see(Seen { site: site(seen.point), inputs: seen.inputs, residual: seen.residual });
        })
    }

    fn compare(
        &self,
        tensors: &dyn TensorSource,
        source: &[f32],
        other: &[f32],
        targets: &[u32],
    ) -> Result<Comparison, CheckpointError> {
        let found = self.0.compare(tensors, [source, other], targets)?;
        Ok(Comparison { source_nll: found.reference_nll, nll: found.nll, kl: found.kl })
    }
}

fn point(site: Site) -> Point {
    match site {
        Site::Attention => Point::Attention,
        Site::Output => Point::Output,
        Site::Mlp => Point::Mlp,
        Site::Down => Point::Down,
    }
}

fn site(point: Point) -> Site {
    match point {
        Point::Attention => Site::Attention,
        Point::Output => Site::Output,
        Point::Mlp => Site::Mlp,
        Point::Down => Site::Down,
    }
}
