"""The memory that `antigram plan` predicts, compared with that of the trainer's step."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.loss.codecs import pack, unpack
from antigram.model.loss.sources import LiveGrams, Sources, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batch
from antigram.model.training.config import TrainConfig
from antigram.model.training.released import ReleasedStep
from antigram.model.training.step import Step, Sums
from antigram.studies.plan import ARMS, bare_net, budget, step_cost
from tests.support.nets import CPU

ARCH = Arch("vgg16", 4)
BATCH = 6
LAYERS = (1, 5, 13)
FIELDS = {"memory", "memory_over_baseline", "flops", "flops_over_baseline"}


@pytest.fixture(scope="module")
def plans(store):
    spec = TapSpec(arch=ARCH, layers=LAYERS)
    return plan_layers(store, bare_net(ARCH), spec)


@pytest.fixture(scope="module")
def real_cache(store, plans, tmp_path_factory):
    """Build a cache of the planned layers."""
    target = tmp_path_factory.mktemp("budget") / "grams.zarr"
    build_cache(store, bare_net(ARCH), plans, target, made_from={}, device=CPU)
    return target


def step_of(arm, layer, store, real_cache, nets):
    """Build the step that the trainer calls, with its networks."""
    spec = TapSpec(arch=ARCH, layers=(layer,))
    net = Vgg(ARCH, 3).to(memory_format=torch.channels_last)
    if arm == "released":
        teacher = Vgg(ARCH, 0).to(memory_format=torch.channels_last)
        return net, None, ReleasedStep(net, teacher, layer)
    sources = None
    if arm == "online":
        live = {str(n): LiveGrams(Vgg(ARCH, 0), spec) for n in range(nets)}
        sources = Sources(live)
    elif arm == "cached":
        sources = Sources({str(n): GramCache(real_cache, store, [layer]) for n in range(nets)})
    layers = () if arm == "baseline" else (layer,)
    config = TrainConfig(mode=arm, task="label", arch=ARCH, layers=layers)
    return net, sources, Step(net, sources, config, CPU)


def batch_of(sources, shape):
    clips = np.arange(BATCH)
    read = sources.read(clips) if sources else {}
    x = torch.randn(BATCH, 1, *shape)
    rows = sources.batch_rows(read, x) if sources and sources.stored else None
    return Batch(clips, x, torch.zeros(BATCH, dtype=torch.int64), read, rows=rows)


def run(step, sources, shape):
    batch, _next = batch_of(sources, shape), batch_of(sources, shape)
    step(batch, Sums(sources.names if sources else (), CPU)).backward()


def most_allocated(prof, path):
    """Return the peak of the bytes that are allocated under torch's profiler."""
    prof.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    events = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    return max(np.cumsum([size for _, size in events]))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(("arm", "nets"), [*((arm, 1) for arm in ARMS), ("cached", 3)])
def test_flops_and_memory_are_those_of_the_real_step(
    arm, nets, layer, store, plans, real_cache, tmp_path
):
    said = step_cost(
        arm, ARCH, {layer: plans[layer]}, store.shape, classes=3, batch_clips=BATCH, nets=nets
    )
    _, sources, step = step_of(arm, layer, store, real_cache, nets)
    run(step, sources, store.shape)  # builds tables that are kept
    with FlopCounterMode(display=False) as counter:
        run(step, sources, store.shape)
    assert said.flops == counter.get_total_flops() > 0
    del sources, step
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        net, sources, step = step_of(arm, layer, store, real_cache, nets)
        run(step, sources, store.shape)
    adam = 2 * sum(p.nbytes for p in net.parameters())
    found = most_allocated(prof, tmp_path / "trace.json") + adam
    assert said.memory == pytest.approx(found, rel=0.02)


def test_a_cache_costs_a_batch_of_grams_and_a_live_net_costs_more(store, plans):
    found = budget(store, ARCH, plans, classes=3, batch_clips=BATCH)
    assert found["store"] == store.name
    assert set(found["layers"]) == {"1", "5", "13"}
    for layer in found["layers"].values():
        assert all(set(layer[arm]) == FIELDS for arm in ARMS[1:])
        assert 1 <= layer["cached"]["memory_over_baseline"] <= 1.02
        assert layer["online"]["memory"] > layer["cached"]["memory"]
        assert layer["released"]["flops"] > layer["online"]["flops"] > layer["cached"]["flops"]
        assert layer["released"]["memory"] > layer["online"]["memory"]
    deepest = found["layers"]["13"]["cache"]
    plan = plans[13]
    assert deepest["codec"] == plan.key.codec
    assert deepest["bytes"] == plan.bytes_per_clip * len(store)


def test_full_width_holds_the_flops_that_are_wanted(store):
    arch = Arch("vgg16", 64)
    plans = plan_layers(store, bare_net(arch), TapSpec(arch=arch, layers=(1, 5, 8, 13)))
    found = budget(store, arch, plans, classes=10)
    for layer in found["layers"].values():
        assert layer["cached"]["flops_over_baseline"] <= 1.02
        assert layer["cached"]["memory_over_baseline"] <= 1.02
        assert layer["online"]["flops_over_baseline"] <= 1.34


def test_equation_4_counts_the_frozen_net_and_maps_and_grams_of_both(store, plans):
    found = budget(store, ARCH, {5: plans[5]}, classes=3, batch_clips=2)
    # E: the convolutions of VGG16 at width 4. Layer 5: 16 channels, maps halved twice.
    widths = [1, 4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32]
    teacher = sum(9 * a * b + b for a, b in pairwise(widths))
    frames, freqs = store.shape
    maps = 2 * 16 * (frames // 4) * (freqs // 4)
    assert found["layers"]["5"]["paper_eq4_bytes"] == 4 * (teacher + 2 * (2 * 16 * 16 + maps))


def test_nothing_without_data_is_left_for_later_calls(store, plans):
    before = pack(torch.eye(7).expand(2, 7, 7))
    step_cost("cached", ARCH, {5: plans[5]}, store.shape, classes=3, batch_clips=BATCH)
    assert torch.equal(pack(torch.eye(7).expand(2, 7, 7)), before)
    assert torch.allclose(unpack(before, 7), torch.eye(7))


def test_bf16_takes_less_memory_than_float32(store, plans):
    cost = {
        precision: step_cost(
            "baseline", ARCH, plans, store.shape, classes=3, batch_clips=64, precision=precision
        )
        for precision in ("32", "bf16")
    }
    assert cost["bf16"].memory < 0.8 * cost["32"].memory
    assert cost["bf16"].flops == cost["32"].flops
