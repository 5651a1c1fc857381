"""Events for TensorBoard in a run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """TensorBoard events in a run's folder, if tensorboard is installed; else nothing.

    Args:
        run: the folder; not touched before the first epoch, as the trainer wants to make it.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._writer: Any = None

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Add an entry of metrics.jsonl; epochs that are run again replace those of before."""
        step = entry["epoch"]
        if self._writer is None:
            try:
                from torch.utils import tensorboard
            except ImportError:
                return
            made: Any = tensorboard.SummaryWriter  # untyped, if it is there
            self._writer = made(str(self._run), purge_step=step)
        scalars = {"data_wait_seconds": entry.get("data_wait_seconds")}
        for split in ("train", "validation"):
            scalars |= {f"{key}/{split}": value for key, value in _leaves(entry.get(split, {}))}
        for tag, value in scalars.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events, if there is one."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
