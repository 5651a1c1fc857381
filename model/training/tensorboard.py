"""Write TensorBoard events into a run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger:
    """Writes the metrics of each epoch for TensorBoard, if tensorboard is installed.

    Args:
        run: the run's folder, which must exist when the first epoch is logged.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._writer: Any = None

    def epoch(self, entry: Mapping[str, Any]) -> None:
        """Log an entry of metrics.jsonl; an epoch that is run again replaces its earlier events."""
        step = entry["epoch"]
        if self._writer is None:
            try:
                from torch.utils import tensorboard
            except ImportError:
                return
            writer: Any = tensorboard.SummaryWriter  # untyped if tensorboard is installed
            self._writer = writer(str(self._run), purge_step=step)
        scalars = {name: entry.get(name) for name in ("data_wait_seconds", "lr")}
        for split in ("train", "validation"):
            scalars |= {f"{key}/{split}": value for key, value in _leaves(entry.get(split, {}))}
        for tag, value in scalars.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events, if one is open."""
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
