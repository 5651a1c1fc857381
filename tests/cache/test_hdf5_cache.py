"""A cache in an HDF5 file is read like its folder; damage in the file is detected."""

import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer, layers_of
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import DamagedError, InputError, StaleError
from antigram.pipeline.storage.exchange import export_file, import_file
from tests.support.caches import place_of
from tests.support.files import bytes_of, flip
from tests.support.nets import CPU, LAYERS, VGG16
from tests.support.runs import metrics

CLIPS = np.array([9, 2, 14, 2, 0, 12])  # from all four chunks; the last one has three rows
KINDS: dict[str, tuple[Any, ...]] = {  # codec, dtype, aggregation
    "packed": ("packed", "float16", "gram"),
    "packed float32": ("packed", "float32", "gram"),
    "factor": ("factor", "float16", "gram"),
    "lowrank": ("lowrank", "float16", "gram"),
    "map": ("map", "float32", "mean"),
    "pairwise": ("factor", "float16", "pairwise"),
}
VALUES = {"packed": "gram", "factor": "factor", "lowrank": "vectors", "map": "map"}


@pytest.fixture
def make(store, teacher, tmp_path):
    """Build a cache of one codec, and export it: ``(folder, file)``."""

    def run(kind="packed", layers=(5, 13)):
        codec, dtype, aggregation = KINDS[kind]
        spec = TapSpec(arch=VGG16, layers=layers, aggregation=aggregation)
        chosen: Any = "auto" if codec == "map" else codec
        rank = 2 if codec == "lowrank" else None
        plans = plan_layers(store, teacher, spec, codec=chosen, dtype=dtype, rank=rank)
        folder, file = tmp_path / "grams" / "whole.zarr", tmp_path / "whole.h5"
        made_from = {"store": store.name, "checkpoint": "frozen"}
        build_cache(store, teacher, plans, folder, made_from=made_from, batch_clips=4, device=CPU)
        export_file(folder, file)
        return folder, file

    return run


def parts_of(rows):
    """Return codec and tensors of a batch's rows, by layer."""
    return {
        layer: {
            "codec": found.codec,
            "data": found.data,
            "norm": found.norm,
            "row_norm": found.row_norm,
            "energy": found.energy,
        }
        for layer, found in rows.items()
    }


def assert_same(got, want):
    assert got.keys() == want.keys()
    for layer, parts in want.items():
        for name, value in parts.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(got[layer][name], value), f"layer {layer}, {name}"
                assert got[layer][name].dtype == value.dtype
            else:
                assert got[layer][name] == value, f"layer {layer}, {name}"


# --- a file is read like its folder ----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_rows_of_its_folder(kind, make, store):
    folder, file = make(kind)
    one, two = GramCache(folder, store), GramCache(file, store)
    assert two.spec == one.spec
    assert two.identity == one.identity
    assert [x.key for x in two.layers.values()] == [x.key for x in one.layers.values()]
    assert [x.describe() for x in two.layers.values()] == [
        x.describe() for x in one.layers.values()
    ]
    for clips in (CLIPS, np.arange(15), np.array([14])):
        want = parts_of(one.read(clips))
        assert {parts["codec"] for parts in want.values()} == {KINDS[kind][0]}
        assert_same(parts_of(two.read(clips)), want)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_a_batch_what_its_folder_gives(kind, make, store):
    found = []
    for path in make(kind):
        grams = GramCache(path, store)
        (batch,) = Batches(store, "label", grams, 8, CPU).passes(CLIPS)
        found.append(parts_of(grams.rows(batch.read, batch.x)))
    assert_same(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_comes_back_byte_by_byte(kind, make, tmp_path):
    folder, file = make(kind)
    goal = tmp_path / "imported" / "back.zarr"
    assert import_file(file, goal) is True
    assert bytes_of(goal) == bytes_of(folder)
    assert import_file(file, goal) is False


def test_the_values_are_plain_to_h5py(make, store):
    folder, file = make("packed")
    want = GramCache(folder, store)
    with h5py.File(file) as opened:
        assert json.loads(opened.attrs["antigram"])["features"] == store.fingerprint
        for number in (5, 13):
            group = opened[f"layer{number:02d}"]
            assert json.loads(group.attrs["antigram"])["key"]["layer"] == number
            found = group["gram"]
            assert found.chunks is None
            assert found.id.get_offset() > 0
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found[...], want.read(np.arange(15))[number].data)
            np.testing.assert_array_equal(group["norm"][...], want.layers[number].norm)


def test_layers_are_found_and_chosen(make, store):
    _, file = make(layers=LAYERS)
    assert layers_of(file) == list(LAYERS)
    assert GramCache(file, store, [13, 1]).spec.layers == (1, 13)
    with pytest.raises(
        InputError, match=r"whole.h5: layer 4 is not cached \(cached layers: 1, 5, 13\)"
    ):
        GramCache(file, store, [4])


def read_there(payload):
    """Read rows of a pickled cache, in another process."""
    return pickle.dumps(parts_of(pickle.loads(payload).read(CLIPS)))


def test_a_cache_in_a_file_goes_to_a_spawned_process(make, store):
    grams = GramCache(make("lowrank")[1], store)
    before = pickle.dumps(grams)
    want = parts_of(grams.read(CLIPS))
    payload = pickle.dumps(grams)
    assert len(payload) == len(before)  # rows are not pickled: the other process maps the file
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        answer = pool.submit(read_there, payload).result(timeout=240)
    assert_same(pickle.loads(answer), want)


def test_a_training_on_a_file_is_that_on_its_folder(make, store, tmp_path):
    config = TrainConfig(mode="cached", task="label", arch=VGG16, layers=(5, 13), epochs=2)
    found = []
    for path in make():
        folder = tmp_path / f"run{path.suffix}"
        net = build_student(config, 3, None)
        train(net, store, GramCache(path, store), config, folder, device=CPU)
        found.append([(e["epoch"], e["train"], e["validation"]) for e in metrics(folder)])
    assert len(found[0]) == 2
    assert found[1] == found[0]


# --- a file that is damaged or stale ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_row_is_found_at_first_touch(kind, make, store):
    _, file = make(kind)
    name = VALUES[KINDS[kind][0]]
    row_bytes = CacheLayer(file, 5).values.spec.row_bytes
    flip(file, place_of(file, f"layer05/{name}", 9 * row_bytes))  # row 9: chunk 2 of 4 rows
    grams = GramCache(file, store)
    want = GramCache(file.parent / "grams" / "whole.zarr", store)
    for _ in range(2):
        whole = np.array([0, 7, 14])
        assert_same(parts_of(grams.read(whole)), parts_of(want.read(whole)))
        with pytest.raises(DamagedError, match=rf"whole\.h5/layer05/{name}/c/2.*crc32c"):
            grams.read(np.array([8]))
    assert_same(
        parts_of(GramCache(file, store, [13]).read(CLIPS)), {13: parts_of(want.read(CLIPS))[13]}
    )


@pytest.mark.parametrize("name", ["norm", "row_norm", "energy"])
def test_a_flipped_bit_of_a_norm_is_found_when_it_is_opened(name, make, store):
    _, file = make("lowrank")
    flip(file, place_of(file, f"layer05/{name}", 4 * 14))
    with pytest.raises(DamagedError, match=rf"whole\.h5/layer05/{name}/c/3.*crc32c"):
        GramCache(file, store)


@pytest.mark.parametrize(
    "name",
    ["zarr.json", "manifest/zarr.json", "layer05/zarr.json", "layer05/manifest/zarr.json",
     "layer05/gram/zarr.json"],
)  # fmt: skip
def test_a_flipped_bit_of_a_document_is_found_when_it_is_opened(name, make, store):
    _, file = make()
    with h5py.File(file) as opened:
        size = opened[f"zarr/{name}"].size
    flip(file, place_of(file, f"zarr/{name}", size // 2))
    with pytest.raises((DamagedError, InputError), match=r"whole\.h5"):
        GramCache(file, store)


def test_damage_of_a_file_stops_a_training(make, store, tmp_path):
    _, file = make()
    flip(file, place_of(file, "layer13/gram", 200))
    config = TrainConfig(mode="cached", task="label", arch=VGG16, layers=(5, 13), epochs=1)
    net, grams = build_student(config, 3, None), GramCache(file, store)
    with pytest.raises(DamagedError, match=r"whole\.h5/layer13/gram/c/0"):
        train(net, store, grams, config, tmp_path / "run", device=CPU)


def test_a_layer_that_is_gone_is_no_layer(make, store):
    _, file = make()
    with h5py.File(file, "r+", libver="latest") as opened:
        del opened["layer13"]
    with pytest.raises(DamagedError, match=r"whole\.h5: layer13/norm is \(\)"):
        GramCache(file, store)
    assert GramCache(file, store, [5]).spec.layers == (5,)


def test_a_file_made_from_another_store_is_stale(make, other_store):
    with pytest.raises(StaleError, match=r"whole\.h5.*features"):
        GramCache(make()[1], other_store)


def test_a_file_with_another_tap_than_wanted_is_stale(make, store):
    with pytest.raises(StaleError, match=r"whole\.h5.*tap"):
        GramCache(make()[1], store, wanted={"tap": "conv"})


def test_a_store_in_a_file_is_no_cache(store, tmp_path):
    export_file(store.path, tmp_path / "tiny.h5")
    with pytest.raises(InputError, match="not a Gram cache"):
        GramCache(tmp_path / "tiny.h5", store)
