#!/usr/bin/env python3
"""Moments of the boxes of RandomResizedCrop, by torchvision's published algorithm, for tests/photographs.rs.

    python3 crop_boxes.py        # width height, then mean and deviation of: area, log(width/height), centre x, centre y
"""
import math
import random

import numpy as np


def box(w, h, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)):
    log_ratio = (math.log(ratio[0]), math.log(ratio[1]))
    for _ in range(10):
        target = w * h * random.uniform(*scale)
        aspect = math.exp(random.uniform(*log_ratio))
        bw, bh = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < bw <= w and 0 < bh <= h:
            return random.randint(0, w - bw), random.randint(0, h - bh), bw, bh
    if w / h < ratio[0]:
        bw, bh = w, round(w / ratio[0])
    elif w / h > ratio[1]:
        bw, bh = round(h * ratio[1]), h
    else:
        bw, bh = w, h
    return (w - bw) // 2, (h - bh) // 2, bw, bh


random.seed(0)
for w, h in [(500, 375), (333, 500), (900, 200), (256, 256)]:
    boxes = np.array([box(w, h) for _ in range(400_000)], dtype=float)
    x, y, bw, bh = boxes.T
    series = [bw * bh / (w * h), np.log(bw / bh), (x + bw / 2) / w, (y + bh / 2) / h]
    print(f"({w}, {h}, [" + ", ".join(f"({s.mean():.5f}, {s.std():.5f})" for s in series) + "]),")
