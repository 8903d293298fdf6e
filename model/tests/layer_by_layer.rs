//! A decoder run layer by layer equals the whole decoder.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use burn::tensor::Device;
use retie_checkpoint::{LayerRun, LayerRunner, ProbePoint, TensorSource, under_our_names};
use retie_model::{CausalLm, LayerByLayer};
use retie_testing::{Golden, ids, values};

#[test]
fn running_depth_by_depth_gives_the_logits_and_shows_the_inputs_of_linears() {
    for name in ["gqa", "tied", "llama3", "dora"] {
        let (golden, device) = (Golden::named(name), Device::flex());
        let config = golden.config();
        let (flat, shape) = golden.ints("golden.ids");
        let (width, tokens) = (config.hidden_size, shape[1]);
        let table = golden.read_f32("model.embed_tokens.weight").unwrap();
        let runner = LayerByLayer::new(&config, &device);
        let mut hidden =
            runner.embed(flat.iter().flat_map(|id| table[*id as usize * width..][..width].to_vec()).collect());
        for step in config.share_map().depths() {
            let run = LayerRun {
                tensors: &golden,
                layer: step.layer,
                depth: step.depth,
                kind: step.depth,
                from: None,
                until: None,
            };
            let mut seen = Vec::new();
            let after = runner
                .run(run, &hidden, tokens, &mut |s| seen.push((s.point, s.inputs.to_vec(), s.residual.to_vec())))
                .unwrap();
            let points: Vec<ProbePoint> = seen.iter().map(|s| s.0).collect();
            assert_eq!(points, ProbePoint::ALL);
            // The last addend to the residual stream is `down_proj` of the observed input.
            let down = golden.read_f32(&format!("model.layers.{}.mlp.down_proj.weight", run.layer)).unwrap();
            let own = |part: &str| golden.read_f32(&format!("model.depths.{}.mlp.down_proj.{part}", run.depth)).ok();
            let stored = || golden.read_f32(&format!("model.layers.{}.mlp.down_proj.bias", run.layer)).ok();
            let bias = own("bias").or_else(stored).unwrap_or(vec![0.0; width]);
            let factor = |which: &str| own(&format!("{which}.weight")).unwrap_or_default();
            let (a, b) = (factor("lora_A"), factor("lora_B"));
            let (_, inputs, residual) = &seen[3];
            let (inner, rank) = (inputs.len() / (residual.len() / width), b.len() / width);
            let weight = |i: usize, j: usize| {
                let low = (0..rank).map(|k| f64::from(b[i * rank + k]) * f64::from(a[k * inner + j])).sum::<f64>();
                f64::from(down[i * inner + j]) + low
            };
            let length = |i| (0..inner).map(|j| weight(i, j).powi(2)).sum::<f64>().sqrt();
            let scales: Vec<f64> = match own("lora_magnitude_vector") {
                Some(m) => m.iter().enumerate().map(|(i, m)| f64::from(*m) / length(i)).collect(),
                None => vec![1.0; width],
            };
            for (row, after) in after.chunks(width).enumerate() {
                for (i, after) in after.iter().enumerate() {
                    let terms = (0..inner).map(|j| scales[i] * weight(i, j) * f64::from(inputs[row * inner + j]));
                    let terms: Vec<f64> =
                        terms.chain([f64::from(residual[row * width + i]), f64::from(bias[i])]).collect();
                    let (sum, size) = (terms.iter().sum::<f64>(), terms.iter().map(|x| x.abs()).sum::<f64>());
                    // Products and sums in f32: a few units of 6e-8 of the sum of all magnitudes.
                    assert!((f64::from(*after) - sum).abs() < 1e-6 * size, "{name} {after} {sum} {size}");
                }
            }
            let mut points = Vec::new();
            let stopped = LayerRun { until: Some(ProbePoint::Mlp), ..run };
            let there = runner.run(stopped, &hidden, tokens, &mut |s| points.push(s.point)).unwrap();
            assert_eq!((points.len(), &there), (3, &seen[2].2));
            hidden = after;
        }
        let model = CausalLm::load(&config, &golden, &device).unwrap();
        let rows: Vec<Vec<u32>> = flat.chunks(tokens).map(|row| row.iter().map(|id| *id as u32).collect()).collect();
        let logits = values(model.logits(model.forward(ids(&rows, &device), None)));
        let targets: Vec<u32> = rows.concat();
        let found = runner.compare(&golden, [&hidden, &hidden], &targets).unwrap();
        let vocab_size = config.vocab_size;
        let nll = logits.chunks(vocab_size).zip(&targets).map(|(row, target)| {
            let sum: f64 = row.iter().map(|x| f64::from(*x).exp()).sum();
            sum.ln() - f64::from(row[*target as usize])
        });
        let nll = nll.sum::<f64>() / targets.len() as f64;
        // `compare` runs the kernels on other chunks of rows: f32 rounding.
        assert!((found.source_nll - nll).abs() < 1e-5 && found.kl == 0.0, "{name} {found:?} {nll}");
        assert_eq!(found.source_nll, found.nll);
    }
}

/// Every placement of norms and of the residual sums.
#[test]
fn a_run_from_a_probe_point_gives_the_bits_of_the_whole_run() {
    for name in ["gqa", "dora", "gemma3", "olmo2", "gpt_neox", "gpt_neox_sequential"] {
        let config = Golden::named(name).config();
        let tensors = under_our_names(Golden::named(name), &config);
        let (width, tokens) = (config.hidden_size, 6);
        let runner = LayerByLayer::new(&config, &Device::flex());
        let mut hidden: Vec<f32> = (0..2 * tokens * width).map(|i| (i as f32 * 0.7).sin()).collect();
        for step in config.share_map().depths() {
            let (tensors, layer, depth) = (tensors.as_ref(), step.layer, step.depth);
            let run = LayerRun { tensors, layer, depth, kind: depth, from: None, until: None };
            let mut seen = Vec::new();
            let after = runner
                .run(run, &hidden, tokens, &mut |s| seen.push((s.point, s.inputs.to_vec(), s.residual.to_vec())))
                .unwrap();
            assert_eq!(seen.len(), ProbePoint::ALL.len());
            for (i, (point, inputs, residual)) in seen.iter().enumerate() {
                let (mut behind, resumed) = (Vec::new(), LayerRun { from: Some((*point, inputs)), ..run });
                let again = runner.run(resumed, residual, tokens, &mut |s| behind.push(s.inputs.to_vec())).unwrap();
                assert_eq!(again, after, "{name} from {point:?}");
                assert!(behind.iter().eq(seen[i + 1..].iter().map(|s| &s.1)), "{name} from {point:?}");
            }
            hidden = after;
        }
    }
}
