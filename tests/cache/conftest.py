"""A store of 15 clips, a narrow VGG16, and caches with four chunks of at most 4 rows.

The network is a VGG16 because layers 1, 5 and 13 are those of the paper.
"""

from __future__ import annotations

import shutil

import h5py
import pytest
import torch

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.arch import Arch
from tests.model.conftest import _one_thread  # noqa: F401 - for these tests, too
from tests.model.tiny import CPU, save_teacher, write_corpus
from tests.support.stores import make_store

ARCH = Arch("vgg16", 2)
LAYERS = (1, 5, 13)
ARRAYS = {
    "packed": ("gram", "norm", "row_norm"),
    "factor": ("factor", "norm", "row_norm"),
    "lowrank": ("vectors", "norm", "row_norm", "energy"),
}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", 4)


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
    return save_teacher(corpus.parent / "frozen.pt", ARCH, store)


@pytest.fixture(scope="session")
def other_frozen(corpus, store):
    return save_teacher(corpus.parent / "other.pt", ARCH, store, seed=12)


@pytest.fixture
def build(store, teacher, tmp_path):
    """Build a cache, and return it with the cost of building it."""

    def run(name="grams", *, of=None, net=None, batch_clips=4, dtype="float16", **spec):
        given = TapSpec(arch=ARCH, **{"layers": LAYERS, **spec})
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


def build_at(path, store, net, *, codec="packed", dtype="float16", layers=(1, 5), **spec):
    given = TapSpec(arch=ARCH, layers=layers, **spec)
    # The rank is given, so that chunks of two networks have the same size.
    rank = 2 if codec == "lowrank" else None
    return build_cache(
        store,
        net,
        plan_layers(store, net, given, codec=codec, dtype=dtype, rank=rank),
        path,
        made_from={"store": store.name, "checkpoint": "frozen"},
        batch_clips=4,
        device=CPU,
    )


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


def content_of(path):
    """Return the bytes of every file below a folder, by relative name."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def maps_of(net, x, layers, tap):
    found = {}
    with torch.no_grad():
        net.set_tap(tap)
        net.run_features(
            x, layers, tap, lambda n, maps: found.setdefault(n, maps.clone()), stop=True
        )
    return found


def place_of(file, name, byte):
    """Return the offset in an HDF5 file of a byte of a dataset."""
    with h5py.File(file) as opened:
        return opened[name].id.get_offset() + byte
