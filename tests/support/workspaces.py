"""Small workspaces that campaigns damage, and what must be the same in two of them."""

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
    """Names of all files, sorted."""
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def content_of(workspace: Path) -> dict[str, object]:
    """What two workspaces must have in common: all of it, less times and what holds times.

    Bytes of stores and caches; settings, losses, scores and weights of runs.
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
    """Tensors as bytes, so that two can be compared."""
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
