import pickle

import pytest
import torch
from torchvision import models

from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import extractor_digest
from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import (
    load_checkpoint,
    load_tensors,
    open_teacher,
    save_tensors,
)
from antigram.pipeline.errors import DamagedError, InputError, StoredDataError

ARCH = Arch("vgg11", 1)
VGGS = ("vgg11", "vgg13", "vgg16", "vgg19")


@pytest.fixture
def saved(checkpoint, tmp_path):
    """Write a checkpoint with changed fields, and return the file."""

    def save(**changes):
        content = {**checkpoint.to_plain(), **changes}
        path = tmp_path / "net.pt"
        save_tensors(path, {k: v for k, v in content.items() if v is not None})
        return path

    return save


def test_a_checkpoint_comes_back_as_it_was(checkpoint, saved, store):
    found = load_checkpoint(saved())
    for name in ("arch", "task", "classes", "recipe", "mean", "std", "provenance"):
        assert getattr(found, name) == getattr(checkpoint, name), name
    assert found.recipe == store.recipe
    for name, tensor in checkpoint.state_dict.items():
        assert torch.equal(found.state_dict[name], tensor)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.net()(x), checkpoint.net()(x))


def test_it_holds_the_fields_of_the_format_and_plain_types_only(saved):
    content = torch.load(saved(), weights_only=True)
    assert set(content) == set(
        "format format_version arch task classes state_dict recipe mean std provenance scores"
        "".split()
    )
    assert content["format"] == "antigram/checkpoint"
    assert content["format_version"] == 1
    assert content["arch"] == {"name": "vgg11", "width": 1}
    assert "features.0.weight" in content["state_dict"]
    assert "classifier.6.bias" in content["state_dict"]


def test_the_frozen_part_is_the_convolutions_and_draws_no_random_number(saved, checkpoint):
    before = torch.get_rng_state()
    teacher = open_teacher(saved())
    net = teacher.net()
    assert torch.equal(torch.get_rng_state(), before)
    assert teacher.note == ""
    assert teacher.arch == ARCH
    assert all(name.startswith("features.") for name in teacher.state)
    assert not net.training
    digest = extractor_digest(checkpoint.state_dict, net, 8, "relu")
    assert extractor_digest(net.state_dict(), net, 8, "relu") == digest


def test_saving_replaces_the_file_as_a_whole_or_not_at_all(saved, monkeypatch):
    path = saved()
    before = path.read_bytes()

    def fail(_content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        save_tensors(path, {"a": 1})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


class Bomb:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return exec, (f"open({str(self.mark)!r}, 'w').close()",)


def write_bomb(path, mark):
    torch.save({"format": "antigram/checkpoint", "state_dict": Bomb(mark)}, path)


def write_bare_pickle(path, mark):
    path.write_bytes(pickle.dumps(Bomb(mark)))


@pytest.mark.parametrize("load", [load_tensors, load_checkpoint, open_teacher])
@pytest.mark.parametrize("write", [write_bomb, write_bare_pickle])
def test_a_file_that_would_run_code_is_refused_and_does_not_run(load, write, tmp_path):
    path, mark = tmp_path / "net.pt", tmp_path / "ran"
    write(path, mark)
    with pytest.raises(InputError, match=r"net\.pt: not a checkpoint that can be read safely"):
        load(path)
    assert not mark.exists()


@pytest.mark.parametrize("load", [load_checkpoint, open_teacher])
@pytest.mark.parametrize("raw", [b"", b"layer: 5\n", b"\x80\x04", bytes(range(256)) * 9])
def test_a_file_that_is_no_checkpoint_is_refused(load, raw, tmp_path):
    path = tmp_path / "net.pt"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"net\.pt: not a checkpoint"):
        load(path)


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.75, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(share, saved):
    path = saved()
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(DamagedError, match=r"net\.pt: damaged: no intact zip"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_refused(tmp_path):
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError, match="no such file"):
            load_checkpoint(path)


def wider(tensor):
    return torch.cat([tensor, tensor])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another/format"}, "a state dict without antigram's settings"),
        ({"classes": ["a", "b"]}, r"classifier.6.weight is \(3, 64\), wanted \(2, 64\)"),
        ({"arch": {"name": "vgg11", "width": 2}}, r"features.0.weight is \(1, 1, 3, 3\), wanted"),
        ({"arch": {"name": "vgg99", "width": 2}}, "vgg99"),
        ({"arch": "vgg16"}, "not a complete checkpoint"),
        ({"recipe": None}, "recipe"),
        ({"mean": "?"}, "not a complete checkpoint"),
        ({"state_dict": {}}, "features.0.weight is missing"),
        ({"format_version": "one"}, "version"),
        ({"std": 0.0}, "std"),
        ({"std": float("nan")}, "std"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_checkpoint_that_is_not_whole_is_refused(change, message, saved):
    with pytest.raises(InputError, match=message):
        load_checkpoint(saved(**change))


@pytest.mark.parametrize("load", [load_checkpoint, open_teacher])
def test_wrong_tensors_are_refused_by_name(load, checkpoint, saved):
    state, name = checkpoint.state_dict, "features.3.bias"
    for wrong, message in (
        (wider(state[name]), r"features\.3\.bias is \(4,\), wanted \(2,\)"),
        (state[name] * float("nan"), r"features\.3\.bias holds NaN or infinite"),
        ([0.0, 0.0], r"features\.3\.bias is None|features\.3\.bias"),
    ):
        with pytest.raises(InputError, match=message):
            load(saved(state_dict={**state, name: wrong}))
    with pytest.raises(InputError, match=r"unknown tensor features\.1\.running_mean"):
        load(saved(state_dict={**state, "features.1.running_mean": torch.zeros(2)}))


@pytest.mark.parametrize("load", [load_checkpoint, open_teacher])
def test_a_newer_version_is_refused_as_such(load, saved):
    with pytest.raises(StoredDataError, match="version 2, this antigram reads up to 1") as caught:
        load(saved(format_version=2))
    assert not isinstance(caught.value, InputError)


@pytest.mark.parametrize("load", [load_checkpoint, open_teacher])
def test_a_newer_recipe_is_refused_as_such(load, saved, checkpoint):
    recipe = {**checkpoint.recipe.to_json(), "version": "prepare/99"}
    with pytest.raises(StoredDataError, match="prepare/99"):
        load(saved(recipe=recipe))


def test_three_input_channels_of_a_plain_state_dict_are_summed_to_one(tmp_path):
    path = tmp_path / "imagenet.pt"
    with torch.device("meta"):
        theirs = models.vgg11()
    state = {
        name: torch.randn(tensor.shape)
        for name, tensor in theirs.state_dict().items()
        if name.startswith("features.")
    }
    torch.save({**state, "classifier.6.bias": torch.zeros(1000)}, path)
    teacher = open_teacher(path)
    assert teacher.arch == Arch("vgg11", 64)
    assert "vgg11 of width 64" in teacher.note
    assert "three input channels were summed to one" in teacher.note
    x = torch.randn(1, 1, 12, 12)
    colour = torch.nn.functional.conv2d(
        x.expand(-1, 3, -1, -1), state["features.0.weight"], state["features.0.bias"], padding=1
    )
    torch.testing.assert_close(teacher.net().features[0](x), colour, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VGGS)
def test_a_plain_state_dict_of_one_channel_says_by_itself_which_vgg_it_is(name, tmp_path):
    state = Vgg(Arch(name, 2), 5).state_dict()
    torch.save(state, tmp_path / "plain.pt")
    teacher = open_teacher(tmp_path / "plain.pt")
    assert teacher.arch == Arch(name, 2)
    assert torch.equal(teacher.state["features.0.weight"], state["features.0.weight"])
    assert "summed" not in teacher.note


@pytest.mark.parametrize(
    "content",
    [
        [torch.zeros(2)],
        torch.zeros(2),
        {},
        {0: torch.zeros(2)},
        {"features.0.weight": torch.zeros(2, 2, 3, 3)},
        {"features.0.weight": torch.zeros(2, 1, 3, 3)},
        {"features.0.weight": "text"},
    ],
    ids=["list", "tensor", "empty", "numbered", "two channels", "one layer", "text"],
)
def test_tensors_that_are_no_vgg_are_refused(content, tmp_path):
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt: "):
        open_teacher(tmp_path / "odd.pt")


def test_a_plain_state_dict_is_no_checkpoint_to_predict_with(tmp_path):
    torch.save(Vgg(ARCH, 3).state_dict(), tmp_path / "plain.pt")
    with pytest.raises(InputError, match=r"plain\.pt"):
        load_checkpoint(tmp_path / "plain.pt")
