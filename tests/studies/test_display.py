"""What a training shows: a table on a terminal, lines elsewhere."""

import io
import sys
import time

import pytest

from antigram.studies.display import TrainingDisplay

STEP = {"loss": 1.25, "clips_per_second": 410.4, "data_wait": 0.0125, "memory_mb": 2140.2}
EPOCH = {
    "train loss": 1.5,
    "train ce": 1.0,
    "train at": 0.5,
    "train accuracy": 0.25,
    "validation loss": 1.4,
    "validation ce": 0.95,
    "validation at": 0.45,
    "validation accuracy": 0.375,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    """Called in a test, as pytest has stderr of its own in each phase."""

    def become():
        shown = Terminal()
        monkeypatch.setattr(sys, "stderr", shown)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "xterm")
        return shown

    return become


def test_a_terminal_shows_a_row_for_each_epoch_and_is_left_as_it_was(terminal, clock):
    screen = terminal()

    def interrupted():
        with TrainingDisplay(epochs=3) as display:
            display.on_progress(1, 1, 2, STEP)
            clock[0] += 10
            display.on_progress(1, 2, 2, STEP)
            display.on_progress(1, 2, 2, EPOCH)
            display.on_message("data: 0.10 GB, on the device")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    text = screen.getvalue()
    row = [line for line in text.splitlines() if "1.5000" in line][-1]
    for value in ("1.5000", "1.0000", "0.5000", "0.2500", "1.4000", "0.9500", "0.4500", "10.0"):
        assert value in row
    assert "data: 0.10 GB, on the device" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is there again


def test_a_step_says_how_fast_it_goes_and_how_long_the_rest_takes(terminal, clock):
    terminal()
    with TrainingDisplay(epochs=3) as display:
        display.on_progress(1, 1, 5, STEP)
        clock[0] += 60
        display.on_progress(1, 2, 5, STEP)
        (line,) = display._progress.lines()
    assert "epoch 1: 2/5" in line
    assert "loss 1.25  410 segments/s  data wait 1.2%  2140 MB" in line
    # 60 s a step: 3 steps of this epoch and 10 of the next two.
    assert "0 h 13 min left" in line


def test_the_time_left_counts_epochs_as_long_as_the_last_one_was(terminal, clock):
    terminal()
    with TrainingDisplay(epochs=4) as display:
        display.on_progress(1, 1, 2, STEP)
        clock[0] += 600
        display.on_progress(1, 2, 2, EPOCH)
        display.on_progress(2, 1, 2, STEP)
        clock[0] += 5
        display.on_progress(2, 2, 2, STEP)
        (line,) = display._progress.lines()
    assert "at most 0 h 20 min left" in line


def test_elsewhere_an_epoch_is_a_line(capsys, monkeypatch, clock):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)
    with TrainingDisplay(epochs=2) as display:
        display.on_progress(1, 1, 1, STEP)
        display.on_progress(1, 1, 1, EPOCH)
    del clock
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = [line for line in err.splitlines() if line.startswith("epoch 1: train loss")]
    assert "validation accuracy 0.375" in line
    assert "\x1b" not in err


def test_the_best_epoch_stands_out(terminal):
    terminal()
    with TrainingDisplay(epochs=9) as display:
        for epoch, loss in enumerate((1.4, 1.1, 1.3), 1):
            display.on_progress(epoch, 1, 1, {**EPOCH, "validation loss": loss})
        table = display._table()
    assert [row.style for row in table.rows] == [None, "bold", None]
