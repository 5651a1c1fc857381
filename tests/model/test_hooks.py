import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from antigram.model.loss.codecs import Stack, encode_rows
from antigram.model.loss.compare import compare
from antigram.model.nets.hooks import as_maps, check_names, modules_by_name, watch
from antigram.pipeline.errors import InputError


class Block(nn.Module):
    """Overwrites the output of `conv`, in one of three ways or not at all."""

    def __init__(self, after: str) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3), nn.Linear(3, 2)
        self.after = after

    def forward(self, x):
        maps = self.conv(x)
        if self.after == "relu":
            maps = nn.functional.relu(maps, inplace=True)
        elif self.after == "add":
            maps += 1
            maps = maps.relu()
        elif self.after == "view":
            maps.flatten(1).mul_(2)
        else:
            maps = maps.relu()
        return self.head(maps.mean((2, 3)))


class Plain(Block):
    """The same in operations that overwrite nothing."""

    def forward(self, x):
        maps = self.conv(x)
        if self.after == "add":
            maps = (maps + 1).relu()
        elif self.after == "view":
            maps = maps * 2
        else:
            maps = maps.relu()
        return self.head(maps.mean((2, 3)))


def seeded(build, *args, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(*args)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gradients(net, x, names, rows=None):
    """Gradients of logits and AT loss, or of an AT loss with the maps' own rows reversed."""
    losses = []

    def on_tap(name, maps):
        own = encode_rows(maps.detach().flip(0), "gram", torch.float32)
        losses.append(compare(maps, [Stack.of([own])], [1.0], "gram")[0])

    net.zero_grad()
    with watch(net, names, on_tap):
        logits = net(x)
    (logits.square().mean() + sum(losses)).backward()
    return [p.grad.clone() for p in net.parameters()]


@pytest.mark.parametrize("after", ["relu", "add", "view", "nothing"])
def test_gradients_are_those_without_operations_in_place(after):
    net, plain = Block(after), Plain(after)
    plain.load_state_dict(net.state_dict())
    x = noise(4, 1, 9, 8)
    wanted = gradients(plain, x, ["conv"])
    for again in range(3):  # the first pass copies, later ones know
        for got, like in zip(gradients(net, x, ["conv"]), wanted, strict=True):
            np.testing.assert_allclose(got, like, atol=2e-7, err_msg=f"pass {again}")


@pytest.mark.parametrize("overwrites", [True, False])
def test_the_network_goes_on_with_a_copy_only_if_it_overwrites_maps(overwrites):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=overwrites))
    x, kept, used = noise(2, 1, 6, 6), [], []
    net[1].register_forward_pre_hook(lambda _, given: used.append(given[0].data_ptr()))
    wanted = net[0](x)
    for _ in range(2):
        with torch.no_grad(), watch(net, ["0"], lambda _, maps: kept.append(maps)):
            net(x)
    assert all(torch.equal(maps, wanted) for maps in kept)
    same = [maps.data_ptr() == other for maps, other in zip(kept, used, strict=True)]
    assert same == [False, not overwrites]


def test_a_resnet_that_adds_in_place_has_right_gradients():
    net = seeded(models.resnet18).double()
    x = noise(2, 3, 40, 40).double()
    losses = []

    def on_tap(name, maps):
        losses.append(maps.square().mean())

    def run(*, hooked):
        net.zero_grad()
        losses.clear()
        kept = []
        if hooked:
            with watch(net, ["layer1.0.bn2"], on_tap):
                out = net(x)
        else:
            keep = net.layer1[0].bn2.register_forward_hook(lambda _m, _x, y: kept.append(y * 1.0))
            out = net(x)
            keep.remove()
            on_tap("", kept[0])
        (out.mean() + losses[0]).backward()
        return [p.grad.clone() for p in net.parameters()]

    wanted = run(hooked=False)
    for _ in range(2):
        assert all(torch.allclose(a, b) for a, b in zip(run(hooked=True), wanted, strict=True))


def test_values_and_order_are_those_of_the_modules():
    net = seeded(models.resnet18).eval()
    x, found = noise(2, 3, 33, 47), []
    with torch.no_grad(), watch(net, ["layer2", "layer1.0", "bn1"], lambda *a: found.append(a)):
        logits = net(x)
    assert [name for name, _ in found] == ["bn1", "layer1.0", "layer2"]
    with torch.no_grad():
        stem = net.bn1(net.conv1(x))
        one = net.layer1[0](net.maxpool(stem.relu()))
        two = net.layer2(net.layer1[1](one))
        assert torch.equal(logits, net(x))
    for (_, got), wanted in zip(found, (stem, one, two), strict=True):
        assert torch.equal(got, wanted)


def test_hooks_end_with_the_block_and_on_errors():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True))
    before, calls = net.state_dict(), []
    with watch(net, ["0"], lambda name, _: calls.append(name)):
        assert list(net.state_dict()) == list(before)
        net(noise(1, 1, 5, 5))
    net(noise(1, 1, 5, 5))
    assert calls == ["0"]

    def fails(_name, _maps):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), watch(net, ["0", "1"], fails):
        net(noise(1, 1, 5, 5))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_unknown_names_list_close_ones():
    net = models.resnet18()
    with pytest.raises(InputError, match=r"'layer3.1.conv3': ResNet has no module.*layer3.1.conv2"):
        check_names(net, ["layer3.1.conv3"])
    with pytest.raises(InputError, match=r"`layers` 'downsample'.*layer2.0.downsample"):
        check_names(net, ["downsample"])
    with pytest.raises(InputError, match=r"`layers` ''.*it has conv1, bn1"):
        check_names(net, [""])
    assert check_names(net, ["bn1", "conv1", "bn1"]) == ("bn1", "conv1")


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 5, batch_first=True)
        self.late = nn.LSTM(8, 6)
        self.conv = nn.Sequential(nn.Conv1d(8, 7, 3), nn.BatchNorm1d(7), nn.ReLU())
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = x[:, 0]  # (batch, frame, freq)
        self.gru(tokens)
        self.late(tokens.transpose(0, 1))
        self.conv(tokens.transpose(1, 2))
        return self.head(self.encoder(tokens).mean(1))


def test_sequences_are_maps_of_one_column():
    net, found = Tokens().eval(), {}
    names = ["gru", "late", "conv", "conv.0", "encoder.layers.0", "encoder"]
    with torch.no_grad(), watch(net, names, found.__setitem__):
        net(x := noise(4, 1, 11, 8))
    with torch.no_grad():
        tokens = net.encoder(x[:, 0])
        gru = net.gru(x[:, 0])[0]
        late = net.late(x[:, 0].transpose(0, 1))[0]
    shapes = {name: tuple(maps.shape) for name, maps in found.items()}
    assert shapes == {
        "gru": (4, 5, 11, 1),
        "late": (4, 6, 11, 1),
        "conv": (4, 7, 9, 1),
        "conv.0": (4, 7, 9, 1),
        "encoder.layers.0": (4, 8, 11, 1),
        "encoder": (4, 8, 11, 1),
    }
    assert torch.allclose(found["encoder"][2, 3, :, 0], tokens[2, :, 3], atol=1e-6)
    assert torch.allclose(found["gru"][2, 3, :, 0], gru[2, :, 3])
    assert torch.allclose(found["late"][2, 3, :, 0], late[:, 2, 3])


def test_outputs_that_are_no_maps_are_refused():
    net = Tokens()
    with (
        pytest.raises(InputError, match=r"'head' \(Linear\): its output has the shape \(4, 3\)"),
        watch(net, ["head"], lambda *_: None),
    ):
        net(noise(4, 1, 11, 8))
    assert as_maps({"last": noise(2, 3, 4), "pooled": noise(2, 4)}, "x").shape == (2, 4, 3, 1)
    with pytest.raises(InputError, match="the type NoneType"):
        as_maps({}, "x")
    with pytest.raises(InputError, match=r"the type a tensor of torch\.int64"):
        as_maps(torch.zeros(1, 2, 3, 4, dtype=torch.int64), "x")
    packed = nn.utils.rnn.pack_sequence([noise(3, 4), noise(2, 4)])
    with pytest.raises(InputError, match="PackedSequence"):
        as_maps((packed, noise(1)), "rnn")


def test_a_module_that_runs_twice_or_not_at_all_is_refused():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.unused = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3)

        def forward(self, x):
            return self.conv(self.conv(x))

    net, x = Twice(), noise(1, 1, 5, 5)
    with (
        pytest.raises(InputError, match="'conv': this module runs more than once"),
        watch(net, ["conv"], lambda *_: None),
    ):
        net(x)
    with (
        pytest.raises(InputError, match="'unused': this module did not run"),
        watch(net, ["unused"], lambda *_: None),
    ):
        net(x)
    calls = []
    block = Block("relu")
    with watch(block, ["conv"], lambda name, _: calls.append(name)):
        block(x)
        block(x)  # a second forward pass is not a second run
    assert calls == ["conv", "conv"]


def test_wrappers_are_looked_through():
    net, x = Block("relu"), noise(2, 1, 5, 5)
    wrapped = nn.DataParallel(net)
    assert list(modules_by_name(wrapped)) == ["conv", "head"]
    compiled: Any = torch.compile(net, backend="eager")
    for outer in (wrapped, compiled):
        found = {}
        with watch(outer, ["conv"], found.__setitem__):
            outer(x)
        assert torch.equal(found["conv"], net.conv(x))
    wrapped.device_ids = [0, 1]
    with (
        pytest.raises(InputError, match="use DistributedDataParallel"),
        watch(wrapped, ["conv"], print),
    ):
        pass


@pytest.mark.parametrize("way", ["module", "method", "function"])
def test_compiled_networks_call_hooks_that_were_added_later(way):
    net, x, found = Block("relu"), noise(2, 1, 5, 5), []

    def call(values):
        return net(values)

    run: Any = net
    if way == "method":
        net.compile(backend="eager")
    else:
        run = torch.compile(net if way == "module" else call, backend="eager")
    before = run(x)  # compiles
    outer = run if way == "module" else net
    with watch(outer, ["conv"], lambda _n, maps: found.append(maps)):
        inside = run(x)
    assert len(found) == 1
    assert torch.allclose(inside, before)
    assert torch.allclose(found[0], nn.functional.conv2d(x, net.conv.weight, net.conv.bias))
    torch.compiler.reset()


def test_a_copied_network_learns_anew():
    net = Block("relu")
    x = noise(2, 1, 6, 6)
    gradients(net, x, ["conv"])
    other = copy.deepcopy(net)
    other.after = "add"
    gradients(other, x, ["conv"])
    gradients(other, x, ["conv"])
