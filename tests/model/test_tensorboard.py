"""Events that are written for TensorBoard, if it is installed."""

import sys
from types import SimpleNamespace
from typing import Any, ClassVar

from antigram.model.training.tensorboard import TensorBoardLogger
from tests.support.report_pages import entry


class Writer:
    last: ClassVar[Any]

    def __init__(self, folder, purge_step):
        self.folder, self.purge_step = folder, purge_step
        self.scalars, self.flushed, self.closed = {}, 0, False
        Writer.last = self

    def add_scalar(self, tag, value, step):
        self.scalars[tag, step] = value

    def flush(self):
        self.flushed += 1

    def close(self):
        self.closed = True


def test_the_board_is_given_every_scalar(tmp_path, monkeypatch):
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with TensorBoardLogger(tmp_path / "run") as board:
        assert not (tmp_path / "run").exists()
        board.epoch(entry(3, sources=["speech", "noise"]))
        board.epoch(entry(4, at=None))
    seen = Writer.last
    assert (seen.folder, seen.purge_step) == (str(tmp_path / "run"), 3)
    assert (seen.flushed, seen.closed) == (2, True)
    keys = ("loss", "ce", "at", "accuracy", "at_by_source/speech", "at_by_source/noise")
    both = {f"{key}/{split}" for key in keys for split in ("train", "validation")}
    assert {tag for tag, step in seen.scalars if step == 3} == {*both, "data_wait_seconds"}
    assert seen.scalars["ce/validation", 4] == 0.5
    assert ("at/train", 4) not in seen.scalars


def test_without_tensorboard_the_board_does_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with TensorBoardLogger(tmp_path) as board:
        board.epoch(entry(1))
    board.close()
    assert list(tmp_path.iterdir()) == []
