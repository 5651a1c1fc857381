"""One contract for all sources of rows, live and cached; and that the two agree."""

from itertools import product

import numpy as np
import pytest
import torch
from torch.nn import functional

import antigram.cache.plan
from antigram.cache.grams import GramCache
from antigram.model.choices import AGGREGATIONS, TAPS
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from tests.reference.gram_loops import gram_loops
from tests.support.nets import CPU, LAYERS, VGG16, maps_of
from tests.support.runs import metrics

CLIPS = np.array([9, 2, 14, 2, 0])


@pytest.fixture(params=["live", "float32", "float16"])
def source(request, build, teacher, store):
    if request.param == "live":
        return LiveGrams(teacher.net(), TapSpec(arch=VGG16, layers=LAYERS))
    return GramCache(build(dtype=request.param).path, store)


@pytest.fixture
def rows(source, store):
    (batch,) = Batches(store, "label", source, 8, CPU).passes(CLIPS)
    return source.rows(batch.read, batch.x)


class TestEverySource:
    def test_says_what_it_compares(self, source):
        assert source.spec == TapSpec(arch=VGG16, layers=LAYERS, tap="relu", aggregation="gram")

    def test_gives_a_row_for_each_clip_and_layer(self, rows):
        assert sorted(rows) == list(LAYERS)
        for layer, channels in zip(LAYERS, (2, 8, 16), strict=True):
            found = rows[layer]
            assert found.matrices(channels).shape == (5, channels, channels)
            assert found.data.dtype in (torch.float16, torch.float32)
            assert found.norm.dtype == found.row_norm.dtype == torch.float32
            assert found.norm.shape == found.row_norm.shape == (5,)
            assert not found.data.requires_grad

    def test_rows_are_the_grams_of_the_clips_asked_for_in_their_order(self, rows, teacher, store):
        x = torch.from_numpy(store.features.read()[CLIPS])[:, None].double()
        maps = maps_of(teacher.net().double(), x, LAYERS, "relu")
        for layer in LAYERS:
            for place in range(len(CLIPS)):
                matrix = gram_loops(maps[layer][place].numpy())
                norm = np.linalg.norm(matrix)
                assert float(rows[layer].norm[place]) == pytest.approx(norm, rel=1e-5)
                got = rows[layer].matrices(len(matrix))[place].double().numpy()
                np.testing.assert_allclose(got, matrix / norm, rtol=0, atol=5e-4)

    def test_the_row_norm_is_that_of_the_row_as_it_stands(self, rows):
        for found in rows.values():
            want = found.data.double().flatten(1).norm(dim=1)
            np.testing.assert_allclose(found.row_norm, want, rtol=1e-6)
            np.testing.assert_allclose(found.row_norm, 1, rtol=0, atol=1e-3)

    def test_the_same_clip_has_the_same_row_wherever_it_stands(self, rows):
        for found in rows.values():
            torch.testing.assert_close(found.data[1], found.data[3], rtol=0, atol=1e-6)

    def test_reading_draws_no_random_number(self, source, store):
        before = torch.get_rng_state()
        (batch,) = Batches(store, "label", source, 8, CPU).passes(CLIPS)
        source.rows(batch.read, batch.x)
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_training_runs_on_it(self, source, store, tmp_path):
        config = config_of("cached", LAYERS, epochs=1)
        net = build_student(config, 3, None)
        train(net, store, source, config, tmp_path / "run", device=CPU)
        (entry,) = metrics(tmp_path / "run")
        assert 0 < entry["train"]["at"] <= 3
        assert entry["train"]["loss"] == pytest.approx(
            entry["train"]["ce"] + entry["train"]["at"], rel=1e-12
        )


def config_of(mode, layers, **changes):
    given = {"task": "label", "arch": VGG16, "layers": layers, "lr": 1e-6, "epochs": 2, **changes}
    return TrainConfig(mode=mode, **given)


def step_of(source, store, aggregation, tap, similarity, layer):
    """Return loss and gradient of AT at one layer, in the first step."""
    net = build_student(config_of("online", (layer,), tap=tap), 3, None)
    net.train()
    (batch,) = Batches(store, "label", source, 5, CPU).passes(np.array([3, 11, 7, 0, 14]))
    rows = source.rows(batch.read, batch.x)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = net(
            batch.x,
            (layer,),
            tap,
            lambda n, maps: losses.append(at_loss(maps, rows[n], aggregation, similarity).mean()),
        )
    loss = functional.cross_entropy(logits, batch.y) + losses[0]
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in net.parameters()])


ALLOWED = [
    (aggregation, tap)
    for aggregation in AGGREGATIONS
    for tap in TAPS
    if (aggregation, tap) != ("compmul", "conv")
]


# Maps of compmul differ so little that their gradient is smaller than the rounding of float16:
# `cache-grams` stores them as float32 by default.
BOTH = {"float32": 1e-5, "float16": 1e-3}
TOLERANCE = {name: {"float32": 1e-5} if name == "compmul" else BOTH for name in AGGREGATIONS}


@pytest.mark.parametrize(("aggregation", "tap"), ALLOWED)
def test_a_step_with_a_cache_is_that_with_the_live_net(
    aggregation, tap, build, teacher, store, monkeypatch
):
    monkeypatch.setattr(antigram.cache.plan, "_ROWS_PER_CHUNK", 15)
    # The input of layer 1 has negative values, for which compmul is not defined.
    layers = LAYERS[1:] if (aggregation, tap) == ("compmul", "released") else LAYERS
    spec = {"layers": layers, "tap": tap, "aggregation": aggregation}
    live = LiveGrams(teacher.net(), TapSpec(arch=VGG16, **spec))
    cached = {
        GramCache(build(dtype, dtype=dtype, **spec).path, store): allowed
        for dtype, allowed in TOLERANCE[aggregation].items()
    }
    other = product(layers, ["cka"]) if aggregation == "pairwise" else [(5, "mse-sigmoid")]
    for layer, similarity in (*product(layers, ["cos2"]), *other):
        asked = (store, aggregation, tap, similarity, layer)
        want, wanted = step_of(live, *asked)
        assert torch.isfinite(wanted).all()
        for source, allowed in cached.items():
            loss, gradient = step_of(source, *asked)
            where = f"{source.path.stem} {similarity} layer {layer}"
            assert abs(loss - want) <= allowed * abs(want), where
            assert (gradient - wanted).norm() <= allowed * wanted.norm(), where


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-6), ("float16", 1e-4)])
def test_two_epochs_with_a_cache_are_those_with_the_live_net(
    dtype, allowed, build, teacher, store, tmp_path
):
    live = LiveGrams(teacher.net(), TapSpec(arch=VGG16, layers=LAYERS))
    runs = {}
    for mode, source in (("online", live), ("cached", GramCache(build(dtype=dtype).path, store))):
        config = config_of(mode, LAYERS, batch_clips=4)
        folder = tmp_path / mode
        train(build_student(config, 3, None), store, source, config, folder, device=CPU)
        runs[mode] = metrics(folder)
    assert len(runs["cached"]) == 2
    for one, two in zip(runs["online"], runs["cached"], strict=True):
        for split in ("train", "validation"):
            for key in ("loss", "ce", "at"):
                assert two[split][key] == pytest.approx(one[split][key], rel=allowed), key
            assert two[split]["at"] > 0
        for layer in map(str, LAYERS):  # the effect of AT is measured the same way
            for key in ("similarity", "gradient_ratio"):
                near = pytest.approx(one[key][layer][""], rel=100 * allowed)
                assert two[key][layer][""] == near, (key, layer)


def test_the_same_cached_run_twice_gives_the_same_numbers(build, store, tmp_path):
    path, found = build().path, []
    for name in ("one", "two"):
        config = config_of("cached", LAYERS, lr=1e-3)
        net = build_student(config, 3, None)
        train(net, store, GramCache(path, store), config, tmp_path / name, device=CPU)
        found.append([(e["train"], e["validation"]) for e in metrics(tmp_path / name)])
    assert found[0] == found[1]
