"""Weights, logits and one SGD step, there and back, between Lockstep and torchvision and timm.

    round_trip.py LOCKSTEP WORKER IMAGES [--only NAME]…

LOCKSTEP and WORKER are the executables, IMAGES a folder with val/<class>/*.JPEG. `cargo xtask torchvision` calls it.

Which pixels: Lockstep decodes, scales and crops, and `lockstep eval --logits FILE --pixels` hands the very tensor that its
model saw to torch. So a difference is one of the model and not of a JPEG decoder or a resize. How near the transforms
themselves are to torchvision's is printed beside it, as mean absolute levels of 0..255.

Every line of the table is a promise; exit code 1 when one was missed.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE, RESIZE, BATCH, RATE, DECAY = 224, 256, 8, 0.05, 1e-4

RECIPE = """
name = "{name}"
[data]
kind = "image-folder"
path = "{data}"
limit = {limit}
test_limit = {limit}
normalize = "channel"
augment = {{ flip = false, shift = 0 }}
image = {{ crop = {side}, resize = {resize}, random_crop = false }}
[model]
arch = "{arch}"
init = "fan_out"
weights = "{weights}"
[optim]
solver = "sgd"
momentum = 0.9
nesterov = {nesterov}
weight_decay = {decay}
[schedule]
kind = "constant"
lr = {rate}
[train]
epochs = 0
max_steps = 1
batch = {batch}
chunk = 4
eval_chunk = 4
precision = "{precision}"
evaluate_every_epochs = 0
evaluate_first = false
[elastic]
join_timeout_s = 600
"""


class Table:
    def __init__(self):
        self.missed = 0

    def line(self, what, value, limit):
        held = value <= limit
        self.missed += not held
        print(f"{'held  ' if held else 'MISSED'} {what:<74} {value:9.2e}  (≤ {limit:g})", flush=True)


def relative(have, want):
    """Largest difference over the largest value of what is wanted."""
    return ((have.double() - want.double()).abs().max() / want.double().abs().max()).item()


class Lab:
    def __init__(self, args, work):
        self.lockstep, self.worker = args.lockstep, args.worker
        self.work, self.table = work, Table()
        self.images = work / "images"
        self.images.mkdir()
        for split in ("train", "val"):  # the same files: the batch that is trained on can be evaluated too
            (self.images / split).symlink_to(pathlib.Path(args.images).resolve() / "val")
        self.classes = len(list((self.images / "val").iterdir()))

    def run(self, *command):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LOCKSTEP_")}
        environment["LOCKSTEP_WORKER"] = str(self.worker)
        done = subprocess.run([str(self.lockstep), *map(str, command)], capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def recipe(self, name, **keys):
        values = dict(name=name, data=self.images, limit=BATCH, side=SIDE, resize=RESIZE, weights="", nesterov="false")
        values |= dict(rate=RATE, decay=DECAY, batch=BATCH, precision="fp32")
        path = self.work / f"{name}.toml"
        path.write_text(RECIPE.format(**(values | keys)))
        return path

    def train(self, name, **keys):
        """One step; the exported start and end."""
        run = self.work / name
        self.run("train", self.recipe(name, **keys), "--run-dir", run, "--workers", 1)
        out = []
        for step in (0, 1):
            out.append(self.work / f"{name}-{step}.safetensors")
            self.run("export", run / "checkpoints" / f"step-{step}", "--out", out[-1])
        return out

    def predict(self, weights, recipe):
        out = self.work / "logits.safetensors"
        said = self.run("eval", weights, "--recipe", recipe, "--logits", out, "--pixels", "--json")
        return load_file(out), json.loads(said)


def compare_logits(lab, what, have, want):
    off = (have.double() - want.double()).abs().max().item()
    lab.table.line(f"{what}, logits of {len(want)} photographs (absolute {off:.1e})", relative(have, want), 1e-5)


def logits_of(model, images):
    model.eval()
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(8)])


def one_step(model, images, labels, nesterov):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), RATE, 0.9, weight_decay=DECAY, nesterov=nesterov)
    loss = torch.nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.step()


def ours_in_torchvision(lab, arch, count):
    start, end = lab.train(f"{arch}-ours", arch=arch)
    model = torchvision.models.get_model(arch, num_classes=lab.classes)
    model.load_state_dict(load_file(end), strict=True)
    model.load_state_dict(load_file(start), strict=True)
    lab.table.line(f"{arch}: load_state_dict(strict=True) of our weights, {len(load_file(start))} tensors", 0, 0)
    found, said = lab.predict(end, lab.recipe(f"{arch}-look", arch=arch, limit=count))
    model.load_state_dict(load_file(end), strict=True)
    want = logits_of(model, found["images"])
    compare_logits(lab, f"{arch}: our weights", found["logits"], want)
    best = want.topk(5).indices
    wrong = abs((best[:, 0] == found["labels"]).double().mean().item() - said["top1"])
    wrong += abs((best == found["labels"][:, None]).any(1).double().mean().item() - said["top5"])
    lab.table.line(f"{arch}: top-1 and top-5 that we print against those of its logits", wrong, 1e-9)


def torchvisions_here(lab, arch, count):
    torch.manual_seed(1)
    model = torchvision.models.get_model(arch, num_classes=lab.classes)
    # As drawn, running statistics are 0 and 1, which would hide a wrong one.
    for name, value in model.named_buffers():
        if name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    theirs = lab.work / f"{arch}-theirs.safetensors"
    save_file(model.state_dict(), theirs)
    found, _ = lab.predict(theirs, lab.recipe(f"{arch}-look", arch=arch, limit=count))
    want = logits_of(model, found["images"])
    compare_logits(lab, f"{arch}: torchvision's weights here", found["logits"], want)
    return theirs, model


def stepped(lab, arch, theirs, found, kind, nesterov):
    """State of torchvision's model after one step, by name."""
    model = torchvision.models.get_model(arch, num_classes=lab.classes).to(kind)
    model.load_state_dict(load_file(theirs), strict=True)
    one_step(model, found["images"].to(kind), found["labels"], nesterov)
    return model.state_dict()


def whole(have, want, since):
    """Of all parameters together: length of the difference, over that of the parameters, and over that of the step."""
    names = [name for name, value in want.items() if value.dim() and "running" not in name]
    length = lambda a, b: sum((a[n].double() - b[n].double()).square().sum().item() for n in names) ** 0.5
    off, size = length(have, want), sum(want[n].double().square().sum().item() for n in names) ** 0.5
    return off / size, off / length(want, since), max((have[n].double() - want[n].double()).abs().max().item() for n in names)


def step_by_both(lab, arch, theirs, precision, nesterov):
    """In fp64 every tensor is compared by itself. In fp32 all of them together are: a bias that begins at 0 is after one
    step nothing but a gradient, whose rounding PyTorch shares, as the line about its own two precisions shows. And fp32
    begins with the last gamma of each block at 0, as large batches do: as torchvision draws a ResNet-50, PyTorch's own
    gradients in fp32 are 1e-2 from those in fp64, and one step at this rate 5e-4 of the parameters."""
    name = f"{arch}-{precision}{'-nesterov' if nesterov else ''}"
    start, end = lab.train(name, arch=arch, weights=theirs, precision=precision, nesterov=str(nesterov).lower())
    begun, file, after = load_file(start), load_file(theirs), load_file(end)
    other = sum((begun[key].double() != value.double()).any().item() for key, value in file.items())
    lab.table.line(f"{name}: model.weights, tensors of step 0 that are not the file's", other, 0)
    found, _ = lab.predict(start, lab.recipe(f"{name}-look", arch=arch, precision=precision))
    kind = torch.float32 if precision == "fp32" else torch.float64
    want = stepped(lab, arch, theirs, found, kind, nesterov)
    assert all(after[key].item() == value.item() == 1 for key, value in want.items() if value.dim() == 0), "batches"
    what = f"{name}: one SGD step on {BATCH} photographs"
    statistics = max(relative(after[key], value) for key, value in want.items() if "running" in key)
    lab.table.line(f"{what}, running statistics", statistics, 1e-5 if precision == "fp32" else 1e-12)
    worst = max((relative(after[key], value), key) for key, value in want.items() if value.dim() and "running" not in key)
    if precision == "fp64":
        lab.table.line(f"{what}, parameters of any tensor", worst[0], 1e-12)
        return
    of_all, of_step, absolute = whole(after, want, begun)
    lab.table.line(f"{what}, all parameters (absolute {absolute:.1e})", of_all, 1e-5)
    lab.table.line(f"{what}, the step itself", of_step, 5e-3)
    exact = stepped(lab, arch, theirs, found, torch.float64, nesterov)
    for who, state in (("ours", after), ("PyTorch's", want)):
        of_all, of_step, absolute = whole(state, exact, begun)
        print(f"       {who} fp32 from PyTorch's fp64: {of_all:.1e}, of the step {of_step:.1e}, absolute {absolute:.1e}")
    print(f"       ours from PyTorch's in fp32, worst tensor by itself: {worst[0]:.1e}, {worst[1]}")


def transforms(lab, count):
    recipe = lab.recipe("transform", arch="resnet18", limit=count)
    model = torchvision.models.resnet18(num_classes=lab.classes)
    weights = lab.work / "any.safetensors"
    save_file(model.state_dict(), weights)
    found, _ = lab.predict(weights, recipe)
    steps = torchvision.transforms
    theirs = steps.Compose([steps.Resize(RESIZE), steps.CenterCrop(SIDE), steps.PILToTensor()])
    std, mean = (torch.tensor(x).view(3, 1, 1) for x in (STD, MEAN))
    # Samples go round the classes: with fewer than there are classes, the first file of each.
    files = [sorted(folder.iterdir())[0] for folder in sorted((lab.images / "val").iterdir())][:count]
    off, bits = [], 0
    for pixels, file in zip(found["images"], files, strict=True):
        ours = ((pixels * std + mean) * 255).round()
        off.append((ours - theirs(Image.open(file).convert("RGB")).float()).abs().mean().item())
        again = steps.functional.normalize(ours / 255, MEAN, STD)  # what ToTensor and Normalize make of these levels
        bits += (again.view(torch.int32) != pixels.contiguous().view(torch.int32)).sum().item()
    lab.table.line(f"normalisation of {count} photographs, values of which a bit differs", bits, 0)
    lab.table.line(f"evaluation's transform against torchvision's, {count} photographs, worst mean levels", max(off), 2)


def in_timm(lab, arch, count):
    try:
        import timm
    except ImportError:
        print("left out: timm is not installed")
        return
    run = lab.work / f"{arch}-ours"
    folder = lab.work / f"{arch}-hub"
    lab.run("export", run / "checkpoints" / "step-1", "--format", "huggingface", "--out", folder)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.num_classes == lab.classes and model.pretrained_cfg["label_names"][0].startswith("n"), "config.json"
    found, _ = lab.predict(folder / "model.safetensors", lab.recipe(f"{arch}-look", arch=arch, limit=count))
    compare_logits(lab, f"{arch}: timm's local-dir:", found["logits"], logits_of(model, found["images"]))
    data = timm.data.resolve_data_config({}, model=model)
    said = (tuple(data["input_size"]), data["interpolation"], tuple(data["mean"]), tuple(data["std"]))
    assert said == ((3, SIDE, SIDE), "bilinear", MEAN, STD) and abs(data["crop_pct"] - SIDE / RESIZE) < 1e-9, data


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lockstep", type=pathlib.Path)
    parser.add_argument("worker", type=pathlib.Path)
    parser.add_argument("images")
    parser.add_argument("--arch", action="append", help="networks [default: resnet18, resnet50]")
    parser.add_argument("--count", type=int, default=32, help="photographs whose logits are compared")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, torchvision {torchvision.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as work:
        lab = Lab(args, pathlib.Path(work))
        transforms(lab, args.count)
        for arch in args.arch or ["resnet18", "resnet50"]:
            ours_in_torchvision(lab, arch, args.count)
            theirs, _ = torchvisions_here(lab, arch, args.count)
            model = torchvision.models.get_model(arch, num_classes=lab.classes, zero_init_residual=True)
            calm = lab.work / f"{arch}-calm.safetensors"
            save_file(model.state_dict(), calm)
            step_by_both(lab, arch, calm, "fp32", False)
            step_by_both(lab, arch, calm, "fp32", True)
            step_by_both(lab, arch, theirs, "fp64", False)
            in_timm(lab, arch, args.count)
    sys.exit(1 if lab.table.missed else 0)


if __name__ == "__main__":
    main()
