//! A model for the calibration of the small random checkpoints: the linears, norms and residual
//! sums of a Llama, with an elementwise mixture where attention would be.

use super::{MAGNITUDES, config, depth_tensor, layer_tensor};
use retie_checkpoint::{Activations, CheckpointError, Comparison, LayerRun, LayerRunner, ProbePoint, TensorSource};
use retie_config::ModelConfig;

pub struct Mixture(pub ModelConfig);

impl Mixture {
    pub fn new() -> Self {
        Self(config(super::SHAPE))
    }
}

/// The weights of one depth.
struct Weights<'a>(LayerRun<'a>);

impl Weights<'_> {
    fn vector(&self, part: &str) -> Option<Vec<f32>> {
        let own = self.0.tensors.read_f32(&depth_tensor(self.0.depth, part)).ok();
        own.or_else(|| self.0.tensors.read_f32(&layer_tensor(self.0.layer, part)).ok())
    }

    fn norm(&self, x: &[f32], part: &str) -> Vec<f32> {
        let weight = self.vector(&format!("{part}.weight")).unwrap();
        let rows = x.chunks(weight.len()).flat_map(|row| {
            let scale = (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32 + 1e-5).sqrt().recip();
            row.iter().zip(&weight).map(|(x, w)| x * scale * w).collect::<Vec<_>>()
        });
        rows.collect()
    }

    /// What is added to the residual stream, scaled by an extra of the depth if there is one.
    fn scaled(&self, mut x: Vec<f32>, part: &str) -> Vec<f32> {
        if let Ok(scale) = self.0.tensors.read_f32(&depth_tensor(self.0.depth, &format!("extras.{part}"))) {
            x.chunks_mut(scale.len()).for_each(|row| row.iter_mut().zip(&scale).for_each(|(x, s)| *x *= s));
        }
        x
    }

    fn linear(&self, x: &[f32], part: &str) -> Vec<f32> {
        let name = layer_tensor(self.0.layer, &format!("{part}.weight"));
        let factor = |which| self.0.tensors.info(&depth_tensor(self.0.depth, &format!("{part}.lora_{which}.weight")));
        // Without a matrix the factors are all of it.
        let shape = match self.0.tensors.info(&name) {
            Some(info) => info.shape.clone(),
            None => vec![factor("B").unwrap().shape[0], factor("A").unwrap().shape[1]],
        };
        let mut out = match self.0.tensors.read_f32(&name) {
            Ok(weight) => times(x, &weight, shape[1]),
            Err(_) => vec![0.0; x.len() / shape[1] * shape[0]],
        };
        if let Some(a) = self.vector(&format!("{part}.lora_A.weight")) {
            let b = self.vector(&format!("{part}.lora_B.weight")).unwrap();
            let low = times(&times(x, &a, shape[1]), &b, b.len() / shape[0]);
            out.iter_mut().zip(low).for_each(|(y, z)| *y += z);
        }
        assert!(self.vector(&format!("{part}.{MAGNITUDES}")).is_none_or(|m| m.len() == shape[0])); // they change nothing at the start
        if let Some(bias) = self.vector(&format!("{part}.bias")) {
            out.chunks_mut(shape[0]).for_each(|row| row.iter_mut().zip(&bias).for_each(|(y, b)| *y += b));
        }
        out
    }
}

/// `x [M, in]`, `weight [out, in]` → `[M, out]`.
fn times(x: &[f32], weight: &[f32], inp: usize) -> Vec<f32> {
    let dot = |row: &[f32], w: &[f32]| row.iter().zip(w).map(|(x, w)| x * w).sum();
    x.chunks(inp).flat_map(|row| weight.chunks(inp).map(|w| dot(row, w)).collect::<Vec<f32>>()).collect()
}

fn add(x: &[f32], y: &[f32]) -> Vec<f32> {
    x.iter().zip(y).map(|(x, y)| x + y).collect()
}

impl LayerRunner for Mixture {
    fn embed(&self, rows: Vec<f32>) -> Vec<f32> {
        rows
    }

    fn run(
        &self,
        run: LayerRun<'_>,
        hidden: &[f32],
        _: usize,
        see: &mut dyn FnMut(Activations<'_>),
    ) -> Result<Vec<f32>, CheckpointError> {
        let (weights, q_size, kv_size) = (Weights(run), self.0.query_size(), self.0.key_value_size());
        let mut reached = |point, inputs: &[f32], residual: &[f32]| {
            see(Activations { point, inputs, residual });
            run.until == Some(point)
        };
        // Residual stream and inputs at the point that comes next, and whether it was shown before.
        let (mut point, mut read, mut hidden, mut is_start) = match run.from {
            Some((point, read)) => (point, read.to_vec(), hidden.to_vec(), true),
            None => (ProbePoint::Attention, weights.norm(hidden, "input_layernorm"), hidden.to_vec(), false),
        };
        loop {
            if !std::mem::take(&mut is_start) && reached(point, &read, &hidden) {
                return Ok(hidden);
            }
            (point, read) = match point {
                ProbePoint::Attention => {
                    let [q, k, v] = ["q", "k", "v"].map(|x| weights.linear(&read, &format!("self_attn.{x}_proj")));
                    let kv = |values: &[f32], i: usize| values[i / q_size * kv_size + i % kv_size];
                    // Odd layers of the source are of another kind than even ones.
                    let mix = if run.kind.0.is_multiple_of(2) { 1.0 } else { 0.25 };
                    let mixed = q.iter().enumerate().map(|(i, q)| mix * (q.tanh() * kv(&k, i) + kv(&v, i)));
                    (ProbePoint::Output, mixed.collect())
                }
                ProbePoint::Output => {
                    let addend = weights.scaled(weights.linear(&read, "self_attn.o_proj"), "attention_scale");
                    hidden = add(&hidden, &addend);
                    (ProbePoint::Mlp, weights.norm(&hidden, "post_attention_layernorm"))
                }
                ProbePoint::Mlp => {
                    let [gate, up] = ["gate", "up"].map(|x| weights.linear(&read, &format!("mlp.{x}_proj")));
                    let gated = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u);
                    (ProbePoint::Down, gated.collect())
                }
                ProbePoint::Down => {
                    return Ok(add(&hidden, &weights.scaled(weights.linear(&read, "mlp.down_proj"), "mlp_scale")));
                }
            };
        }
    }

    /// In place of NLL and KL: the mean squared difference of the hidden states.
    fn compare(
        &self,
        _: &dyn TensorSource,
        [source, other]: [&[f32]; 2],
        targets: &[u32],
    ) -> Result<Comparison, CheckpointError> {
        let squares = source.iter().zip(other).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>();
        let kl = squares / targets.len() as f64;
        Ok(Comparison { source_nll: 1.0, nll: 1.0 + kl, kl })
    }
}
