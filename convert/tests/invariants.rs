//! What every conversion has to keep, on small random models (numbers: section 10.2 of the
//! specification).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod small_model;

use retie_checkpoint::{Dtype, SafetensorsFolder, TensorSource};
use retie_config::{
    ConvertConfig, Depth, Init, LayerIndex, ModelConfig, Pattern, Projection, Relax, RemainderPolicy, ShareMap,
    Sharing, StoredDtype,
};
use retie_convert::{ConvertReport, OutputFiles, Phase, REPORT_FILE, SourceModel, convert, init::INITS};
use small_model::{
    MAGNITUDES, SHAPE, Shape, conversion, depth_tensor, effective, layer_tensor, options, run, source_weight,
    with_pattern, write,
};

fn kept_energies(report: &ConvertReport, projection: &str) -> Vec<(f64, f64)> {
    let lora = report.lora.as_ref().unwrap();
    let energy = lora.projections.iter().find(|p| p.projection == projection).unwrap();
    energy.depths.iter().map(|d| (d.residual_energy, d.kept_energy)).collect()
}

/// Every init that takes a sharing pattern.
fn tying() -> impl Iterator<Item = Init> {
    INITS.iter().map(|method| method.init).filter(|init| *init != Init::Select)
}

/// I1.
#[test]
fn one_recursion_copies_every_tensor_byte_for_byte() {
    for (i, (dtype, tied_embeddings, biases)) in
        [(Dtype::F32, true, false), (Dtype::BF16, false, true), (Dtype::F16, true, true)].into_iter().enumerate()
    {
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), Shape { dtype, tied_embeddings, biases, ..SHAPE }, |i| i);
        for sharing in Sharing::ALL {
            for init in tying() {
                let out = dir.path().join(format!("{i}-{sharing}-{init}"));
                run(&source, &config, &options(1, sharing, init), &out).unwrap();
                let copy = SafetensorsFolder::open(&out).unwrap();
                assert_eq!(copy.names(), source.names());
                for name in source.names() {
                    assert_eq!(copy.info(name), source.info(name));
                    assert_eq!(copy.bytes(name).unwrap(), source.bytes(name).unwrap());
                }
                let written = ModelConfig::load(&out.join("config.json")).unwrap();
                assert_eq!((written.recursion.clone(), written.to_json()), (None, config.to_json()));
            }
        }
    }
}

/// I3. With three layers and two recursions a stepwise start takes the second layer of a cycle from
/// the third group.
#[test]
fn a_source_that_is_tied_by_the_pattern_is_reproduced() {
    for sharing in Sharing::ALL {
        let num_layers = 6 + 2 * sharing.num_unshared_ends();
        let map = ShareMap::new(num_layers, 2, sharing).unwrap();
        let first_of = |depth: usize| map.depths_of(map.depths()[depth].layer)[0].0;
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), Shape { num_layers, ..SHAPE }, first_of);
        let is_cycle = matches!(sharing, Sharing::Cycle | Sharing::MiddleCycle);
        for (init, reproduced) in
            [(Init::Average, true), (Init::Lower, is_cycle), (Init::Upper, is_cycle), (Init::Stepwise, !is_cycle)]
        {
            let out = dir.path().join(format!("{sharing}-{init}"));
            run(&source, &config, &options(2, sharing, init), &out).unwrap();
            let same = (0..num_layers).all(|depth| {
                Projection::ALL
                    .map(Projection::name)
                    .iter()
                    .all(|p| effective(&out, p, depth) == source_weight(&source, p, depth))
            });
            assert_eq!(same, reproduced, "{sharing} {init}");
        }
    }
}

/// I4 for the weights: full rank and own vectors give every weight of the source back.
#[test]
fn full_rank_and_own_norms_reproduce_the_source() {
    for sharing in Sharing::ALL {
        let num_layers = 6 + 2 * sharing.num_unshared_ends();
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), Shape { num_layers, biases: true, ..SHAPE }, |i| i);
        for init in tying() {
            for recursions in [2, 3] {
                let out = dir.path().join(format!("{sharing}-{init}-{recursions}"));
                let mut options = options(recursions, sharing, init);
                (options.lora_rank, options.share_norms) = (Some(16), false);
                run(&source, &config, &options, &out).unwrap();
                for depth in 0..num_layers {
                    for projection in Projection::ALL.map(Projection::name) {
                        let own = source_weight(&source, projection, depth);
                        let largest = own.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                        for (x, y) in effective(&out, projection, depth).iter().zip(&own) {
                            // W', A and B are rounded to f32: a few units of 6e-8 of the largest
                            // weight.
                            assert!((x - y).abs() < 1e-6 * largest, "{sharing} {init} {projection} {x} {y}");
                        }
                    }
                    let written = SafetensorsFolder::open(&out).unwrap();
                    for part in ["input_layernorm.weight", "post_attention_layernorm.weight", "mlp.down_proj.bias"] {
                        let own = source.bytes(&layer_tensor(LayerIndex(depth), part)).unwrap();
                        assert_eq!(written.bytes(&depth_tensor(Depth(depth), part)).unwrap(), own);
                    }
                }
            }
        }
    }
}

/// I4 for patterns with unshared layers, maps and every fit: each depth is the source layer that it
/// stands for.
#[test]
fn full_rank_gives_every_depth_the_source_layer_that_it_stands_for() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), Shape { biases: true, ..SHAPE }, |i| i);
    let looped = |sharing, prelude, coda| Pattern::new(sharing, Some(prelude), Some(coda), None).unwrap();
    let uneven = Pattern::Map(vec![0, 1, 0, 2, 2, 3, 0, 4]);
    let cases = [
        ("between", looped(Sharing::Cycle, 1, 3), 2, None, (0..8).collect()),
        ("in place", looped(Sharing::Sequence, 2, 0), 3, None, (0..8).collect()),
        ("map", uneven, 3, None, (0..8).collect()),
        ("drop", looped(Sharing::Cycle, 0, 1), 3, Some(RemainderPolicy::Drop), vec![0, 1, 2, 4, 5, 6, 7]),
        ("repeat", looped(Sharing::Sequence, 0, 0), 3, Some(RemainderPolicy::Repeat), vec![0, 1, 2, 3, 4, 4, 5, 6, 7]),
        ("pad", looped(Sharing::Cycle, 0, 0), 3, Some(RemainderPolicy::PadUnshared), (0..8).collect()),
    ];
    for (name, pattern, recursions, fit, sources) in cases {
        let out = dir.path().join(name);
        let mut options = with_pattern(options(recursions, Sharing::Cycle, Init::Average), &pattern);
        (options.remainder, options.lora_rank, options.share_norms) = (fit, Some(16), false);
        let report = run(&source, &config, &options, &out).unwrap();
        assert!(report.checks.iter().all(|check| check.passed), "{name}");
        let written = SafetensorsFolder::open(&out).unwrap();
        // The folder is described by its own configuration, whose depths are counted anew.
        let config = ModelConfig::load(&out.join("config.json")).unwrap();
        assert_eq!(config.num_hidden_layers, sources.len(), "{name}");
        let map = config.share_map();
        assert_eq!((map.num_layers(), map.num_recursions()), (report.num_layers, recursions), "{name}");
        for (depth, from) in sources.iter().enumerate() {
            for projection in Projection::ALL.map(Projection::name) {
                let own = source_weight(&source, projection, *from);
                let largest = own.iter().fold(0.0f64, |m, x| m.max(x.abs()));
                for (x, y) in effective(&out, projection, depth).iter().zip(&own) {
                    // W', A and B are rounded to f32: a few units of 6e-8 of the largest weight.
                    assert!((x - y).abs() < 1e-6 * largest, "{name} {projection} {depth}");
                }
            }
            let part = "input_layernorm.weight";
            let own = source.bytes(&layer_tensor(LayerIndex(*from), part)).unwrap();
            assert_eq!(written.bytes(&depth_tensor(Depth(depth), part)).unwrap(), own, "{name}");
        }
        let said = match name {
            "drop" => "source layer 3 left out: the stack has 7 depths",
            "repeat" => "source layer 4 run twice: the stack has 9 depths",
            "pad" => "source layers 0, 7 left unshared, as the recursions do not divide",
            _ => continue,
        };
        assert_eq!(report.notes, [said]);
    }
}

/// DoRA begins as LoRA: every other tensor is that of LoRA, and the magnitudes are the lengths of
/// the rows as they are stored, so that the quotient is 1. At full rank they are those of the
/// source.
#[test]
fn magnitudes_are_the_lengths_of_corrected_rows_and_nothing_else_is_changed() {
    type Change = fn(&mut ConvertConfig);
    let changes: [(&str, Change); 4] = [
        ("rank", |o| o.lora_rank = Some(3)),
        ("second", |o| (o.lora_rank, o.lora_from, o.dtype) = (Some(3), 1, StoredDtype::Bf16)),
        ("ranks", |o| o.lora_ranks = [("k_proj".to_owned(), 2), ("down_proj".to_owned(), 5)].into()),
        ("full", |o| (o.lora_rank, o.share_norms) = (Some(16), false)),
    ];
    for sharing in Sharing::ALL {
        let num_layers = 6 + 2 * sharing.num_unshared_ends();
        let dir = tempfile::tempdir().unwrap();
        let (config, source) = write(dir.path(), Shape { num_layers, biases: true, ..SHAPE }, |i| i);
        for (init, (name, change)) in tying().flat_map(|init| changes.map(|change| (init, change))) {
            let mut options = options(3, sharing, init);
            change(&mut options);
            let [lora, dora] = Relax::ALL.map(|relax| {
                let out = dir.path().join(format!("{init}-{name}-{relax}"));
                (run(&source, &config, &ConvertConfig { relax, ..options.clone() }, &out).unwrap(), out)
            });
            let check = dora.0.checks.iter().find(|check| check.name == "dora").unwrap();
            assert!(check.passed && lora.0.checks.iter().all(|check| check.name != "dora"), "{check:?}");
            let [plain, written] = [&lora.1, &dora.1].map(|dir| SafetensorsFolder::open(dir).unwrap());
            for name in plain.names() {
                assert_eq!(written.bytes(name).unwrap(), plain.bytes(name).unwrap());
            }
            let mut parameters = 0;
            for depth in 0..num_layers {
                for (projection, [out, inp]) in config.projection_shapes() {
                    let projection = projection.name();
                    let name = |part: &str| depth_tensor(Depth(depth), &format!("{projection}.{part}"));
                    let info = written.info(&name(MAGNITUDES));
                    assert_eq!(info.is_some(), plain.info(&name("lora_A.weight")).is_some(), "{projection} {depth}");
                    let Some(info) = info else { continue };
                    assert_eq!((info.dtype, info.shape.as_slice()), (Dtype::F32, [out].as_slice()));
                    parameters += out;
                    let found = written.read_f32(&name(MAGNITUDES)).unwrap();
                    let rows = effective(&dora.1, projection, depth);
                    let own = source_weight(&source, projection, depth);
                    for (o, m) in found.iter().enumerate() {
                        let length = |w: &[f64]| w[o * inp..][..inp].iter().map(|x| x * x).sum::<f64>().sqrt();
                        // A product in f32, and rounding once: some units of 6e-8.
                        assert!((f64::from(*m) - length(&rows)).abs() < 5e-7 * length(&rows), "{sharing} {init}");
                        let full = (f64::from(*m) - length(&own)).abs() < 2e-6 * length(&own);
                        assert!(full || options.lora_rank != Some(16), "{sharing} {init} {projection} {m}");
                    }
                }
            }
            assert_eq!(dora.0.parameters.lora, lora.0.parameters.lora + parameters);
            let again = ModelConfig::load(&dora.1.join("config.json")).unwrap().recursion.unwrap().lora.unwrap();
            let plain = ModelConfig::load(&lora.1.join("config.json")).unwrap().recursion.unwrap().lora.unwrap();
            assert_eq!(again, plain.with(Relax::Dora));
            assert!(dora.0.to_string().contains("\nDoRA  "), "{}", dora.0);
        }
    }
}

/// I5.
#[test]
fn the_error_falls_with_the_rank_and_the_two_sides_of_a_mean_have_one_spectrum() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut last = f64::INFINITY;
    for rank in [1, 4, 8, 12, 16] {
        let out = dir.path().join(rank.to_string());
        let mut options = options(2, Sharing::Cycle, Init::Average);
        options.lora_rank = Some(rank);
        let report = run(&source, &config, &options, &out).unwrap();
        let energies = kept_energies(&report, "mlp.up_proj");
        for (depth, (residual, kept)) in energies.iter().enumerate() {
            let own = source_weight(&source, "mlp.up_proj", depth);
            let error: f64 = effective(&out, "mlp.up_proj", depth).iter().zip(&own).map(|(x, y)| (x - y).powi(2)).sum();
            // Rounding of the factors to f32.
            assert!((error - (residual - kept)).abs() < 1e-6 * residual, "{error} {residual} {kept}");
            let (twin_residual, twin_kept) = energies[(depth + 4) % 8];
            // The mean is rounded to f32, so the residuals are opposite to 6e-8.
            assert!((twin_residual - residual).abs() < 1e-6 * residual);
            assert!((twin_kept - kept).abs() < 1e-6 * residual);
        }
        let error: f64 = energies.iter().map(|(residual, kept)| residual - kept).sum();
        assert!(error < last);
        last = error;
    }
}

/// I6.
#[test]
fn residuals_are_zero_where_a_depth_is_its_own_source() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let zero_depths = |init: Init| -> Vec<usize> {
        let out = dir.path().join(init.name());
        let mut options = options(2, Sharing::Cycle, init);
        options.lora_rank = Some(3);
        let report = run(&source, &config, &options, &out).unwrap();
        let written = SafetensorsFolder::open(&out).unwrap();
        let zero = |depth: &usize| {
            let is_zero = |part: &str| {
                let values = written.read_f32(&depth_tensor(Depth(*depth), part)).unwrap();
                (values.iter().all(|x| *x == 0.0), values.iter().all(|x| *x != 0.0))
            };
            assert!(is_zero("mlp.up_proj.lora_A.weight").1); // or B would have no gradient
            is_zero("mlp.up_proj.lora_B.weight").0
        };
        let depths: Vec<usize> = (0..8).filter(zero).collect();
        let energies = kept_energies(&report, "mlp.up_proj");
        assert!(depths.iter().all(|d| energies[*d] == (0.0, 0.0)));
        depths
    };
    assert_eq!(zero_depths(Init::Lower), [0, 1, 2, 3]);
    assert_eq!(zero_depths(Init::Upper), [4, 5, 6, 7]);
    assert_eq!(zero_depths(Init::Average), [0usize; 0]);
    let stepwise = zero_depths(Init::Stepwise);
    assert!(stepwise.contains(&0) && stepwise.contains(&7), "{stepwise:?}");
}

/// I7: what is counted is what is stored.
#[test]
fn the_report_counts_what_the_folder_holds() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), Shape { biases: true, tied_embeddings: false, ..SHAPE }, |i| i);
    let mut options = options(3, Sharing::MiddleSequence, Init::Average);
    (options.lora_rank, options.share_norms) = (Some(5), false);
    let out = dir.path().join("out");
    let report = run(&source, &config, &options, &out).unwrap();
    let written = SafetensorsFolder::open(&out).unwrap();
    let infos: Vec<_> = written.names().into_iter().map(|name| written.info(name).unwrap()).collect();
    assert_eq!(report.parameters.total(), infos.iter().map(|i| i.num_elements()).sum::<usize>());
    assert_eq!(report.bytes, infos.iter().map(|i| i.num_bytes() as u64).sum::<u64>());
    assert_eq!(report.source_bytes, 4 * report.source_parameters.total() as u64);
    let text = fs_err::read_to_string(out.join(REPORT_FILE)).unwrap();
    let mut stored: ConvertReport = serde_json::from_str(&text).unwrap();
    assert_eq!(stored.lora.as_ref().unwrap().projections.len(), 7);
    stored.lora = report.lora.clone(); // serde_json reads some numbers one unit in the last place off
    assert_eq!(stored, report);
}

#[test]
fn an_average_is_the_mean_over_the_tied_group_of_linears_norms_and_biases() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), Shape { biases: true, ..SHAPE }, |i| i);
    let out = dir.path().join("out");
    run(&source, &config, &options(3, Sharing::MiddleCycle, Init::Average), &out).unwrap();
    let written = SafetensorsFolder::open(&out).unwrap();
    for part in ["self_attn.k_proj.weight", "input_layernorm.weight", "self_attn.o_proj.bias"] {
        let members = [2, 4, 6].map(|i| source.read_f32(&layer_tensor(LayerIndex(i), part)).unwrap());
        let found = written.read_f32(&layer_tensor(LayerIndex(2), part)).unwrap();
        for (i, x) in found.iter().enumerate() {
            let mean = members.iter().map(|m| f64::from(m[i])).sum::<f64>() / 3.0;
            assert_eq!(*x, mean as f32);
        }
        for (layer, from) in [(0, 0), (3, 7)] {
            let end = written.bytes(&layer_tensor(LayerIndex(layer), part)).unwrap();
            assert_eq!(end, source.bytes(&layer_tensor(LayerIndex(from), part)).unwrap());
        }
    }
}

#[test]
fn a_new_element_type_is_written_everywhere_and_lora_corrects_its_rounding() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut options = options(2, Sharing::Cycle, Init::Lower);
    (options.dtype, options.lora_rank) = (StoredDtype::Bf16, Some(16));
    let out = dir.path().join("out");
    let report = run(&source, &config, &options, &out).unwrap();
    let written = SafetensorsFolder::open(&out).unwrap();
    assert!(written.names().into_iter().all(|name| written.info(name).unwrap().dtype == Dtype::BF16));
    let json = ModelConfig::load(&out.join("config.json")).unwrap().to_json();
    assert_eq!((&json["torch_dtype"], &json["a_key_of_someone_else"]), (&"bfloat16".into(), &"kept".into()));
    // In f32 the first pass of `lower` has no residual; here it has that of the rounding.
    assert!(kept_energies(&report, "mlp.up_proj").iter().all(|(residual, _)| *residual > 0.0));
}

#[test]
fn a_conversion_is_reproducible_bit_for_bit_and_shards_do_not_change_it() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut options = options(2, Sharing::MiddleSequence, Init::Random);
    (options.lora_rank, options.seed) = (Some(4), 3);
    let mut folders = Vec::new();
    for (name, max_shard_size) in [("a", None), ("b", None), ("c", Some("4096".parse().unwrap()))] {
        let out = dir.path().join(name);
        options.max_shard_size = max_shard_size;
        run(&source, &config, &options, &out).unwrap();
        folders.push(SafetensorsFolder::open(&out).unwrap());
    }
    assert!(folders[2].files().count() > 2);
    for name in folders[0].names() {
        assert_eq!(folders[0].bytes(name).unwrap(), folders[1].bytes(name).unwrap());
        assert_eq!(folders[0].bytes(name).unwrap(), folders[2].bytes(name).unwrap());
    }
    let (a, b) = (dir.path().join("a").join(REPORT_FILE), dir.path().join("b").join(REPORT_FILE));
    assert_eq!(fs_err::read(a).unwrap(), fs_err::read(b).unwrap());
}

#[test]
fn files_are_copied_and_progress_reaches_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let files = OutputFiles { files: vec![("tokenizer.json".into(), b"{}".to_vec())], ..OutputFiles::default() };
    let out = dir.path().join("out");
    let mut last = None;
    let options = options(2, Sharing::Cycle, Init::Stepwise);
    let source = SourceModel { tensors: &source, config: &config };
    let mut see = |p: retie_convert::Progress<'_>| last = Some((p.phase, p.done == p.total));
    convert(source, &conversion(&options), None, &files, &out, &mut see).unwrap();
    assert_eq!(last, Some((Phase::Check, true)));
    assert_eq!(fs_err::read(out.join("tokenizer.json")).unwrap(), b"{}");
}

#[test]
fn the_report_reads_as_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let (config, source) = write(dir.path(), SHAPE, |i| i);
    let mut options = options(3, Sharing::MiddleCycle, Init::Average);
    options.lora_rank = Some(5);
    let text = run(&source, &config, &options, &dir.path().join("out")).unwrap().to_string();
    for line in [
        "8 depths from 4 stored layers: middle_cycle, 3 recursions, init average",
        "    0      0   unshared  0",
        "    4      2          1  2, 4, 6",
        "note: norms are shared, and LoRA cannot give them back: with `share_norms: false` every depth keeps its own",
        "  ok     layout",
        "  ok     lora",
    ] {
        assert!(text.contains(line), "no line `{line}` in\n{text}");
    }
}
