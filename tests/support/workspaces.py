"""Make small workspaces for campaigns of damage, and compare two workspaces."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

__all__ = ["TINY", "content_of", "copied", "files_below"]

TINY = ["--arch", "vgg11", "--width", "1"]
_TIMES = {
    "seconds",
    "data_wait_seconds",
    "seconds_per_step",
    "clips_per_second",
    "data_wait_fraction",
    "peak_rss_mb",
}


def copied(base: Path, goal: Path) -> Path:
    """Replace a folder by a fresh copy of another one."""
    shutil.rmtree(goal, ignore_errors=True)
    shutil.copytree(base, goal, symlinks=True)
    return goal


def files_below(folder: Path) -> list[str]:
    """Return the names of all files, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def content_of(workspace: Path) -> dict[str, object]:
    """Return the content of a workspace that is the same in every run: all except times.

    It has the bytes of stores and caches, and the settings, losses, scores and weights of runs.
    """
    found: dict[str, object] = {}
    for name in files_below(workspace):
        path = workspace / name
        parts = Path(name).parts
        if parts[0] in ("features", "grams") and not parts[1].startswith("."):
            found[name] = path.read_bytes()
        elif parts[0] == "runs" and path.name in ("config.json", "result.json"):
            found[name] = _timeless(json.loads(path.read_text()))
        elif parts[0] == "runs" and path.name == "metrics.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif parts[0] == "runs" and path.suffix == ".pt":
            found[name] = _plain(torch.load(path, weights_only=True))
    return found


def _timeless(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key not in _TIMES}


def _plain(value: object) -> object:
    """Return a value with its tensors as bytes, so that two values can be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
