//! Whatever a strict `load_state_dict` of torchvision asks for is in an exported file: names, shapes, types.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::process::Command;

use lockstep_proto::ids::{Epoch, Generation, Lineage, StateId, Step};
use lockstep_proto::recipe::Recipe;
use lockstep_worker::checkpoint::{Snapshot, write};
use lockstep_worker::trainer;
use safetensors::{Dtype, SafeTensors};

/// By name: shape and type.
type Listing = BTreeMap<String, (Vec<usize>, &'static str)>;

fn theirs(arch: &str) -> Listing {
    let lines = include_str!("golden/state_dicts.txt").lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let of_arch = lines.filter(|words| words[0] == arch);
    let one = |words: Vec<&str>| {
        let shape =
            if words[2] == "scalar" { vec![] } else { words[2].split('x').map(|n| n.parse().unwrap()).collect() };
        (words[1].to_owned(), (shape, if words[3] == "int64" { "int64" } else { "float32" }))
    };
    of_arch.map(one).collect()
}

fn exported(arch: &str, step: u64) -> Listing {
    let recipe = format!("[data]\nkind = \"shapes\"\n[model]\narch = \"{arch}\"\n");
    let recipe = Recipe::from_toml(&recipe, "test").unwrap();
    let data = lockstep_data::open(&recipe.data, 0).unwrap();
    let mut replica = trainer::cpu(&recipe, data, 1).unwrap();
    replica.initialise();
    let (model, optimizer) = replica.tensors();
    let dir = tempfile::tempdir().unwrap();
    let snapshot = Snapshot {
        id: StateId { lineage: Lineage(1), generation: Generation(1), step: Step(step) },
        generation: Generation(1),
        epoch: Epoch(1),
        next_position: 0,
        scheduled: BTreeMap::new(),
        world_size: 1,
        recipe_sha256: recipe.sha256(),
        state_sha256: replica.sha256(),
        model,
        optimizer,
    };
    write(dir.path(), &snapshot).unwrap();
    let out = dir.path().join("out.safetensors");
    let mut export = Command::new(env!("CARGO_BIN_EXE_lockstep-worker"));
    export.arg("export").arg(dir.path().join(format!("step-{step}"))).arg("--out").arg(&out);
    assert!(export.status().unwrap().success());
    let bytes = std::fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, view): (&str, safetensors::tensor::TensorView<'_>)| {
        if view.dtype() == Dtype::I64 {
            assert_eq!(view.data(), (step as i64).to_le_bytes(), "{name}");
        }
        let dtype = if view.dtype() == Dtype::I64 { "int64" } else { "float32" };
        (name.to_owned(), (view.shape().to_vec(), dtype))
    };
    file.iter().map(one).collect()
}

#[test]
fn an_exported_resnet_has_what_torchvision_has_and_nothing_else() {
    for (ours, name) in [("resnet18", "resnet18"), ("resnet50", "resnet50")] {
        let mut want = theirs(name);
        assert!(want.len() > 100, "{name}: {} tensors", want.len());
        // `shapes` has ten classes.
        for tensor in ["fc.weight", "fc.bias"] {
            want.get_mut(tensor).unwrap().0[0] = 10;
        }
        assert_eq!(exported(ours, 7), want, "{name}");
    }
}
