"""README's "Your own recordings in 15 minutes", its commands run as they stand there."""

import csv
import os
import re
import shlex
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from antigram.pipeline.features.store import FeatureStore
from tests.support.shell import Shell

ROOT = Path(__file__).resolve().parents[1]
SMALL = {"train": ["--arch", "vgg11", "--width", "1", "--epochs", "1"]}


def commands_of_the_readme():
    """Commands of the section, as typed, less what runs them."""
    text = (ROOT / "README.md").read_text()
    section = text.partition("## Your own recordings in 15 minutes")[2].partition("\n## ")[0]
    return [
        shlex.split(line.partition("  #")[0])[2:]
        for line in re.findall(r"^    (python cli\.py .*)$", section, re.MULTILINE)
    ]


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch)


def write_recordings(home, speakers=8, words=("yes", "no"), takes=3):
    """Words by several speakers, and the table that names both."""
    rng = np.random.default_rng(5)
    t = np.arange(8_000) / 16_000
    lines = [("file_name", "word", "speaker")]
    for speaker in range(speakers):
        for number, word in enumerate(words):
            for take in range(takes):
                name = f"rec/{word}_{speaker}_{take}.wav"
                path = home / name
                path.parent.mkdir(parents=True, exist_ok=True)
                tone = np.sin(2 * np.pi * (200 + 40 * speaker + 900 * number) * t)
                soundfile.write(path, 0.3 * tone + 0.02 * rng.standard_normal(t.size), 16_000)
                lines.append((name, word, f"speaker {speaker}"))
    with (home / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def walk(shell, small):
    """Run them all; return what each printed."""
    answers = []
    for command in commands_of_the_readme():
        code, out, err = shell(*command, *(small.get(command[0], []) if small else []))
        assert code == 0, f"{command}: {err}"
        answers.append(out)
    return answers


def python_of_the_readme():
    """The example under "From Python", as it stands there."""
    section = (ROOT / "README.md").read_text().partition("## From Python")[2].partition("\n## ")[0]
    return "\n".join(line.rstrip() for line in re.findall(r"^    (.*)$", section, re.MULTILINE))


class Mean(torch.nn.Module):
    """Means over frames and frequencies: a class for each channel."""

    def forward(self, x):
        return x.mean((2, 3))


def recordings(store, split):
    return {name.rpartition("#")[0] for name in np.array(store.clip_ids)[store.rows(split)]}


def test_the_commands_for_own_recordings_run_and_no_teacher_hears_a_test_speaker(shell):
    write_recordings(Path("my-recordings"))
    answers = walk(shell, SMALL)
    assert len(answers) >= 6
    words = FeatureStore(Path("workspace/features/words.zarr"))
    speakers = FeatureStore(Path("workspace/features/speakers.zarr"))
    assert words.main_label == "word"
    assert speakers.main_label == "speaker"
    heard = set().union(*(recordings(speakers, split) for split in ("train", "validation", "test")))
    assert heard == recordings(words, "train")
    for split in ("validation", "test"):
        own = {words.classes["speaker"][i] for i in words.labels("speaker")[words.rows(split)]}
        assert own.isdisjoint(speakers.classes["speaker"])
    # Every speaker of the teacher's validation is one that it was trained on.
    seen = [set(speakers.labels("speaker")[speakers.rows(s)]) for s in ("train", "validation")]
    assert seen[1] <= seen[0]
    net = torch.nn.Sequential(OrderedDict(layer3=torch.nn.Conv2d(1, 8, 3), pool=Mean()))
    names: dict[str, Any] = {
        "functional": torch.nn.functional,
        "net": net,
        "clip_ids": [words.clip_ids[row] for row in (5, 0, 2)],
        "x": torch.rand(3, 1, *words.shape),
        "y": torch.tensor([0, 1, 1]),
    }
    exec(python_of_the_readme(), names)  # noqa: S102 - the README's own
    names["loss"].backward()
    assert 0 < names["at"].loss().item() <= 1
    assert net.layer3.weight.grad.abs().max() > 0


def test_recordings_of_another_folder_are_not_within_a_store(shell):
    write_recordings(Path("my-recordings"))
    write_recordings(Path("others"), words=("left", "right"))
    shell.json("prepare", "folder", "--source", "my-recordings", "--name", "words")
    shell.refused(
        2,
        "training recordings of the store words are not there",
        *("prepare", "folder", "--source", "others", "--within", "words", "--name", "speakers"),
    )
    assert not Path("workspace/features/speakers.zarr").exists()


def test_a_recipe_without_within_is_stored_as_it_always_was(shell):
    write_recordings(Path("my-recordings"))
    shell.json("prepare", "folder", "--source", "my-recordings", "--name", "words")
    store = FeatureStore(Path("workspace/features/words.zarr"))
    assert "within" not in store.root["recipe"]
    narrow = ("prepare", "folder", "--source", "my-recordings", "--within", "words")
    made = shell.json(*narrow, "--name", "narrow")
    counts = made["skipped"]
    assert counts == {
        "not among the training recordings of words": 48 - len(recordings(store, "train"))
    }
    assert FeatureStore(Path(made["store"])).recipe.within == store.fingerprint


def test_training_recordings_without_the_teachers_label_are_counted(shell):
    home = Path("my-recordings")
    write_recordings(home)
    table = (home / "metadata.csv").read_text()
    (home / "metadata.csv").write_text(table.replace(",speaker 1", ","))
    prepare = ("prepare", "folder", "--source", "my-recordings")
    shell.json(*prepare, "--main-label", "word", "--split", "by:word", "--name", "words")
    words = FeatureStore(Path("workspace/features/words.zarr"))
    unnamed = [i for i in words.rows("train") if words.labels("speaker")[i] < 0]
    made = shell.json(
        *prepare, "--main-label", "speaker", "--within", "words", "--name", "speakers"
    )
    assert len(unnamed) > 0
    assert made["skipped"]["no speaker label"] == len(unnamed)
    assert sum(made["clips"].values()) == len(words.rows("train")) - len(unnamed)


@pytest.mark.corpora
@pytest.mark.slow
def test_the_walk_on_real_speech(shell, corpora):
    """Arabic Speech Commands, laid out as somebody's own recordings."""
    source = corpora / "asc" / "arabic-speech-commands-dataset" / "dataset"
    home = Path("my-recordings")
    lines = [("file_name", "word", "speaker")]
    for path in sorted(source.glob("*/*.flac")):
        if int(path.stem[-2:]) > 3:  # three of ten takes
            continue
        goal = home / path.parent.name / path.name
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal)
        lines.append((goal.relative_to(home).as_posix(), path.parent.name, path.name[:8]))
    with (home / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    epochs = os.environ.get("ANTIGRAM_TEST_EPOCHS", "2")
    answers = walk(shell, {"train": ["--width", "4", "--epochs", epochs]})
    assert len(lines) == 901
    assert all(answers)
