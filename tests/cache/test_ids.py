"""The ids of a cache's segments: rows are read by id, without the feature store."""

import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from antigram.cache.grams import GramCache
from antigram.cache.ids import write_ids
from antigram.cache.layer import open_root
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.storage.exchange import export_file, import_file
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import create_group, write_manifest
from antigram.studies.verify import verify_cache
from tests.support.files import bytes_of

OLD = Path(__file__).resolve().parents[1] / "data" / "v1"


def without_ids(path):
    """Rewrite the root of a cache as earlier versions wrote it."""
    root = open_root(path)
    shutil.rmtree(path / "clip_id")
    create_group(Folder(path), {"antigram": root})
    write_manifest(Folder(path), {})
    return path


def with_ids(path, ids):
    """Rewrite the ids of a cache, with their checksums."""
    root = open_root(path)
    written = write_ids(Folder(path), ids)
    create_group(Folder(path), {"antigram": root})
    write_manifest(Folder(path), written)
    return path


def test_rows_are_read_by_id_in_any_order_without_the_store(build, store):
    path = build().path
    order = [7, 0, 7, 14, 3]
    ids = [store.clip_ids[row] for row in order]
    alone = GramCache(path)
    want = GramCache(path, store).read(np.array(order))
    assert (alone.clip_ids, len(alone)) == (store.clip_ids, 15)
    assert alone.indices(ids).tolist() == order
    for layer in alone.layers:
        got = alone.rows(layer, ids)
        for name in ("data", "norm", "row_norm"):
            assert torch.equal(getattr(got, name), getattr(want[layer], name))


def test_a_segment_or_layer_that_the_cache_has_not_is_named(build, store):
    cache = GramCache(build(layers=(5,)).path)
    with pytest.raises(InputError, match=r"no segment 'x/y' among its 15 .*, such as '"):
        cache.rows(5, [store.clip_ids[0], "x/y"])
    with pytest.raises(InputError, match=r"no layer 4; it has 5"):
        cache.rows(4, store.clip_ids[:1])


def test_some_layers_of_an_opened_cache_are_read_alone(build, store):
    cache = GramCache(build().path)
    one = cache.with_layers([5])
    assert (list(one.read(np.arange(3))), one.spec.layers, list(one.identity)) == ([5], (5,), ["5"])
    assert one.stored_bytes == cache.layers[5].values.spec.row_bytes * 15
    assert set(cache.read(np.arange(3))) == {1, 5, 13}


@pytest.mark.parametrize("given", [False, True], ids=["alone", "with its store"])
def test_a_pickled_cache_reads_the_same(build, store, given):
    cache = GramCache(build().path, store if given else None)
    ids = store.clip_ids[3:6]
    want = cache.rows(5, ids)
    again = pickle.loads(pickle.dumps(cache))
    assert torch.equal(again.rows(5, ids).data, want.data)
    assert again.clip_ids == store.clip_ids


def test_a_cache_without_ids_opens_with_its_store_or_one_beside_it(build, store, tmp_path):
    path = without_ids(build().path)
    assert not list(verify_cache(path, [store.path]))
    assert GramCache(path, store).rows(5, store.clip_ids[:2]).data.shape == (2, 36)
    with pytest.raises(InputError, match=r"without the ids of its segments, and its feature store"):
        GramCache(path)
    shutil.copytree(store.path, tmp_path / "features" / "tiny.zarr")
    assert GramCache(path).clip_ids == store.clip_ids


def test_a_layer_that_is_added_to_a_cache_without_ids_brings_them(build, store):
    want = bytes_of(build("want", layers=(1, 5)).path)
    path = without_ids(build(layers=(1,)).path)
    before = bytes_of(path)
    build(layers=(1,))
    assert bytes_of(path) == before  # what is complete is left alone
    build(layers=(1, 5))
    assert bytes_of(path) == want
    assert GramCache(path).clip_ids == store.clip_ids


def test_the_caches_of_the_first_version_open_without_naming_their_store():
    cache = GramCache(OLD / "grams" / "packed.zarr")
    layer = next(iter(cache.layers))
    assert cache.rows(layer, cache.clip_ids[:2]).data.shape[0] == 2


def test_damaged_ids_are_reported_and_built_again(build, store):
    path = build().path
    want = bytes_of(path)
    chunk = path / "clip_id" / "c" / "0"
    raw = bytearray(chunk.read_bytes())
    raw[9] ^= 1
    chunk.write_bytes(raw)
    with pytest.raises(DamagedError, match=r"clip_id.*\(crc32c\)"):
        GramCache(path)
    assert GramCache(path, store).clip_ids == store.clip_ids  # the store has them too
    (problem,) = verify_cache(path, [store.path])
    assert "a bit has flipped" in problem.problem
    assert build().computed == 0
    assert bytes_of(path) == want


@pytest.mark.parametrize(
    ("ids", "match"),
    [
        ([f"{n:02d}" for n in range(14)], r"15 rows, the cache has 14 ids"),
        (["same"] * 15, r"an id occurs twice"),
    ],
)
def test_ids_that_do_not_fit_the_rows_are_refused(build, store, ids, match):
    path = with_ids(build(layers=(5,)).path, ids)
    with pytest.raises(DamagedError, match=match):
        GramCache(path)
    assert any(re.search(match, p.problem) for p in verify_cache(path, [store.path]))


def test_an_exported_cache_has_the_ids(build, store, tmp_path):
    path = build().path
    export_file(path, tmp_path / "grams.h5")
    assert GramCache(tmp_path / "grams.h5").clip_ids == store.clip_ids
    import_file(tmp_path / "grams.h5", tmp_path / "again.zarr")
    assert bytes_of(tmp_path / "again.zarr") == bytes_of(path)
