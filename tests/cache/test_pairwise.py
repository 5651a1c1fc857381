"""Caches of the aggregation pairwise: bytes, parity with a live teacher, controls, commands."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer
from antigram.cache.plan import plan_layers
from antigram.cache.recompute import recompute
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.training.teacher_controls import control_teacher
from antigram.pipeline.errors import DamagedError, InputError
from antigram.studies.verify import verify_cache
from tests.reference.pairwise_loops import centred_loops, cka_loops, pairwise_loops
from tests.support.checkpoints import save_teacher
from tests.support.nets import CPU, LAYERS, VGG16, maps_of
from tests.support.runs import metrics
from tests.support.shell import Shell

CODECS = ("packed", "factor", "lowrank")
ARRAY = {"packed": "gram", "factor": "factor", "lowrank": "vectors"}
GRIDS = {1: (16, 16), 5: (16, 16), 13: (7, 8)}
SIDE = {1: 256, 5: 256, 13: 56}
CLIPS = np.arange(15)
every_codec = pytest.mark.parametrize("codec", CODECS)


@pytest.fixture
def make(store, teacher, tmp_path):
    """Build a cache of pairwise rows."""

    def run(codec="auto", dtype="float32", *, net=teacher, control=None, grids=None, **asked):
        spec = TapSpec(
            arch=net.arch, aggregation="pairwise", grids=grids or {}, **{"layers": LAYERS, **asked}
        )
        # K has no more than C eigenvalues that are not zero, so that this rank is exact.
        rank = 16 if codec == "lowrank" else None
        plans = plan_layers(store, net, spec, codec=codec, dtype=dtype, rank=rank, control=control)
        path = tmp_path / f"{codec}-{dtype}-{control}.zarr"
        build_cache(store, net, plans, path, made_from={}, batch_clips=4, device=CPU)
        return path

    return run


@pytest.fixture(scope="module")
def tapped(teacher, other_frozen, store):
    """Maps of the teacher and of another network, in float32, by layer."""
    x = torch.from_numpy(store.features.read())[:, None]
    return [maps_of(net.net(), x, LAYERS, "relu") for net in (teacher, other_frozen)]


def similarities(path, store, layer, maps):
    rows = GramCache(path, store, [layer]).read(CLIPS)[layer]
    return at_loss(maps, rows, "pairwise").double().numpy()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_codec
def test_rows_on_disk_are_those_of_the_loops(codec, dtype, make, store, tapped):
    path = make(codec, dtype, layers=(5, 13))
    group: Any = zarr.open_group(path, mode="r")
    allowed = 2e-6 if dtype == "float32" else 1e-3
    for layer in (5, 13):
        attributes = group[f"layer{layer:02d}"].attrs["antigram"]
        assert attributes["key"]["grid"] == list(GRIDS[layer])
        maps = tapped[0][layer].numpy()
        assert (attributes["channels"], attributes["positions"]) == (maps.shape[1], SIDE[layer])
        rows = group[f"layer{layer:02d}"][ARRAY[codec]][:].astype(np.float64)
        norms = group[f"layer{layer:02d}"]["norm"][:]
        for clip in range(0, 15, 4):
            centred, matrix = centred_loops(maps[clip]), pairwise_loops(maps[clip])
            norm = np.linalg.norm(matrix)
            assert norms[clip] == pytest.approx(norm, rel=1e-5)
            upper = np.triu_indices(SIDE[layer])
            want = {
                "packed": np.where(upper[0] == upper[1], 1, np.sqrt(2)) * matrix[upper] / norm,
                "factor": centred / np.sqrt(norm),
                "lowrank": matrix / norm,
            }[codec]
            got = rows[clip] @ rows[clip].T if codec == "lowrank" else rows[clip]
            np.testing.assert_allclose(got, want, rtol=0, atol=allowed)


def test_auto_takes_the_smaller_form_and_the_size_is_that_on_disk(make, store):
    path = make(dtype="float16")
    found = {layer: CacheLayer(path, layer) for layer in LAYERS}
    # 2, 8 and 16 channels at 256, 256 and 56 positions.
    assert {layer: each.key.codec for layer, each in found.items()} == dict.fromkeys(
        LAYERS, "factor"
    )
    assert [found[layer].describe()["bytes_per_clip"] for layer in LAYERS] == [
        2 * 2 * 256 + 8,
        2 * 8 * 256 + 8,
        2 * 16 * 56 + 8,
    ]
    assert found[13].describe()["grid"] == [7, 8]
    assert not list(verify_cache(path, [store.path]))


def test_the_triangle_is_taken_where_there_are_more_channels_than_half_the_positions(store, corpus):
    wide = save_teacher(corpus.parent / "wide pairwise.pt", Arch("vgg16", 4), store)
    spec = TapSpec(arch=wide.arch, layers=(5, 13), aggregation="pairwise")
    plans = plan_layers(store, wide, spec)
    assert {n: plan.key.codec for n, plan in plans.items()} == {5: "factor", 13: "packed"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_codec
def test_cka_from_a_cache_is_that_of_the_loops_at_every_layer(codec, dtype, make, store, tapped):
    path = make(codec, dtype)
    allowed = 1e-5 if dtype == "float32" else 1e-3
    for layer in LAYERS:
        own, student = (maps[layer] for maps in tapped)
        got = similarities(path, store, layer, student)
        for clip in range(0, 15, 3):
            want = cka_loops(student[clip].numpy(), own[clip].numpy())
            assert got[clip] == pytest.approx(want, abs=allowed)


def test_a_permuted_teacher_gives_the_teachers_similarities_and_an_untrained_one_others(
    make, store, teacher, tapped
):
    own, permuted, untrained = (
        make(net=control_teacher(teacher, control, 3), control=control)
        for control in (None, "permuted", "random")
    )
    keys = {CacheLayer(path, 13).key.extractor for path in (own, permuted, untrained)}
    assert len(keys) == 3
    for layer in LAYERS:
        student = tapped[1][layer]
        want = similarities(own, store, layer, student)
        np.testing.assert_allclose(
            similarities(permuted, store, layer, student), want, rtol=0, atol=1e-5
        )
        if layer > 1:
            assert np.abs(similarities(untrained, store, layer, student) - want).max() > 0.01


def test_a_mean_row_is_the_mean_of_the_training_rows(make, store, teacher):
    own, mean = make("packed"), make(control="mean-gram")
    for layer in LAYERS:
        rows = CacheLayer(own, layer).values.read().astype(np.float64)
        want = rows[store.rows("train")].mean(0)
        got = CacheLayer(mean, layer)
        assert (got.key.codec, got.key.control, got.key.grid) == (
            "packed",
            "mean-gram",
            GRIDS[layer],
        )
        np.testing.assert_allclose(got.values.read()[3], want / np.linalg.norm(want), atol=1e-6)
    assert not list(recompute(mean, store, teacher, 4, CPU))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@every_codec
def test_the_teacher_finds_nothing_in_a_good_cache_and_another_grid_in_another(
    codec, dtype, make, store, teacher
):
    path = make(codec, dtype, layers=(5, 13))
    assert not list(recompute(path, store, teacher, 15, CPU))
    assert not list(verify_cache(path, [store.path]))
    other = make(codec, dtype, layers=(13,), grids={13: (4, 5)})
    assert CacheLayer(other, 13).key.grid == (4, 5)
    assert not list(recompute(other, store, teacher, 15, CPU))


def test_rows_of_another_grid_are_noticed(make, tmp_path):
    path = make(layers=(13,))
    document = path / "layer13" / "zarr.json"
    document.write_text(document.read_text().replace('"grid"', '"grip"'))
    with pytest.raises(DamagedError):
        CacheLayer(path, 13)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"codec": "map"}, "`codec=map`: holds the other aggregations"),
        ({"codec": "lowrank", "rank": 57}, "`rank` 57: layer 13 has 56 positions; wanted 1 to 56"),
        ({"codec": "factor", "control": "mean-gram"}, "a mean Gram is no product"),
    ],
)
def test_what_has_no_meaning_is_refused(changes, match, store, teacher):
    spec = TapSpec(arch=VGG16, layers=(13,), aggregation="pairwise")
    with pytest.raises(InputError, match=match):
        plan_layers(store, teacher, spec, **changes)


def test_a_rank_is_found_for_the_energy(store, teacher, tmp_path, tapped):
    spec = TapSpec(arch=VGG16, layers=(13,), aggregation="pairwise")
    plans = plan_layers(store, teacher, spec, codec="lowrank", dtype="float32", energy=0.99)
    path = tmp_path / "energy.zarr"
    built = build_cache(store, teacher, plans, path, made_from={}, batch_clips=4, device=CPU)
    said = built.layers[13].describe()
    kept = []
    for maps in tapped[0][13].numpy():
        squares = np.sort(np.linalg.eigvalsh(pairwise_loops(maps)))[::-1] ** 2
        kept.append(int((squares.cumsum() < 0.99 * squares.sum() * (1 - 1e-6)).sum()) + 1)
    assert said["rank"] == max(kept)
    assert said["energy_least"] >= 0.99 - 1e-6
    assert not list(recompute(path, store, teacher, 15, CPU))


def gradients(source, store, layer, student):
    """Loss and gradient of the similarity at the maps of a student."""
    rows = source.rows(source.read(CLIPS), torch.from_numpy(store.features.read())[:, None])
    leaf = student.clone().requires_grad_()
    loss = at_loss(leaf, rows[layer], "pairwise")
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("tap", ["relu", "conv", "released"])
@every_codec
def test_every_codec_has_the_loss_and_gradient_of_a_live_teacher(
    codec, tap, make, store, teacher, other_frozen
):
    x = torch.from_numpy(store.features.read())[:, None]
    student = maps_of(other_frozen.net(), x, LAYERS, tap)
    live = LiveGrams(
        teacher.net(), TapSpec(arch=VGG16, layers=LAYERS, tap=tap, aggregation="pairwise")
    )
    # What enters layer 1 is the same for both networks, so that there is no gradient.
    layers = LAYERS if tap != "released" else LAYERS[1:]
    for dtype, allowed in (("float32", 1e-5), ("float16", 1e-3)):
        cached = GramCache(make(codec, dtype, tap=tap), store)
        for layer in layers:
            want, slope = gradients(live, store, layer, student[layer])
            got, found = gradients(cached, store, layer, student[layer])
            assert (got - want).abs().max() <= allowed
            assert (found - slope).norm() <= 10 * allowed * slope.norm()


@pytest.fixture
def shell(tmp_path, store, corpus, capsys, monkeypatch):
    """A workspace with the store ``tiny`` and the teacher ``net.pt``."""
    at = Shell(tmp_path, capsys, monkeypatch)
    monkeypatch.setenv("ANTIGRAM_WORKSPACE", ".")
    shutil.copytree(store.path, tmp_path / "features" / "tiny.zarr")
    shutil.copy(corpus.parent / "frozen.pt", tmp_path / "net.pt")
    return at


ROWS = ("--ckpt", "net.pt", "--layer", 5, "--layer", 13, "--aggregation", "pairwise")


def test_a_cached_training_by_the_defaults_is_the_online_one(shell):
    done = shell.json("cache-grams", *ROWS, "--dtype", "float32")
    assert done["layers"]["13"]["grid"] == [7, 8]
    assert shell.json("cache-grams", *ROWS, "--dtype", "float32")["computed"] == 0
    slow = ("--epochs", 1, "--lr", 1e-6, "--device", "cpu")
    runs = [
        Path(shell.json("train", "--mode", *mode, *slow)["run"])
        for mode in (("cached",), ("online", *ROWS))
    ]
    for run in runs:
        config = json.loads(Path(run, "config.json").read_text())["config"]
        assert (config["aggregation"], config["similarity"]) == ("pairwise", "cka")
    (one,), (two,) = map(metrics, runs)
    for split, key in product(("train", "validation"), ("loss", "ce", "at")):
        assert one[split][key] == pytest.approx(two[split][key], rel=1e-5)
    assert 0 < one["train"]["at"] <= 2


def test_the_size_is_estimated_and_planned_and_the_cache_is_verified(shell):
    said = shell.json("cache-grams", *ROWS, "--dry-run")["layers"]
    planned = shell.json("plan", *ROWS[:4], *ROWS[6:])["layers"]["5"]
    assert planned["online"]["flops"] > planned["cached"]["flops"]
    # E, and twice Gram and maps, of 13 segments: 8 channels of 31 x 32 positions.
    gram = shell.json("plan", *ROWS[:4])["layers"]["5"]
    assert planned["paper_eq4_bytes"] == gram["paper_eq4_bytes"]
    done = shell.json("cache-grams", *ROWS)["layers"]
    for layer in ("5", "13"):
        for field in ("codec", "channels", "positions", "bytes_per_clip"):
            assert said[layer][field] == done[layer][field]
    assert planned["cache"]["bytes_per_clip"] == done["5"]["bytes_per_clip"]
    assert shell.json("verify", "tiny--net", "--recompute", 5, "--ckpt", "net.pt")["ok"]


def test_a_student_of_another_width_trains_and_one_of_smaller_maps_is_refused(shell):
    shell.json("cache-grams", "--ckpt", "net.pt", "--layer", 5, "--aggregation", "pairwise")
    short = ("--epochs", 1, "--device", "cpu")
    done = shell.json("train", "--mode", "cached", "--width", 3, *short)
    config = json.loads(Path(done["run"], "config.json").read_text())["config"]
    assert config["arch"] == {"name": "vgg16", "width": 3}
    train = ("train", "--mode", "cached", *short, "--arch", "vgg11")
    shell.refused(2, "layer 5: the student (vgg11, width 2) has maps of 15 x 16", *train)
    online = ("--mode", "online", "--ckpt", "net.pt", "--layer", 5, *short)
    shell.json("train", *online, "--aggregation", "pairwise", "--width", 1)
    shell.refused(2, "AT needs the same", "train", *online, "--width", 1)


def test_similarities_that_do_not_go_with_the_aggregation_are_refused(shell):
    make = ("cache-grams", "--ckpt", "net.pt", "--layer", 13)
    shell.json(*make, "--aggregation", "pairwise", "--name", "pairs")
    shell.json(*make, "--name", "plain")
    train = ("train", "--mode", "cached", "--epochs", 1, "--cache")
    online = ("train", "--mode", "online", "--ckpt", "net.pt", "--layer", 13)
    mse, cka = ("--similarity", "mse-sigmoid"), ("--similarity", "cka")
    pairs = ("--aggregation", "pairwise")
    shell.refused(2, "--similarity mse-sigmoid", *train, "pairs", *mse)
    shell.refused(2, "--similarity mse-sigmoid", *online, *pairs, *mse)
    shell.refused(2, "--similarity cka", *train, "plain", *cka)
    shell.refused(2, "--similarity cka", *online, *cka)
    shell.refused(2, "--similarity cka", *online, "--aggregation", "max", *cka)
    shell.refused(2, "pairs", *train, "pairs", "--cache", "plain")
    shell.refused(3, "with aggregation gram, this run has pairwise", *train, "plain", *pairs)
    assert not list(Path("runs").glob("[!.]*"))
