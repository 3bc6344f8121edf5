//! A bundle of stand-ins: the launcher's search, its errors, and that what it starts is what was asked for.

use std::process::Output;

use super::*;

/// A checkout of stand-ins, and the bundle of it. The "worker" tells what it was started with.
struct Site {
    dir: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let site = Self { dir: tempfile::tempdir().unwrap() };
        let (root, out) = (Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), site.at("bundle"));
        copy(&root.join(LAUNCHER), &out.join("lockstep-worker")).unwrap();
        let program = "#!/bin/sh\necho \"args=$*\"; echo \"path=$LD_LIBRARY_PATH\"; echo \"libtorch=$LIBTORCH\"\n\
                       echo \"python=${LOCKSTEP_PYTHON:-}\"\n";
        write(&out.join("libexec/lockstep-worker"), program.as_bytes(), 0o755).unwrap();
        write(&out.join("libexec/libtorch-version"), b"2.11.0\n", 0o644).unwrap();
        write(&out.join("libexec/glibc-version"), b"2.17\n", 0o644).unwrap();
        fs::create_dir(site.at("empty")).unwrap();
        site
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// An environment with a PyTorch of that version, and libraries of NVIDIA's beside it.
    fn pytorch(&self, prefix: &str, version: &str) -> PathBuf {
        let packages = self.at(prefix).join("lib/python3.12/site-packages");
        write(&packages.join("torch/lib/libtorch_cpu.so"), b"", 0o644).unwrap();
        let text = format!("from typing import Optional\n__version__ = '{version}'\ndebug = False\n");
        write(&packages.join("torch/version.py"), text.as_bytes(), 0o644).unwrap();
        write(&packages.join("nvidia/cu13/lib/libcudart.so.13"), b"", 0o644).unwrap();
        write(&packages.join("nvidia/nccl/lib/libnccl.so.2"), b"", 0o644).unwrap();
        packages.join("torch")
    }

    /// Runs it where no Python has a torch, unless `env` says otherwise.
    fn run(&self, env: &[(&str, &Path)]) -> Output {
        let mut command = Command::new(self.at("bundle/lockstep-worker"));
        command.args(["worker", "--id", "a b"]).env_clear();
        // Only the tools of a shell: no python3 with packages.
        let tools = self.at("tools");
        if !tools.exists() {
            fs::create_dir(&tools).unwrap();
            for tool in ["sh", "cat", "sed", "dirname", "readlink", "getconf", "sort", "tail"] {
                let found = ["/usr/bin", "/bin"].map(|folder| Path::new(folder).join(tool));
                std::os::unix::fs::symlink(found.iter().find(|path| path.exists()).unwrap(), tools.join(tool)).unwrap();
            }
        }
        command.env("PATH", tools).envs(env.iter().map(|(name, path)| (name, path))).output().unwrap()
    }

    #[track_caller]
    fn fails(&self, env: &[(&str, &Path)], says: &[&str]) {
        let output = self.run(env);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{stderr}");
        assert!(stderr.starts_with("error: ") && says.iter().all(|text| stderr.contains(text)), "{stderr}");
    }
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn the_launcher_finds_pytorch_in_the_documented_order() {
    let site = Site::new();
    let [named, venv, conda] = ["named", "venv", "conda"].map(|prefix| site.pytorch(prefix, "2.11.0+cu130"));
    let (venv_prefix, conda_prefix) = (site.at("venv"), site.at("conda"));
    let all = [("LIBTORCH", &*named), ("VIRTUAL_ENV", &*venv_prefix), ("CONDA_PREFIX", &*conda_prefix)];
    for (skip, torch) in [named.clone(), venv, conda].into_iter().enumerate() {
        let text = said(&site.run(&all[skip..]));
        assert!(text.contains(&format!("libtorch={}\n", torch.display())), "{text}");
        let packages = torch.parent().unwrap().display();
        let path = format!("path={packages}/torch/lib:{packages}/nvidia/cu13/lib:{packages}/nvidia/nccl/lib\n");
        assert!(text.contains(&path) && text.contains("args=worker --id a b\n"), "{text}");
    }
    let text = said(&site.run(&all[1..]));
    assert!(text.contains(&format!("python={}/bin/python3\n", venv_prefix.display())), "{text}");
}

#[test]
fn the_launcher_asks_python_last_and_keeps_what_the_library_path_held() {
    let site = Site::new();
    let torch = site.pytorch("system", "2.11.0");
    let python = site.at("python");
    write(&python, format!("#!/bin/sh\necho '{}'\n", torch.display()).as_bytes(), 0o755).unwrap();
    let text = said(&site.run(&[("LOCKSTEP_PYTHON", &python), ("LD_LIBRARY_PATH", Path::new("/kept"))]));
    assert!(text.contains(&format!("libtorch={}\n", torch.display())) && text.contains(":/kept\n"), "{text}");
}

#[test]
fn an_environment_with_another_version_is_passed_over() {
    let site = Site::new();
    site.pytorch("venv", "2.10.0+cu128");
    let right = site.pytorch("conda", "2.11.0");
    let text = said(&site.run(&[("VIRTUAL_ENV", &site.at("venv")), ("CONDA_PREFIX", &site.at("conda"))]));
    assert!(text.contains(&format!("libtorch={}\n", right.display())), "{text}");
}

#[test]
fn what_cannot_be_used_ends_with_78_and_the_remedy() {
    let site = Site::new();
    site.fails(&[], &["no PyTorch found", "VIRTUAL_ENV", "pip install torch==2.11.0"]);
    site.pytorch("venv", "2.110.0");
    let venv = site.at("venv");
    site.fails(
        &[("VIRTUAL_ENV", &venv)],
        &["no PyTorch 2.11.0", "version 2.110.0 in ", "(VIRTUAL_ENV)", "pip install"],
    );
    let old = site.pytorch("old", "2.9.1+cpu");
    site.fails(&[("LIBTORCH", &old)], &["LIBTORCH=", "holds version 2.9.1+cpu", "linked with libtorch 2.11.0"]);
    site.fails(&[("LIBTORCH", &site.at("empty"))], &["LIBTORCH=", "no lib/libtorch_cpu.so", "unset LIBTORCH"]);
    write(&site.at("bundle/libexec/glibc-version"), b"2.999\n", 0o644).unwrap();
    site.fails(&[], &["this system has glibc 2.", "needs 2.999"]);
}

#[test]
fn the_launcher_may_be_reached_by_links() {
    let site = Site::new();
    let torch = site.pytorch("venv", "2.11.0");
    let (one, two) = (site.at("one"), site.at("two"));
    std::os::unix::fs::symlink("bundle/lockstep-worker", &one).unwrap();
    std::os::unix::fs::symlink(&one, &two).unwrap();
    let output = Command::new(&two).env("LIBTORCH", &torch).output().unwrap();
    assert!(said(&output).contains("libtorch="));
}

#[test]
fn a_folder_that_is_no_bundle_is_left_alone() {
    let site = Site::new();
    let folder = site.at("photographs");
    write(&folder.join("cat.jpg"), b"", 0o644).unwrap();
    let error = clear(&folder).unwrap_err().to_string();
    assert!(error.contains("no bundle") && folder.join("cat.jpg").is_file(), "{error}");
    clear(&site.at("bundle")).unwrap();
    assert!(!site.at("bundle/libexec").exists());
}

#[test]
fn a_bundle_has_everything_and_no_library_path() {
    let site = Site::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    // Any executable will do: this test's own.
    let own = std::env::current_exe().unwrap();
    for name in ["lockstep", "lockstep-worker"] {
        copy(&own, &site.at("bin").join(name)).unwrap();
    }
    let out = site.at("made/lockstep");
    clear(&out).unwrap();
    fill(&root, &site.at("bin"), &out).unwrap();
    for file in
        ["lockstep", "lockstep-worker", "libexec/lockstep-worker", "recipes/demo.toml", "docs/gpu.md", "README.md"]
    {
        assert!(out.join(file).is_file(), "{file}");
    }
    let mut worker = fs::read(out.join("libexec/lockstep-worker")).unwrap();
    assert_eq!(elf::forget_library_path(&mut worker).unwrap(), 0);
    assert!(fs::read_to_string(out.join("libexec/libtorch-version")).unwrap().starts_with("2."));
    let archive = archive(&out).unwrap();
    let list = output(Command::new("tar").arg("-tzf").arg(&archive)).unwrap();
    assert!(list.contains("lockstep/libexec/lockstep-worker\n"), "{list}");
}
