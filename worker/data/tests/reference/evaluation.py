#!/usr/bin/env python3
"""Evaluation's pixels of whole photographs against torchvision's, by hand; prints how far they are apart.

    cargo run --release -p lockstep-data --example pixels -- FOLDER > pixels.bin 2> files.txt
    python3 evaluation.py FOLDER pixels.bin files.txt

torchvision: Resize(256), CenterCrop(224), ToTensor, Normalize, on Pillow images. Normalisation is exact where every value
of ours is, to the bit, what torchvision makes of some byte; bytes are compared after that.
"""
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main():
    root, pixels, files = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]).read_text().split()
    ours = np.fromfile(pixels, "<f4").reshape(len(files), 224, 224, 3)
    ramp = torch.arange(256, dtype=torch.uint8).repeat(3, 1)[:, :, None].float().div(255)
    table = transforms.Normalize(MEAN, STD)(ramp)[:, :, 0].numpy()
    bytes_of = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.PILToTensor()])
    exact, total, means, most = 0, 0, [], 0
    for file, image in zip(files, ours):
        theirs = bytes_of(Image.open(root / file).convert("RGB")).permute(1, 2, 0).numpy().astype(int)
        levels = np.empty((224, 224, 3), int)
        for c in range(3):
            levels[..., c] = np.clip(np.searchsorted(table[c], image[..., c]), 0, 255)
            exact += int((table[c][levels[..., c]] == image[..., c]).sum())
        total += levels.size
        difference = np.abs(levels - theirs)
        means.append(difference.mean())
        most = max(most, int(difference.max()))
    print(f"{len(files)} images: mean absolute difference {np.mean(means):.3f} levels (worst image {max(means):.3f}), greatest {most}; "
          f"normalised exactly: {exact} of {total} values")


main()
