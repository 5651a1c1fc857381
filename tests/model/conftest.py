"""A store of 42 one-second clips in three classes, and a teacher; both are built once."""

from __future__ import annotations

from pathlib import Path

import pytest

from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.training.config import TrainConfig
from tests.support.checkpoints import checkpoint_of, save_teacher
from tests.support.class_recordings import write_corpus
from tests.support.nets import VGG11
from tests.support.stores import make_store


@pytest.fixture(scope="session", autouse=True)
def _one_thread(one_thread):
    """Of all tests here."""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("tiny") / "corpus")


@pytest.fixture(scope="session")
def store(corpus):
    return make_store(corpus, corpus.parent / "features" / "tiny.zarr")


@pytest.fixture(scope="session")
def spoken(tmp_path_factory):
    """42 recordings of three classes, by three speakers; of six, the speaker is not known."""
    home = write_corpus(tmp_path_factory.mktemp("spoken") / "corpus")
    names = sorted(path.relative_to(home).as_posix() for path in home.rglob("*.wav"))
    lines = ["file_name,label,speaker,room"]
    for number, name in enumerate(names):
        speaker = "" if number % 7 == 3 else f"s{number % 3}"
        lines.append(f"{name},{Path(name).parent},{speaker},hall")
    (home / "metadata.csv").write_text("\n".join(lines) + "\n")
    return make_store(home, home.parent / "features" / "spoken.zarr")


@pytest.fixture(scope="session")
def teacher(store):
    return save_teacher(store.path.parent.parent / "frozen.pt", VGG11, store)


@pytest.fixture
def checkpoint(store):
    """The narrowest VGG11."""
    return checkpoint_of(Arch("vgg11", 1), store)


@pytest.fixture
def spec():
    return TapSpec(arch=VGG11, layers=(3,))


@pytest.fixture
def config():
    def make(mode="baseline", **changes):
        given = {"task": "label", "arch": VGG11, "epochs": 2, "lr": 1e-3, **changes}
        return TrainConfig(mode=mode, **given)

    return make
