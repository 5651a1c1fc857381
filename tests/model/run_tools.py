"""What happens to a run: it is stopped, killed before a change of its files, or of version 1."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from antigram.model.training.student import build_student
from antigram.model.training.train import train
from tests.model.tiny import CPU

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Killed(BaseException):
    """Nothing catches it, and once it was raised nothing can be changed any more."""


class _Death:
    """An audit hook: the process is dead from a change of a folder's files on."""

    folder, left, installed = "", 0, False

    def __call__(self, event, args):
        if not self.folder:
            return
        written = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if (written or event in _CHANGES) and str(args[0]).startswith(self.folder):
            self.left -= 1
            if self.left <= 0:
                raise Killed


_death = _Death()


@contextmanager
def killed_before(change: int, folder: Path):
    """Raise `Killed` before the n-th change (from 1) of files below, and before all that follow."""
    if not _Death.installed:
        sys.addaudithook(_death)
        _Death.installed = True
    _death.folder, _death.left = str(folder), change
    try:
        yield
    finally:
        _death.folder = ""


def stop_at(epoch: int):
    """For `train`'s on_progress: Ctrl-C at the first step of an epoch."""

    def on_progress(now, _done, _steps, known):
        if now == epoch and "clips_per_second" in known:
            raise KeyboardInterrupt

    return on_progress


def train_baseline(config, store, folder: Path, **options):
    """Train without AT; `resume` and so on are `train`'s."""
    net = build_student(config, 3, None)
    return train(net, store, None, config, folder, device=CPU, **options)


def as_version_1(folder: Path) -> Path:
    """Make of a run what the first version wrote: no manifest, no version."""
    (folder / "manifest.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("format")}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n")
    return folder


def numbers_of(folder: Path):
    """Entries of metrics.jsonl, less what is timed."""
    timed = ("seconds", "data_wait_seconds")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed} for line in lines]
