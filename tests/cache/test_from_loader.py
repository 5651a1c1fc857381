"""Caches that are built from any network and any loader, and read by the loss."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import antigram
from antigram.cache.from_loader import build_from_loader
from antigram.cache.grams import GramCache
from antigram.cache.layer import CacheLayer, layers_of, open_root
from antigram.model.loss.anti_transfer import AntiTransferLoss
from antigram.model.loss.gram import gram
from antigram.model.nets.vgg import Vgg
from antigram.model.training.segments import SegmentDataset
from antigram.pipeline.errors import InputError, StaleError
from antigram.studies.verify import verify, verify_cache
from tests.support.files import bytes_of
from tests.support.nets import VGG16

COUNT = 11  # three chunks of at most 4 rows


class Net(nn.Module):
    """A network of waveforms, with operations in place, batch norm and dropout."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            relu = nn.ReLU(inplace=True)
            self.front = nn.Sequential(nn.Conv1d(1, 6, 9, 4), nn.BatchNorm1d(6), relu)
            self.body = nn.Sequential(nn.Conv1d(6, 8, 5, 2), nn.Dropout(0.5), relu)
            self.head = nn.Linear(8, 3)
        self.ran = 0

    def forward(self, x):
        self.ran += len(x)
        return self.head(self.body(self.front(x)).mean(2))


@pytest.fixture
def waves(rng):
    return torch.from_numpy(rng.standard_normal((COUNT, 1, 200)).astype(np.float32))


IDS = [f"seg/{number:02d}" for number in range(COUNT)]


def batches(waves, size=3, ids=IDS):
    return [(waves[i : i + size], ids[i : i + size]) for i in range(0, len(ids), size)]


def maps_of(net, waves, name):
    """Maps as a slow reference has them, with a hook of its own."""
    net, found = copy.deepcopy(net).eval(), []
    net.get_submodule(name).register_forward_hook(lambda *of: found.append(of[2].clone()))
    with torch.no_grad():
        net(waves)
    return found[0][..., None]


@pytest.mark.parametrize("codec", ["auto", "packed", "factor"])
def test_rows_are_the_grams_of_the_networks_maps(codec, waves, tmp_path):
    net = Net()
    built = build_from_loader(
        net,
        ["front", "body.0"],
        batches(waves),
        tmp_path / "own.zarr",
        codec=codec,
        dtype="float32",
    )
    assert (built.clips, sorted(built.layers)) == (COUNT, ["body.0", "front"])
    cache = GramCache(built.path)
    order = [9, 0, 4]
    for name in ("front", "body.0"):
        want = gram(maps_of(net, waves[order], name)).flatten(1)
        rows = cache.rows(name, [IDS[row] for row in order])
        got = rows.matrices(cache.layers[name].channels).flatten(1) * rows.norm[:, None]
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 * float(want.max()))
    assert cache.clip_ids == IDS
    assert not verify(built.path)
    assert not list(verify_cache(built.path, []))


def test_the_loss_reads_it_for_a_student_of_another_kind(waves, tmp_path):
    teacher, student = Net(1), Net(2)
    built = antigram.build_cache(
        teacher, ["body"], batches(waves), tmp_path / "own.zarr", aggregation="pairwise"
    )
    at = AntiTransferLoss(GramCache(built.path), {"body": "body"})
    for net, wanted in ((teacher, 1.0), (student, None)):
        with at.watch(net.eval(), IDS[2:7]):
            loss = functional.cross_entropy(net(waves[2:7]), torch.zeros(5).long()) + at.loss()
        loss.backward()
        assert net.front[0].weight.grad.abs().sum() > 0
        similarity = at.similarities["body"]["own"].item()
        assert similarity == pytest.approx(wanted, abs=1e-3) if wanted else similarity < 0.9


def test_numbers_of_a_vgg_give_the_rows_that_cache_grams_gives(build, teacher, store, tmp_path):
    net = Vgg(VGG16, 3)
    net.load_state_dict(teacher.state, strict=False)
    data = SegmentDataset(store, split="validation")
    built = antigram.build_cache(
        net, [1, 5], DataLoader(data, 4), tmp_path / "own.zarr", dtype="float32"
    )
    own, want = GramCache(built.path), GramCache(build(layers=(1, 5), dtype="float32").path)
    assert layers_of(built.path) == [1, 5]
    for layer in (1, 5):
        got, rows = own.rows(layer, data.ids), want.rows(layer, data.ids)
        torch.testing.assert_close(got.data, rows.data, rtol=0, atol=1e-5)


def test_a_store_and_its_teacher_are_built_as_before(store, teacher, tmp_path):
    from antigram.cache.plan import plan_layers
    from antigram.model.loss.sources import TapSpec

    plans = plan_layers(store, teacher, TapSpec(arch=VGG16, layers=(5,)))
    path = tmp_path / "grams.zarr"
    built = antigram.build_cache(
        store, teacher, plans, path, made_from={}, device=torch.device("cpu")
    )
    assert (built.clips, layers_of(path)) == (15, [5])


@pytest.mark.parametrize("size", [1, 4, 5, COUNT, 100])
def test_the_size_of_batches_does_not_change_the_cache(size, waves, tmp_path):
    build_from_loader(Net(), ["front"], batches(waves), tmp_path / "one.zarr")
    build_from_loader(Net(), ["front"], batches(waves, size), tmp_path / "two.zarr")
    one, two = (GramCache(tmp_path / f"{name}.zarr") for name in ("one", "two"))
    assert one.layers["front"].values.spec == two.layers["front"].values.spec
    got, want = two.rows("front", IDS), one.rows("front", IDS)
    torch.testing.assert_close(got.data, want.data, rtol=0, atol=1e-3)  # a float16 may round apart
    assert open_root(one.path)["features"] == open_root(two.path)["features"]


def test_it_is_of_no_store_and_not_stale_for_that(store, waves, tmp_path):
    path = build_from_loader(Net(), ["front"], batches(waves), tmp_path / "own.zarr").path
    assert not list(verify_cache(path, [store.path]))
    with pytest.raises(StaleError, match=r"layer front was built with features"):
        GramCache(path, store)


def test_a_complete_cache_is_left_alone(waves, tmp_path):
    net, path = Net(), tmp_path / "own.zarr"
    build_from_loader(net, ["front"], batches(waves), path)
    before, ran = bytes_of(path), net.ran
    again = build_from_loader(net, ["front"], batches(waves), path)
    assert (again.computed, net.ran - ran) == (3, 3)  # the first batch, which decides the sizes
    assert bytes_of(path) == before


class Killed(Exception):
    """Ends a build half-way."""


def broken(given, after):
    """Yield some batches, then fail."""
    yield from given[:after]
    raise Killed


def test_a_build_that_was_cut_is_resumed_to_the_same_bytes(waves, tmp_path):
    want, path = tmp_path / "want.zarr", tmp_path / "own.zarr"
    build_from_loader(Net(), ["front", "body"], batches(waves, 2), want)
    for after in (0, 1, 2, 4, 5):
        with pytest.raises(Killed):
            build_from_loader(Net(), ["front", "body"], broken(batches(waves, 2), after), path)
        assert not path.exists()
    net = Net()
    built = build_from_loader(net, ["front", "body"], batches(waves, 2), path)
    assert built.computed == 2 + 4 - 1  # the first batch, and the chunk that was not complete
    assert bytes_of(path) == bytes_of(want)
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_only_chunks_whose_input_has_changed_are_computed(waves, tmp_path):
    want, path = tmp_path / "want.zarr", tmp_path / "own.zarr"
    build_from_loader(Net(), ["front"], batches(waves, 4), path)
    changed = waves.clone()
    changed[5] += 1
    built = build_from_loader(Net(), ["front"], batches(changed, 4), path)
    assert built.computed == 4 + 4
    build_from_loader(Net(), ["front"], batches(changed, 4), want)
    assert bytes_of(path) == bytes_of(want)


def test_other_ids_or_another_network_replace_the_cache(waves, tmp_path):
    path = tmp_path / "own.zarr"
    build_from_loader(Net(), ["front", "body"], batches(waves), path)
    others = [f"x{clip_id}" for clip_id in IDS]
    build_from_loader(Net(), ["front"], batches(waves, ids=others), path)
    assert (GramCache(path).clip_ids, layers_of(path)) == (others, ["front"])
    build_from_loader(Net(5), ["body"], batches(waves, ids=others), path)
    assert layers_of(path) == ["body"]
    assert not list(verify_cache(path, []))


def test_a_layer_is_added_to_those_that_are_there(waves, tmp_path):
    path = tmp_path / "own.zarr"
    build_from_loader(Net(), ["front"], batches(waves), path)
    before = bytes_of(path / "module-front")
    build_from_loader(Net(), ["body"], batches(waves), path)
    assert layers_of(path) == ["body", "front"]
    assert bytes_of(path / "module-front") == before
    assert not list(verify_cache(path, []))


def test_a_damaged_chunk_is_computed_again(waves, tmp_path):
    path = tmp_path / "own.zarr"
    build_from_loader(Net(), ["front"], batches(waves, 4), path)
    before = bytes_of(path)
    (chunk,) = path.glob("module-front/gram/c/1/*")
    raw = bytearray(chunk.read_bytes())
    raw[3] ^= 4
    chunk.write_bytes(raw)
    assert verify(path)
    assert build_from_loader(Net(), ["front"], batches(waves, 4), path).computed == 4 + 4
    assert bytes_of(path) == before


def test_the_network_is_as_it_was(waves, tmp_path):
    net = Net().train()
    net.body.eval()
    state = copy.deepcopy(net.state_dict())
    build_from_loader(net, ["front"], batches(waves), tmp_path / "own.zarr")
    assert net.training
    assert net.front.training
    assert not net.body.training
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not net.front._forward_hooks


class Named(nn.Module):
    """A network that takes its input by name, as those of Hugging Face."""

    def __init__(self):
        super().__init__()
        self.net = Net()

    def forward(self, input_values, scale):
        return self.net(input_values * scale[:, None, None])


def test_batches_may_be_dictionaries(waves, store, tmp_path):
    scale = torch.linspace(1, 2, COUNT)
    given = [
        {"input_values": waves[i : i + 3], "scale": scale[i : i + 3], "clip_ids": IDS[i : i + 3],
         "labels": None}
        for i in range(0, COUNT, 3)
    ]  # fmt: skip
    one = build_from_loader(Named(), ["net.front"], given, tmp_path / "one.zarr")
    scaled = batches(waves * scale[:, None, None])
    two = build_from_loader(Net(), ["front"], scaled, tmp_path / "two.zarr")
    first = GramCache(one.path).rows("net.front", IDS)
    assert torch.equal(first.data, GramCache(two.path).rows("front", IDS).data)
    of_store = build_from_loader(
        Vgg(VGG16, 3), ["features.11"], DataLoader(store, 5), tmp_path / "store.zarr"
    )
    assert GramCache(of_store.path).clip_ids == store.clip_ids


@pytest.mark.parametrize(
    ("layers", "change", "match"),
    [
        ([], None, r"`layers` is \[\]; wanted a list of modules"),
        ("front", None, r"`layers` is 'front'; wanted a list"),
        (["fronts"], None, r"Net has no module of this name; close names: front"),
        ([3], None, r"`layers` 3: Net has 0 numbered convolution layers"),
        (["front"], lambda b: b[:0], r"`loader` gave no segment"),
        (["front"], lambda b: [b[0], b[0]], r"segment 'seg/00' comes twice"),
        (["front"], lambda b: [b[0][0]], r"a batch \(Tensor\) has no ids; wanted \(x, ..., cl"),
        (["front"], lambda b: [(*b[0], torch.arange(3))], r"has ids of type Tensor; wanted"),
        (["front"], lambda b: [(b[0][0], IDS[:2])], r"'front': its output has 3 segments, the"),
        (["front"], lambda b: [(b[0][0] / 0, IDS[:3])], r"segment 'seg/00' are not finite numb"),
    ],
)
def test_a_mistake_is_named_and_leaves_no_cache(layers, change, match, waves, tmp_path):
    given = batches(waves) if change is None else change(batches(waves))
    with pytest.raises(InputError, match=match):
        build_from_loader(Net(), layers, given, tmp_path / "own.zarr")
    assert not (tmp_path / "own.zarr").exists()


def test_segments_of_other_sizes_need_a_form_that_has_room(waves, tmp_path):
    given = [(waves[:4], IDS[:4]), (waves[4:8, :, :150], IDS[4:8])]
    with pytest.raises(InputError, match=r"rows of \(6, 36\) in this batch, of \(6, 48\) in the"):
        build_from_loader(Net(), ["front"], given, tmp_path / "own.zarr", codec="factor")
    built = build_from_loader(Net(), ["front"], given, tmp_path / "own.zarr", codec="packed")
    want = gram(maps_of(Net(), waves[4:8, :, :150], "front")).flatten(1).norm(dim=1)
    rows = GramCache(built.path).rows("front", IDS[4:8])
    torch.testing.assert_close(rows.norm, want)
    assert CacheLayer(built.path, "front").channels == 6
