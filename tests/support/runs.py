"""Make runs that are finished, stopped, killed before a change of a file, or of version 1."""

from __future__ import annotations

import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from antigram.model.training.student import build_student
from antigram.model.training.train import train
from tests.support.nets import CPU

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Killed(BaseException):
    """Stands for a SIGKILL: nothing catches it, and no file changes after it."""


class _Death:
    """An audit hook that raises `Killed` from a given change of a folder's files on."""

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
    """Raise `Killed` before the n-th and all later changes of files below a folder."""
    if not _Death.installed:
        sys.addaudithook(_death)
        _Death.installed = True
    _death.folder, _death.left = str(folder), change
    try:
        yield
    finally:
        _death.folder = ""


def stop_at(epoch: int):
    """Return an ``on_progress`` of `train` that interrupts at the first step of an epoch."""

    def on_progress(now, _done, _steps, known):
        if now == epoch and "clips_per_second" in known:
            raise KeyboardInterrupt

    return on_progress


def train_baseline(config, store, folder: Path, **options):
    """Train without AT; options are passed to `train`."""
    net = build_student(config, 3, None)
    return train(net, store, None, config, folder, device=CPU, **options)


def as_version_1(folder: Path) -> Path:
    """Turn a run into one of version 1, which has no manifest and no version."""
    (folder / "manifest.json").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("format")}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n")
    return folder


def metrics(run: Path):
    """Return the entries of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def numbers_of(folder: Path):
    """Return the entries of metrics.jsonl without times."""
    timed = ("seconds", "data_wait_seconds")
    return [{k: v for k, v in entry.items() if k not in timed} for entry in metrics(folder)]
