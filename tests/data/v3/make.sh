#!/bin/sh
# Writes the files beside it, with antigram as it was at commit b875c62: what differs from ../v2,
# that is stores and caches of format version 2, caches with ids, and rows of int8.
# They are read by tests/test_old_files.py and are never rebuilt; this script documents how they were made.
#
#     git worktree add --detach /tmp/third b875c62
#     sh make.sh /tmp/third/cli.py FOLDER       # FOLDER is new, beside v1; PYTHON=python3.11
set -eu
CLI=$(realpath "$1")
PYTHON=${PYTHON:-python3}
test "$(git -C "$(dirname "$CLI")" rev-parse --short HEAD)" = b875c62
mkdir "$2"
cd "$2"
unset ANTIGRAM_WORKSPACE ANTIGRAM_CORPORA
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$(dirname "$CLI")"

antigram() {  # antigram ANSWER COMMAND ...: keeps the command's JSON under its name
    answer=$1
    shift
    "$PYTHON" "$CLI" --workspace . --json "$@" > "answers/$answer.json"
}
mkdir answers

antigram speakers prepare folder --source ../v1/recordings/words --main-label speaker \
    --within ../v1/features/words.zarr --seconds 0.25 --overlap 0 --dtype float16 --name speakers
antigram packed cache-grams --data speakers --ckpt ../v1/runs/teacher/best.pt --layer 5 \
    --dtype int8 --name packed
antigram factor cache-grams --data speakers --ckpt ../v1/runs/teacher/best.pt --layer 5 \
    --codec factor --dtype int8 --name factor
antigram lowrank cache-grams --data speakers --ckpt ../v1/runs/teacher/best.pt --layer 5 \
    --codec lowrank --energy 0.99 --dtype int8 --name lowrank

# Five epochs, and the same with one more, of which only the numbers are kept.
cached="train --mode cached --data speakers --task word --cache packed --layer 5
    --beta 0.5 --batch-size 2 --lr 0.01 --dropout 0.1"
antigram cached $cached --epochs 5 --keep-resume --name cached
antigram longer $cached --epochs 6 --name longer
mv runs/longer/metrics.jsonl answers/longer.jsonl
rm -r runs/longer

for split in train validation test; do
    antigram "evaluate-$split" evaluate --data speakers --ckpt runs/cached/best.pt --split "$split"
done
antigram predict predict --ckpt runs/cached/best.pt ../v1/recordings/words/no_4.wav \
    ../v1/recordings/words/yes_4.wav
antigram verify verify
antigram status status
rm -f .*.lock */.*.lock
find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs -d "\n" sha256sum > SHA256SUMS
