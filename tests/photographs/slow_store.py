"""Training from a slow store: steps of each epoch from a folder, and from shards behind a server that takes 200 ms for an
answer and answers each 20th request with an error, with a cache and without one; there with few threads, and with many.

    slow_store.py LOCKSTEP SERVE DATA        # DATA/imagenet-sample/val/<class>/*; SERVE: the example of worker/data

All losses must be the same. The first epoch fills the cache; `data.order = "blocks"` or not makes no difference to that here.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

lockstep, serve, data = (pathlib.Path(arg).resolve() for arg in sys.argv[1:4])
recipe = pathlib.Path(__file__).with_name("recipe.toml")
EPOCHS = 4


def run(work, name, *sets):
    sets = (*sets, f"train.epochs={EPOCHS}", f"train.evaluate_every_epochs={EPOCHS}")
    command = [lockstep, "train", recipe, "--run-dir", work / name, *(x for s in sets for x in ("--set", s))]
    begin = time.monotonic()
    subprocess.run(list(map(str, command)), check=True, capture_output=True)
    whole = time.monotonic() - begin
    subprocess.run([lockstep, "audit", work / name], check=True, capture_output=True)
    steps = [json.loads(line) for line in open(work / name / "metrics.jsonl")]
    seconds = [sum(s["samples"] / s["images_per_s"] for s in steps if s["epoch"] == e) for e in range(1, EPOCHS + 1)]
    waits = [sum(s["data_s"] for s in steps if s["epoch"] == e) for e in range(1, EPOCHS + 1)]
    rates = [len(steps) / EPOCHS / s for s in seconds]
    print(f"{name:<22} {whole:6.1f} s; steps/s by epoch", *(f"{r:.2f}" for r in rates), "; loading, s", *(f"{w:.2f}" for w in waits), flush=True)
    return [s["loss"] for s in steps], rates


with tempfile.TemporaryDirectory() as work:
    work = pathlib.Path(work)
    (work / "folder").mkdir()
    for split in ("train", "val"):
        (work / "folder" / split).symlink_to(data / "imagenet-sample/val")
    subprocess.run([lockstep, "data", "pack", work / "folder", work / "www/shards", "--shard-mib", "8"], check=True, capture_output=True)
    near = run(work, "folder", "data.kind=image-folder", f"data.path={work}/folder")
    ways = {
        "slow, cached": [f"data.cache_dir={work}/cache"],
        "nothing kept, 32 threads": ["data.cache_bytes=0", "data.image.threads=32"],
        "nothing kept": ["data.cache_bytes=0"],
    }
    for name, sets in ways.items():
        server = subprocess.Popen([serve, work / "www", "200", "20"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        address = server.stdout.readline().strip()
        far = run(work, name, "data.kind=webdataset", f"data.path={address}/shards", *sets)
        print(f"{'':<22} {server.communicate('')[0].strip()}; steps/s against the folder", *(f"{b / a:.2f}" for a, b in zip(near[1], far[1])), flush=True)
        assert far[0] == near[0], "the losses differ"
