"""Content that was replaced together with its checksums, which only the teacher can reveal."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr

from antigram.cache.layer import CacheLayer, layer_fingerprint
from antigram.cache.recompute import recompute
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.chunks import encode, write_chunk
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_group, write_manifest
from antigram.pipeline.storage.mapped import MappedArray
from tests.support.caches import ARRAYS
from tests.support.nets import CPU


def rewrite(path, layer, changes):
    """Change rows of a layer, together with checksums and manifest, so that it looks intact.

    ``changes`` has a function of all rows for each array.
    """
    found = CacheLayer(path, layer)
    folder, arrays = found.folder, {}
    for name in ARRAYS[found.key.codec]:
        inner = zarr.open_group(folder, mode="r")[name]
        rows = changes.get(name, lambda rows: rows)(inner[:].copy())
        spec = replace(found.values.spec, name=name, shape=inner.shape, dtype=inner.dtype.name)
        arrays[name] = [
            write_chunk(Folder(folder), spec, index, encode(spec, index, rows[spec.span(index)]))
            for index in range(spec.chunks)
        ]
    attributes = json.loads((folder / "zarr.json").read_bytes())["attributes"]["antigram"]
    manifest = write_manifest(Folder(folder), arrays)
    attributes["fingerprint"] = layer_fingerprint(attributes, manifest.digests())
    create_group(Folder(folder), {"antigram": attributes})
    manifest = write_manifest(Folder(folder), arrays)
    for name in arrays:  # a reader opens it without an error
        MappedArray(Folder(folder), name, manifest.crcs(name), "").read()


def put(row, value):
    def change(rows):
        rows[row] = rows[value] if isinstance(value, int) else value(rows[row])
        return rows

    return change


# Array (None: that of the rows) and new value of clip 6, by what is replaced.
REPLACED = {
    "the row by another clip's": (None, put(6, 12)),
    "the row by zeros": (None, put(6, np.zeros_like)),
    "the norm by twice itself": ("norm", put(6, lambda value: 2 * value)),
    "the row's norm by half of it": ("row_norm", put(6, lambda value: value / 2)),
}


@pytest.mark.parametrize("what", REPLACED)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("codec", ARRAYS)
def test_content_that_was_replaced_with_its_checksums_is_found_by_the_net(
    codec, dtype, what, make, store, teacher
):
    path = make(codec=codec, dtype=dtype).path
    array, change = REPLACED[what]
    rewrite(path, 5, {array or ARRAYS[codec][0]: change})
    problems = list(recompute(path, store, teacher, 15, CPU))
    assert {p.path for p in problems} == {path / "layer05"}
    assert [store.clip_ids[6] in p.problem for p in problems] == [True]


@pytest.mark.parametrize("rows", ["as they are", "of another clip"])
def test_an_energy_that_was_replaced_with_its_checksums_is_found_by_the_net(
    rows, copy, store, teacher
):
    path = copy("lowrank")
    changes = {"energy": put(6, np.zeros_like)}
    if rows != "as they are":  # the lower the energy, the more a row may differ
        changes["vectors"] = put(6, 12)
    rewrite(path, 5, changes)
    assert [store.clip_ids[6] in p.problem for p in recompute(path, store, teacher, 15, CPU)] == [
        True
    ]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("codec", ARRAYS)
def test_the_net_finds_nothing_in_a_good_cache(codec, dtype, make, store, teacher):
    path = make(codec=codec, dtype=dtype).path
    assert not list(recompute(path, store, teacher, 15, CPU))
    rewrite(path, 5, {})
    assert not list(recompute(path, store, teacher, 15, CPU))


@pytest.mark.parametrize("aggregation", ["mean", "max", "compmul"])
def test_the_net_finds_nothing_in_a_good_cache_of_maps(aggregation, make, store, teacher):
    path = make(codec="auto", aggregation=aggregation, dtype="float32").path
    assert not list(recompute(path, store, teacher, 15, CPU))


def test_no_more_clips_are_drawn_than_were_asked_for(make, store, teacher):
    path = make(layers=(5,)).path
    rewrite(path, 5, {"norm": lambda rows: 2 * rows})
    assert [len(list(recompute(path, store, teacher, n, CPU))) for n in (1, 4, 99)] == [1, 4, 15]


def test_a_cache_of_another_store_or_net_cannot_be_recomputed(
    copy, store, other_store, teacher, other_frozen
):
    path = copy()
    with pytest.raises(InputError, match="layer 1 was made from another store"):
        list(recompute(path, other_store, teacher, 4, CPU))
    with pytest.raises(InputError, match="layer 1 was made from another teacher"):
        list(recompute(path, store, other_frozen, 4, CPU))
