"""Caches with int8 rows: bytes, parity with a live teacher, checks, versions, export, commands."""

import json
import shutil
from typing import Any

import numpy as np
import pytest
import torch
import zarr

import antigram.cache.layer
from antigram.cache.build import build_cache
from antigram.cache.from_loader import build_from_loader
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer, open_root
from antigram.cache.plan import plan_layers
from antigram.cache.recompute import recompute
from antigram.model.loss.anti_transfer import AntiTransferLoss
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.int8 import widen
from antigram.model.loss.sources import GramSource, LiveGrams, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.teacher_controls import control_teacher
from antigram.model.training.train import train
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.errors import DamagedError, InputError, StoredDataError
from antigram.pipeline.storage.exchange import export_file, import_file
from antigram.studies.text import budget_text
from antigram.studies.verify import verify_cache
from tests.support.checkpoints import save_teacher
from tests.support.files import bytes_of, flip
from tests.support.nets import CPU, LAYERS, maps_of
from tests.support.runs import metrics

ARCH = Arch("vgg16", 8)
SIDES = {1: 8, 5: 32, 13: 64}
CLIPS = np.arange(15)
# Aggregation, codec, name of the array of values.
FORMS: dict[str, tuple[Any, Any, str]] = {
    "packed": ("gram", "packed", "gram_int8"),
    "factor": ("gram", "factor", "factor_int8"),
    "lowrank": ("gram", "lowrank", "vectors_int8"),
    "pairwise": ("pairwise", "packed", "gram_int8"),
    "pairwise factor": ("pairwise", "factor", "factor_int8"),
}
every_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def nets(corpus, store):
    """Return two networks that are wide enough for int8."""
    return [save_teacher(corpus.parent / f"eight{n}.pt", ARCH, store, seed=n) for n in (31, 32)]


def build_in(folder, store, net, form="packed", name="grams", *, dtype="int8", **asked):
    """Build a cache; ``asked`` has layers, and further arguments of `plan_layers`."""
    aggregation, codec, _ = FORMS[form]
    spec = TapSpec(arch=ARCH, layers=asked.pop("layers", LAYERS), aggregation=aggregation)
    rank = 6 if codec == "lowrank" else None
    plans = plan_layers(store, net, spec, codec=codec, dtype=dtype, rank=rank, **asked)
    path = folder / f"{name}.zarr"
    return build_cache(store, net, plans, path, made_from={}, batch_clips=4, device=CPU)


@pytest.fixture
def make(store, nets, tmp_path):
    """Build a cache that the test may change, by default of int8 rows."""

    def run(*given, net=None, **asked):
        return build_in(tmp_path / "grams", store, net or nets[0], *given, **asked)

    return run


@pytest.fixture(scope="module")
def cached(store, nets, tmp_path_factory):
    """Return a cache of a form, in int8 or in float32, that is built once and not changed."""
    folder, built = tmp_path_factory.mktemp("int8"), {}

    def run(form="packed", dtype="int8"):
        if (form, dtype) not in built:
            name = f"{form} {dtype}"
            built[form, dtype] = build_in(folder, store, nets[0], form, name, dtype=dtype)
        return built[form, dtype]

    return run


@pytest.fixture(scope="module")
def other_maps(store, nets):
    """Return the maps of another network, by layer."""
    x = torch.from_numpy(store.features.read())[:, None]
    return maps_of(nets[1].net(), x, LAYERS, "relu")


@every_form
def test_similarities_are_those_of_float32_rows(form, cached, store, other_maps):
    rounded = GramCache(cached(form).path, store).read(CLIPS)
    exact = GramCache(cached(form, "float32").path, store).read(CLIPS)
    for layer in LAYERS:
        assert (rounded[layer].data.dtype, rounded[layer].scale) == (torch.float32, None)
        torch.testing.assert_close(rounded[layer].norm, exact[layer].norm, rtol=1e-6, atol=0)
        got, want = (
            at_loss(other_maps[layer], rows[layer], FORMS[form][0]) for rows in (rounded, exact)
        )
        # Seen 9e-4 at layer 1, which has 8 channels only, and 3e-4 elsewhere.
        torch.testing.assert_close(got, want, rtol=0, atol=2e-3 if layer == 1 else 1e-3)


@every_form
def test_it_takes_little_more_than_half_of_float16_and_says_so(form, cached, store):
    built, wide = cached(form), cached(form, "float32")
    assert not list(verify_cache(built.path, [store.path]))
    for layer, found in built.layers.items():
        rows, scales = found.values.spec.row_bytes, found.describe()["bytes_per_clip"]
        assert 4 * rows == wide.layers[layer].values.spec.row_bytes
        side = SIDES[layer] if FORMS[form][0] == "gram" else found.side
        assert scales == rows + 2 * side + (12 if FORMS[form][1] == "lowrank" else 8)
        assert found.describe()["dtype"] == "int8"


@every_form
def test_any_zarr_reader_restores_the_rows(form, cached, store):
    built = cached(form)
    name = FORMS[form][2]
    group: Any = zarr.open_group(built.path, mode="r")["layer05"]
    energy = {"energy"} if FORMS[form][1] == "lowrank" else set()
    assert {each for each, _ in group.arrays()} == {name, "scale", "norm", "row_norm"} | energy
    q, scale = group[name][:].astype(np.float32), group["scale"][:].astype(np.float32)
    assert group[name].dtype == np.int8
    if FORMS[form][1] == "packed":
        i, j = np.triu_indices(scale.shape[1])
        want = q * scale[:, i] * scale[:, j] * np.where(i == j, 1, np.sqrt(2)) / 127
    elif form == "pairwise factor":
        want = q * scale[:, None, :] / 127
    else:
        want = q * scale[:, :, None] / 127
    got = GramCache(built.path, store).read(CLIPS)[5].data.numpy()
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_two_builds_have_the_same_bytes_and_a_second_one_computes_nothing(make):
    one, two = make(name="one"), make(name="two")
    assert bytes_of(one.path) == bytes_of(two.path)
    assert make(name="one").computed == 0


@every_form
def test_recompute_accepts_it_and_finds_the_rows_of_another_segment(
    form, cached, store, nets, monkeypatch
):
    path = cached(form).path
    assert list(recompute(path, store, nets[0], 15, CPU)) == []
    read = antigram.cache.grams.LayerRows.read
    monkeypatch.setattr(
        antigram.cache.grams.LayerRows,
        "read",
        lambda self, rows, view: read(self, rows[::-1], view),
    )
    assert len(list(recompute(path, store, nets[0], 15, CPU))) >= 3 * 12


def test_a_mean_gram_and_views_are_rounded_alike(make, store, nets):
    net = control_teacher(nets[0], "mean-gram", 0)
    cache = make(name="mean", net=net, control="mean-gram", layers=(5,))
    assert list(recompute(cache.path, store, net, 4, CPU)) == []
    rows = GramCache(cache.path, store).read(CLIPS)[5]
    assert torch.equal(rows.data, rows.data[:1].expand(15, -1))
    views = Views.for_shape(store.shape, count=2, seed=0)
    made, wide = (
        make(name=f"views {dtype}", dtype=dtype, views=views, layers=(5,)).path
        for dtype in ("int8", "float32")
    )
    assert not list(verify_cache(made, [store.path]))
    for epoch in (1, 2):
        got, want = (GramCache(path, store).read(CLIPS, epoch)[5].data for path in (made, wide))
        torch.testing.assert_close(got, want, rtol=0, atol=4e-3)
    assert not torch.equal(
        GramCache(made, store).read(CLIPS, 1)[5].data, GramCache(made, store).read(CLIPS, 2)[5].data
    )


def test_rows_kept_on_the_device_are_those_that_are_read(cached, store):
    path = cached().path
    read, kept = GramCache(path, store), GramCache(path, store)
    kept.keep_on(CPU)
    x = torch.zeros(3, 1, *store.shape)
    clips = np.array([7, 0, 12])
    for layer, rows in read.rows(read.read(clips), x).items():
        held = kept.rows(kept.read(clips), x)[layer]
        torch.testing.assert_close(held.data, rows.data, rtol=0, atol=0)
    sizes = [
        a.spec.row_bytes * 15
        for layer in read.layers.values()
        for a in (layer.values, layer.scale)
        if a
    ]
    assert len(sizes) == 6
    assert read.stored_bytes == sum(sizes)
    assert len(read.arrays) == 6


def test_a_training_on_it_is_near_that_on_a_live_teacher(cached, store, nets, tmp_path):
    config = TrainConfig(mode="cached", task="label", arch=ARCH, layers=LAYERS, lr=1e-6, epochs=1)
    entries = []
    spec = TapSpec(arch=ARCH, layers=LAYERS)
    sources: list[GramSource] = [
        GramCache(cached().path, store),
        LiveGrams(nets[0].net(), spec),
    ]
    for number, source in enumerate(sources):
        net = build_student(config, 3, None)
        train(net, store, source, config, tmp_path / str(number), device=CPU)
        entries.append(metrics(tmp_path / str(number))[0]["train"])
    assert entries[0]["at"] == pytest.approx(entries[1]["at"], abs=3e-3)  # three layers
    assert entries[0]["at"] != entries[1]["at"]


def test_a_loop_of_ones_own_takes_it_and_no_store_is_needed(cached, store):
    cache, exact = (GramCache(cached(dtype=d).path) for d in ("int8", "float32"))
    x, ids = (
        torch.from_numpy(store.features.take([3, 8]))[:, None],
        [store.clip_ids[n] for n in (3, 8)],
    )
    losses = []
    for grams in (cache, exact):
        torch.manual_seed(0)
        net = Vgg(ARCH, 3).eval()
        loss = AntiTransferLoss(grams, {"features.11": 5})
        with loss.watch(net, ids):
            net(x)
        losses.append(float(loss.loss().detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_a_loader_builds_it(store, tmp_path):
    x, ids = torch.from_numpy(store.features.read())[:, None], store.clip_ids
    loader = [(x[i : i + 4], ids[i : i + 4]) for i in range(0, 15, 4)]
    built = build_from_loader(Vgg(ARCH, 3), [5], loader, tmp_path / "own.zarr", dtype="int8")
    assert open_root(built.path)["format_version"] == 3
    rows = GramCache(built.path).rows(5, ids[:2])
    assert rows.data.dtype == torch.float32
    assert float(rows.row_norm[0]) == pytest.approx(1, abs=5e-3)


def test_the_root_has_version_3_as_long_as_a_layer_is_int8(make):
    path = make(dtype="float16").path
    assert open_root(path)["format_version"] == 2
    make(layers=(5,))  # in place of the float16 layer
    assert open_root(path)["format_version"] == 3
    assert {n: CacheLayer(path, n).key.dtype for n in LAYERS} == {
        1: "float16", 5: "int8", 13: "float16",
    }  # fmt: skip
    make(dtype="float16", layers=(5,))
    assert open_root(path)["format_version"] == 2


def test_a_reader_that_does_not_know_int8_refuses_it(cached, monkeypatch):
    path = cached().path
    monkeypatch.setattr(antigram.cache.layer, "VERSION", 2)
    with pytest.raises(StoredDataError, match="format version 3, this antigram reads up to 2"):
        open_root(path)
    # Nor does it take the values for a float array, should it open the layer without the root.
    manifest = json.loads((path / "layer05" / "manifest" / "zarr.json").read_bytes())
    assert "gram" not in manifest["attributes"]["arrays"]


@every_form
def test_an_exported_file_has_the_same_rows_and_is_imported_unchanged(
    form, cached, store, tmp_path
):
    path = cached(form).path
    export_file(path, tmp_path / "one.h5")
    clips = np.array([14, 3, 9])
    for layer, rows in GramCache(tmp_path / "one.h5", store).read(clips).items():
        torch.testing.assert_close(
            rows.data, GramCache(path, store).read(clips)[layer].data, rtol=0, atol=0
        )
    import_file(tmp_path / "one.h5", tmp_path / "back.zarr")
    assert bytes_of(tmp_path / "back.zarr") == bytes_of(path)


def test_damaged_scales_are_noticed_before_they_are_used(make, store):
    path = make(layers=(5,)).path
    flip(path / "layer05" / "scale" / "c" / "1" / "0", 3)
    with pytest.raises(DamagedError, match=r"scale.*differ from what was written"):
        GramCache(path, store).read(CLIPS)
    (problem,) = verify_cache(path, [store.path])
    assert "scale" in str(problem.path)
    assert make(layers=(5,)).computed == 4  # the damaged chunk alone
    assert not list(verify_cache(path, [store.path]))


def test_scales_of_another_shape_are_refused(make):
    path = make(layers=(5, 13)).path
    shutil.rmtree(path / "layer05" / "scale")
    shutil.copytree(path / "layer13" / "scale", path / "layer05" / "scale")
    with pytest.raises(DamagedError):
        CacheLayer(path, 5)


@pytest.mark.parametrize("aggregation", ["mean", "max", "compmul"])
def test_other_aggregations_are_refused(aggregation, store, nets, tmp_path):
    spec = TapSpec(arch=ARCH, layers=(5,), aggregation=aggregation)
    with pytest.raises(InputError, match="`dtype=int8`: holds the aggregations gram and pairwise"):
        plan_layers(store, nets[0], spec, dtype="int8")
    with pytest.raises(InputError, match="`dtype=int8`: holds"):
        build_from_loader(
            Vgg(ARCH, 3), [5], [], tmp_path / "own.zarr", aggregation=aggregation, dtype="int8"
        )


def test_the_bound_of_lowrank_covers_its_rounding(cached):
    for layer in cached("lowrank").layers.values():
        described = layer.describe()
        assert described["cosine_error_sample"] <= described["cosine_error_bound"]
        assert described["cosine_error_bound"] > 2 * 6**0.75 / 254


def test_the_plan_has_its_size_and_says_the_error(store, nets):
    from antigram.studies.plan import budget

    spec = TapSpec(arch=ARCH, layers=(5, 13))
    plans = plan_layers(store, nets[0], spec, dtype="int8")
    costs = budget(store, ARCH, plans, classes=3, batch_clips=4)
    size = 32 * 33 // 2 + 2 * 32 + 8
    assert costs["layers"]["5"]["cache"]["bytes_per_clip"] == size
    text = budget_text(costs)
    assert f"({size} bytes a clip; int8 changes a similarity by up to 0.001)" in text
    assert costs["layers"]["5"]["cache"]["bytes_per_step"] == 4 * size
    assert "of which a step reads 0.0 MB, and pays off" in text
    assert costs["layers"]["5"]["cached"]["memory"] > costs["baseline"]["memory"]


def test_widening_does_not_depend_on_what_else_is_in_the_batch(cached):
    layer = CacheLayer(cached().path, 5)
    assert layer.scale is not None
    data, scale = (torch.from_numpy(a.take(CLIPS)) for a in (layer.values, layer.scale))
    together = widen(data, scale, "packed")
    alone = torch.cat([widen(data[n : n + 1], scale[n : n + 1], "packed") for n in range(15)])
    assert torch.equal(together, alone)
