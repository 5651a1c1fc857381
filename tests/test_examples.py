"""The examples run as they stand, each against the library that it is for."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import corpus_trees

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
LIBRARIES = {
    "lightning_callback": ["lightning"],
    "speechbrain_brain": ["speechbrain"],
    "huggingface_trainer": ["transformers", "accelerate"],
}


def printed(name, folder):
    """Run an example on a small corpus in place of the synthesised one; return what it prints."""
    corpus_trees.demo(folder / "corpora" / "demo")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ANTIGRAM_CORPORA": str(folder / "corpora"),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", folder / "workspace"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_plain_loop_trains_with_anti_transfer(tmp_path):
    lines = printed("plain_pytorch", tmp_path).splitlines()
    found = [re.fullmatch(r"epoch \d: similarity (\S+), word (\S+)", line) for line in lines]
    assert len(found) == 3
    similarities = [float(match[1]) for match in found]
    assert all(0 < value <= 1 for value in similarities)
    assert len(set(similarities)) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", LIBRARIES)
def test_an_example_runs_with_its_library(name, tmp_path):
    for library in LIBRARIES[name]:
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"{library} is not installed: pip install -e '.[examples]'")
    numbers = re.findall(r"(?:loss|anti-transfer) (\d+\.\d+)", printed(name, tmp_path))
    assert len(numbers) >= 1
    assert all(0 < float(number) < 10 for number in numbers)


def test_every_example_is_short_and_tested():
    files = {path.stem: path for path in EXAMPLES.glob("*.py")}
    assert set(files) == {"plain_pytorch", "speech", *LIBRARIES}
    assert all(len(path.read_text().splitlines()) < 60 for path in files.values())
