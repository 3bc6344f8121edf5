#!/usr/bin/env python3
"""Reference pixels of Pillow for tests/photographs.rs.

    python3 pillow.py FOLDER > pillow.txt        # FOLDER/<class>/*.JPEG, the ImageNet sample

Each line: file, what was done, and 8 x 8 pixels (RGB, hex) at rows and columns 14, 42, ... 210 of the 224 x 224 result.
`centre`: torchvision's Resize(256), CenterCrop(224). `box x y w h`: crop, then resize to 224 x 224. Both bilinear.
"""
import sys
from pathlib import Path

from PIL import Image

SIDE = 224


def centre(image):
    w, h = image.size
    size = (256, int(256 * h / w)) if w <= h else (int(256 * w / h), 256)
    image = image.resize(size, Image.BILINEAR)
    left, top = round((size[0] - SIDE) / 2), round((size[1] - SIDE) / 2)
    return image.crop((left, top, left + SIDE, top + SIDE))


def box(image, x, y, w, h):
    return image.crop((x, y, x + w, y + h)).resize((SIDE, SIDE), Image.BILINEAR)


def line(path, what, image):
    pixels = [image.getpixel((x, y)) for y in range(14, SIDE, 28) for x in range(14, SIDE, 28)]
    print(path.parent.name + "/" + path.name, what, bytes(v for p in pixels for v in p).hex(), sep="\t")


def main():
    files = sorted(Path(sys.argv[1]).glob("*/*"))
    for i, path in enumerate(files[::25]):
        image = Image.open(path).convert("RGB")
        w, h = image.size
        line(path, "centre", centre(image))
        for x, y, bw, bh in [(0, 0, w, h), (w // 5, h // 7, w // 2, h // 2), (w - w // 3, h - h // 4, w // 3, h // 4)]:
            line(path, f"box {x} {y} {bw} {bh}", box(image, x, y, bw, bh))


main()
