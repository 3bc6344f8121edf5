"""Fine-tuning by recipe: what a run of ours learned of CIFAR-10 serves few images of other classes.

    fine_tune.py LOCKSTEP WORKER DATA [--seeds N] [--only cifar|photographs] [--steps N] [--source-steps N] [--keep FOLDER]

DATA has cifar10-images/{train,test}/<class>/ and imagenet-sample/val/<class>/. Needs only the executables. A ResNet-18 of
half the width learns at 64 pixels and is exported under torchvision's names. Its weights then begin runs on

cifar         four classes that it never saw (it learned the six others), 25 images each, 400 others tested;
photographs   16 groups of ten photographs (groups.py; it learned all ten classes of CIFAR-10): seven of a group are
              trained, three tested, which ones is drawn by the seed.

The same few steps are done from scratch, with all parts trained, with the first ones frozen and rates by part, and with a new
head alone. --keep leaves the exported weights in a folder, and takes them from there if they are. Every line is a promise.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

from groups import members

SOURCE = ("airplane", "automobile", "cat", "dog", "horse", "ship")
TARGET = ("bird", "deer", "frog", "truck")
PER_CLASS, TESTED = 25, 400
TRAINED_OF_TEN = 7

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
seed = {seed}
max_steps = {steps}
epochs = 0
batch = {batch}
chunk = {chunk}
evaluate_every_epochs = 0
evaluate_first = false
[elastic]
join_timeout_s = 600
[log]
tensorboard = false
"""
BEGUN = 'weights = "{weights}"\nhead = "replace"\n'
FROZEN = BEGUN + 'freeze = ["stem", "layer1", "layer2"]\n'
HEAD = BEGUN + 'freeze = ["stem", "layer1", "layer2", "layer3", "layer4"]\n'
# How the few images are learned: keys of [model], of [optim], the rate.
ARMS = {
    "scratch": ("", "", 0.05),
    "whole": (BEGUN, "lr_scale = { head = 10.0 }", 0.01),
    "frozen": (FROZEN, "lr_scale = { layer4 = 2.0, head = 10.0 }", 0.01),
    "head": (HEAD, "", 0.1),
}


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
        self.cifar = args.data / "cifar10-images"

    def folder(self, name, classes):
        """Links to classes of CIFAR-10."""
        for split, own in (("train", "train"), ("val", "test")):
            (self.work / name / split).mkdir(parents=True)
            for label in classes:
                (self.work / name / split / label).symlink_to((self.cifar / own / label).resolve())
        return self.work / name

    def split(self, name, seed):
        """Links to ten photographs of each group, seven of them in train and three in val."""
        for group, files in members(self.args.data / "imagenet-sample").items():
            files = sorted(files)
            random.Random(f"{seed} {group}").shuffle(files)
            for number, file in enumerate(files):
                folder = self.work / name / ("train" if number < TRAINED_OF_TEN else "val") / group
                folder.mkdir(parents=True, exist_ok=True)
                (folder / file.name).symlink_to(file)
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
        keys = dict(name=name, model="", optim="", chunk=10, seed=0) | keys
        recipe.write_text(RECIPE.format(**keys))
        self.run("train", recipe, "--run-dir", run, "--workers", 1, "--threads", self.args.threads)
        checkpoint = run / "checkpoints" / f"step-{keys['steps']}"
        self.run("export", checkpoint, "--out", out)
        said = json.loads(self.run("eval", checkpoint, "--json"))
        if keys["seed"] == 0:
            bare = json.loads(self.run("eval", out, "--recipe", recipe, "--json"))
            self.promise(f"{name}: a bare file evaluates as its checkpoint", bare["loss"] == said["loss"])
            self.run("audit", run)
        shutil.rmtree(run)
        print(f"       {name}: top-1 {100 * said['top1']:.1f} %, loss {said['loss']:.3f}", flush=True)
        return out, said

    def source(self, name, classes, steps):
        """Weights that a run of ours made of classes of CIFAR-10."""
        kept = self.args.keep / f"{name}-{steps}.safetensors" if self.args.keep else None
        if kept and kept.exists():
            print(f"       {name}: {kept}")
            return kept
        data = self.folder(name, classes)
        out, _ = self.train(name, data=data, limit=0, test_limit=1000, lr=0.1, steps=steps, batch=100)
        if kept:
            shutil.copy(out, kept)
        return kept or out

    def arms(self, task, weights, of_seed):
        """Every arm with every seed: name to [top-1]. `of_seed` gives the keys of the data."""
        found = {arm: [] for arm in ARMS}
        for seed in range(self.args.seeds):
            keys = of_seed(seed) | dict(seed=seed, steps=self.args.steps)
            for arm, (model, optim, lr) in ARMS.items():
                model = model.format(weights=weights)
                out, said = self.train(f"{task}-{arm}-{seed}", lr=lr, model=model, optim=optim, **keys)
                found[arm].append(100 * said["top1"])
                if seed == 0 and arm in ("frozen", "head"):
                    self.stays(f"{task}-{arm}", tensors(weights), tensors(out))
        scratch = statistics.mean(found["scratch"])
        for arm, top1 in found.items():
            mean, spread = statistics.mean(top1), f"{min(top1):.1f}–{max(top1):.1f}"
            if arm == "scratch":
                print(f"       {task}, {arm}: top-1 {mean:.1f} % ({spread}), {len(top1)} seeds")
                continue
            ahead = [a - b for a, b in zip(top1, found["scratch"])]
            error = statistics.stdev(ahead) / len(ahead) ** 0.5 if len(ahead) > 1 else 0
            pairs = f"{statistics.mean(ahead):+.1f} ± {error:.1f} points, seed by seed"
            self.promise(f"{task}, {arm}: top-1 {mean:.1f} % ({spread}) > {scratch:.1f} % from scratch; {pairs}", mean > scratch)
        return found

    def stays(self, what, first, found):
        frozen = ("conv1", "bn1", "layer1", "layer2") + (("layer",) if what.endswith("head") else ())
        stays = {name for name in found if name.startswith(frozen)}
        self.promise(f"{what}: {len(stays)} tensors of frozen parts have every bit of the file", all(found[n] == first[n] for n in stays))
        moves = {name for name in found if name not in stays and not name.startswith("fc.")}
        self.promise(f"{what}: {len(moves)} others have moved", all(found[name] != first[name] for name in moves))
        self.promise(f"{what}: another classifier", found["fc.weight"][0] != first["fc.weight"][0])

    def promise(self, what, held):
        self.missed += not held
        print(f"{'held  ' if held else 'MISSED'} {what}", flush=True)


def cifar(lab):
    weights = lab.source("six-classes", SOURCE, lab.args.source_steps)
    target = lab.folder("four-classes", TARGET)
    few = dict(data=target, limit=len(TARGET) * PER_CLASS, test_limit=TESTED, batch=50)
    lab.arms("cifar", weights, lambda _: few)
    model = BEGUN.format(weights=weights).replace('head = "replace"\n', "")
    keys = dict(name="kept", model=model, optim="", lr=0.01, steps=1, chunk=10, seed=0)
    (lab.work / "kept.toml").write_text(RECIPE.format(**few, **keys))
    command = [lab.args.lockstep, "train", lab.work / "kept.toml", "--run-dir", lab.work / "kept"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    refused = done.returncode == 65 and 'model.head = "replace"' in done.stdout + done.stderr
    lab.promise("without model.head a classifier of six classes is refused for four", refused)


def photographs(lab):
    weights = lab.source("ten-classes", SOURCE + TARGET, lab.args.source_steps)
    keys = dict(limit=0, test_limit=0, batch=56, chunk=8)
    lab.arms("photographs", weights, lambda seed: keys | dict(data=lab.split(f"split-{seed}", seed)))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lockstep", type=pathlib.Path)
    parser.add_argument("worker", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--source-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--only", choices=["cifar", "photographs"])
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()
    if args.keep:
        args.keep.mkdir(parents=True, exist_ok=True)
        args.keep = args.keep.resolve()
    with tempfile.TemporaryDirectory() as work:
        lab = Lab(args, pathlib.Path(work))
        for task in (cifar, photographs):
            if args.only in (None, task.__name__):
                task(lab)
    sys.exit(1 if lab.missed else 0)


if __name__ == "__main__":
    main()
