"""The networks that antigram knows: taps, digests, and equal numbers of cached and online AT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from antigram.cache.build import build_cache
from antigram.cache.grams import GramCache
from antigram.cache.plan import plan_layers
from antigram.model.choices import ARCHS, Dtype
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.shapes import check_shapes
from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import build_net, extractor_digest, layer_shapes, main_layers
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import open_teacher, save_tensors
from antigram.model.training.config import TrainConfig
from antigram.model.training.student import build_student
from antigram.pipeline.errors import InputError
from tests.support.checkpoints import checkpoint_of
from tests.support.nets import CPU

TAPS: dict[str, tuple[Any, ...]] = {
    "resnet18": ("bn1", "layer2.0.bn2", "layer4.1"),
    "resnet34": ("layer3.1.conv2", "layer4"),
    "resnet50": ("layer1.0", "layer3.5.conv3"),
    "convnext_tiny": ("features.1.0", "features.4.1"),
    "efficientnet_b0": ("features.2.1", "features.8.1"),
    "cnn14": ("conv_block1.conv1", "conv_block3", "conv_block6"),
    "crnn": ("convs.0", "convs.2.norm", "gru"),
    "ast": ("patches", "blocks.2", "norm"),
}
OTHERS = tuple(TAPS)
TAPS |= {name: (2, "features.3") for name in ARCHS if name.startswith("vgg")}


def narrow(name):
    return Arch(name, 4 if name in OTHERS else 2)


@pytest.fixture(scope="module")
def teachers(store, tmp_path_factory):
    made = {}

    def run(name):
        if name not in made:
            path = tmp_path_factory.mktemp("nets") / f"{name}.pt"
            save_tensors(path, checkpoint_of(narrow(name), store).to_plain())
            made[name] = open_teacher(path)
        return made[name]

    return run


def first_step(source, store, arch, layers, aggregation):
    """Return loss and gradient of the first step of a student."""
    config = TrainConfig(
        mode="online", task="label", arch=arch, layers=layers, aggregation=aggregation
    )
    net = build_student(config, 3, None, store.shape).train()
    (batch,) = Batches(store, "label", source, 5, CPU).passes(np.array([3, 11, 7, 0, 14]))
    rows = source.rows(batch.read, batch.x)
    losses = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        logits = net(
            batch.x,
            layers,
            "relu",
            lambda n, maps: losses.append(at_loss(maps, rows[n], aggregation).mean()),
        )
    loss = functional.cross_entropy(logits, batch.y) + sum(losses)
    loss.backward()
    slopes = [torch.zeros_like(p) if p.grad is None else p.grad for p in net.parameters()]
    return loss.detach(), torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize("aggregation", ["gram", "pairwise"])
@pytest.mark.parametrize("name", ARCHS)
def test_cached_is_online(name, aggregation, teachers, store, tmp_path):
    teacher = teachers(name)
    spec = TapSpec(arch=teacher.arch, layers=TAPS[name], aggregation=aggregation)
    wanted = first_step(
        LiveGrams(teacher.net(), spec), store, teacher.arch, spec.layers, aggregation
    )
    allowed_of: dict[Dtype, float] = {"float32": 1e-5, "float16": 1e-3}
    for dtype, allowed in allowed_of.items():
        plans = plan_layers(store, teacher, spec, dtype=dtype)
        path = tmp_path / f"{dtype}.zarr"
        build_cache(store, teacher, plans, path, made_from={}, batch_clips=4, device=CPU)
        cache = GramCache(path, store)
        assert set(cache.spec.layers) == set(spec.layers)
        got = first_step(cache, store, teacher.arch, spec.layers, aggregation)
        assert float((got[0] - wanted[0]).abs()) <= allowed
        assert float((got[1] - wanted[1]).norm() / wanted[1].norm()) <= allowed


@pytest.mark.parametrize("name", ARCHS)
def test_a_digest_is_that_of_the_tensors_that_maps_depend_on(name, teachers, store):
    teacher = teachers(name)
    layer = TAPS[name][0]
    empty, state = teacher.empty(), dict(teacher.state)
    before = extractor_digest(state, empty, layer, "relu")
    x = torch.randn(1, 1, *store.shape, generator=torch.Generator().manual_seed(0))

    def maps_of(state):
        net = build_net(teacher.arch, teacher.classes, store.shape)
        net.load_state_dict(state)
        found = []
        with torch.no_grad():
            net.eval().run_features(
                x, [layer], "relu", lambda _, maps: found.append(maps.clone()), stop=True
            )
        return found[0]

    drawn = torch.Generator().manual_seed(1)
    maps, changed = maps_of(state), 0
    for key in list(state)[:40]:
        noise = torch.rand(state[key].shape, generator=drawn)
        other = {**state, key: (state[key] * 1.5 + noise).to(state[key].dtype)}
        differs = not torch.equal(maps_of(other), maps)
        assert (extractor_digest(other, empty, layer, "relu") != before) == differs, key
        changed += differs
    assert changed


@pytest.mark.parametrize("name", OTHERS)
def test_listed_layers_have_the_sizes_of_their_maps(name, store):
    arch = narrow(name)
    listed = {each.layer: each for each in layer_shapes(arch, store.shape)}
    assert set(main_layers(arch, store.shape)) <= set(listed)
    net = build_net(arch, 3, store.shape).eval()
    some = list(listed)[:: max(1, len(listed) // 12)]
    found = {}
    with torch.no_grad():
        net(torch.randn(2, 1, *store.shape), some, "relu", lambda n, m: found.update({n: m.shape}))
    for layer in some:
        each = listed[layer]
        assert found[layer] == (2, each.channels, *each.size)


@pytest.mark.parametrize("name", OTHERS)
def test_dropout_is_used(name, store):
    net = build_net(narrow(name), 3, store.shape, dropout=0.9)
    head = [m for m in net.modules() if isinstance(m, torch.nn.Linear)][-1]
    seen = []
    features = torch.ones(8, head.in_features)
    head.train()
    seen = [head(features) for _ in range(2)]
    if name == "efficientnet_b0":  # torchvision's own module
        assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.9 for m in net.modules())
    else:
        assert not torch.equal(*seen)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "convnext_tiny", "efficientnet_b0"])
def test_the_full_width_is_torchvisions(name):
    from torchvision import models

    with torch.device("meta"):
        theirs = getattr(models, name)(num_classes=7).state_dict()
        ours = build_net(Arch(name), 7).state_dict()
    assert list(theirs) == list(ours)
    other = [key for key in theirs if theirs[key].shape != ours[key].shape]
    assert len(other) == 1  # of the one input channel
    assert ours[other[0]].shape[1] == 1


def test_a_resnet_is_compared_with_a_vgg_pairwise(store):
    spec = TapSpec(arch=Arch("vgg16", 2), layers=(10,), aggregation="pairwise")
    check_shapes(Arch("resnet18", 4), spec, store.shape, {10: "layer2"})
    with pytest.raises(InputError, match=r"ResNet has no module of this name"):
        check_shapes(Arch("resnet18", 4), spec, store.shape)
    with pytest.raises(InputError, match=r"layer layer4: .* fewer than the teacher's grid"):
        check_shapes(Arch("resnet18", 4), spec, store.shape, {10: "layer4"})
    gram = TapSpec(arch=Arch("vgg16", 4), layers=(4,))
    check_shapes(Arch("resnet18", 4), gram, store.shape, {4: "layer2"})
    with pytest.raises(InputError, match=r"has 16 channels .* at 4 8 x "):
        check_shapes(Arch("resnet18", 4), gram, store.shape, {4: "layer3"})


@pytest.mark.parametrize("tap", ["conv", "released"])
def test_a_named_layer_has_no_other_tap(tap):
    with pytest.raises(InputError, match=rf"`tap={tap}`: is for the numbered layers"):
        TapSpec(arch=Arch("resnet18"), layers=("layer1",), tap=tap)


def test_a_frozen_part_keeps_its_statistics(store):
    config = TrainConfig(
        mode="frozen", task="label", arch=Arch("resnet18", 4), layers=("layer1.1",)
    )
    net = build_student(config, 3, None, store.shape).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    adam = torch.optim.Adam([p for p in net.parameters() if p.requires_grad])
    net(torch.randn(4, 1, *store.shape)).square().sum().backward()
    adam.step()
    changed = {name for name, tensor in net.state_dict().items() if not tensor.equal(before[name])}
    stem = ("conv1", "bn1", "layer1")
    assert not any(name.startswith(stem) for name in changed)
    assert {"layer2.0.bn1.running_mean", "layer2.0.conv1.weight", "fc.weight"} <= changed
