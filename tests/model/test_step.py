"""Loss and sums of a step equal those of each source alone, for any number of sources."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from antigram.model.choices import Aggregation
from antigram.model.loss.at_loss import at_loss, at_losses
from antigram.model.loss.codecs import Stack, encode_rows
from antigram.model.loss.gram import aggregate
from antigram.model.loss.sources import Sources, TapSpec
from antigram.model.loss.student_maps import StudentMaps
from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batch
from antigram.model.training.config import TrainConfig
from antigram.model.training.step import Step, Sums
from benchmarks.operations import operations_of
from tests.support.nets import CPU

ARCH = Arch("vgg16", 4)
SHAPE = (48, 33)
CLIPS = 5
# Codec and dtype of the rows, by source and layer.
FORMS = {
    "one": {"a": {3: ("packed", torch.float16)}},
    "alike": {name: {5: ("packed", torch.float16)} for name in "abc"},
    "side by side": {name: {11: ("factor", torch.float16)} for name in "abc"},
    "low rank, many positions": {name: {2: ("lowrank", torch.float16)} for name in "ab"},
    "low rank, few positions": {name: {13: ("lowrank", torch.float32)} for name in "ab"},
    "mixed": {
        "a": {5: ("packed", torch.float16), 11: ("factor", torch.float32)},
        "b": {5: ("lowrank", torch.float16)},
        "c": {11: ("factor", torch.float32), 13: ("packed", torch.float16)},
        "d": {5: ("packed", torch.float32)},
    },
}


class Given:
    """A `GramSource` of given rows."""

    views = None
    stored_bytes = 1

    def __init__(self, rows):
        self.given = rows
        self.spec = TapSpec(arch=ARCH, layers=tuple(sorted(rows)))

    def rows(self, read, x):
        return self.given


@pytest.fixture
def batch(rng):
    x = torch.from_numpy(rng.standard_normal((CLIPS, 1, *SHAPE)).astype(np.float32))
    return Batch(np.arange(CLIPS), x, torch.tensor([0, 2, 1, 1, 0]), dict.fromkeys("abcd"))


@pytest.fixture(params=FORMS.values(), ids=FORMS)
def sources(request, batch):
    found = {}
    for seed, (name, layers) in enumerate(request.param.items()):
        torch.manual_seed(seed)
        teacher, rows = Vgg(ARCH, 0), {}

        def on_tap(layer, maps, layers=layers, rows=rows):
            codec, dtype = layers[layer]
            rows[layer] = encode_rows(maps, "gram", dtype, codec, rank=2)

        with torch.no_grad():
            teacher.run_features(batch.x, layers, "relu", on_tap)
        found[name] = Given(rows)
    return Sources(found)  # type: ignore[arg-type]


def made_step(sources, similarity="cos2", precision="32"):
    torch.manual_seed(9)
    config = TrainConfig(
        mode="cached",
        task="word",
        arch=ARCH,
        layers=sources.layers,
        beta=0.5,
        betas=(("a", -2.0), ("c", 3.0)),
        similarity=similarity,
        precision=precision,
        dropout=0.0,
    )
    net = Vgg(ARCH, 3, dropout=0.0)
    return net, Step(net, sources, config, CPU)


def one_by_one(net, sources, batch, similarity):
    """Return the cross-entropy and each source's AT loss, with `StudentMaps` of their own."""
    at = {name: torch.zeros(()) for name in sources.names}

    def on_tap(layer, maps):
        for name, source in sources.members.items():
            if layer in source.given:
                rows = source.given[layer]
                at[name] = at[name] + at_loss(maps, rows, "gram", similarity).mean()

    logits = net(batch.x, sources.layers, "relu", on_tap)
    return functional.cross_entropy(logits, batch.y), at


@pytest.mark.parametrize("similarity", ["cos2", "mse-sigmoid"])
@pytest.mark.parametrize("ahead", [False, True], ids=["", "stacked by the loader"])
def test_sources_together_are_the_sources_one_by_one(sources, batch, ahead, similarity):
    net, step = made_step(sources, similarity)
    if ahead:
        rows = sources.batch_rows(batch.read, batch.x)
        batch = Batch(batch.clips, batch.x, batch.y, {}, rows=rows)
    sums = Sums(sources.names, CPU)
    loss = step(batch, sums)
    loss.backward()
    got = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()

    ce, at = one_by_one(net, sources, batch, similarity)
    beta = {"a": -2.0, "b": 0.5, "c": 3.0, "d": 0.5}
    want = ce + sum(beta[name] * value for name, value in at.items())
    want.backward()
    assert loss.item() == pytest.approx(want.item(), abs=1e-5)
    for one, parameter in zip(got, net.parameters(), strict=True):
        apart = (one - parameter.grad).norm()
        assert apart <= 1e-4 * parameter.grad.norm() + 1e-7
    means = sums.values / CLIPS
    np.testing.assert_allclose(means[0], ce.item(), rtol=1e-6)
    np.testing.assert_allclose(means[2:], [at[n].item() for n in sources.names], atol=1e-5)


def test_a_step_takes_the_rows_of_its_batch_which_serves_one_step(sources, batch):
    _, step = made_step(sources)
    rows = sources.batch_rows(batch.read, batch.x)
    assert set(rows.layers) == set(sources.layers)
    ready = Batch(batch.clips, batch.x, batch.y, {}, rows=rows)
    step(ready, Sums(sources.names, CPU))
    assert not rows.layers
    assert not list(rows.tensors())
    with pytest.raises(LookupError, match="serve one step"):
        step(ready, Sums(sources.names, CPU))


@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_a_batch_compared_in_parts_is_the_batch(sources, batch, last, precision, monkeypatch):
    net, step = made_step(sources, precision=precision)
    if last:
        net.to(memory_format=torch.channels_last)
    found = []
    for floats in (10**9, 9000, 1):
        monkeypatch.setattr("antigram.model.loss.compare._MOST_FLOATS", floats)
        sums = Sums(sources.names, CPU)
        net.zero_grad()
        loss = step(batch, sums)
        loss.backward()
        found.append((loss.detach(), sums.values, [p.grad.clone() for p in net.parameters()]))
    # Gradients of bf16 maps have 8 bits, so that small differences of sums may change a bit.
    share = 1e-5 if precision == "32" else 1e-2
    for loss, values, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        torch.testing.assert_close(values, found[0][1], rtol=1e-5, atol=1e-5)
        for got, want in zip(gradients, found[0][2], strict=True):
            assert (got - want).norm() <= share * want.norm() + 1e-9


@pytest.mark.parametrize("codec", ["packed", "factor", "lowrank", "map"])
def test_a_net_in_a_stack_has_the_loss_it_has_alone(codec, rng):
    maps, *teacher = torch.from_numpy(rng.uniform(0, 1, (4, 3, 20, 3, 4)).astype(np.float32))
    aggregation: Aggregation = "mean" if codec == "map" else "gram"
    rows = [encode_rows(f, aggregation, torch.float16, codec, rank=3) for f in teacher]
    for similarity in ("cos2", "mse-sigmoid"):
        own = StudentMaps(maps if aggregation == "gram" else aggregate(maps, aggregation))
        got = at_losses(own, Stack.of(rows), similarity)
        assert got.shape == (3, 3)
        for net, each in enumerate(rows):
            want = at_loss(maps, each, aggregation, similarity)
            np.testing.assert_allclose(got[:, net], want, rtol=0, atol=2e-6)


def test_a_stack_keeps_the_nets_apart(rng):
    teacher = torch.from_numpy(rng.uniform(0, 1, (2, 3, 6, 2, 2)).astype(np.float32))
    for codec in ("packed", "factor", "lowrank"):
        rows = [encode_rows(f, "gram", torch.float32, codec, rank=4) for f in teacher]
        stack = Stack.of(rows)
        assert stack.teachers == 2
        matrices = torch.empty(2, 3, 36)
        stack.write_matrices(matrices, 6)
        for net, each in enumerate(rows):
            np.testing.assert_allclose(stack.norm[net], each.norm)
            np.testing.assert_allclose(stack.row_norm[net], each.row_norm)
            np.testing.assert_allclose(stack.inverse[net], each.row_norm**-2, rtol=4e-7)
            packed = encode_rows(teacher[net], "gram", torch.float32, "packed").data
            np.testing.assert_allclose(stack.packed()[net], packed, rtol=0, atol=1e-6)
            want = each.matrices(6)
            np.testing.assert_allclose(matrices[net].view(3, 6, 6), want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("teachers", [1, 4])
@pytest.mark.parametrize(("layer", "codec"), [(5, "packed"), (11, "factor"), (2, "lowrank")])
def test_teachers_add_at_most_15_operations_to_a_step_however_many_they_are(
    layer, codec, teachers, batch
):
    found = {}
    for number in range(teachers):
        torch.manual_seed(number)
        rows = {}

        def on_tap(layer, maps, rows=rows):
            rows[layer] = encode_rows(maps, "gram", torch.float16, codec, rank=2)

        with torch.no_grad():
            Vgg(ARCH, 0).run_features(batch.x, [layer], "relu", on_tap)
        found["abcd"[number]] = Given(rows)
    sources = Sources(found)  # type: ignore[arg-type]
    baseline = TrainConfig(mode="baseline", task="word", arch=ARCH)
    cached = replace(baseline, mode="cached", layers=(layer,))

    def operations(config, sources):
        net = Vgg(ARCH, 3).to(memory_format=torch.channels_last)
        step = Step(net, sources, config, CPU)
        for _ in range(2):  # the first step makes tables that are kept
            rows = sources.batch_rows(batch.read, batch.x) if sources else None
            ready, sums = replace(batch, rows=rows), Sums(step.names, CPU)
            count = operations_of(lambda: step(ready, sums).backward())  # noqa: B023
        return count

    without = operations(baseline, None)
    assert without > 100
    assert operations(cached, sources) - without <= 15
