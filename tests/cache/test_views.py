"""A cache of augmented views: its content, and that a training with it equals a live one."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from antigram.cache.build import build_cache
from antigram.cache.estimate import estimate
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer
from antigram.cache.plan import plan_layers
from antigram.cache.recompute import recompute
from antigram.model.loss.codecs import encode_rows
from antigram.model.loss.sources import GramSource, LiveGrams, Sources, TapSpec
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.audio.augmentation import Views, apply_views
from antigram.pipeline.errors import InputError, StaleError
from antigram.pipeline.storage.exchange import export_file
from antigram.pipeline.workspace import Workspace
from antigram.studies.job import resolve
from antigram.studies.options import Options
from antigram.studies.verify import verify_cache
from tests.support.files import bytes_of
from tests.support.nets import CPU, LAYERS, VGG16
from tests.support.runs import metrics

K = 3


@pytest.fixture
def views(store):
    return Views.for_shape(store.shape, count=K, seed=0)


@pytest.fixture
def build_views(store, teacher, tmp_path, views):
    def run(name="views", *, count=None, layers=LAYERS, **asked):
        given = views if count is None else Views.for_shape(store.shape, count=count, seed=0)
        spec = TapSpec(arch=VGG16, layers=layers)
        path = tmp_path / "grams" / f"{name}.zarr"
        plans = plan_layers(store, teacher, spec, views=given, **asked)
        return build_cache(store, teacher, plans, path, made_from={}, batch_clips=4, device=CPU)

    return run


def live_rows(teacher, x, layer):
    found = {}
    with torch.no_grad():
        teacher.net().eval().run_features(
            torch.from_numpy(x)[:, None], [layer], "relu", found.__setitem__, stop=True
        )
    return encode_rows(found[layer], "gram", torch.float32)


@pytest.mark.parametrize(
    ("codec", "more"), [("packed", {}), ("factor", {}), ("lowrank", {"rank": 2})]
)
def test_a_row_is_the_gram_of_the_view_whose_numbers_stand_beside_it(
    codec, more, build_views, store, teacher, views
):
    cache = GramCache(build_views(codec=codec, dtype="float32", **more).path, store)
    clips = np.array([14, 3, 8, 3])
    for layer in (1, 5):
        one = cache.layers[layer]
        assert one.values.shape[:2] == (len(store), K)
        assert one.params.shape == (len(store), K, 6)
        for epoch in (1, 2, 3, 4):
            view = (epoch - 1) % K
            params = cache.params(clips, epoch)
            ids = [store.clip_ids[i] for i in clips]
            drawn = views.params(ids, view, store.shape)
            drawn[store.split[clips] != 0] = 0
            np.testing.assert_array_equal(params, drawn)
            x = store.features.read()[clips].astype(np.float32)
            apply_views(x, drawn, store.levels)
            want = live_rows(teacher, x, layer)
            found = cache.read(clips, epoch)[layer]
            allowed = 1e-5
            if codec == "lowrank":
                allowed += float((1 - found.energy).clamp_min(0).max()) ** 0.5 * 2
            distance = found.matrices(one.channels) - want.matrices(one.channels)
            assert float(distance.flatten(1).norm(dim=1).max()) <= allowed
            torch.testing.assert_close(found.norm, want.norm, rtol=1e-4, atol=0)


def test_only_clips_of_the_training_split_are_augmented(build_views, store):
    layer = CacheLayer(build_views(layers=(1,)).path, 1)
    values, features = layer.values.read(), store.features.read()
    for row in range(len(store)):
        if np.ptp(features[row]) == 0:
            continue  # all views of a silent clip are silent
        if store.split[row] == 0:
            assert len(set(layer.norm[row].tolist())) == K
        else:
            assert all((values[row, 0] == values[row, view]).all() for view in range(K))
            assert len(set(layer.norm[row].tolist())) == 1
    assert layer.params[store.split == 0].any(axis=2).all()
    assert not layer.params[store.split != 0].any()


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-5), ("float16", 1e-4)])
def test_a_training_on_views_is_the_live_one_on_the_same_views(
    dtype, allowed, build_views, store, teacher, views, tmp_path
):
    spec = TapSpec(arch=VGG16, layers=LAYERS)
    sources: dict[str, GramSource] = {
        "online": LiveGrams(teacher.net(), spec),
        "cached": GramCache(build_views(dtype=dtype).path, store),
        "plain": LiveGrams(teacher.net(), spec),
    }
    runs = {}
    for name, source in sources.items():
        config = TrainConfig(
            mode="cached" if name == "cached" else "online",
            task="label",
            arch=VGG16,
            layers=LAYERS,
            lr=1e-7,
            epochs=K + 1,
            batch_clips=4,
            views=None if name == "plain" else views,
        )
        net = build_student(config, 3, None)
        train(net, store, source, config, tmp_path / name, device=CPU)
        runs[name] = metrics(tmp_path / name)
    for one, two, plain in zip(*runs.values(), strict=True):
        for split in ("train", "validation"):
            for key in ("loss", "ce", "at"):
                assert two[split][key] == pytest.approx(one[split][key], rel=allowed), key
        assert one["train"]["at"] != pytest.approx(plain["train"]["at"], rel=1e-5)
    first, second, _, fourth = (entry["train"]["at"] for entry in runs["cached"])
    assert first != pytest.approx(second, rel=1e-5)
    assert first == pytest.approx(
        fourth, rel=1e-3
    )  # the first view again, with nearly the same weights


def test_a_build_of_views_killed_and_finished_has_the_same_bytes(build_views, monkeypatch):
    import antigram.cache.teacher_pass

    whole = bytes_of(build_views("whole").path)
    real, calls = antigram.cache.teacher_pass._write_all, []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(antigram.cache.teacher_pass, "_write_all", fail)
    with pytest.raises(KeyboardInterrupt):
        build_views("again")
    monkeypatch.setattr(antigram.cache.teacher_pass, "_write_all", real)
    again = build_views("again")
    assert bytes_of(again.path) == whole
    assert 0 < again.computed < 15


def test_verify_and_recompute_know_views(build_views, store, teacher):
    built = build_views()
    assert not list(verify_cache(built.path, [store.path]))
    assert not list(recompute(built.path, store, teacher, 15, CPU))
    file = built.path / "layer05" / "views" / "c" / "0" / "0" / "0"
    raw = bytearray(file.read_bytes())
    raw[5] ^= 1
    file.write_bytes(raw)
    assert any("layer05/views" in str(p.path) for p in verify_cache(built.path, [store.path]))


def test_another_number_of_views_is_another_cache(build_views):
    one, two = build_views(count=2), build_views(count=2)
    assert (one.computed, two.computed) == (15, 0)
    assert build_views(count=3).computed == 15
    prints = {build_views(str(n), count=n).layers[5].fingerprint for n in (1, 2, 3)}
    assert len(prints) == 3


def test_the_size_told_before_is_that_on_disk(build_views, store, teacher, views):
    spec = TapSpec(arch=VGG16, layers=(5,))
    plans = plan_layers(store, teacher, spec, views=views)
    told = estimate(plans, store, teacher, batch_clips=4, device=CPU)["layers"]["5"]
    layer = build_views(layers=(5,)).layers[5]
    described = layer.describe()
    assert told["bytes_per_clip"] == described["bytes_per_clip"]
    on_disk = sum(
        array.spec.row_bytes for array in (layer.values, *map(layer.array, ("norm", "row_norm")))
    )
    assert described["bytes_per_clip"] == on_disk + layer.array("views").spec.row_bytes
    assert described["views"] == K


def test_sources_with_other_views_do_not_go_together(build_views, store):
    one = GramCache(build_views("one").path, store)
    two = GramCache(build_views("two", count=2).path, store)
    with pytest.raises(InputError, match="hold other views"):
        Sources({"one": one, "two": two})


def test_layers_of_one_cache_hold_the_same_views(build_views, store, teacher, tmp_path):
    path = build_views("mixed", layers=(5,)).path
    plans = plan_layers(store, teacher, TapSpec(arch=VGG16, layers=(1,)))
    build_cache(store, teacher, plans, path, made_from={}, device=CPU)
    with pytest.raises(StaleError, match="views"):
        GramCache(path, store)
    assert GramCache(path, store, [5]).views is not None


def test_an_exported_cache_gives_the_same_views(build_views, store, tmp_path):
    path = build_views().path
    export_file(path, tmp_path / "one.h5")
    clips = np.array([4, 0, 13])
    here, there = GramCache(path, store), GramCache(tmp_path / "one.h5", store)
    for epoch in (1, 2):
        np.testing.assert_array_equal(here.params(clips, epoch), there.params(clips, epoch))
        for layer in LAYERS:
            one, two = here.read(clips, epoch)[layer], there.read(clips, epoch)[layer]
            assert torch.equal(one.data, two.data)
            assert torch.equal(one.norm, two.norm)


@pytest.mark.parametrize("count", [0, -1, 129])
def test_a_number_of_views_that_no_cache_has_is_refused(count, store, teacher):
    with pytest.raises(InputError, match="views"):
        plan_layers(
            store,
            teacher,
            TapSpec(arch=VGG16, layers=(5,)),
            views=Views.for_shape(store.shape, count=count, seed=0),
        )


class TestAsked:
    @pytest.fixture
    def job(self, store, tmp_path):
        def run(mode, **asked):
            asked = {"data": str(store.path), **asked}
            options = Options(mode=mode, **asked)
            return resolve(Workspace(tmp_path), options, {"seed": 4}, CPU, lambda _: None)

        return run

    def test_a_cache_with_views_is_trained_on_with_them(self, build_views, job, views):
        build_views("with")
        assert job("cached", caches=("with",)).config.views == views
        assert job("cached", caches=("with",), augment=True).config.views == views
        assert json.dumps(job("cached", caches=("with",)).config.to_json())

    def test_augmenting_with_a_cache_without_views_is_refused(self, build, job):
        build("without")
        with pytest.raises(InputError, match=r"`augment`: the cache without .*`views=K`"):
            job("cached", caches=("without",), augment=True)
        assert job("cached", caches=("without",)).config.views is None

    def test_the_cache_decides_how_many(self, build_views, job):
        build_views("with")
        with pytest.raises(InputError, match="`views`: the cache decides"):
            job("cached", caches=("with",), views=2)

    def test_other_modes_draw(self, job, store):
        assert job("baseline").config.views is None
        endless = job("baseline", augment=True).config.views
        assert endless == Views.for_shape(store.shape, count=0, seed=4)
        assert job("baseline", augment=True, views=2).config.views.count == 2
        with pytest.raises(InputError, match="goes with `augment`"):
            job("baseline", views=2)
