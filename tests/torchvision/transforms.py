"""Training's transforms against torchvision's and Pillow's, on photographs.

    transforms.py TRANSFORMS IMAGES

TRANSFORMS is the example of that name in worker/data, IMAGES a folder with val/<class>/*.JPEG. `cargo xtask torchvision`
calls it. Boxes: 20,000 of ours and 20,000 of torchvision's RandomResizedCrop.get_params for photographs of five sizes, their
area, shape and place by Kolmogorov and Smirnov; D · √(n/2) is above 1.95 once in a thousand times if the distributions are
equal, and all is seeded. Squares: one box that torchvision draws for each photograph, by both. Every line is a promise.
"""

import argparse
import collections
import pathlib
import subprocess
import sys

import numpy as np
import torch
import torchvision
from PIL import Image
from round_trip import Table
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

SIDE, SCALE, RATIO, NUM = 224, (0.08, 1.0), (3 / 4, 4 / 3), 20_000


def torchvisions(image, num):
    """Boxes as x, y, width, height."""
    draw = torchvision.transforms.RandomResizedCrop.get_params
    boxes = [draw(image, list(SCALE), list(RATIO)) for _ in range(num)]
    return np.array([(x, y, w, h) for y, x, h, w in boxes], dtype=float)


def series(boxes, width, height):
    x, y, w, h = boxes.T
    area, shape = w * h / (width * height), np.log(w / h)
    return {"area": area, "shape": shape, "centre x": (x + w / 2) / width, "centre y": (y + h / 2) / height}


def distance(ours, theirs):
    """D of Kolmogorov and Smirnov times the root of n/2."""
    places = np.concatenate([ours, theirs])
    shares = [np.searchsorted(np.sort(found), places, side="right") / len(found) for found in (ours, theirs)]
    return np.abs(shares[0] - shares[1]).max() * (len(ours) / 2) ** 0.5


def compare_boxes(table, program, sizes):
    common = [size for size, _ in collections.Counter(sizes).most_common(3)]
    shapes = sorted(set(sizes), key=lambda size: size[0] / size[1])
    for width, height in dict.fromkeys([*common, shapes[0], shapes[-1]]):
        said = subprocess.run([program, "boxes", str(width), str(height), str(NUM)], capture_output=True, check=True)
        ours = np.array(said.stdout.split(), dtype=float).reshape(-1, 4)
        theirs = torchvisions(torch.empty(3, height, width), NUM)
        worst = max((distance(a, b), name) for (name, a), b in zip(series(ours, width, height).items(), series(theirs, width, height).values()))
        table.line(f"{2 * NUM} boxes of {width} × {height}, farthest in {worst[1]}: D · √(n/2)", worst[0], 1.95)


def compare_squares(table, program, files):
    boxes, pillow, tensor = [], [], []
    for file in files:
        image = Image.open(file).convert("RGB")
        x, y, w, h = map(int, torchvisions(image, 1)[0])
        boxes.append((x, y, w, h))
        pillow.append(np.asarray(image.crop((x, y, x + w, y + h)).resize((SIDE, SIDE), Image.BILINEAR)))
        decoded = torchvision.io.decode_image(str(file), torchvision.io.ImageReadMode.RGB)
        square = functional.resized_crop(decoded, y, x, h, w, [SIDE, SIDE], v2.InterpolationMode.BILINEAR, True)
        tensor.append(square.permute(1, 2, 0).numpy())
    levels = lambda ours, theirs: np.abs(ours.astype(float) - theirs).mean((1, 2, 3))
    pillow, tensor = np.stack(pillow), np.stack(tensor)
    for quality, limit in (("full", 1), ("scaled", 2)):
        lines = "".join(f"{x} {y} {w} {h} {quality} {file}\n" for (x, y, w, h), file in zip(boxes, files, strict=True))
        said = subprocess.run([program, "squares", str(SIDE)], input=lines.encode(), capture_output=True, check=True)
        ours = np.frombuffer(said.stdout, np.uint8).reshape(-1, SIDE, SIDE, 3)
        for name, theirs in (("Pillow", pillow), ("torchvision's tensors", tensor)):
            off = levels(ours, theirs)
            what = f"decode = {quality}: levels from {name}, mean of {len(files)} (worst {off.max():.2f})"
            table.line(what, off.mean(), limit)
    off = levels(tensor, pillow)
    print(f"       for comparison, torchvision's tensors from Pillow: mean {off.mean():.2e}, worst {off.max():.2f}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("transforms")
    parser.add_argument("images", type=pathlib.Path)
    args = parser.parse_args()
    print(f"torchvision {torchvision.__version__}, Pillow {Image.__version__}")
    torch.manual_seed(0)
    table = Table()
    files = sorted(args.images.glob("val/*/*"))
    compare_boxes(table, args.transforms, [Image.open(file).size for file in files])
    compare_squares(table, args.transforms, files)
    sys.exit(1 if table.missed else 0)


if __name__ == "__main__":
    main()
