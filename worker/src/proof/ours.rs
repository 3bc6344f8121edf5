//! Our own commands, and the peers': at full size, or tiny where the proof itself is tried.

use std::path::PathBuf;

use super::child::Spec;
use super::lab::{Lab, Reason};

/// Images of an epoch of CIFAR-10.
pub const EPOCH: f64 = 50_000.0;

/// What is run, at both sizes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Steps of the fp64 comparison of two processes with one.
    pub two_steps: u64,
    /// Measured steps of `bench step`.
    pub bench_steps: u64,
    /// Unmeasured ones before; with CUDA graphs, steps are captured in them.
    pub warm_up: u64,
    /// Steps of a run that is compared with `bench step`.
    pub run_steps: u64,
    /// Steps of a peer's epoch, and its epochs, of which the first does not count.
    pub peer_steps: u64,
    /// Saved states from which fp32 takes one step.
    pub states: u64,
    /// Seeds of the long trainings.
    pub seeds: u64,
}

const FULL: Sizes =
    Sizes { two_steps: 50, bench_steps: 300, warm_up: 60, run_steps: 1173, peer_steps: 150, states: 3, seeds: 3 };
const TINY: Sizes =
    Sizes { two_steps: 80, bench_steps: 2, warm_up: 1, run_steps: 3, peer_steps: 2, states: 1, seeds: 1 };

impl Lab {
    /// What is run.
    pub fn sizes(&self) -> Sizes {
        if self.config.is_trial() { TINY } else { FULL }
    }

    /// What `--devices` of a training is: in a trial the course of a device, on CPU tensors.
    pub fn device(&self) -> &str {
        if self.config.is_trial() { "host" } else { &self.config.device }
    }

    /// A folder for a run.
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.config.out.join("runs").join(name)
    }

    /// Recipe and keys of a training on CIFAR-10; of a trial without `--data`, on built-in images.
    ///
    /// # Errors
    /// No `--data`.
    pub fn cifar(&self, recipe: &str) -> Result<(String, Vec<String>), Reason> {
        let mut sets = Vec::new();
        let recipe = match &self.config.data {
            Some(data) => {
                sets.push(format!("data.path={}", data.display()));
                recipe
            }
            None if self.config.is_trial() => "demo",
            None => return Err("no --data: the folder cifar-10-batches-bin".into()),
        };
        if self.config.is_trial() {
            let data: &[&str] = if recipe == "demo" {
                // Its own schedule ends with its epochs: nothing to be resumed with more steps.
                &["data.train_size=128", "data.test_size=32", "schedule.kind=constant", "train.epochs=200"]
            } else {
                &["data.limit=128", "data.test_limit=32"]
            };
            let small = ["model.n=1", "model.width=8", "train.batch=32", "train.chunk=8", "train.evaluate_first=false"];
            sets.extend(data.iter().copied().chain(small).map(str::to_owned));
        }
        Ok((recipe.into(), sets))
    }

    /// `lockstep train` on a device, into `runs/NAME`.
    pub fn train(&self, name: &str, recipe: &str, device: &str) -> Spec {
        let run = self.run_dir(name).display().to_string();
        let args = ["train", recipe, "--devices", device, "--json", "--until-stdin-closes", "--run-dir", &run];
        let spec = Spec::new(name, &self.config.lockstep, &args)
            .env("LOCKSTEP_WORKER", &self.config.worker.display().to_string());
        if self.config.is_trial() { spec.arg("--threads").arg("1") } else { spec }
    }

    /// `lockstep train` of ResNet-20 on the device in question.
    ///
    /// # Errors
    /// No `--data`.
    pub fn train_cifar(&self, name: &str, sets: &[&str]) -> Result<Spec, Reason> {
        let (recipe, base) = self.cifar("cifar10/resnet20")?;
        Ok(self.train(name, &recipe, self.device()).sets(base).sets(sets))
    }

    /// `lockstep-worker bench step`, bf16.
    pub fn bench(&self, name: &str, recipe: &str) -> Spec {
        let sizes = self.sizes();
        let (steps, warm_up) = (sizes.bench_steps.to_string(), sizes.warm_up.to_string());
        let args = ["bench", "step", recipe, "--precision", "bf16", "--steps", &steps, "--warm-up", &warm_up];
        let spec = Spec::new(name, &self.config.worker, &args);
        // On a CPU it is what happens unasked.
        if self.config.is_trial() {
            spec.arg("--threads").arg("1")
        } else {
            spec.arg("--device").arg(&self.config.device)
        }
    }

    /// The same of a ResNet on CIFAR-10 with `blocks` blocks a stage.
    ///
    /// # Errors
    /// No `--data`.
    pub fn bench_cifar(&self, name: &str, blocks: u32, sets: &[&str]) -> Result<Spec, Reason> {
        let recipe = match blocks {
            9 => "cifar10/resnet56",
            18 => "cifar10/resnet110",
            _ => "cifar10/resnet20",
        };
        let (recipe, base) = self.cifar(recipe)?;
        Ok(self.bench(name, &recipe).sets(["train.reduction=fast"]).sets(base).sets(sets))
    }

    /// `cifar_torch.py` at its best settings, with some steps an epoch.
    ///
    /// # Errors
    /// No such script, no `--data`, or a mode that a CPU does not have.
    pub fn peer_cifar(&self, mode: &str, blocks: u32) -> Result<Spec, Reason> {
        let steps = self.sizes().peer_steps.to_string();
        let spec = self.peer_cifar_whole(mode, blocks)?;
        let epochs = if self.config.is_trial() { "2" } else { "4" };
        Ok(["--limit-steps", &steps, "--epochs", epochs, "--no-eval"].into_iter().fold(spec, Spec::arg))
    }

    /// The same without an end: whole epochs.
    ///
    /// # Errors
    /// The same.
    pub fn peer_cifar_whole(&self, mode: &str, blocks: u32) -> Result<Spec, Reason> {
        let script = self.peer("cifar_torch.py")?.display().to_string();
        let data = self.config.data.as_ref().ok_or("no --data: the folder cifar-10-batches-bin")?.display().to_string();
        if self.config.is_trial() && mode != "eager" {
            return Err(format!("{mode} needs a GPU"));
        }
        let blocks = if self.config.is_trial() { 1 } else { blocks }.to_string();
        let device = self.torch_device();
        let args =
            [&*script, "--data", &data, "--blocks", &blocks, "--mode", mode, "--precision", "bf16", "--channels-last"];
        let spec = Spec::new(format!("peer-{mode}-{blocks}"), &self.config.python, &args);
        let spec = spec.arg("--device").arg(device.0);
        let spec = if self.config.is_trial() { spec.arg("--batch").arg("32") } else { spec };
        Ok(device.1.into_iter().fold(spec, |spec, index| spec.env("CUDA_VISIBLE_DEVICES", &index)))
    }

    /// `imagenet_torch.py`.
    ///
    /// # Errors
    /// No such script, or a mode that a CPU does not have.
    pub fn peer_imagenet(&self, name: &str, mode: &str) -> Result<Spec, Reason> {
        let script = self.peer("imagenet_torch.py")?.display().to_string();
        if self.config.is_trial() && mode != "eager" {
            return Err(format!("{mode} needs a GPU"));
        }
        let device = self.torch_device();
        let args = [&*script, "--mode", mode, "--precision", "bf16", "--channels-last", "--device", device.0];
        let spec = Spec::new(name, &self.config.python, &args);
        let size = if self.config.is_trial() {
            ["--model", "resnet18", "--batch", "4", "--size", "32", "--steps", "1", "--windows", "1"]
        } else {
            ["--model", "resnet50", "--batch", "256", "--size", "224", "--steps", "20", "--windows", "5"]
        };
        let spec = size.into_iter().fold(spec, Spec::arg);
        Ok(device.1.into_iter().fold(spec, |spec, index| spec.env("CUDA_VISIBLE_DEVICES", &index)))
    }

    /// What a peer's `--device` is, and which GPU it is shown: its scripts know `cuda` and nothing else.
    fn torch_device(&self) -> (&'static str, Option<String>) {
        match self.config.device.strip_prefix("cuda:") {
            None => ("cpu", None),
            Some("0") => ("cuda", None),
            Some(index) => ("cuda", Some(index.to_owned())),
        }
    }

    /// Keys of ResNet-50 on images; tiny in a trial.
    pub fn imagenet_sets(&self) -> Vec<&'static str> {
        let mut sets = vec!["train.reduction=fast", "train.batch_norm=global"];
        if self.config.is_trial() {
            sets.extend([
                "model.arch=resnet18",
                "train.batch=4",
                "train.chunk=2",
                "data.image.crop=32",
                "data.image.resize=32",
            ]);
        }
        sets
    }
}
