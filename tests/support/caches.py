"""Build caches of a narrow VGG16, name the arrays of each codec, and locate exported bytes."""

from __future__ import annotations

import h5py

from antigram.cache.build import build_cache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from tests.support.nets import CPU, VGG16

ARRAYS = {
    "packed": ("gram", "norm", "row_norm"),
    "factor": ("factor", "norm", "row_norm"),
    "lowrank": ("vectors", "norm", "row_norm", "energy"),
}


def build_at(path, store, net, *, codec="packed", dtype="float16", layers=(1, 5), **spec):
    """Build a cache of a network's layers, or repair an existing one."""
    given = TapSpec(arch=VGG16, layers=layers, **spec)
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


def place_of(file, name, byte):
    """Return the offset of a dataset's byte in its HDF5 file."""
    with h5py.File(file) as opened:
        return opened[name].id.get_offset() + byte
