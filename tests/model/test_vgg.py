import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.vgg import make_layers

from antigram.model.choices import TAPS
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.codecs import encode_rows
from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.nets import vgg
from antigram.model.nets.arch import Arch, archs_by_layers
from antigram.model.nets.networks import extractor_digest, tap_shape
from antigram.model.nets.vgg import Vgg
from antigram.pipeline.errors import InputError

ROOT = Path(__file__).resolve().parents[2]

VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")

# Indices of the convolutions in torchvision's `features`, read off `print(models.vgg16())`.
CONVS = {
    "vgg11": [0, 3, 6, 8, 11, 13, 16, 18],
    "vgg13": [0, 2, 5, 7, 10, 12, 15, 17, 20, 22],
    "vgg16": [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28],
    "vgg19": [0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34],
}


def net_of(arch, classes=0, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = Vgg(arch, classes)
        for name, tensor in net.state_dict().items():
            if name.endswith("bias"):
                tensor.uniform_(-0.1, 0.1)
    return net


def plain_maps(net, x, layer, tap):
    """Run the network module by module, with ReLUs that are not in place."""
    end = CONVS[net.arch.name][layer - 1] + {"released": 0, "conv": 1, "relu": 2}[tap]
    for module in net.features[:end]:
        x = x.relu() if isinstance(module, nn.ReLU) else module(x)
    return x


def test_width_64_is_torchvisions_vgg16_with_one_input_channel():
    with torch.device("meta"):
        theirs, ours = models.vgg16(num_classes=4), Vgg(Arch("vgg16"), 4)
        theirs.features[0] = nn.Conv2d(1, 64, kernel_size=3, padding=1)
    wanted = {name: tuple(t.shape) for name, t in theirs.state_dict().items()}
    assert {name: tuple(t.shape) for name, t in ours.state_dict().items()} == wanted
    drawn = torch.Generator().manual_seed(0)
    some = torch.randn(9973, generator=drawn) / 20  # drawing 134 million weights takes seconds
    state = {}
    for name, shape in wanted.items():
        count = math.prod(shape)
        state[name] = some.repeat(count // len(some) + 1)[:count].view(shape)
    x = torch.randn(2, 1, 40, 33, generator=drawn)
    logits = []
    for net in (theirs, ours):
        net.load_state_dict(state, assign=True)
        with torch.no_grad():
            logits.append(net.eval()(x))
    assert logits[0].std() > 0
    assert torch.equal(*logits)


@pytest.mark.parametrize("name", VGGS)
def test_narrow_nets_have_torchvisions_modules_with_fewer_channels(name):
    with torch.device("meta"):
        theirs, ours = getattr(models, name)(num_classes=3), Vgg(Arch(name, 8), 3)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [type(m) for m in ours.features] == [type(m) for m in theirs.features]
    convs = [m for m in ours.features if isinstance(m, nn.Conv2d)]
    full = [m for m in theirs.features if isinstance(m, nn.Conv2d)]
    assert [m.out_channels * 8 for m in convs] == [m.out_channels for m in full]
    assert [m.in_channels for m in convs] == [1, *(m.out_channels for m in convs[:-1])]
    assert [m.out_features for m in ours.classifier if isinstance(m, nn.Linear)] == [512, 512, 3]


@pytest.mark.parametrize("name", VGGS)
def test_a_seed_gives_the_weights_that_torchvisions_layers_gave(name, monkeypatch):
    def theirs(arch):
        features = make_layers(arch.blocks)
        features[0] = nn.Conv2d(1, features[0].out_channels, kernel_size=3, padding=1)
        return features

    arch, nets = Arch(name, 2), []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            nets.append(Vgg(arch, 4))
        monkeypatch.setattr(vgg, "_features", theirs)
    ours, wanted = (net.state_dict() for net in nets)
    assert list(ours) == list(wanted)
    assert all(torch.equal(ours[key], wanted[key]) for key in wanted)
    x = torch.randn(2, 1, 40, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(*(net.eval()(x) for net in nets))


def test_the_commands_do_without_torchvision_whose_import_takes_a_second():
    rooms = "antigram.model.training.train, antigram.model.training.predict, antigram.cache.build"
    code = f"import sys, {rooms}; print('torchvision' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", VGGS)
def test_layer_numbers_hit_torchvisions_convolutions(name):
    net = Vgg(Arch(name, 1), 0)
    assert net.conv_indices == CONVS[name]
    assert net.arch.layers == len(CONVS[name])
    assert archs_by_layers()[len(CONVS[name])] == name


@pytest.mark.parametrize("tap", TAPS)
@pytest.mark.parametrize("name", VGGS)
def test_taps_give_the_maps_of_every_layer(name, tap):
    net, x = net_of(Arch(name, 1)), torch.randn(2, 1, 33, 40)
    net.set_tap(tap)
    layers = range(1, net.arch.layers + 1)
    found = {}
    with torch.no_grad():
        end = net.run_features(x, layers, tap, lambda n, maps: found.setdefault(n, maps.clone()))
        for layer in layers:
            want = plain_maps(net, x, layer, tap)
            assert torch.equal(found[layer], want), layer
            if layer in (1, 5):
                shape = want.shape[1], want[0, 0].numel()
                assert tap_shape(net.arch, layer, tap, (33, 40)) == shape
        assert torch.equal(end, net.features(x))


def test_the_released_tap_of_layer_1_is_the_input():
    net, x, found = net_of(Arch("vgg16", 1)), torch.randn(1, 1, 32, 32), []
    net.run_features(x, [1], "released", lambda _, maps: found.append(maps), stop=True)
    assert torch.equal(found[0], x)


def test_stop_goes_no_further_than_the_deepest_tap():
    net, ran = net_of(Arch("vgg16", 1)), []
    for place, module in enumerate(net.features):
        module.register_forward_hook(lambda *_, place=place: ran.append(place))
    net.run_features(torch.randn(1, 1, 32, 32), [2, 3], "relu", lambda *_: None, stop=True)
    assert ran == list(range(CONVS["vgg16"][2] + 2))


@pytest.mark.parametrize("tap", TAPS)
def test_gradient_of_a_tap_is_right_although_relus_work_in_place(tap):
    net, x = net_of(Arch("vgg11", 2), classes=3).eval(), torch.randn(2, 1, 40, 33)
    rows = {}
    for layer in (2, 3):
        maps = plain_maps(net_of(net.arch, seed=1), x, layer, tap)
        rows[layer] = encode_rows(maps.detach(), "gram", torch.float32)

    def gradients(net, tapped):
        losses = []
        logits = net(x, (2, 3), tap, lambda n, m: losses.append(at_loss(m, rows[n], "gram").sum()))
        if not tapped:
            losses = [at_loss(plain_maps_of(net, x, n), rows[n], "gram").sum() for n in (2, 3)]
        net.zero_grad()
        (sum(losses) + logits.square().sum()).backward()
        return [p.grad.clone() for p in net.parameters()]

    def plain_maps_of(net, x, layer):
        end = CONVS["vgg11"][layer - 1] + {"released": 0, "conv": 1, "relu": 2}[tap]
        return net.features[:end](x)

    net.set_tap(tap)
    got = gradients(net, tapped=True)
    for module in net.features:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    for one, two in zip(got, gradients(net, tapped=False), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert got[0].abs().sum() > 0


@pytest.mark.parametrize("tap", TAPS)
def test_digest_covers_every_tensor_up_to_the_tap_and_none_behind(tap):
    arch, layer = Arch("vgg13", 1), 4
    net = net_of(arch, classes=2)
    state = net.state_dict()
    before = extractor_digest(state, net, layer, tap)
    last = CONVS["vgg13"][layer - 1] - (1 if tap == "released" else 0)
    changed = set()
    for name, tensor in state.items():
        other = {**state, name: tensor + 1e-3}
        if extractor_digest(other, net, layer, tap) != before:
            changed.add(name)
    inside = {f"features.{i}.{k}" for i in CONVS["vgg13"] if i <= last for k in ("weight", "bias")}
    assert changed == inside
    assert len(inside) == 2 * (3 if tap == "released" else 4)


def test_digest_depends_on_dtype_and_shape_but_not_on_the_memory_format():
    net = net_of(Arch("vgg11", 2))
    state = net.state_dict()
    before = extractor_digest(state, net, 2, "relu")
    shaped = state["features.3.weight"].reshape(2, 4, 3, 3)
    assert extractor_digest({**state, "features.3.weight": shaped}, net, 2, "relu") != before
    halves = {name: tensor.half() for name, tensor in state.items()}
    assert extractor_digest(halves, net, 2, "relu") != before
    last = copy.deepcopy(net).to(memory_format=torch.channels_last).state_dict()
    assert extractor_digest(last, net, 2, "relu") == before


@pytest.mark.parametrize("layer", [1, 4, 8])
def test_freezing_stops_the_layers_up_to_and_including_the_one_named(layer):
    net = net_of(Arch("vgg11", 1), classes=2)
    net.freeze_up_to(layer)
    teacher = {name for name, p in net.named_parameters() if not p.requires_grad}
    places = CONVS["vgg11"][:layer]
    assert teacher == {f"features.{i}.{kind}" for i in places for kind in ("weight", "bias")}


def test_a_frozen_net_runs_without_gradients_or_random_numbers_and_stays_as_it_is():
    arch = Arch("vgg11", 2)
    teacher, student = net_of(arch, seed=1), net_of(arch, classes=3)
    before = extractor_digest(teacher.state_dict(), teacher, 8, "relu")
    rng_before = torch.get_rng_state()
    grams = LiveGrams(teacher.train(), TapSpec(arch=arch, layers=(2, 8)))
    x = torch.ones(2, 1, 64, 64, requires_grad=True)
    rows = grams.rows(grams.read(np.arange(2)), x)
    assert torch.equal(torch.get_rng_state(), rng_before)
    assert not grams.net.training
    assert sorted(rows) == [2, 8]
    assert not any(row.data.requires_grad for row in rows.values())
    adam = torch.optim.Adam(student.parameters(), lr=0.1)
    losses = []
    student(x, (2, 8), on_tap=lambda n, maps: losses.append(at_loss(maps, rows[n], "gram").mean()))
    sum(losses).backward()
    adam.step()
    assert x.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in grams.net.parameters())
    assert extractor_digest(teacher.state_dict(), teacher, 8, "relu") == before


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: Arch("vgg12"), "arch is 'vgg12'; wanted: vgg11, vgg13, vgg16, vgg19"),
        (lambda: Arch("vgg16", 0), "`width` 0: wanted 1 to 1024"),
        (lambda: Arch("vgg11").check_layers([1, 9]), "`layers` 9: vgg11 has .* 1 to 8"),
        (lambda: Arch("vgg16").check_layers([0]), "`layers` 0: vgg16 has .* 1 to 13"),
        (lambda: Vgg(Arch("vgg11", 1), 0).set_tap("pool"), "tap is 'pool'; wanted: relu, conv"),  # type: ignore[arg-type]
    ],
)
def test_what_no_vgg_has_is_refused(made, message):
    with pytest.raises(InputError, match=message):
        made()


@pytest.mark.parametrize(("init", "wanted"), [("scaled", 0.02), ("torchvision", 0.01)])
def test_narrow_networks_have_scaled_linear_weights(init, wanted):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Vgg(Arch("vgg11", 16), 4, init=init)
    for index in (0, 3):
        assert net.classifier[index].weight.std().item() == pytest.approx(wanted, rel=0.01)
    assert [Arch(name, 64).scales_init for name in ("vgg16", "resnet18")] == [False, False]
    assert not Arch("resnet18", 8).scales_init


def test_logits_of_a_narrow_network_vary_as_much_as_those_of_the_real_one():
    """The variance of a layer's output is the number of inputs times that of the weights."""
    for width in (2, 8, 32):
        arch = Arch("vgg16", width)
        narrow = arch.scaled(4096) * (0.01 * math.sqrt(64 / width)) ** 2
        assert narrow == pytest.approx(4096 * 0.01**2)


def test_layers_come_sorted_and_once():
    assert Arch("vgg16").check_layers([5, 1, 5]) == (1, 5)


def test_a_network_without_weights_is_built_without_loading_torchs_compiler():
    script = (
        "import sys, torch\n"
        "from antigram.model.nets.arch import Arch\n"
        "from antigram.model.nets.networks import empty_net\n"
        "for name in ('vgg16', 'vgg11_bn', 'crnn', 'ast'):\n"
        "    net = empty_net(Arch(name), 3, (129, 126))\n"
        "    assert all(tensor.is_meta for tensor in net.parameters()), name\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True
    )
    assert run.stdout == "False\n", run.stderr
