//! What stands in deploy/docker must be what the build takes.

use std::fs;

use super::root;

/// (name, version, sha256) of each wheel.
fn wheels(file: &str) -> Vec<(String, String, String)> {
    let text = fs::read_to_string(root().join("deploy/docker").join(file)).unwrap();
    let text = text.replace("\\\n", " ");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let parts = lines.map(|line| {
        let (wheel, hash) = line.split_once(" --hash=sha256:").unwrap_or_else(|| panic!("{file}: {line}"));
        let (name, version) = wheel.trim().split_once("==").unwrap();
        (name.to_owned(), version.trim().to_owned(), hash.trim().to_owned())
    });
    parts.map(|(name, version, hash)| (name, version, hash.trim_start_matches(' ').to_owned())).collect()
}

fn normal(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_wheels_of_an_image_are_those_of_a_build_outside() {
    let xtask = fs::read_to_string(root().join("xtask/src/libtorch.rs")).unwrap();
    let cpu = wheels("wheels-cpu.txt");
    assert_eq!(cpu.len(), 3);
    for (name, version, hash) in &cpu {
        assert!(xtask.contains(&format!("\"{name}=={version}\"")) && xtask.contains(hash), "{name}");
    }
    let cuda = wheels("wheels-cuda.txt");
    assert!(cpu.iter().all(|wheel| cuda.contains(wheel)), "{cuda:?}");
}

#[test]
fn what_an_air_gapped_site_must_mirror_stands_in_the_readme() {
    let readme = fs::read_to_string(root().join("deploy/docker/README.md")).unwrap();
    for (name, version, _) in wheels("wheels-cuda.txt") {
        assert!(readme.contains(&format!("{name} {version}")), "wheel {name} {version}");
    }
    for kind in ["coordinator", "worker"] {
        let dockerfile = fs::read_to_string(root().join(format!("deploy/docker/Dockerfile.{kind}"))).unwrap();
        for line in dockerfile.lines().filter_map(|line| line.strip_prefix("ARG ")) {
            let (name, value) = line.split_once('=').unwrap_or((line, ""));
            assert!(readme.contains(&format!("`{name}`")), "argument {name} of Dockerfile.{kind}");
            assert!(!value.contains('/') || readme.contains(value), "{name}={value} of Dockerfile.{kind}");
        }
        let version = format!("image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
        assert!(normal(&dockerfile).contains(&version), "Dockerfile.{kind}: {version}");
    }
}
