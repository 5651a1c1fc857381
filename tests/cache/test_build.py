import shutil
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from torch import nn

import antigram.cache.layer_writer
import antigram.cache.work
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer, choose_cache, layers_of
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import TapSpec
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.chunks import write_chunk
from antigram.pipeline.workspace import locked
from antigram.studies.verify import verify_cache
from tests.reference.gram_loops import aggregate_loops, gram_loops, packed_loops
from tests.support.files import bytes_of
from tests.support.nets import LAYERS, VGG16

# Read off `print(torchvision.models.vgg16().features)`.
CONV = {1: 0, 5: 10, 13: 28}
SILENT = 5


def maps_in_float64(teacher, store, layer):
    """Maps after the layer's ReLU, from torchvision-like modules in float64."""
    channels, x = 1, torch.from_numpy(store.features.read()).double()[:, None]
    pools = {4, 9, 16, 23, 30}
    for place in range(CONV[layer] + 2):
        weight = teacher.state.get(f"features.{place}.weight")
        if weight is not None:
            conv = nn.Conv2d(channels, len(weight), 3, padding=1, dtype=torch.float64)
            conv.load_state_dict(
                {
                    "weight": weight.double(),
                    "bias": teacher.state[f"features.{place}.bias"].double(),
                }
            )
            channels, x = len(weight), conv(x)
        else:
            x = nn.functional.max_pool2d(x, 2) if place in pools else x.relu()
    return x.detach().numpy()


@pytest.mark.parametrize(("dtype", "eps"), [("float32", 1e-6), ("float16", 2.0**-11)])
def test_any_zarr_reader_finds_the_numbers_of_the_formula(build, teacher, store, dtype, eps):
    built = build(dtype=dtype)
    group = zarr.open_group(built.path, mode="r")
    assert sorted(name for name, _ in group.groups()) == [
        "layer01",
        "layer05",
        "layer13",
        "manifest",
    ]
    for layer in LAYERS:
        maps = maps_in_float64(teacher, store, layer)
        inner: Any = group[f"layer{layer:02d}"]
        rows = inner["gram"][:]
        assert rows.dtype == dtype
        assert rows.shape == (15, maps.shape[1] * (maps.shape[1] + 1) // 2)
        stored = np.linalg.norm(rows.astype(np.float64), axis=1)
        np.testing.assert_allclose(inner["row_norm"][:], stored, rtol=1e-6)
        for clip in range(15):
            matrix = gram_loops(maps[clip])
            norm = np.linalg.norm(matrix)
            # MKL sums the 16,254 equal values of a silent clip one by one in its kernel for few
            # channels: seen 1.5e-4 (from 16 channels on 3e-6); 4e-6 for sounds.
            allowed = 3e-4 if clip == SILENT else 1e-5
            assert inner["norm"][clip] == pytest.approx(norm, rel=allowed)
            want = packed_loops(matrix) / norm
            np.testing.assert_allclose(rows[clip], want, rtol=eps, atol=allowed)


def test_another_aggregation_is_stored_as_a_map(build, teacher, store):
    built = build(aggregation="max", layers=(5,), dtype="float32")
    inner: Any = zarr.open_group(built.path, mode="r")["layer05"]
    assert sorted(name for name, _ in inner.arrays()) == ["map", "norm", "row_norm"]
    maps = maps_in_float64(teacher, store, 5)
    for clip in range(15):
        want = aggregate_loops(maps[clip], "max")
        norm = np.linalg.norm(want)
        assert inner["norm"][clip] == pytest.approx(norm, rel=1e-5)
        np.testing.assert_allclose(inner["map"][clip], want / norm, rtol=0, atol=2e-6)


def test_arrays_and_attributes_are_those_of_the_format(build, store):
    built = build()
    group = zarr.open_group(built.path, mode="r")
    root = group.attrs["antigram"]
    assert (root["format"], root["format_version"]) == ("antigram/grams", 2)
    assert root["features"] == store.fingerprint
    inner: Any = group["layer05"]
    attributes = inner.attrs["antigram"]
    assert attributes["complete"] is True
    assert {
        *"extractor arch features layer tap aggregation codec dtype energy rank precision".split()
    } <= set(attributes["key"])
    assert (attributes["channels"], attributes["positions"]) == (8, 992)
    chunk = (built.path / "layer05" / "gram" / "c" / "0" / "0").read_bytes()
    assert len(chunk) == 4 * 36 * 2 + 4
    assert chunk[:-4] == inner["gram"][:4].astype("<f2").tobytes()
    assert [inner[name].chunks[0] for name in ("gram", "norm", "row_norm")] == [4, 4, 4]
    assert np.isnan(inner["gram"].fill_value)
    described = built.to_json()
    assert {"cache", "name", "clips", "computed", "layers", "seconds"} <= set(described)
    assert {"codec", "dtype", "channels", "positions", "bytes_per_clip", "fingerprint"} <= set(
        described["layers"]["5"]
    )
    assert described["layers"]["5"]["bytes_per_clip"] == 2 * 36 + 8


def test_the_same_build_gives_the_same_bytes(build):
    one, two = (bytes_of(build(name).path) for name in ("one", "two"))
    assert one == two


def test_a_second_build_computes_nothing_and_changes_nothing(build):
    first = build()
    before = bytes_of(first.path)
    again = build()
    assert (first.computed, again.computed) == (15, 0)
    assert bytes_of(again.path) == before


def test_another_batch_size_makes_no_other_cache(build):
    build(batch_clips=4)
    assert build(batch_clips=3).computed == 0


def test_adding_a_layer_computes_only_that_layer(build, monkeypatch):
    before = bytes_of(build(layers=(5,)).path)
    calls, real = [], write_chunk

    def counted(group, *rest):
        calls.append(group.path.name)
        return real(group, *rest)

    monkeypatch.setattr(antigram.cache.layer_writer, "write_chunk", counted)
    built = build(layers=(1, 5))
    assert set(calls) == {"layer01"}
    assert layers_of(built.path) == [1, 5]
    after = bytes_of(built.path)
    own = {"zarr.json", "manifest/zarr.json"}  # metadata of the cache, which list its layers
    assert {n: after[n] for n in before if n not in own} == {
        n: before[n] for n in before if n not in own
    }
    assert after == {**bytes_of(build("both", layers=(1, 5)).path)}


def test_a_layer_with_another_key_replaces_that_layer_only(build):
    build(layers=(1, 5))
    built = build(layers=(5,), dtype="float32")
    assert built.computed == 15
    assert CacheLayer(built.path, 5).key.dtype == "float32"
    assert CacheLayer(built.path, 1).key.dtype == "float16"


def test_another_checkpoint_replaces_the_whole_cache(build, other_frozen):
    build(layers=(1, 5))
    built = build(layers=(5,), net=other_frozen)
    assert layers_of(built.path) == [5]
    assert bytes_of(built.path) == bytes_of(build("fresh", layers=(5,), net=other_frozen).path)


def test_another_store_replaces_the_whole_cache(build, other_store):
    build(layers=(1, 5))
    built = build(layers=(1,), of=other_store)
    assert layers_of(built.path) == [1]
    GramCache(built.path, other_store)


class Killed(BaseException):
    pass


_whole = {}


@pytest.fixture
def whole(build):
    """Bytes of a cache that was built without interruption."""
    if not _whole:
        _whole.update(bytes_of(build("whole").path))
    return dict(_whole)


def fail_at(monkeypatch, name, call):
    """Make a function of the builder fail at its n-th and all later calls; list the calls."""
    where = antigram.cache.work if name == "publish" else antigram.cache.layer_writer
    real, calls = getattr(where, name), []

    def dying(*args):
        calls.append(args)
        if len(calls) >= call:
            raise Killed
        return real(*args)

    monkeypatch.setattr(where, name, dying)
    return calls


@pytest.mark.parametrize("call", [2, 8, 23, 36])
def test_a_killed_build_computes_only_what_is_missing_and_ends_in_the_same_bytes(
    call, build, whole, monkeypatch
):
    want = whole
    with monkeypatch.context() as patch:
        fail_at(patch, "write_chunk", call)
        with pytest.raises(Killed):
            build()
    with monkeypatch.context() as patch:
        calls = fail_at(patch, "write_chunk", 999)
        built = build()
    assert bytes_of(built.path) == want
    # 12 chunks of rows, which are not computed again, and then 24 of norms.
    noted = min(call - 1, 12)
    assert len(calls) == 12 - noted + 24
    assert built.computed == max(0, 15 - 4 * (noted // 3))
    assert not list(built.path.parent.glob(".*.partial"))


@pytest.mark.parametrize("there", [False, True], ids=["new", "layer added"])
@pytest.mark.parametrize(
    ("name", "call"),
    [("write_manifest", 1), ("create_group", 2), ("publish", 1), ("publish", 2)],
)
def test_a_build_killed_while_it_publishes_is_completed(
    name, call, there, build, whole, monkeypatch
):
    want = whole
    if there:
        build(layers=(1,))
    died = False
    with monkeypatch.context() as patch:
        fail_at(patch, name, call)
        try:
            build()
        except Killed:
            died = True
    assert died or (name, call, there) == ("publish", 2, False)  # a single swap
    built = build()
    assert bytes_of(built.path) == want
    assert not list(verify_cache(built.path, []))


def test_a_build_that_is_killed_leaves_the_old_cache_in_place(build, other_frozen, monkeypatch):
    before = bytes_of(build().path)
    with monkeypatch.context() as patch:
        fail_at(patch, "write_chunk", 20)
        with pytest.raises(Killed):
            build(net=other_frozen)
    assert bytes_of(build().path) == before


def test_a_half_built_cache_of_another_net_is_not_continued(build, other_frozen, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, "write_chunk", 20)
        with pytest.raises(Killed):
            build(net=other_frozen)
    built = build()
    assert built.computed == 15
    assert bytes_of(built.path) == bytes_of(build("fresh").path)


def test_a_damaged_cache_is_made_again(build):
    built = build()
    want = bytes_of(built.path)
    (built.path / "layer05" / "manifest" / "zarr.json").write_text("{}")
    shutil.rmtree(built.path / "layer01" / "norm")
    assert bytes_of(build().path) == want


def test_a_codec_that_cannot_hold_the_aggregation_is_refused(store, teacher):
    spec = TapSpec(arch=VGG16, layers=(5,), aggregation="mean")
    with pytest.raises(InputError, match="`codec=packed`: the aggregation mean is stored as a map"):
        plan_layers(store, teacher, spec, codec="packed", dtype="float16")


def test_the_cache_of_a_store_that_was_made_last_is_chosen(build, store, other_store):
    one, two, other = build("one").path, build("two").path, build("three", of=other_store).path
    assert choose_cache([one, two, other], store) == two
    assert choose_cache([two, one, other], store) == one
    with pytest.raises(InputError, match="no Gram cache of the store other"):
        choose_cache([one, two], other_store)


def test_a_cache_that_does_not_fit_on_the_disk_is_refused_before_it_begins(build, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(InputError, match=r"0\.0 MB free, the cache takes"):
        build()


def test_a_cache_that_another_process_builds_is_refused(build, tmp_path):
    with (
        locked(tmp_path / "grams" / "grams.zarr", "building"),
        pytest.raises(InputError, match="another process is building it"),
    ):
        build()
    assert build().computed == 15
