#!/usr/bin/env python3
"""What torchvision makes of one picture, for tests/augment.rs.

    pip install torch==2.11.0 torchvision==0.26.0 pillow==12.3.0
    python3 augment.py ops > augment.txt
    python3 augment.py erase                     # moments of RandomErasing's rectangles, for the test's table

Each line of `ops`: policy, operation, bin of 31, sign, interpolation, magnitude (f32 as hex), crc32 of the 37 x 37 RGB
bytes that come out. The picture is `picture` below; magnitudes are those of an image of that size.
"""
import math
import struct
import sys
import zlib

import torch
from PIL import Image
from torchvision.transforms import autoaugment
from torchvision.transforms.functional import InterpolationMode
from torchvision.transforms import RandomErasing

SIDE = 37
BINS = [0, 1, 4, 9, 15, 22, 30]


def picture():
    values = [
        20 + (x * x * 3 + y * 7 * (c + 1) + x * y * (c + 2)) % 256 * 200 // 255
        for y in range(SIDE) for x in range(SIDE) for c in range(3)
    ]
    return Image.frombytes("RGB", (SIDE, SIDE), bytes(values))


def ops():
    image = picture()
    spaces = {
        "rand_augment": autoaugment.RandAugment()._augmentation_space(31, (SIDE, SIDE)),
        "trivial_augment_wide": autoaugment.TrivialAugmentWide()._augmentation_space(31),
    }
    modes = {"nearest": InterpolationMode.NEAREST, "bilinear": InterpolationMode.BILINEAR}
    for policy, space in spaces.items():
        for op, (magnitudes, signed) in space.items():
            moves = op.startswith(("Shear", "Translate", "Rotate"))
            for b in BINS if magnitudes.ndim > 0 else [0]:
                for sign in [1, -1] if signed else [1]:
                    for name, mode in modes.items() if moves else [("nearest", modes["nearest"])]:
                        value = float(magnitudes[b].item()) if magnitudes.ndim > 0 else 0.0
                        out = autoaugment._apply_op(image, op, sign * value, interpolation=mode, fill=None)
                        crc = zlib.crc32(out.tobytes())
                        bits = struct.pack(">f", value).hex()
                        print(policy, op, b, sign, name, bits, f"{crc:08x}", sep="\t")


def erase():
    torch.manual_seed(1)
    for side in [32, 224]:
        image = torch.ones(3, side, side)
        series, num = [], 100_000
        for _ in range(num):
            i, j, h, w, _ = RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])
            if h < side:
                series.append((h * w / side**2, math.log(max(h, 1) / max(w, 1)), (i + h / 2) / side, (j + w / 2) / side))
        t = torch.tensor(series, dtype=torch.float64)
        print(side, len(series) / num, [(round(m, 5), round(s, 5)) for m, s in zip(t.mean(0).tolist(), t.std(0).tolist())])


ops() if sys.argv[1] == "ops" else erase()
