"""Writes tests/shards/webdataset-{train,val}-0000.tar with the Python package `webdataset` (pip install webdataset pillow):
python3 webdataset_shards.py FOLDER. Images are drawn; classes are numbers, as its `cls` encoder writes them."""
import io
import sys

import webdataset
from PIL import Image


def drawn(number, kind):
    image = Image.new("RGB", (20 + number, 18))
    image.putdata([((x * 9 + number * 40) % 256, (y * 11) % 256, (x * y) % 256) for y in range(18) for x in range(20 + number)])
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


for split, labels in (("train", [2, 0, 1, 2]), ("val", [1, 2])):
    with webdataset.TarWriter(f"{sys.argv[1]}/webdataset-{split}-0000.tar") as sink:
        for number, label in enumerate(labels):
            fields = {"png": drawn(number, "PNG")} if number == 1 else {"jpg": drawn(number, "JPEG")}
            sink.write({"__key__": f"sample{number:06d}", "cls": label, "json": {"width": 20 + number}, **fields})
