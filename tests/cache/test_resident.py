"""Data kept on the device gives the same numbers, and is kept only if all of it fits."""

from __future__ import annotations

import contextlib
import shutil

import numpy as np
import pytest
import torch

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.choices import Codec
from antigram.model.loss.sources import Sources, TapSpec
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.resident import budget_for, bytes_of, on_device
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import DamagedError
from antigram.pipeline.features.folds import make_teacher_view
from antigram.pipeline.features.store import FeatureStore
from tests.support.nets import CPU, LAYERS, VGG16
from tests.support.runs import metrics

ROWS = np.arange(15)


@pytest.fixture
def caches(store, teacher, other_frozen, tmp_path):
    """Two caches, with one codec each."""
    found = {}
    codecs: tuple[Codec, ...] = ("packed", "factor")
    for name, net, codec in zip(("one", "two"), (teacher, other_frozen), codecs, strict=True):
        path = tmp_path / f"{name}.zarr"
        spec = TapSpec(arch=VGG16, layers=LAYERS)
        plans = plan_layers(store, net, spec, codec=codec)
        build_cache(store, net, plans, path, made_from={}, device=CPU)
        found[name] = path
    return found


def sources_of(caches, store):
    return Sources({name: GramCache(path, store) for name, path in caches.items()})


def test_a_training_on_held_data_gives_the_same_numbers_to_the_bit(caches, store, tmp_path):
    found, said = {}, []
    for budget in (0, 10**9):
        config = TrainConfig(
            mode="cached", task="label", arch=VGG16, layers=LAYERS, epochs=2, batch_clips=4
        )
        result = train(
            build_student(config, 3, None),
            store,
            sources_of(caches, store),
            config,
            tmp_path / str(budget),
            device=CPU,
            device_memory=budget,
            on_message=said.append,
        )
        assert result["data_on_device"] == bool(budget)
        found[budget] = [
            {key: entry[key] for key in ("train", "validation")}
            for entry in metrics(tmp_path / str(budget))
        ]
    assert found[0] == found[10**9]
    (where,) = [line for line in said if line.startswith("data: ")]
    assert "on the device" in where


def test_it_is_held_as_a_whole_or_not_at_all(caches, store):
    sources = sources_of(caches, store)
    need = bytes_of(store.features) + sources.stored_bytes
    assert need == store.features.read().nbytes + sum(
        layer.values.read().nbytes
        for cache in sources.members.values()
        for layer in cache.layers.values()
    )
    assert not Batches(store, "label", sources, 4, CPU, device_memory=need - 1).resident
    assert Batches(store, "label", sources, 4, CPU, device_memory=need).resident


def test_rows_can_still_be_read_on_the_host(caches, store):
    one, two = sources_of(caches, store), sources_of(caches, store)
    two.keep_on(CPU)
    for name in caches:
        for layer in LAYERS:
            here, there = one.read(ROWS)[name][layer], two.read(ROWS)[name][layer]
            assert torch.equal(here.data, there.data)
            assert torch.equal(here.row_norm, there.row_norm)


def test_augmented_features_are_made_on_the_host(store):
    views = Views.for_shape(store.shape, count=0, seed=0)
    batches = Batches(store, "label", None, 4, CPU, device_memory=10**9, views=views)
    assert not batches.resident


def test_a_batch_is_given_after_its_copy_and_outlives_it(caches, store, monkeypatch):
    """Check the order of calls without a GPU; test_cuda.py checks the numbers on a GPU."""
    batches = Batches(store, "label", sources_of(caches, store), 4, CPU)
    said: list[str | int] = []

    class Stream:
        def wait_stream(self, other):
            said.append("beside waits")

        def record_event(self):
            said.append("copied")
            return len([one for one in said if one == "copied"])

        def wait_event(self, event):
            said.append(f"net waits for {event}")

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream())
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda own, stream: said.append(id(own)))
    parts = [ROWS[:4], ROWS[4:8], ROWS[8:]]
    loaded = (batches._load(part, 1) for part in parts)
    found = []
    for batch in batches._move_ahead(loaded):
        found.append((batch, list(batch.rows.tensors())))
        said.append("used")
    assert [batch.clips.tolist() for batch, _ in found] == [part.tolist() for part in parts]
    kept = [[id(t) for t in (batch.x, batch.y, *rows)] for batch, rows in found]
    assert said == [
        *("beside waits", "copied", "copied"),
        *("net waits for 1", *kept[0], "used", "copied"),
        *("net waits for 2", *kept[1], "used"),
        *("net waits for 3", *kept[2], "used"),
    ]


def test_a_damaged_chunk_is_noticed_while_it_is_loaded(caches, store):
    cache = GramCache(caches["one"], store)
    file = caches["one"] / "layer05" / "gram" / "c" / "1" / "0"
    raw = bytearray(file.read_bytes())
    raw[3] ^= 4
    file.write_bytes(raw)
    with pytest.raises(DamagedError, match="layer05/gram/c/1"):
        cache.keep_on(CPU)


def test_all_rows_arrive_in_their_order_without_the_padding(store):
    held = on_device(store.features, CPU)
    np.testing.assert_array_equal(held.numpy(), store.features.read())


def test_a_cpu_holds_nothing_unless_it_is_told_to():
    assert budget_for(CPU, None) == 0
    assert budget_for(CPU, 5) == 5


def test_features_of_a_fold_are_rescaled_on_the_device_as_they_are_on_the_host(store, tmp_path):
    copy = FeatureStore(shutil.copytree(store.path, tmp_path / "tiny.zarr"))
    fold = FeatureStore(make_teacher_view(copy, "label", seed=0))
    assert fold.std != store.std
    held = on_device(fold.features, CPU)
    np.testing.assert_array_equal(held.numpy(), fold.features.read())
    assert bytes_of(fold.features) == 4 * held.numel()
