"""Pipes and links to devices in a corpus are refused at once, without waiting."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from antigram.pipeline.audio.noise import NoiseBank, noise_files
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.naming import recipe_for
from antigram.pipeline.features.preparation import prepare
from tests.support import corpus_trees
from tests.support.corpus_trees import sound, wav


@pytest.fixture(autouse=True)
def alarm():
    """Fail a test that waits for a pipe, instead of waiting for ever."""

    def give_up(*_):
        raise AssertionError("waited for a pipe, or read a device without end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/null")


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def with_table(home: Path) -> Path:
    corpus_trees.folder(home)
    (home / "metadata.csv").write_text("file_name,mood\ncat/cat_0.wav,x\ndog/dog_0.wav,y\n")
    return home


# Corpus, its tree, and the file of it that an adapter opens itself.
OPENED = [
    ("gsc", corpus_trees.gsc, "testing_list.txt"),
    ("gsc", corpus_trees.gsc, "validation_list.txt"),
    ("iemocap", corpus_trees.iemocap, "Session1/dialog/EmoEvaluation/Ses01F_impro01.txt"),
    ("folder", with_table, "metadata.csv"),
    ("nsynth", corpus_trees.nsynth, "nsynth-valid/examples.json"),
    ("good-sounds", corpus_trees.good_sounds, "database.sqlite"),
    ("librispeech", corpus_trees.librispeech, "*.alignment.txt"),
]


@pytest.mark.parametrize("kind", [pipe, device, folder, nothing])
@pytest.mark.parametrize(("name", "tree", "opened"), OPENED, ids=[f"{n} {o}" for n, _, o in OPENED])
def test_a_text_of_a_corpus_that_is_no_regular_file_is_refused(name, tree, opened, kind, tmp_path):
    home = tree(tmp_path / "home")
    path = min(home.rglob(opened))
    path.unlink()
    kind(path)
    corpus, recipe = recipe_for(CORPORA[name], {})
    with pytest.raises(CorpusError, match=r"cannot be read: (not a regular file|No such file)"):
        prepare(corpus, home, recipe, tmp_path / "x.zarr")


@pytest.mark.parametrize("kind", [pipe, device, folder, nothing])
def test_noise_that_is_no_regular_file_is_refused(kind, tmp_path):
    own = tmp_path / "own"
    wav(own / "Babble_1.wav", sound(1))
    kind(own / "Babble_2.wav")
    with pytest.raises(CorpusError, match=r"Babble_2\.wav: cannot be read: .*Repair or remove it"):
        NoiseBank.digest_of(noise_files([own])[1])


@pytest.mark.parametrize("kind", [pipe, device, folder, nothing])
def test_a_recording_that_is_no_regular_file_is_a_reject(kind, tmp_path):
    home = corpus_trees.folder(tmp_path / "home")
    kind(home / "cat" / "odd.wav")
    (home / "metadata.csv").write_text("file_name,mood\ncat/odd.wav,x\ncat/cat_0.wav,x\n")
    corpus, recipe = recipe_for(CORPORA["folder"], {})
    with pytest.raises(InputError, match=r"cat/odd\.wav: cannot be opened: (not a reg|No such f)"):
        prepare(corpus, home, recipe, tmp_path / "x.zarr")


def test_a_text_without_end_is_refused(tmp_path, monkeypatch):
    home = with_table(tmp_path / "home")
    from antigram.pipeline.corpora.text import read_text

    monkeypatch.setattr(read_text, "__kwdefaults__", {"most": 16, "errors": "strict"})
    corpus, recipe = recipe_for(CORPORA["folder"], {})
    with pytest.raises(CorpusError, match=r"metadata\.csv: cannot be read: more than"):
        prepare(corpus, home, recipe, tmp_path / "x.zarr")


def test_a_textgrid_or_database_without_end_is_refused_before_a_library_opens_it(tmp_path):
    home = corpus_trees.good_sounds(tmp_path / "home")
    os.truncate(home / "database.sqlite", 1 << 40)  # sparse: it takes no room
    corpus, recipe = recipe_for(CORPORA["good-sounds"], {})
    with pytest.raises(CorpusError, match=r"database\.sqlite: .*1100 GB, wanted at most 268 MB"):
        prepare(corpus, home, recipe, tmp_path / "x.zarr")
    speech = corpus_trees.librispeech(tmp_path / "speech")
    grid = min(speech.rglob("*.alignment.txt"))
    for path in speech.rglob("*.alignment.txt"):
        path.unlink()
    with (grid.parent / "a.TextGrid").open("wb") as file:
        file.truncate(1 << 40)
    corpus, recipe = recipe_for(CORPORA["librispeech"], {})
    with pytest.raises(CorpusError, match=r"a\.TextGrid: .*1100 GB, wanted at most"):
        prepare(corpus, speech, recipe, tmp_path / "x.zarr")
