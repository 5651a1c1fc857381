"""A network of the user's own, from a file, through all commands."""

from __future__ import annotations

import pytest
import torch

from antigram.model.nets import own
from antigram.model.nets.arch import Arch
from antigram.model.nets.networks import check_network
from antigram.model.nets.own import named_arch, own_arch, takes
from antigram.model.training.checkpoint import load_checkpoint, open_teacher
from antigram.pipeline.errors import InputError

CODE = """
from torch import nn


class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 6, 3, 2)
        )
        self.fc = nn.Linear(6, classes)

    def forward(self, x):
        return self.fc(self.body(x).relu().mean((2, 3)))


def build(classes):
    return Net(classes)


def sized(classes, shape, width, dropout=0.0):
    frames, freqs = shape
    return nn.Sequential(
        nn.Flatten(2), nn.Linear(frames * freqs, 5), nn.Flatten(), nn.Linear(5, classes)
    )


def wrong(width):
    return Net(width)


def failing(classes):
    raise RuntimeError("no weights\\nin this folder")


def odd(classes):
    return "a network"


def tokens(classes):
    return nn.Flatten(1)
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(own, "_KNOWN", {})
    path = tmp_path / "mynet.py"
    path.write_text(CODE)
    return path


def test_the_chain_with_a_network_of_the_users_own(shell, audio, file, monkeypatch):
    name = f"{file}:build"
    shell.json("prepare", "folder", "--source", audio, "--name", "tones", "--workers", "1")
    teacher = ["train", "--mode", "baseline", "--epochs", "1", "--seed", "1", "--save", "own.pt"]
    shell.json(*teacher, "--arch", name)
    listed = shell.json("layers", "--arch", name, "--data", "tones")
    assert [each["layer"] for each in listed["layers"]] == [f"body.{i}" for i in range(4)] + [
        "body"
    ]
    cache = ["cache-grams", "--ckpt", "own.pt", "--layer", "body.3"]
    monkeypatch.setattr(own, "_KNOWN", {})  # as in a new process
    shell.refused(2, "no code is imported by itself: name its file with --arch", *cache)
    built = shell.json(*cache, "--arch", name)
    assert list(built["layers"]) == ["body.3"]
    trained = shell.json(
        "train", "--mode", "cached", "--arch", name, "--epochs", "1", "--save", "student.pt"
    )
    assert trained["layers"] == ["body.3"]
    for mode in (["online", "--layer", "body.3"], ["wi"], ["frozen", "--layer", "body.0"]):
        shell.json("train", "--mode", *mode, "--ckpt", "own.pt", "--arch", name, "--epochs", "1")
    scores = shell.json("evaluate", "--ckpt", "student.pt", "--arch", name)
    assert 0 <= scores["accuracy"] <= 1
    wav = next(audio.rglob("*.wav"))
    assert shell.json("predict", "--ckpt", "student.pt", "--arch", name, wav)["recordings"]
    plan = shell.json("plan", "--arch", name, "--layer", "body.3")
    assert plan["layers"]["body.3"]["cached"]["memory"] > 0
    assert shell.json("verify")["ok"]
    monkeypatch.setattr(own, "_KNOWN", {})
    file.write_text(CODE + "# changed")
    shell.refused(2, "the file has changed", "evaluate", "--ckpt", "own.pt", "--arch", name)
    shell.refused(2, "give --arch for a network", "evaluate", "--ckpt", "own.pt", "--arch", "ast")


def test_a_checkpoint_of_it_comes_back(file, shell, audio, monkeypatch):
    arch = own_arch(f"{file}:build")
    shell.json("prepare", "folder", "--source", audio, "--name", "tones", "--workers", "1")
    train = ["train", "--mode", "baseline", "--epochs", "1", "--save", "own.pt"]
    shell.json(*train, "--arch", f"{file}:build")
    found = load_checkpoint(shell.folder / "own.pt")
    assert found.arch == arch == Arch("mynet.py:build", source=arch.source)
    assert found.to_plain()["arch"] == {
        "name": "mynet.py:build", "width": 64, "source": arch.source
    }  # fmt: skip
    x = torch.randn(2, 1, *found.recipe.shape)
    teacher = open_teacher(shell.folder / "own.pt")
    with torch.no_grad():
        torch.testing.assert_close(found.net()(x), teacher.net()(x))
    monkeypatch.setattr(own, "_KNOWN", {})
    with pytest.raises(InputError, match=r"own\.pt: the network mynet\.py:build is a user's own"):
        load_checkpoint(shell.folder / "own.pt")


def test_what_a_function_takes(file):
    assert not takes(own_arch(f"{file}:build"), "dropout")
    arch = own_arch(f"{file}:sized", 8)
    assert (arch.width, takes(arch, "dropout"), takes(Arch("crnn"), "dropout")) == (8, True, True)
    assert named_arch(None, 16, arch).width == 16
    net = own.build_own(arch, 3, (4, 6), 0.5)
    assert net(torch.zeros(2, 1, 4, 6)).shape == (2, 3)


@pytest.mark.parametrize(
    ("given", "width", "message"),
    [
        ("none.py:build", None, "cannot read none.py: No such file"),
        ("{file}:missing", None, "has no function missing; it has build, sized"),
        ("{file}:wrong", None, "wrong has the parameters width; wanted classes"),
        ("{file}:build", 8, "takes no width"),
        ("{folder}/bad.py:build", None, "bad.py cannot be imported: ZeroDivisionError"),
    ],
)
def test_what_is_no_network_is_refused(given, width, message, file):
    (file.parent / "bad.py").write_text("1 / 0")
    text = given.format(file=file, folder=file.parent)
    with pytest.raises(InputError, match=message):
        own_arch(text, width)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("odd", "the function returned str; wanted a module"),
        ("failing", "the function failed: RuntimeError: no weights in this folder"),
        ("tokens", "returns 16254 numbers for a segment and 2 classes"),
    ],
)
def test_what_returns_no_logits_is_refused(function, message, file):
    with pytest.raises(InputError, match=message):
        check_network(own_arch(f"{file}:{function}"), (126, 129))
