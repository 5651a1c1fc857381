"""Batches ask for the rows of later batches, in the order of the pass."""

import numpy as np
import pytest

import antigram.model.training.batches
from antigram.cache.grams import GramCache
from antigram.model.training.batches import Batches
from antigram.pipeline.storage.mapped import MappedArray
from tests.support.nets import CPU

ORDER = np.array([9, 2, 14, 3, 0, 12, 7, 5])


@pytest.fixture
def asked(monkeypatch):
    """Rows that were asked for, by array, and whether rows in memory were, too."""
    found = {}
    real = MappedArray.expect

    def expect(self, rows, view=None, *, again=False):
        if len(rows):
            found.setdefault(self.spec.name, []).append((list(rows), view, again))
        real(self, rows, view, again=again)

    monkeypatch.setattr(MappedArray, "expect", expect)
    return found


@pytest.mark.parametrize(("available", "again"), [(1 << 40, False), (1, True), (0, False)])
def test_a_pass_asks_for_each_batch_once_in_its_order(
    available, again, build, store, asked, monkeypatch
):
    monkeypatch.setattr(antigram.model.training.batches, "available_memory", lambda: available)
    cache = GramCache(build(layers=(5,)).path, store)
    batches = Batches(store, "label", cache, 2, CPU)
    got = [batch.clips.tolist() for batch in batches.passes(ORDER)]
    assert got == ORDER.reshape(-1, 2).tolist()
    for name in ("features", "gram"):
        assert [row for rows, _, _ in asked[name] for row in rows] == ORDER.tolist()
        assert [len(rows) for rows, _, _ in asked[name]] == [4, 2, 2]  # two batches at the start
        assert {(view, each) for _, view, each in asked[name]} == {(None, again)}


def test_each_rank_asks_for_its_own_share(build, store, asked):
    cache = GramCache(build(layers=(5,)).path, store)
    list(Batches(store, "label", cache, 4, CPU, rank=1, ranks=2).passes(ORDER))
    assert [row for rows, _, _ in asked["gram"] for row in rows] == ORDER[1::2].tolist()


def test_data_on_the_device_are_not_asked_for(build, store, asked):
    cache = GramCache(build(layers=(5,)).path, store)
    list(Batches(store, "label", cache, 2, CPU, device_memory=1 << 30).passes(ORDER))
    assert asked == {}


def test_rows_are_the_same_with_and_without_asking(build, store, monkeypatch):
    cache = GramCache(build(layers=(5,)).path, store)
    with_asking = [b.read[5].data for b in Batches(store, "label", cache, 3, CPU).passes(ORDER)]
    monkeypatch.setattr(Batches, "_expect", lambda *_: None)
    without = [b.read[5].data for b in Batches(store, "label", cache, 3, CPU).passes(ORDER)]
    for one, other in zip(with_asking, without, strict=True):
        assert one.equal(other)
