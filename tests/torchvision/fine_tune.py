"""Fine-tuning by recipe, on CIFAR-10's images as folders: what a run of ours learned of six classes serves four others.

    fine_tune.py LOCKSTEP WORKER CIFAR [--steps N]

CIFAR is a folder with train/<class>/ and test/<class>/. Needs only the executables. A small ResNet-18 at 64 pixels learns
six classes; its weights are exported under torchvision's names; four classes that it never saw, 25 images each, are then
learned in the same few steps from scratch, from these weights, and with parts of them frozen. Every line is a promise.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

SOURCE = ("airplane", "automobile", "cat", "dog", "horse", "ship")
TARGET = ("bird", "deer", "frog", "truck")
PER_CLASS, TESTED = 25, 400

RECIPE = """
name = "{name}"
[data]
kind = "image-folder"
path = "{data}"
limit = {limit}
test_limit = {test_limit}
normalize = "channel"
[data.image]
crop = 64
resize = 64
scale = [0.4, 1.0]
mean = [0.491, 0.482, 0.447]
std = [0.247, 0.244, 0.262]
[model]
arch = "resnet18"
width = 32
init = "fan_out"
{model}
[optim]
weight_decay = 5e-4
{optim}
[schedule]
kind = "cosine"
lr = {lr}
[train]
max_steps = {steps}
epochs = 0
batch = {batch}
chunk = 10
evaluate_every_epochs = 0
[log]
tensorboard = false
"""


def tensors(path):
    """Name to (shape, bytes) of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    body = data[8 + size :]
    return {
        name: (entry["shape"], body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
        if name != "__metadata__" and not name.endswith("num_batches_tracked")
    }


class Lab:
    def __init__(self, args, work):
        self.args, self.work, self.missed = args, work, 0

    def folder(self, name, classes):
        for split, own in (("train", "train"), ("val", "test")):
            (self.work / name / split).mkdir(parents=True)
            for label in classes:
                (self.work / name / split / label).symlink_to((self.args.cifar / own / label).resolve())
        return self.work / name

    def run(self, *command):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOCKSTEP_")}
        environment["LOCKSTEP_WORKER"] = str(self.args.worker)
        command = [str(self.args.lockstep), *map(str, command)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def train(self, name, **keys):
        """Trains; gives the exported weights and what `eval` says of them."""
        recipe, run, out = self.work / f"{name}.toml", self.work / f"run-{name}", self.work / f"{name}.safetensors"
        recipe.write_text(RECIPE.format(**dict(name=name, model="", optim="") | keys))
        self.run("train", recipe, "--run-dir", run, "--workers", 1)
        checkpoint = run / "checkpoints" / f"step-{keys['steps']}"
        self.run("export", checkpoint, "--out", out)
        said = json.loads(self.run("eval", checkpoint, "--json"))
        bare = json.loads(self.run("eval", out, "--recipe", recipe, "--json"))
        self.promise(f"{name}: a bare file evaluates as its checkpoint", bare["loss"] == said["loss"])
        self.run("audit", run)
        print(f"       {name}: top-1 {100 * said['top1']:.1f} %, loss {said['loss']:.3f}", flush=True)
        return tensors(out), said, out

    def promise(self, what, held):
        self.missed += not held
        print(f"{'held  ' if held else 'MISSED'} {what}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lockstep", type=pathlib.Path)
    parser.add_argument("worker", type=pathlib.Path)
    parser.add_argument("cifar", type=pathlib.Path)
    parser.add_argument("--source-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=30)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        lab = Lab(args, pathlib.Path(work))
        source, target = lab.folder("source", SOURCE), lab.folder("target", TARGET)
        first, _, weights = lab.train(
            "source", data=source, limit=6000, test_limit=600, lr=0.1, steps=args.source_steps, batch=60
        )
        small = dict(data=target, limit=len(TARGET) * PER_CLASS, test_limit=TESTED, steps=args.steps, batch=50)
        begun = f'weights = "{weights}"\nhead = "replace"\n'
        _, scratch, _ = lab.train("scratch", lr=0.05, **small)
        _, whole, _ = lab.train("whole", lr=0.01, model=begun, optim="lr_scale = { head = 10.0 }", **small)
        frozen = begun + 'freeze = ["stem", "layer1", "layer2"]\n'
        scales = "lr_scale = { layer4 = 2.0, head = 10.0 }"
        parts, part, _ = lab.train("frozen", lr=0.01, model=frozen, optim=scales, **small)
        probe = begun + 'freeze = ["stem", "layer1", "layer2", "layer3", "layer4"]\n'
        heads, head, _ = lab.train("head", lr=0.1, model=probe, **small)

        for name, found in (("whole", whole), ("frozen", part), ("head", head)):
            better = found["error"] < scratch["error"]
            lab.promise(f"{name}: error {found['error']:.3f} < {scratch['error']:.3f} from scratch", better)
        lab.promise("the classifier has as many rows as the new data has classes", parts["fc.weight"][0][0] == 4)
        for what, found, kept in (("frozen", parts, ("conv1", "bn1", "layer1", "layer2")), ("head", heads, ("conv1", "bn1", "layer"))):
            stays = {name for name in found if name.startswith(kept)}
            same = all(found[name] == first[name] for name in stays)
            lab.promise(f"{what}: {len(stays)} tensors of frozen parts have every bit of the file", same)
            moves = {name for name in found if name not in stays and not name.startswith("fc.")}
            lab.promise(f"{what}: {len(moves)} others have moved", all(found[name] != first[name] for name in moves))
        text = (lab.work / "whole.toml").read_text().replace('head = "replace"\n', "")
        (lab.work / "kept.toml").write_text(text)
        command = [args.lockstep, "train", lab.work / "kept.toml", "--run-dir", lab.work / "kept"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        refused = done.returncode == 65 and 'model.head = "replace"' in done.stdout + done.stderr
        lab.promise("without model.head a classifier of six classes is refused for four", refused)
    sys.exit(1 if lab.missed else 0)


if __name__ == "__main__":
    main()
