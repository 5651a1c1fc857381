"""Progress shows bars on a terminal and plain lines elsewhere, with the same words."""

import io
import sys
import time
from typing import Any

import pytest

from antigram.pipeline.execution.progress import Progress

HOSTILE = "a\x1b[2Jb.wav\u202e"


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def stderr(monkeypatch):
    """Called in a test, as pytest has stderr of its own in each phase."""

    def become(*, terminal):
        shown: Any = io.StringIO()
        shown.isatty = lambda: terminal
        monkeypatch.setattr(sys, "stderr", shown)
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setenv("TERM", "xterm")
        return shown

    return become


def work(progress, clock, total=1000):
    """Show three minutes of a stage that was half done before."""
    for done in (total // 2, total // 2 + 90, total // 2 + 180):
        progress.on_progress("features", done, total, "of 3 files")
        clock[0] += 90


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "lines"])
def test_rate_and_time_left_count_what_this_process_does(stderr, clock, terminal):
    shown = stderr(terminal=terminal)
    with Progress() as progress:
        work(progress, clock)
        assert progress.lines() == ["features: 680/1000 (1.0/s, 0 h 05 min left) of 3 files"]
    text = shown.getvalue()
    assert "680/1000" in text
    assert "1.0/s, 0 h 05 min left" in text
    assert ("\x1b" in text) == terminal


def test_lines_come_every_five_seconds_and_at_the_end_of_what_was_shown(stderr, clock):
    shown = stderr(terminal=False)
    with Progress() as progress:
        for done in range(13):
            progress.on_progress("long", done, 12)
            clock[0] += 1
        progress.on_progress("short", 1, 1)
    assert shown.getvalue().splitlines() == [
        "long: 5/12 (1.0/s, 7 s left)",
        "long: 10/12 (1.0/s, 2 s left)",
        "long: 12/12 (1.0/s)",
    ]


def test_stages_that_follow_are_taken_to_be_as_long_as_the_last(stderr, clock):
    stderr(terminal=False)
    with Progress() as progress:
        progress.on_progress("epoch 1", 1, 4, further=2)
        clock[0] += 100
        progress.on_progress("epoch 1", 4, 4, further=2)
        clock[0] += 200  # without any call
        assert progress.end("epoch 1") == 300
        progress.on_progress("epoch 2", 2, 4, further=1)
        assert progress.lines() == ["epoch 2: 2/4 (0.0/s, at most 0 h 08 min left)"]


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "lines"])
def test_names_cannot_command_the_terminal(stderr, clock, terminal):
    shown = stderr(terminal=terminal)
    with Progress() as progress:
        progress.on_message(f"left out: {HOSTILE}")
        for done in (1, 2):
            progress.on_progress(HOSTILE, done, 2, f"[red]{HOSTILE}")
            clock[0] += 10
    text = shown.getvalue()
    assert "\x1b[2J" not in text
    assert "\u202e" not in text
    assert "left out: a\\x1b[2Jb.wav\\u202e" in text
    assert "[red]a\\x1b[2J" in text
