"""Controls in place of the teacher: the same function in another order, untrained, or one row."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import antigram.cache.recompute
from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer
from antigram.cache.mean_gram import mean_rows
from antigram.cache.plan import plan_layers
from antigram.cache.recompute import recompute
from antigram.model.loss.sources import TapSpec
from antigram.model.training.teacher_controls import control_teacher
from antigram.pipeline.errors import InputError, StaleError
from tests.support.files import bytes_of
from tests.support.nets import LAYERS, VGG16, maps_of

CPU = torch.device("cpu")


@pytest.fixture
def cached(store, teacher, tmp_path):
    """Build a cache of a control, or of the teacher itself."""

    def make(control=None, seed=0, *, name=None, codec="auto", dtype="float32", **spec):
        net = control_teacher(teacher, control, seed)
        given = TapSpec(arch=VGG16, **{"layers": LAYERS, **spec})
        return build_cache(
            store,
            net,
            plan_layers(store, net, given, codec=codec, dtype=dtype, control=control),
            tmp_path / f"{name or control}.zarr",
            made_from={},
            batch_clips=4,
            device=CPU,
        ).path

    return make


def rows_of(path, layer):
    opened = CacheLayer(path, layer)
    return opened.values.read().astype(np.float64), opened.norm, opened.row_norm


def gram_of(rows, channels):
    """(clip, C(C+1)/2) -> (clip, C, C)."""
    full = np.zeros((len(rows), channels, channels))
    upper = np.triu_indices(channels)
    full[:, *upper] = rows / np.where(upper[0] == upper[1], 1, np.sqrt(2))
    return np.maximum(full, full.transpose(0, 2, 1))


def test_permuted_channels_compute_the_same_maps_in_another_order(store, teacher):
    x = torch.from_numpy(store.features.read()[:3])[:, None]
    layers = range(1, VGG16.layers + 1)
    own = maps_of(teacher.net(), x, layers, "relu")
    other = maps_of(control_teacher(teacher, "permuted", 3).net(), x, layers, "relu")
    moved = 0
    for layer in layers:
        order = [c.flatten().double().sum().item() for c in own[layer].transpose(0, 1)]
        found = [c.flatten().double().sum().item() for c in other[layer].transpose(0, 1)]
        assert sorted(found) == pytest.approx(sorted(order), rel=1e-4, abs=1e-4)
        moved += not np.allclose(found, order, rtol=1e-3, atol=1e-3)
    assert moved > len(layers) // 2


def test_a_permuted_gram_has_the_eigenvalues_of_the_teachers_and_another_place_for_them(cached):
    own, permuted = (cached(control, codec="packed") for control in (None, "permuted"))
    layer = LAYERS[-1]
    channels = CacheLayer(own, layer).channels
    first, second = (gram_of(rows_of(p, layer)[0], channels) for p in (own, permuted))
    np.testing.assert_allclose(
        np.linalg.eigvalsh(second), np.linalg.eigvalsh(first), rtol=0, atol=1e-5
    )
    assert np.abs(first - second).max() > 0.01
    np.testing.assert_allclose(rows_of(permuted, layer)[1], rows_of(own, layer)[1], rtol=1e-4)


@pytest.mark.parametrize("control", ["permuted", "random"])
def test_a_control_depends_on_its_seed_alone_and_is_another_teacher(control, cached, store):
    first, again, other = (
        cached(control, seed, name=f"{n}{control}") for n, seed in enumerate((1, 1, 2))
    )
    assert bytes_of(first / "layer05") == bytes_of(again / "layer05")
    keys = [CacheLayer(path, LAYERS[-1]).key for path in (cached(), first, other)]
    assert len({key.extractor for key in keys}) == 3
    assert all("control" not in key.to_json() for key in keys)
    with pytest.raises(StaleError, match="extractor"):
        GramCache(first, store, wanted={"extractor": keys[0].extractor})


@pytest.mark.parametrize("aggregation", ["gram", "mean"])
def test_a_mean_gram_is_the_mean_of_the_training_rows_for_every_segment(aggregation, cached, store):
    own = cached(aggregation=aggregation, codec="packed" if aggregation == "gram" else "auto")
    mean = cached("mean-gram", aggregation=aggregation)
    for layer in LAYERS:
        rows, norm, row_norm = rows_of(mean, layer)
        want = rows_of(own, layer)[0][store.rows("train")].mean(0)
        assert len(rows) == len(store)
        np.testing.assert_allclose(norm, np.linalg.norm(want), rtol=1e-6)
        np.testing.assert_allclose(
            rows, np.tile(want / np.linalg.norm(want), (len(rows), 1)), atol=1e-6
        )
        np.testing.assert_allclose(row_norm, np.linalg.norm(rows[0]), rtol=1e-6)
        assert CacheLayer(mean, layer).key.to_json()["control"] == "mean-gram"


@pytest.mark.parametrize("control", ["permuted", "random", "mean-gram"])
def test_recompute_holds_a_control_against_itself_and_finds_what_differs(
    control, cached, store, teacher
):
    path = cached(control, dtype="float16")
    net = control_teacher(teacher, control, 0)
    assert list(recompute(path, store, net, 4, CPU)) == []
    other = control_teacher(teacher, "random", 9)
    with pytest.raises(InputError, match="another teacher"):
        list(recompute(path, store, other, 4, CPU))


def test_a_mean_row_that_is_not_the_mean_is_reported(cached, store, teacher, monkeypatch):
    path = cached("mean-gram", layers=LAYERS[:1])
    real = mean_rows

    def other(*given):
        return {n: replace(row, data=row.data * 0.9) for n, row in real(*given).items()}

    monkeypatch.setattr(antigram.cache.recompute, "mean_rows", other)
    (problem,) = recompute(path, store, teacher, 4, CPU)
    assert "differs from the mean over the training split" in problem.problem


def test_a_mean_gram_is_refused_where_it_has_no_meaning(cached):
    with pytest.raises(InputError, match="codec=factor"):
        cached("mean-gram", codec="factor")
    with pytest.raises(InputError, match="teacher_control"):
        cached("shuffled")
