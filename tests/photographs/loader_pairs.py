"""Images a second of the loader on one core, against torchvision's two paths, in interleaved pairs.

    loader_pairs.py LOADER PYTHON PEER IMAGES SHARDS [PAIRS [SECONDS]]

LOADER is the example of worker/data (what `lockstep bench loader` measures, without libtorch), PYTHON has torchvision, PEER is
its script (RandomResizedCrop 224 and flip, bytes out, no worker processes), IMAGES a folder of them, SHARDS those packed with
`--short-side 256`. All are pinned to one core and rated by the seconds of processor that they had, not by the clock, so that
whoever shares the machine takes no image from either. The loader's start and its first images, which its own figure
leaves out, count against it.
"""

import os
import re
import statistics
import subprocess
import sys

loader, python, peer, images, shards = sys.argv[1:6]
pairs, seconds = (int(x) for x in (sys.argv[6:] + ["7", "6"][len(sys.argv) - 6 :]))
PROCESSOR = "import runpy, sys, time; time.perf_counter = time.process_time; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
WARM = 64


def ours(path, quality):
    command = ["taskset", "-c", "1", loader, path, str(seconds), quality, "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        said = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    images = int(re.search(r"images/s of (\d+) images", said)[1])
    return (images + WARM) / (used.ru_utime + used.ru_stime)


def theirs(path):
    command = ["taskset", "-c", "1", python, "-c", PROCESSOR, peer, "--images", images, "--seconds", str(seconds), "--path", path]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return float(re.search(r'"images_per_s": ([\d.]+)', said)[1])


KINDS = {
    "scaled": lambda: ours(images, "scaled"),
    "tensor": lambda: theirs("tensor"),
    "shards": lambda: ours(shards, "scaled"),
    "pil": lambda: theirs("pil"),
    "full": lambda: ours(images, "full"),
}
rows = []
for _ in range(pairs):
    rows.append({kind: measure() for kind, measure in KINDS.items()})
    print({kind: round(rate, 1) for kind, rate in rows[-1].items()}, "load", os.getloadavg()[0], flush=True)
middle = lambda values: f"{statistics.median(values):.2f} ({min(values):.2f}–{max(values):.2f})"
for kind in KINDS:
    print(f"{kind:<8} images a second of processor: {middle([row[kind] for row in rows])}")
for a, b in (("scaled", "tensor"), ("scaled", "pil"), ("full", "tensor"), ("full", "pil"), ("shards", "tensor"), ("shards", "pil")):
    print(f"{a} ÷ {b}: {middle([row[a] / row[b] for row in rows])}")
