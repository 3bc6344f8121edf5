#!/bin/sh
# Trains recipe.toml on real photographs from a folder, from packed shards, and from shards behind a web server; all losses
# must be the same and the error at the end at most 1 %. Takes a while:
#   LOCKSTEP_TEST_DATA=DATA tests/photographs/run.sh OUT
# DATA has imagenet-sample/val/<class>/*; OUT is a new folder. LOCKSTEP is the program (target/debug/lockstep), SERVE the
# example `serve` (cargo build -p lockstep-data --example serve).
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
lockstep=${LOCKSTEP:-target/debug/lockstep}
serve=${SERVE:-target/debug/examples/serve}
mkdir -p "$out/folder" "$out/www"
for split in train val; do ln -sfn "$LOCKSTEP_TEST_DATA/imagenet-sample/val" "$out/folder/$split"; done
"$lockstep" data pack "$out/folder" "$out/www/shards" --shard-mib 4
"$lockstep" data verify "$out/www/shards"
mkfifo "$out/stdin"
"$serve" "$out/www" <"$out/stdin" >"$out/address" &
exec 3>"$out/stdin"                       # the server ends when this script does
until [ -s "$out/address" ]; do sleep 0.1; done
for from in folder shards http; do
  case $from in
    folder) set -- --set data.kind=image-folder --set data.path="$out/folder" ;;
    shards) set -- --set data.kind=webdataset --set data.path="$out/www/shards" ;;
    http) set -- --set data.kind=webdataset --set data.path="$(cat "$out/address")/shards" --set data.cache_dir="$out/cache" ;;
  esac
  "$lockstep" train "$here/recipe.toml" --run-dir "$out/run-$from" "$@"
  "$lockstep" audit "$out/run-$from"
done
python3 - "$out" <<'PYTHON'
import csv, json, sys
course = lambda run: [[json.loads(line)[key] for key in ("step", "lr", "loss", "error", "samples")] for line in open(f"{sys.argv[1]}/run-{run}/metrics.jsonl")]
runs = [course(run) for run in ("folder", "shards", "http")]
assert runs[0] == runs[1] == runs[2], "the losses differ"
last = list(csv.DictReader(open(f"{sys.argv[1]}/run-folder/epochs.csv")))[-1]
print(f"{len(runs[0])} steps, three times the same losses, the last {runs[0][-1][2]}; "
      f"training error {last['train_error']}, of the same images in evaluation {last['test_error']}")
assert float(last["train_error"]) <= 0.01 and float(last["test_error"]) <= 0.01
PYTHON
