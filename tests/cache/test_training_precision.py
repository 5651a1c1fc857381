"""Precision and device of the teacher's rows in a training."""

import re
from functools import partial

import numpy as np
import pytest
import torch

from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.loss.sources import LiveGrams, Sources, TapSpec
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.released import ReleasedStep
from antigram.model.training.step import Step, Sums
from antigram.model.training.student import build_student
from antigram.pipeline.workspace import Workspace
from antigram.studies.job import resolve
from antigram.studies.options import Options
from tests.support.nets import CPU, LAYERS, VGG16


def config_of(mode, **changes):
    given = {"task": "label", "arch": VGG16, "layers": LAYERS, "batch_clips": 8, "dropout": 0.0}
    return TrainConfig(mode=mode, **{**given, **changes})


def loss_of(step, store, sources):
    (batch,) = Batches(store, "label", sources, 15, CPU).passes(np.arange(15))
    with torch.no_grad():
        return float(step(batch, Sums(getattr(step, "names", ()), CPU)))


def sources_in(precision, build, teacher, store, monkeypatch):
    """A live teacher, and a cache that was built with it in a precision."""
    monkeypatch.setattr(
        "tests.cache.conftest.plan_layers", partial(plan_layers, precision=precision)
    )
    cached = GramCache(build(precision, dtype="float32", batch_clips=15).path, store)
    return LiveGrams(teacher.net(), TapSpec(arch=VGG16, layers=LAYERS)), cached


def test_a_live_teacher_of_a_bf16_training_is_that_of_a_bf16_cache(
    build, teacher, store, monkeypatch
):
    monkeypatch.setattr("antigram.cache.plan._ROWS_PER_CHUNK", 15)
    live, cached = sources_in("bf16", build, teacher, store, monkeypatch)
    assert {layer.key.precision for layer in cached.layers.values()} == {"bf16"}
    found = []
    for mode, source in (("online", live), ("cached", cached)):
        config = config_of(mode, precision="bf16", beta=100.0)
        sources = Sources({"": source})
        step = Step(build_student(config, 3, None).eval(), sources, config, CPU)
        found.append(loss_of(step, store, sources))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_released_loss_and_the_released_step_have_one_precision(teacher, store):
    config = config_of("online", layers=(5,), loss="released", precision="bf16")
    net = build_student(config, 3, None).eval()
    sources = Sources({"": LiveGrams(teacher.net(), TapSpec(arch=VGG16, layers=(5,)))})
    one = loss_of(Step(net, sources, config, CPU), store, sources)
    two = loss_of(ReleasedStep(net, teacher.net().eval(), 5, "bf16"), store, None)
    assert one == pytest.approx(two, rel=1e-6)


def test_a_cache_read_for_a_cpu_touches_no_gpu_that_is_there(build, store, tmp_path, monkeypatch):
    path = build(dtype="float32").path
    want = GramCache(path, store).read(np.arange(15))[5].data
    touched = []
    # A torch without a GPU refuses to pin memory, so this also shows that no GPU is used.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: touched.append("GPU") or True)
    got = GramCache(path, store).read(np.arange(15))
    assert torch.equal(got[5].data, want)
    asked = Options(mode="cached", data=str(store.path), caches=(str(path),), width=VGG16.width)
    job = resolve(Workspace(tmp_path), asked, {"epochs": 1}, CPU, lambda _: None)
    (batch, *_) = Batches(store, "label", job.sources, 15, CPU).passes(np.arange(15))
    assert set(batch.rows.layers) == set(LAYERS)
    assert not touched


@pytest.mark.parametrize(
    ("aggregation", "similarity", "says"),
    [
        ("sum", "mse-sigmoid", r"has no gradient at layer\(s\) 13"),
        ("gram", "mse-sigmoid", r"has hardly any gradient at layer\(s\) 5, 13"),
        ("max", "mse-sigmoid", None),
        ("sum", "cos2", None),
    ],
)
def test_a_loss_without_a_gradient_is_warned_of_when_it_is_asked_for(
    aggregation, similarity, says, corpus, teacher, store, tmp_path
):
    asked = Options(
        mode="online",
        data=str(store.path),
        ckpts=(corpus.parent / "frozen.pt",),
        layers=("1", "5", "13"),
        aggregation=aggregation,
    )
    said = []
    resolve(Workspace(tmp_path), asked, {"similarity": similarity}, CPU, said.append)
    warnings = [line for line in said if "gradient" in line]
    assert len(warnings) == (says is not None)
    for line in warnings:
        assert re.search(says, line)
        assert f"`aggregation={aggregation}` `similarity=mse-sigmoid`" in line
