"""`AntiTransferLoss` in a loop of one's own: the numbers of the trainer, and what loops do."""

import copy
import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from antigram.cache.grams import GramCache
from antigram.model.loss.anti_transfer import AntiTransferLoss
from antigram.model.loss.sources import Sources
from antigram.model.nets.vgg import Vgg
from antigram.model.training.batches import Batches
from antigram.model.training.config import TrainConfig
from antigram.model.training.step import Step, Sums
from antigram.pipeline.errors import InputError
from tests.support.nets import CPU, VGG16

ROWS = np.array([7, 0, 14, 3, 11])
MODULES = {"features.1": 1, "features.11": 5, "features.29": 13}  # ReLUs behind the convolutions


def student(seed=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Vgg(VGG16, 3).eval()  # without dropout, so that two passes are alike


@pytest.fixture
def batch(store):
    x = torch.from_numpy(store.features.take(ROWS))[:, None]
    return x, torch.from_numpy(store.labels("label")[ROWS]).long(), ids_of(store)


def ids_of(store):
    return [store.clip_ids[row] for row in ROWS]


def gradients(net):
    return torch.cat([p.grad.flatten() for p in net.parameters()])


def by_trainer(sources, store, layers, **config):
    """Return loss, sums and gradient of a step of the trainer."""
    settings = TrainConfig(mode="cached", arch=VGG16, task="label", layers=layers, **config)
    net = student().train()
    net.classifier.eval()  # no dropout
    step, sums = Step(net, sources, settings, CPU), Sums(sources.names, CPU)
    (given,) = Batches(store, "label", sources, 5, CPU).passes(ROWS)
    loss = step(given, sums)
    loss.backward()
    return loss.detach(), sums, gradients(net)


def by_hand(at, batch, net=None):
    x, y, ids = batch
    net = net or student()
    with at.watch(net, ids):
        loss = functional.cross_entropy(net(x), y) + at.loss()
    loss.backward()
    return loss.detach(), gradients(net)


@pytest.mark.parametrize(
    ("aggregation", "similarity", "dtype"),
    [
        ("gram", None, "float16"),
        ("gram", None, "float32"),
        ("gram", "mse-sigmoid", "float32"),
        ("pairwise", None, "float16"),
        ("pairwise", "cos2", "float32"),
        ("max", None, "float32"),
    ],
)
def test_loss_and_gradient_are_those_of_the_trainer(
    aggregation, similarity, dtype, build, store, batch
):
    path = build(aggregation=aggregation, dtype=dtype).path
    sources = Sources({"grams": GramCache(path, store)})
    settings = {"aggregation": aggregation, "similarity": similarity, "beta": 0.7}
    if similarity is None:
        settings["similarity"] = "cka" if aggregation == "pairwise" else "cos2"
    want, sums, wanted = by_trainer(sources, store, sources.layers, **settings)
    at = AntiTransferLoss(GramCache(path), MODULES, beta=0.7, similarity=similarity)
    loss, gradient = by_hand(at, batch)
    assert abs(loss - want) <= 1e-6 * abs(want)
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    total = sum(of["grams"] for of in at.similarities.values())
    assert float(total) == pytest.approx(float(sums.values[2]) / len(ROWS), rel=1e-6)


@pytest.mark.parametrize("named", [False, True])
def test_several_teachers_have_their_own_betas(named, build, other_frozen, store, batch):
    one = GramCache(build("one", layers=(1, 5)).path)
    two = GramCache(build("two", layers=(5, 13), net=other_frozen).path)
    sources = Sources({"one": one.with_layers((1, 5)), "two": two})
    betas = {"one": 0.3, "two": -0.2}
    want, _, wanted = by_trainer(sources, store, (1, 5, 13), betas=tuple(betas.items()))
    grams = {"one": one, "two": two} if named else [one, two]
    at = AntiTransferLoss(grams, MODULES, beta=betas)
    assert at.teachers == ("one", "two")
    loss, gradient = by_hand(at, batch)
    assert abs(loss - want) <= 1e-6 * abs(want)
    assert (gradient - wanted).norm() <= 1e-6 * wanted.norm()
    taught = {name: sorted(of) for name, of in at.similarities.items()}
    assert taught == {
        "features.1": ["one"],
        "features.11": ["one", "two"],
        "features.29": ["two"],
    }


@pytest.fixture
def at(build):
    return AntiTransferLoss(GramCache(build(layers=(5,)).path), {"features.11": 5}, beta=0.5)


def test_it_adds_nothing_to_a_network_that_holds_it(at):
    net = student()
    before = list(net.state_dict())
    net.at = at
    assert list(net.state_dict()) == before
    assert list(at.parameters()) == list(at.buffers()) == []


def test_ids_may_be_what_a_dataloader_collates(at, batch):
    x, _, ids = batch
    net, losses = student(), []
    for given in (ids, tuple(ids), np.array(ids)):
        with at.watch(net, given):
            net(x)
        losses.append(at().item())
    assert losses[0] == losses[1] == losses[2] > 0


def test_the_loss_is_a_scalar_that_is_kept_after_the_block(at, batch):
    x, y, ids = batch
    net = student()
    with at.watch(net, ids):
        logits = net(x)
    (functional.cross_entropy(logits, y) + at.loss()).backward()
    assert torch.equal(gradients(net), by_hand(at, batch)[1])
    assert (at.loss().shape, at.loss().dtype) == ((), torch.float32)
    with torch.no_grad(), at.watch(net, ids):
        net(x)
        assert not at.loss().requires_grad


def test_gradients_are_accumulated_over_parts_of_a_batch(at, batch):
    x, y, ids = batch
    _, want = by_hand(at, batch)
    net = student()
    for part in (slice(0, 2), slice(2, 5)):
        share = len(ids[part]) / len(ids)
        with at.watch(net, ids[part]):
            loss = functional.cross_entropy(net(x[part]), y[part]) + at.loss()
        (loss * share).backward()
    assert (gradients(net) - want).norm() <= 1e-5 * want.norm()


def test_it_is_computed_in_float32_under_autocast(at, batch):
    x, y, ids = batch
    net, maps = student(), []
    with at.watch(net, ids):
        net(x)
    exact = at.loss().item()
    net.features[11].register_forward_hook(lambda *of: maps.append(of[2].dtype))
    with torch.autocast("cpu", torch.bfloat16), at.watch(net, ids):
        loss = functional.cross_entropy(net(x), y) + at.loss()
    loss.backward()
    assert maps == [torch.bfloat16]
    assert at.loss().dtype == torch.float32
    assert at.loss().item() == pytest.approx(exact, rel=0.05)
    assert torch.isfinite(gradients(net)).all()


def test_rows_that_are_kept_in_memory_give_the_same_loss(at, batch):
    want = by_hand(at, batch)
    at.keep_on("cpu")
    got = by_hand(at, batch)
    assert torch.equal(want[0], got[0])
    assert torch.equal(want[1], got[1])


def test_a_copied_or_pickled_loss_gives_the_same_loss(at, batch):
    want = by_hand(at, batch)[0]
    for again in (copy.deepcopy(at), pickle.loads(pickle.dumps(at))):
        assert torch.equal(by_hand(again, batch)[0], want)


class Block(nn.Module):
    """A residual block of one's own, with operations in place behind the module that is tapped."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(1, channels, 3, stride=(4, 6), padding=1)
        self.out = nn.Linear(channels, 3)

    def forward(self, x):
        maps = self.conv(x)
        maps += 0.1
        return self.out(nn.functional.relu(maps, inplace=True).mean((2, 3)))


def test_a_network_of_ones_own_may_overwrite_its_maps(at, batch):
    x, y, ids = batch
    grams = GramCache(at._caches["grams"].path)
    channels = grams.layers[5].channels
    torch.manual_seed(0)
    net = Block(channels)
    own = AntiTransferLoss(grams, {"conv": 5})
    with own.watch(net, ids):
        loss = functional.cross_entropy(net(x), y) + own.loss()
    loss.backward()
    want = copy.deepcopy(net)
    want.zero_grad()
    maps = want.conv(x)
    rows = grams.rows(5, ids)
    own_grams = functional.normalize((maps.flatten(2) @ maps.flatten(2).mT).flatten(1))
    cosine = (own_grams * functional.normalize(rows.matrices(channels).flatten(1))).sum(1)
    logits = want.out(functional.relu(maps + 0.1).mean((2, 3)))
    (functional.cross_entropy(logits, y) + cosine.square().mean()).backward()
    assert (gradients(net) - gradients(want)).norm() <= 1e-5 * gradients(want).norm()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"layers": {}}, r"`layers` is {}; wanted a module's name and .* such as {'layer3': 5}"),
        ({"layers": {"features.11": 4}}, r"'features.11': layer 4 is not cached in .*; it has 5"),
        ({"layers": {"features.11": 5, "features.9": 5}}, r"two modules have the same layer"),
        ({"beta": {"other": 1.0}}, r"`beta` .* one for each teacher of `grams`: grams; grams is"),
        ({"similarity": "cka"}, r"`similarity=cka` belongs to `aggregation=pairwise`"),
        ({"grams": []}, r"`grams` is empty"),
        ({"grams": "grams.zarr"}, r"`grams` is a str; wanted a GramCache"),
    ],
)
def test_a_mistake_names_the_argument(given, match, build):
    grams = given.pop("grams", None)
    grams = GramCache(build(layers=(5,)).path) if grams is None else grams
    with pytest.raises(InputError, match=match):
        AntiTransferLoss(grams, **{"layers": {"features.11": 5}, **given})


def test_a_mistake_of_a_batch_names_what_is_wrong(at, batch, build):
    x, _, ids = batch
    net = student()

    def run(at, ids, call):
        with at.watch(net, ids):
            call()

    with pytest.raises(InputError, match=r"no forward pass yet: run the network in `with at"):
        at.loss()
    for given, match in {
        "a text": (ids[0], r"`clip_ids` is a str; wanted the ids"),
        "numbers": ([1, 2], r"`clip_ids` is a list of int; wanted"),
        "fewer": (ids[:3], r"'features.11': its output has 5 segments, `clip_ids` has 3"),
        "unknown": ([*ids[:4], "x"], r"no segment 'x' among its 15"),
    }.values():
        with pytest.raises(InputError, match=match), at.watch(net, given):
            net(x)
    with pytest.raises(InputError, match=r"'features.11' has not run in the `watch` block"):
        run(at, ids, at.loss)
    with pytest.raises(InputError, match=r"a second time in one `watch` block"):
        run(at, ids, lambda: net(net(x).mean() * 0 + x))
    wrong = AntiTransferLoss(at._caches["grams"], {"features.1": 5})
    with pytest.raises(InputError, match=r"has 2 channels, layer 5 of .* has 8; wanted a module"):
        run(wrong, ids, lambda: net(x))
    absent = AntiTransferLoss(at._caches["grams"], {"layer3": 5})
    with pytest.raises(InputError, match=r"Vgg has no module of this name"):
        run(absent, ids, lambda: net(x))
    pairs = GramCache(build("grid", aggregation="pairwise").path)
    grid = AntiTransferLoss(pairs, {"features.29": 5})
    with pytest.raises(InputError, match=r"'features.29': maps of 7 x 8 positions are smaller"):
        run(grid, ids, lambda: net(x))


class Segments(Dataset):
    """Segments with the teacher's rows, as workers read them."""

    def __init__(self, store, grams):
        self.store, self.grams = store, grams

    def __len__(self):
        return len(self.store)

    def __getitem__(self, row):
        clip_id = self.store.clip_ids[row]
        return clip_id, self.grams.rows(5, [clip_id]).data[0]


@pytest.mark.parametrize(
    "start",
    ["fork", pytest.param("spawn", marks=pytest.mark.slow)],
)
def test_workers_of_a_dataloader_read_the_same_rows(start, build, store):
    grams = GramCache(build(layers=(5,)).path)
    want = grams.rows(5, store.clip_ids).data
    loader = DataLoader(Segments(store, grams), 4, num_workers=1, multiprocessing_context=start)
    ids, rows = zip(*loader, strict=True)
    assert [clip_id for batch in ids for clip_id in batch] == store.clip_ids
    assert torch.equal(torch.cat(rows), want)


@pytest.mark.slow
def test_a_compiled_network_has_the_same_gradient(at, batch):
    want = by_hand(at, batch)
    net = student()
    compiled = torch.compile(net, backend="aot_eager")
    compiled(batch[0])  # compiled before it is watched
    x, y, ids = batch
    for _ in range(2):
        net.zero_grad()
        with at.watch(compiled, ids):
            loss = functional.cross_entropy(compiled(x), y) + at.loss()
        loss.backward()
        assert abs(loss - want[0]) <= 1e-6 * want[0]
        assert (gradients(net) - want[1]).norm() <= 1e-5 * want[1].norm()


def halves(rank, folder, path, x, y, ids):
    """Train a step on half of a batch, as one of two processes."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
    )
    net = nn.parallel.DistributedDataParallel(student())
    at = AntiTransferLoss(GramCache(path), {"features.11": 5}, beta=0.5)
    part = slice(rank * 2, rank * 2 + 2)
    with at.watch(net, ids[part]):
        loss = functional.cross_entropy(net(x[part]), y[part]) + at.loss()
    loss.backward()
    if rank == 0:
        torch.save(gradients(net), folder / "gradient.pt")
    torch.distributed.barrier()
    # Gloo's threads abort a process that ends while the other is still connected to them, so the
    # wrapper goes before the group, and the process ends without clearing up after torch.
    del net, at, loss
    torch.distributed.destroy_process_group()
    os._exit(0)


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one(at, batch, tmp_path):
    x, y, ids = batch
    _, want = by_hand(at, (x[:4], y[:4], ids[:4]))
    path = at._caches["grams"].path
    spawn(partial(halves, folder=tmp_path, path=path, x=x, y=y, ids=ids), nprocs=2)
    got = torch.load(tmp_path / "gradient.pt", weights_only=True)
    assert (got - want).norm() <= 1e-5 * want.norm()
