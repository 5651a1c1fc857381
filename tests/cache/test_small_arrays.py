"""Norms, energy and parameters of augmentation have more rows a chunk than the rows have."""

from __future__ import annotations

import numpy as np
import pytest

import antigram.cache.plan
from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer
from antigram.cache.layer_writer import LayerWriter
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import DamagedError
from antigram.pipeline.storage.chunks import write_chunk
from antigram.studies.verify import verify_cache
from tests.support.caches import ARRAYS
from tests.support.files import bytes_of, flip
from tests.support.nets import CPU, VGG16

CLIPS = np.arange(15)  # chunks of 4, 4, 4 and 3


@pytest.fixture(autouse=True)
def _two_together(monkeypatch, _small_chunks):
    monkeypatch.setattr(antigram.cache.plan, "_CHUNKS_TOGETHER", 2)


@pytest.mark.parametrize("codec", ARRAYS)
def test_the_rows_are_those_of_a_cache_with_small_chunks(codec, make, built, store):
    path = make(codec=codec).path
    assert not list(verify_cache(path, [store.path]))
    one, two = GramCache(path, store), GramCache(built[codec, "grams"], store)
    for layer in (1, 5):
        names = ARRAYS[codec]
        assert [one.layers[layer].array(name).spec.rows for name in names] == [4] + [8] * (
            len(names) - 1
        )
        assert one.layers[layer].array("norm").spec.chunks == 2
        for name in names:
            mine, other = one.layers[layer].array(name), two.layers[layer].array(name)
            np.testing.assert_array_equal(mine.read(), other.read())


def test_views_of_segments_are_kept_together(store, teacher, tmp_path):
    def built(name):
        spec = TapSpec(arch=VGG16, layers=(5,))
        views = Views.for_shape(store.shape, count=2, seed=0)
        plans = plan_layers(store, teacher, spec, views=views)
        path = tmp_path / "grams" / f"{name}.zarr"
        build_cache(store, teacher, plans, path, made_from={}, batch_clips=4, device=CPU)
        return CacheLayer(path, 5)

    many = built("many")
    assert [many.array(n).spec.rows for n in ("gram", "norm", "views")] == [2, 4, 4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(antigram.cache.plan, "_CHUNKS_TOGETHER", 1 << 13)
        one = built("one")
    assert one.array("views").spec.chunks == 1
    for name in ("gram", "norm", "row_norm", "views"):
        np.testing.assert_array_equal(many.array(name).read(), one.array(name).read())


def test_a_damaged_chunk_of_norms_costs_its_clips_and_no_others(make, store):
    path = make().path
    before = bytes_of(path)
    flip(path / "layer05" / "norm" / "c" / "0", 3)
    made = make()
    assert made.computed == 8
    assert bytes_of(path) == before
    flip(path / "layer05" / "gram" / "c" / "3" / "0", 3)
    assert make().computed == 3
    assert bytes_of(path) == before
    assert [p.name for p in path.parent.glob(".*")] == []


@pytest.mark.parametrize("array", ["gram", "norm"])
def test_a_layer_of_an_earlier_version_is_repaired_in_its_own_layout(array, copy, make, store):
    path = copy()  # one chunk of norms for each chunk of rows
    before, fingerprint = bytes_of(path), CacheLayer(path, 5).fingerprint
    flip(next(p for p in sorted((path / "layer05" / array / "c").rglob("*")) if p.is_file()))
    assert make().computed == 4
    assert bytes_of(path) == before
    assert CacheLayer(path, 5).fingerprint == fingerprint


def test_a_build_that_was_stopped_ends_in_the_same_bytes(make, monkeypatch):
    want = bytes_of(make("want").path)
    calls: list[str] = []
    stops = [3, 4, 4, 1, 3, 6]  # of 8 chunks of rows, and then in the 4 of norms of each layer

    def stopping(group, spec, *rest, **options):
        calls.append(spec.name)
        if stops and len(calls) == stops[0]:
            raise KeyboardInterrupt
        return write_chunk(group, spec, *rest, **options)

    monkeypatch.setattr("antigram.cache.layer_writer.write_chunk", stopping)
    while stops:
        with pytest.raises(KeyboardInterrupt):
            make("got")
        calls.clear()
        del stops[0]
    assert make("got").computed == 0
    assert bytes_of(make("got").path) == want


def test_a_damaged_part_of_an_unfinished_layer_is_made_again(make, monkeypatch, tmp_path):
    want = bytes_of(make("want").path)

    def stopped(*_):
        raise KeyboardInterrupt

    finish = LayerWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(LayerWriter, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            make("got")
    parts = tmp_path / "grams" / ".got.zarr.partial" / "layer05.parts"
    assert sorted(p.name for p in parts.iterdir()) == ["0", "1", "2", "3"]
    flip(parts / "2", 5)

    def damaging(writer):
        if writer.folder.name == "layer05":
            flip(parts / "1", 5)
        finish(writer)

    with monkeypatch.context() as patch:  # between a check and the end, the disk changes its mind
        patch.setattr(LayerWriter, "finish", damaging)
        with pytest.raises(DamagedError, match=r"layer05\.parts/1: not as it was written"):
            make("got")
    made = make("got")
    assert made.computed == 4
    assert bytes_of(made.path) == want
