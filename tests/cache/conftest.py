"""A store of 15 clips, a narrow VGG16, and caches with four chunks of at most 4 rows.

The network is a VGG16 because layers 1, 5 and 13 are those of the paper.
"""

from __future__ import annotations

import shutil

import pytest

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from tests.support.caches import ARRAYS, build_at
from tests.support.checkpoints import save_teacher
from tests.support.class_recordings import write_corpus
from tests.support.nets import CPU, LAYERS, VGG16
from tests.support.stores import make_store


@pytest.fixture(scope="session", autouse=True)
def _one_thread(one_thread):
    """Of all tests here."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", 4)
    monkeypatch.setattr(antigram.cache.plan, "_CHUNKS_TOGETHER", 1)  # more: test_small_arrays.py


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("cached") / "corpus", clips=5)


@pytest.fixture(scope="session")
def store(corpus):
    return make_store(corpus, corpus.parent / "features" / "tiny.zarr")


@pytest.fixture(scope="session")
def other_store(corpus):
    """The same clips, prepared with another seed."""
    return make_store(corpus, corpus.parent / "features" / "other.zarr", seed=1)


@pytest.fixture(scope="session")
def teacher(corpus, store):
    return save_teacher(corpus.parent / "frozen.pt", VGG16, store)


@pytest.fixture(scope="session")
def other_frozen(corpus, store):
    return save_teacher(corpus.parent / "other.pt", VGG16, store, seed=12)


@pytest.fixture
def build(store, teacher, tmp_path):
    """Build a cache, and return it with the cost of building it."""

    def run(name="grams", *, of=None, net=None, batch_clips=4, dtype="float16", **spec):
        given = TapSpec(arch=VGG16, **{"layers": LAYERS, **spec})
        of, net = of or store, net or teacher
        return build_cache(
            of,
            net,
            plan_layers(of, net, given, codec="auto", dtype=dtype),
            tmp_path / "grams" / f"{name}.zarr",
            made_from={"store": of.name, "checkpoint": "frozen"},
            batch_clips=batch_clips,
            device=CPU,
        )

    return run


@pytest.fixture
def make(store, teacher, tmp_path):
    """Build a cache of layers 1 and 5 in a codec, or repair an existing one."""

    def run(name="grams", *, net=teacher, **asked):
        return build_at(tmp_path / "grams" / f"{name}.zarr", store, net, **asked)

    return run


@pytest.fixture(scope="module")
def built(store, teacher, other_frozen, tmp_path_factory):
    """Return a cache by codec, of the teacher or ``older`` of another network; built once."""
    folder, nets = tmp_path_factory.mktemp("repair"), {"grams": teacher, "older": other_frozen}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", 4)
        patch.setattr(antigram.cache.plan, "_CHUNKS_TOGETHER", 1)
        return {
            (codec, which): build_at(folder / f"{codec} {which}.zarr", store, net, codec=codec).path
            for codec in ARRAYS
            for which, net in nets.items()
        }


@pytest.fixture
def copy(built, tmp_path):
    def run(codec="packed"):
        return shutil.copytree(built[codec, "grams"], tmp_path / "grams" / "grams.zarr")

    return run
