"""Single-bit flips in every kind of file that antigram writes: found, and never used in silence.

Half of the flips take each file of a kind alike (so that small documents get their share), half
each byte alike. After each, `verify` must find it. What it does not find must change nothing (a
zip's padding, a date in it): the command that uses the file must then give the very same result.
Found or not, that command must either refuse or give the very same result.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.campaigns import keep
from tests.support.class_recordings import write_tones
from tests.support.command_server import Commands
from tests.support.workspaces import TINY, content_of, copied, files_below

pytestmark = pytest.mark.slow
FLIPS = int(os.environ.get("ANTIGRAM_TEST_FLIPS", "1000"))
EVERY = int(os.environ.get("ANTIGRAM_TEST_FLIPS_USED", "1"))  # 4: a fourth of them is used, too


@dataclass(frozen=True)
class Kind:
    """Files of one kind, how they are verified, and what uses them."""

    share: float
    below: str  # folder, or pattern of files, in the workspace's parent
    verify: list[str]
    use: list[list[str]]


SHORT = ["--max-steps", "2", "--name", "used"]
KINDS = {
    "store": Kind(
        0.25,
        "workspace/features/tones.zarr",
        ["verify", "tones"],
        [
            ["train", "--mode", "baseline", *TINY, *SHORT],
            ["evaluate", "--ckpt", "net.pt", "--split", "train"],
            ["cache-grams", "--ckpt", "net.pt", "--layer", "5", "--name", "used"],
        ],
    ),
    "cache": Kind(
        0.25,
        "workspace/grams/tones--net.zarr",
        ["verify", "tones--net"],
        [["train", "--mode", "cached", "--cache", "tones--net", *TINY, *SHORT]],
    ),
    "run": Kind(
        0.2,
        "workspace/runs/done",
        ["verify", "done"],
        [["train", "--mode", "cached", *TINY, "--epochs", "3", "--name", "done", "--resume"]],
    ),
    "checkpoint": Kind(
        0.2,
        "net.pt",
        ["verify", "net.pt"],
        [
            ["evaluate", "--ckpt", "net.pt", "--split", "train"],
            ["predict", "--ckpt", "net.pt", "audio/low/0.wav"],
            ["cache-grams", "--ckpt", "net.pt", "--layer", "5", "--name", "used"],
            ["train", "--mode", "wi", "--ckpt", "net.pt", *TINY, *SHORT],
        ],
    ),
    "export": Kind(
        0.1,
        "*.h5",
        ["verify", "FILE"],
        [["import", "FILE", "--name", "used"]],
    ),
}


@pytest.fixture(scope="module")
def run():
    with Commands() as commands:
        yield commands


@pytest.fixture(scope="module")
def base(run, tmp_path_factory):
    """A workspace with one of each: store, cache of three codecs, finished run, checkpoint."""
    folder = tmp_path_factory.mktemp("flips") / "base"
    write_tones(folder / "audio")
    for command in (
        ["prepare", "folder", "--source", "audio", "--name", "tones", "--workers", "1"],
        ["train", "--mode", "baseline", *TINY, "--epochs", "1", "--save", "net.pt"],
        ["cache-grams", "--ckpt", "net.pt", "--layer", "3", "--layer", "8"],
        ["cache-grams", "--ckpt", "net.pt", "--layer", "6", "--codec", "lowrank", "--rank", "1"],
        ["train", "--mode", "cached", *TINY, "--epochs", "2", "--name", "done", "--keep-resume"],
        ["export", "tones", "--to", "tones.h5"],
        ["export", "tones--net", "--to", "grams.h5"],
        ["clean"],
        ["clean"],
    ):
        done = run(folder, *command)
        assert done["code"] == 0, f"{command}: {done['err'][-2000:]}"
    return folder


def flip_somewhere(files, draw):
    """Flip one bit of one of the files; return file, byte and the byte as it was."""
    if draw.random() < 0.5:
        path = draw.choice(files)
    else:
        path = draw.choices(files, [f.stat().st_size for f in files])[0]
    place, bit = draw.randrange(path.stat().st_size), draw.randrange(8)
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)
        file.seek(place)
        file.write(bytes([old[0] ^ 1 << bit]))
    return path, place, old


def files_of(folder, kind):
    if "*" in kind.below:
        return sorted(folder.glob(kind.below))
    path = folder / kind.below
    return [path] if path.is_file() else [path / n for n in files_below(path)]


def outcome(run, folder, command, file):
    """Exit code, and all that a use of the data leaves, times apart."""
    named = [file if part == "FILE" else part for part in command]
    done = run(folder, "--json", *named)
    if done["code"] != 0:
        return done, None
    answer = json.loads(done["out"])
    made = {
        name: value
        for name, value in content_of(folder / "workspace").items()
        if "/used" in name or (command[0] == "train" and "/done/" in name)
    }
    if command[0] not in ("evaluate", "predict"):
        answer = None  # it holds times; what it made is compared
    return done, (answer, made)


@pytest.mark.parametrize("name", KINDS)
def test_no_flipped_bit_is_used_in_silence(name, run, base, tmp_path):
    kind = KINDS[name]
    folder = copied(base, tmp_path / "work")
    files = files_of(folder, kind)
    assert files
    wanted = {}
    for number, command in enumerate(kind.use):
        for file in files if "FILE" in command else files[:1]:
            done, wanted[number, file.name] = outcome(run, folder, command, file)
            assert done["code"] == 0, done["err"][-2000:]
            restore(folder, base)
    draw = random.Random(f"flips {name}")
    tried = round(FLIPS * kind.share)
    found, harmless, uses, used, tracebacks = 0, 0, 0, [], []
    for turn in range(tried):
        path, place, old = flip_somewhere(files, draw)
        where = f"{path.relative_to(folder)} at byte {place} (was {old!r})"
        verify = [path if part == "FILE" else part for part in kind.verify]
        verified = run(folder, *verify)
        number = turn // EVERY % len(kind.use)
        if verified["code"] != 3 or turn % EVERY == 0:
            done, got = outcome(run, folder, kind.use[number], path)
            uses += 1
        else:
            done, got = verified, None
        key = number, (path.name if "FILE" in kind.use[number] else files[0].name)
        if verified["code"] not in (0, 3) or done["code"] not in (0, 2, 3):
            tracebacks.append((where, verified["err"][-600:], done["err"][-600:]))
        if verified["code"] == 3:
            found += 1
        elif got == wanted[key]:
            harmless += 1
        if done["code"] == 0 and got != wanted[key]:
            used.append((where, kind.use[number]))
        with path.open("r+b") as file:
            file.seek(place)
            file.write(old)
        restore(folder, base)
    keep(
        f"one flipped bit in a {name}",
        kind="flips",
        test="tests/reliability/test_flips.py",
        tried=tried,
        found=found,
        harmless=harmless,
        also_given_to_a_command=uses,
        used_in_silence=len(used),
        tracebacks=len(tracebacks),
    )
    assert not tracebacks
    assert not used
    assert found + harmless == tried


def restore(folder: Path, base: Path) -> None:
    """Undo what uses of the data have made."""
    for used in (folder / "workspace").glob("*/*used*"):
        shutil.rmtree(used) if used.is_dir() else used.unlink()
    for used in (folder / "workspace").glob("*/.*"):
        if not (base / used.relative_to(folder)).exists():
            shutil.rmtree(used) if used.is_dir() else used.unlink()
    copied(base / "workspace" / "runs", folder / "workspace" / "runs")
