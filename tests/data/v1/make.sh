#!/bin/sh
# Writes the files beside it, with antigram as it was at commit eb8f4e6 (version 1 of all formats).
# They are read by tests/test_old_files.py and are never rebuilt; this script documents how they were made.
#
#     git worktree add --detach /tmp/first eb8f4e6
#     sh make.sh /tmp/first/cli.py FOLDER        # FOLDER is new; PYTHON=python3.11
set -eu
CLI=$(realpath "$1")
PYTHON=${PYTHON:-python3}
test "$(git -C "$(dirname "$CLI")" rev-parse --short HEAD)" = eb8f4e6
mkdir "$2"
cd "$2"
unset ANTIGRAM_WORKSPACE ANTIGRAM_CORPORA
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$(dirname "$CLI")"

# Words of three speakers in a table with an official split, one without its speaker; tones in a
# folder for each class, one longer than a row and one that cannot be read; noise. All synthetic.
"$PYTHON" - <<'PYTHON'
import csv
from pathlib import Path

import numpy as np
import soundfile

rng = np.random.default_rng(1)


def write(name, pitch, seconds=0.25, level=0.3, noise=0.02):
    t = np.arange(int(8_000 * seconds)) / 8_000
    y = level * np.sin(2 * np.pi * pitch * t) + noise * rng.standard_normal(t.size)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(name, y, 8_000, subtype="PCM_16")


lines = [("file_name", "word", "speaker", "split")]
for split, takes in (("train", "012"), ("validation", "3"), ("test", "4")):
    for take in takes:
        for word, pitch in (("no", 500), ("yes", 2500)):
            speaker = int(take) % 3
            write(f"recordings/words/{word}_{take}.wav", pitch + 100 * speaker)
            named = "" if (take, word) == ("4", "no") else f"speaker {speaker}"
            lines.append((f"{word}_{take}.wav", word, named, split))
with open("recordings/words/metadata.csv", "w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows(lines)
for take in range(4):
    for name, pitch in (("high", 3000), ("low", 300)):
        write(f"recordings/tones/{name}/{take}.wav", pitch + 20 * take, 0.5 if take == 3 else 0.25)
broken = Path("recordings/tones/high/broken.wav")
broken.write_bytes(Path("recordings/tones/high/0.wav").read_bytes()[:400])
for number, name in enumerate(("Hum_1", "Hum_2", "Rain_1")):
    write(f"recordings/noise/{name}.wav", 60 + 10 * number, level=0.0 if name == "Rain_1" else 0.2)
PYTHON

antigram() {  # antigram ANSWER COMMAND ...: keeps the command's JSON under its name
    answer=$1
    shift
    "$PYTHON" "$CLI" --workspace . --json "$@" > "answers/$answer.json"
}
mkdir answers
quarter="--seconds 0.25 --overlap 0"
net="--arch vgg11 --width 1 --batch-size 2 --lr 0.003 --dropout 0"
at="--layer 5 --beta 0.5 --batch-size 2 --lr 0.01 --dropout 0.1"

antigram words prepare folder --source recordings/words --split official $quarter --name words
antigram tones prepare folder --source recordings/tones $quarter --name tones --dtype float16 \
    --noise high --noise-source recordings/noise --max-rejected 1
antigram teacher train --mode baseline --data tones $net --epochs 9 --seed 1 --name teacher \
    --save teacher.pt
cmp teacher.pt runs/teacher/best.pt  # the same bytes: only one of them is kept
rm runs/teacher/last.pt runs/teacher/curves.png runs/teacher/report.html  # cached has its own

grams="--data words --ckpt teacher.pt"
antigram packed cache-grams $grams --layer 2 --layer 5 --name packed
antigram factor cache-grams $grams --layer 5 --codec factor --dtype float32 --name factor
antigram lowrank cache-grams $grams --layer 5 --codec lowrank --energy 0.99 --name lowrank
antigram map cache-grams $grams --layer 5 --aggregation mean --name map
antigram views cache-grams $grams --layer 5 --views 2 --name views
for name in words packed factor lowrank; do
    antigram "$name-export" export "$name" --to "$name.h5"
done

# Five epochs; the same with one more, of which only the numbers are kept; and the five, stopped in
# the middle of the last.
cached="train --mode cached --data words --cache packed $at"
antigram cached $cached --epochs 5 --name cached
antigram longer $cached --epochs 6 --name longer
mv runs/longer/metrics.jsonl answers/longer.jsonl
rm -r runs/longer
"$PYTHON" - "$CLI" --workspace . $cached --epochs 5 --name stopped <<'PYTHON'
import runpy
import sys

import model.train
import torch

sys.argv = sys.argv[1:]
look = model.train._check_finite
steps = 4 * (3 + 1) + 3  # four epochs of three steps and one of validation; three more steps


def stop(*about):
    global steps
    steps -= 1
    if not steps:
        raise KeyboardInterrupt
    look(*about)


model.train._check_finite = stop
model.train.train.__kwdefaults__["save_every_s"] = 0  # as soon as a step is done
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stopped:
    assert stopped.code == 130, stopped.code
last = torch.load("runs/stopped/last.pt", weights_only=True)
assert (last["epoch"], last["done"] > 0) == (5, True), last
PYTHON

for split in train validation test; do
    antigram "evaluate-$split" evaluate --data words --ckpt runs/cached/best.pt --split "$split"
done
antigram predict predict --ckpt runs/cached/best.pt recordings/words/no_4.wav \
    recordings/words/yes_4.wav
antigram verify verify
antigram status status
rm -f teacher.pt .*.lock */.*.lock
find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d "\n" sha256sum > SHA256SUMS
