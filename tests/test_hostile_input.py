"""Names and options that would do harm at a terminal or in a spreadsheet."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.support.corpus_trees import sound, wav
from tests.support.shell import Shell

# Clears the screen, retitles the window, C1's way to begin a sequence, text that runs backwards.
EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202egnp"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture
def home(tmp_path) -> Path:
    """Recordings of two classes, one with a name that a terminal would obey."""
    folder = tmp_path / "mine"
    for n in range(6):
        wav(folder / ("calm", f"wild{EVIL}")[n % 2] / f"{n}.wav", sound(n, 1_600))
    (folder / "calm" / f"=cmd{EVIL}.wav").write_bytes(b"no audio")
    return folder


def test_control_characters_in_names_reach_no_terminal(home, shell):
    arguments = ["prepare", "folder", "--source", home, "--seconds", "0.1"]
    code, out, err = shell(*arguments)
    assert (code, out) == (2, "")
    assert "=cmd\\x1b[2J\\x1b]0;owned\\x07\\x9b31m\\u202egnp.wav" in err
    assert not UNSAFE.search(err)
    code, out, err = shell(*arguments, "--max-rejected", "1")
    assert code == 0
    assert not UNSAFE.search(out + err)
    code, out, err = shell("--json", *arguments, "--max-rejected", "1")
    assert code == 0
    assert not UNSAFE.search(out + err)
    assert json.loads(out)["classes"] == {"label": ["calm", f"wild{EVIL}"]}  # the same value
    shell.refused(2, "no-such\\x1b[2J", "verify", "no-such\x1b[2J")


def test_a_name_that_is_not_utf8_is_shown_and_no_traceback(shell, tmp_path):
    shell.refused(2, "no-such\\udcff", "verify", "no-such\udcff")
    code, out, _ = shell("--json", "verify", "no-such\udcff")
    assert code == 2
    assert json.loads(out)["exit_code"] == 2


@pytest.mark.parametrize("sign", "=+-@")
def test_cells_of_rejected_csv_are_no_formulas(sign, shell, tmp_path):
    home = tmp_path / "mine"
    for n in range(6):
        wav(home / "ab"[n % 2] / f"{n}.wav", sound(n, 1_600))
    wav(home / f"{sign}1+cmd" / "a.wav", sound(1, 1_600)).write_bytes(b"no audio")
    code, _, _ = shell("prepare", "folder", "--source", home, "--seconds", "0.1")
    assert code == 2
    [listed] = tmp_path.rglob("*.rejected.csv")
    rows = list(csv.DictReader(listed.read_text("utf-8").splitlines()))
    assert [row["source"] for row in rows] == [f"'{sign}1+cmd/a.wav"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["prepare", "folder", "--source", ""], "--source is empty"),
        (["prepare", "folder", "--source="], "--source is empty"),
        (["prepare", "folder", "--source", "  "], "--source is empty"),
        (["prepare", "gsc", "--noise-source", ""], "--noise-source is empty"),
        (["prepare", "gsc", "--name", ""], "--name is empty"),
        (["prepare", "gsc", "--words", ""], "--words is empty"),
        (["prepare", "folder", "--labels", ""], "--labels is empty"),
        (["prepare", "gsc", "--split="], "--split is empty"),
        (["--workspace", "", "status"], "--workspace is empty"),
        (["status", "--workspace", ""], "--workspace is empty"),
        (["train", "--mode", "baseline", "--data", ""], "--data is empty"),
        (["train", "--mode", "baseline", "--save", ""], "--save is empty"),
        (["cache-grams", "--layer", "5", "--ckpt", ""], "--ckpt is empty"),
        (["prepare", ""], "an argument is empty"),
        (["verify", ""], "an argument is empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_an_option_without_text_is_refused_by_its_name(arguments, option, shell, tmp_path):
    wav(tmp_path / "a" / "1.wav", sound(1, 1_600))  # the current folder would be a corpus
    shell.refused(2, option, *arguments)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
