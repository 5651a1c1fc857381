from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from antigram.cache.grams import GramCache
from antigram.cache.key import CacheKey, layer_name
from antigram.cache.layer import CacheLayer
from antigram.model.choices import PRECISIONS, precision_of
from antigram.model.nets.arch import Arch
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import DamagedError, InputError, StaleError
from tests.support.nets import VGG16

KEY = CacheKey(
    extractor="e" * 64,
    arch=Arch("vgg16", 2),
    features="f" * 64,
    layer=5,
    tap="relu",
    aggregation="gram",
    codec="packed",
    dtype="float16",
)
# Another value of each field.
OTHER: dict[str, Any] = {
    "extractor": "0" * 64,
    "arch": Arch("vgg16", 3),
    "features": "1" * 64,
    "layer": 6,
    "tap": "conv",
    "aggregation": "sum",
    "codec": "map",
    "dtype": "float32",
    "energy": 0.999,
    "rank": 7,
    "precision": "tf32",
    "version": "grams/0",
    "views": Views(count=2, seed=0, time_mask=1, freq_mask=1, shift=1, gain_db=1.0),
    "control": "mean-gram",
    "grid": (4, 6),
}


def test_the_table_of_these_tests_has_every_field():
    assert set(OTHER) == {field.name for field in fields(CacheKey)}


@pytest.mark.parametrize("name", OTHER)
def test_a_key_with_one_other_field_is_refused_by_name(name):
    wanted = {field.name: getattr(KEY, field.name) for field in fields(KEY)}
    KEY.require("here.zarr", wanted)
    with pytest.raises(StaleError, match=rf"here\.zarr: stale: layer \d+ .* with {name} "):
        replace(KEY, **{name: OTHER[name]}).require("here.zarr", wanted)
    with pytest.raises(StaleError, match=f"with {name} "):
        KEY.require("here.zarr", {**wanted, name: OTHER[name]})


@pytest.mark.parametrize("name", OTHER)
def test_a_cache_with_one_other_field_than_wanted_is_refused_by_name(name, build, store):
    path = build(layers=(5,)).path
    key = CacheLayer(path, 5).key
    GramCache(path, store, [5], {name: getattr(key, name)})
    with pytest.raises(StaleError, match=f"with {name} .*this run has"):
        GramCache(path, store, [5], {name: OTHER[name]})


@pytest.mark.parametrize("name", OTHER)
def test_every_field_survives_the_disk(name):
    key = replace(KEY, **{name: OTHER[name]})
    if name == "grid":
        key = replace(key, aggregation="pairwise")
    assert CacheKey.from_json(key.to_json()) == key != KEY
    optional = ("views", "control", "grid")
    without = {field: None for field in optional if getattr(key, field) is None}
    spelled: dict[str, Any] = {} if name == "precision" else {"precision": "32"}
    if name == "grid":
        spelled["grid"] = (4, 6)
    known = {**asdict(key), "arch": key.arch.to_json()}
    assert known == {**key.to_json(), **without, **spelled}


def test_the_precision_is_stored_as_before_and_has_one_spelling_otherwise():
    assert KEY.precision == "32"
    assert KEY.to_json()["precision"] == "float32"
    assert [precision_of(name) for name in ("32", "float32", "tf32", "bf16")] == ["32", *PRECISIONS]
    with pytest.raises(InputError, match="precision is '16'; wanted: 32, tf32, bf16"):
        precision_of("16")


def test_a_stored_key_with_other_fields_is_damaged():
    for stored in ({**KEY.to_json(), "colour": 1}, {"layer": 5}):
        with pytest.raises(DamagedError, match="missing or unknown"):
            CacheKey.from_json(stored)


@pytest.mark.parametrize(
    ("aggregation", "grid"),
    [("gram", [4, 6]), ("pairwise", None), ("pairwise", [4]), ("pairwise", [0, 6])],
)
def test_a_stored_grid_that_does_not_go_with_the_aggregation_is_damaged(aggregation, grid):
    stored = {**KEY.to_json(), "aggregation": aggregation, "grid": grid}
    with pytest.raises(DamagedError, match="grid"):
        CacheKey.from_json(stored)


def test_a_layers_group_is_named_with_two_digits():
    assert (layer_name(5), layer_name(13)) == ("layer05", "layer13")


def test_a_store_prepared_with_another_seed_makes_the_cache_stale(build, store, other_store):
    path = build(layers=(5,)).path
    assert store.fingerprint != other_store.fingerprint
    with pytest.raises(StaleError, match=r"stale: layer 5 was built with features .*this run has"):
        GramCache(path, other_store)


def test_a_layer_that_is_not_cached_is_an_error_of_the_user(build, store):
    path = build(layers=(1, 5)).path
    with pytest.raises(
        InputError, match=r"layer 13 is not cached \(cached layers: 1, 5\).*`layers=13`"
    ):
        GramCache(path, store, [5, 13])


def test_without_layers_named_all_are_read(build, store):
    grams = GramCache(build(layers=(13, 1)).path, store)
    assert grams.spec.layers == (1, 13)
    assert (grams.spec.arch, grams.spec.tap, grams.spec.aggregation) == (VGG16, "relu", "gram")


def test_a_path_without_a_cache_is_an_error_of_the_user(store, tmp_path):
    for path in (tmp_path, store.path):
        with pytest.raises(InputError, match=r"no Gram cache|not a Gram cache"):
            GramCache(path, store)


def test_the_extractor_is_the_net_up_to_the_layer_only(build, other_frozen):
    keys = {n: layer.key for n, layer in build().layers.items()}
    assert len({key.extractor for key in keys.values()}) == 3
    other = build("other", net=other_frozen).layers[5].key
    assert replace(other, extractor=keys[5].extractor) == keys[5] != other
