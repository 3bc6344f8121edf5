//! What is to be shown, as data: the lines of the issue, each with its figures and their goals.

use Goal::{AtLeast, AtMost, Same, Unset};

/// What a figure is measured by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
    /// Two hashes are one.
    Same,
    /// It is only to be known.
    Unset,
}

impl Goal {
    /// Whether a figure reaches it; `None` where there is nothing to reach. NaN reaches nothing.
    pub fn is_met(self, value: f64) -> Option<bool> {
        match self {
            AtMost(most) => Some(value <= most),
            AtLeast(least) => Some(value >= least),
            Same => Some(value == 1.0),
            Unset => None,
        }
    }
}

impl std::fmt::Display for Goal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            AtMost(most) if *most > 0.0 && *most < 1e-3 => write!(f, "≤ {most:e}"),
            AtMost(most) => write!(f, "≤ {most}"),
            AtLeast(least) => write!(f, "≥ {least}"),
            Same => f.write_str("equal"),
            Unset => f.write_str("—"),
        }
    }
}

/// One figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// Its name in `proof.json`.
    pub key: &'static str,
    /// What it is.
    pub what: &'static str,
    /// What it is measured by.
    pub goal: Goal,
}

/// One line: its figures are measured together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// As `--only` has it.
    pub name: &'static str,
    /// What it shows.
    pub title: &'static str,
    /// Its part of the time, relative to the other lines'.
    pub share: f64,
    /// Its figures.
    pub items: &'static [Item],
}

const fn item(key: &'static str, what: &'static str, goal: Goal) -> Item {
    Item { key, what, goal }
}

/// Seconds within which a rank whose neighbour was killed must have given up: `elastic.collective_timeout_s` of that run.
pub const DEADLINE_S: f64 = 20.0;

/// In the order in which they run: what is cheap and decides most comes first, the long trainings last.
pub static LINES: [Line; 7] = [
    Line {
        name: "1",
        title: "first losses",
        share: 2.0,
        items: &[
            item(
                "losses_fp32",
                "ResNet-20, fp32 without TF32, rate 0.01, first 20 losses: largest relative difference of device and CPU",
                AtMost(1e-3),
            ),
            item(
                "losses_graph",
                "ResNet-20, bf16, rate 0.01, 60 losses: largest relative difference with CUDA graphs and without (2⁻⁸ is a \
                 rounding of bf16)",
                AtMost(0.003_906_25),
            ),
        ],
    },
    Line {
        name: "2",
        title: "two processes on one device, SyncBN, one of them killed",
        share: 3.0,
        items: &[
            item(
                "two_fp64_losses",
                "fp64, n = 1, batch 32, rate 0.1, 50 steps: losses of two against one, relative",
                AtMost(1e-9),
            ),
            item("two_fp64_parameters", "the same: parameters and running statistics", AtMost(1e-9)),
            item(
                "kill_committed",
                "one killed in the second half: state at the last step committed before, against the undisturbed run's",
                AtMost(1e-9),
            ),
            item("kill_final", "the same: state at the end, a third process in its place", AtMost(1e-9)),
            item("kill_seconds", "the same: from the kill until the other has given up, seconds", AtMost(DEADLINE_S)),
            item("kill_audit", "the same: `lockstep audit`, findings", AtMost(0.0)),
            item("two_fp32_loss", "fp32, one step from saved states: loss of two against one, relative", AtMost(1e-6)),
            item("two_fp32_parameters", "the same: parameters, ‖difference‖ ÷ ‖parameters‖", AtMost(1e-5)),
        ],
    },
    Line {
        name: "3",
        title: "ResNet-20, 56, 110 on CIFAR-10, batch 128, bf16",
        share: 9.0,
        items: &[
            item("resnet20_epoch_s", "ResNet-20, seconds an epoch (50,000 images)", AtMost(0.20)),
            item("resnet20_eager", "ResNet-20, images/s ÷ PyTorch eager", AtLeast(8.0)),
            item("resnet20_graph", "ResNet-20, images/s ÷ PyTorch whole-step CUDA graph", AtLeast(1.05)),
            item("resnet20_compile", "ResNet-20, images/s ÷ PyTorch compile max-autotune", AtLeast(1.0)),
            item("resnet20_kernels", "ResNet-20, kernels a step", Unset),
            item("resnet20_kernels_eager", "ResNet-20, kernels a step of PyTorch eager", Unset),
            item(
                "bench_agrees",
                "`bench step` against `metrics.jsonl` of a run, images/s: relative difference",
                AtMost(0.05),
            ),
            item("resnet56_epoch_s", "ResNet-56, seconds an epoch", Unset),
            item("resnet56_eager", "ResNet-56, images/s ÷ PyTorch eager", Unset),
            item("resnet56_graph", "ResNet-56, images/s ÷ PyTorch whole-step CUDA graph", Unset),
            item("resnet56_compile", "ResNet-56, images/s ÷ PyTorch compile max-autotune", Unset),
            item("resnet56_kernels", "ResNet-56, kernels a step", Unset),
            item("resnet110_epoch_s", "ResNet-110, seconds an epoch", Unset),
            item("resnet110_eager", "ResNet-110, images/s ÷ PyTorch eager", Unset),
            item("resnet110_graph", "ResNet-110, images/s ÷ PyTorch whole-step CUDA graph", Unset),
            item("resnet110_compile", "ResNet-110, images/s ÷ PyTorch compile max-autotune", Unset),
            item("resnet110_kernels", "ResNet-110, kernels a step", Unset),
        ],
    },
    Line {
        name: "4",
        title: "ResNet-50, 224², batch 256, bf16, synthetic",
        share: 3.0,
        items: &[
            item("resnet50_images_per_s", "images/s (later ≥ 6,900)", Unset),
            item("resnet50_eager", "images/s ÷ PyTorch eager (which also smooths labels)", AtLeast(1.15)),
            item("resnet50_compile", "images/s ÷ PyTorch compile max-autotune", AtLeast(1.0)),
        ],
    },
    Line {
        name: "5",
        title: "SyncBN, the coordinator, resume",
        share: 3.0,
        items: &[
            item(
                "resume",
                "ResNet-20, reduction = \"canonical\": stopped after 30 steps and resumed, state after 60",
                Same,
            ),
            item("syncbn", "ResNet-20, bf16, one rank: seconds of a step with SyncBN ÷ without", AtMost(1.05)),
            item("syncbn_peer", "the same of PyTorch's SyncBatchNorm, ResNet-50", Unset),
            item(
                "coordinator",
                "ResNet-20, bf16: share of a step that a run with a coordinator takes longer than `bench step`",
                AtMost(0.005),
            ),
        ],
    },
    Line {
        name: "9",
        title: "ResNet-50 fed by JPEG files",
        share: 2.0,
        items: &[
            item("fed", "ResNet-50, 224², batch 256, bf16: images/s fed by JPEG ÷ synthetic", AtLeast(0.97)),
            item("fed_data_s", "an ImageNet-shaped run: seconds of a step that wait for data, median", Unset),
            item("fed_compute_s", "the same: that compute", Unset),
            item("fed_comm_s", "the same: that communicate", Unset),
            item("fed_images_per_s", "the same: images/s", Unset),
        ],
    },
    Line {
        name: "6",
        title: "ResNet-20, 200 epochs, bf16, three seeds, and PyTorch's three",
        share: 4.0,
        items: &[
            item("error", "test error after the last epoch, mean", Unset),
            item("error_peer", "the same of PyTorch (CUDA graph)", Unset),
            item("error_difference", "difference of the means (a verdict takes five seeds or more)", Unset),
            item("wall_s", "wall time of a training, seconds, median", Unset),
            item("wall_ratio", "PyTorch's wall time ÷ ours, seed by seed", Unset),
        ],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_those_of_the_project() {
        let goal =
            |key: &str| LINES.iter().flat_map(|line| line.items).find(|item| item.key == key).map(|item| item.goal);
        assert_eq!(goal("resnet20_eager"), Some(AtLeast(8.0)));
        assert_eq!(goal("resnet20_graph"), Some(AtLeast(1.05)));
        assert_eq!(goal("resnet20_compile"), Some(AtLeast(1.0)));
        assert_eq!(goal("resnet20_epoch_s"), Some(AtMost(0.2)));
        assert_eq!(goal("resnet50_eager"), Some(AtLeast(1.15)));
        assert_eq!(goal("resnet50_compile"), Some(AtLeast(1.0)));
        assert_eq!(goal("fed"), Some(AtLeast(0.97)));
        assert_eq!(goal("syncbn"), Some(AtMost(1.05)));
        assert_eq!(goal("coordinator"), Some(AtMost(0.005)));
    }

    #[test]
    fn keys_and_names_are_unique() {
        let mut keys: Vec<&str> = LINES.iter().flat_map(|line| line.items).map(|item| item.key).collect();
        keys.sort_unstable();
        let all = keys.len();
        keys.dedup();
        assert_eq!(keys.len(), all);
        let mut names = LINES.map(|line| line.name);
        names.sort_unstable();
        assert_eq!(names, ["1", "2", "3", "4", "5", "6", "9"]);
    }

    #[test]
    fn what_is_not_a_number_meets_no_goal() {
        assert_eq!(AtMost(1.0).is_met(f64::NAN), Some(false));
        assert_eq!(AtLeast(1.0).is_met(f64::NAN), Some(false));
        assert_eq!(AtMost(1.0).is_met(1.0), Some(true));
        assert_eq!(Same.is_met(0.0), Some(false));
        assert_eq!(Unset.is_met(1.0), None);
        assert_eq!(AtMost(1e-9).to_string(), "≤ 1e-9");
    }
}
