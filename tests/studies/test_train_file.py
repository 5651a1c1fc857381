"""Options of a training in a TOML file: read, overridden, printed, and refused in one line."""

import tomllib
from pathlib import Path

import click
import pytest

import antigram
from antigram import cli
from antigram.studies.train_file import config_answer, key_of, read_config
from tests.support.runs import numbers_of
from tests.support.shell import TINY

OWN = {"help", "workspace", "as_json", "verbose", "config", "print_config"}
OPTIONS = [p for p in cli.app.commands["train"].params if p.name not in OWN]
GIVEN = {
    "mode": "online",
    "ckpts": (Path('a "quoted" name.pt'), Path("Größe\\2.pt")),
    "layers": ("5", "emo:all"),
    "betas": ("0.5", "emo:-1e-3"),
    "lr": 1e-05,
    "epochs": 7,
    "clip_norm": 2.0,
    "precision": "32",
    "augment": True,
    "report": False,
    "device_memory": 0.5,
    "save": Path("folder/best.pt"),
}


def file(folder, text):
    path = folder / "train.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_has_a_key_of_its_spelling_and_type(option, tmp_path):
    assert key_of(option.name) == option.opts[-1].removeprefix("--")
    wrong = file(tmp_path, f"{key_of(option.name)} = 2000-01-01")
    with pytest.raises(antigram.InputError, match=f"{key_of(option.name)}: is 2000-01-01; wanted"):
        read_config(wrong)
    values = {"flag": "true", "integer": "3", "float": "2.5"}
    kind = "flag" if option.is_flag else option.type.name.partition(" ")[0]
    if isinstance(option.type, click.Choice):
        kind, values = "choice", {"choice": f'"{option.type.choices[0]}"'}
    text = values.get(kind, '"3"')
    (value,) = read_config(file(tmp_path, f"{key_of(option.name)} = {text}")).values()
    plain = value[0] if option.multiple else value
    assert plain == tomllib.loads(f"x = {text}")["x"] or plain == Path("3")
    assert option.multiple == isinstance(value, tuple)


def test_no_key_is_without_an_option(tmp_path):
    with pytest.raises(antigram.InputError, match="x: no option of train; wanted one of") as error:
        read_config(file(tmp_path, "x = 1"))
    wanted = str(error.value).partition("wanted one of ")[2].split(", ")
    assert set(wanted) == {key_of(option.name) for option in OPTIONS}


def test_what_is_printed_reads_back_to_the_same_options(tmp_path):
    content, text = config_answer(GIVEN, {"data": "The store."})
    path = file(tmp_path, text)
    read = read_config(path)
    assert {name: read[name] for name in GIVEN} == GIVEN
    assert content["options"]["batch-size"] == read["batch_clips"] == 13
    assert "# data: not given. The store.\n" in text
    again, same = config_answer(read, {"data": "The store."})
    assert (again, same) == (content, text)
    assert antigram.train_options(path) == {**read, "device_memory": 500_000_000}


def test_the_command_line_overrides_the_file(shell):
    file(shell.folder, 'mode = "baseline"\nbatch_size = 4\nlr = 1\nlayer = [5]\n"no-report" = 1')
    shell.refused(2, "train.toml: no-report: no option", "train", "--config", "train.toml")
    file(shell.folder, 'mode = "baseline"\nbatch_size = 4\nlr = 1\nckpt = ["a.pt", "b.pt"]')
    words = ("train", "--config", "train.toml", "--print-config")
    shell.refused(2, "--mode baseline has no teacher: leave --ckpt out", *words)
    given = ("--mode", "online", "--ckpt", "c.pt", "--layer", 3, "--lr", 0.5)
    used = shell.json(*words, *given)["options"]
    assert (used["mode"], used["batch-size"], used["lr"]) == ("online", 4, 0.5)
    assert (used["ckpt"], used["layer"]) == (["c.pt"], ["3"])
    assert (used["epochs"], used["patience"]) == (50, 5)
    assert not {"epochs", "patience"} & set(shell.json(*words, *given, "--resume")["options"])
    code, out, _ = shell(*words, *given)
    assert code == 0
    file(shell.folder, out)
    assert shell.json(*words)["options"] == used
    assert not (shell.folder / "workspace").exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("lr = ", "train.toml: cannot be read as TOML: "),
        ("lr = 0", "train.toml: lr: 0.0 is not in the range 0<x<inf."),
        ('layer = ["x:"]', "train.toml: layer: 'x:' is not the number of a convolution layer"),
        ('mode = "basline"', 'train.toml: mode: is "basline"; wanted baseline, wi, frozen'),
        ("batch-size = 3\nbatch_size = 4", "train.toml: batch_size: is given twice"),
        ("batch-size = 3.0", "train.toml: batch-size: is 3.0; wanted a whole number"),
        ("seed = true", "train.toml: seed: is true; wanted a whole number"),
        ('data = ""', 'train.toml: data: is ""; wanted text'),
        ("[train]\nlr = 1", "train.toml: train: no option of train"),
    ],
)
def test_a_mistake_in_the_file_is_a_line_with_file_and_key(text, match, shell):
    file(shell.folder, text)
    shell.refused(2, match, "train", "--config", "train.toml", "--mode", "baseline")


def test_a_file_that_is_not_there_is_named(shell):
    shell.refused(2, "none.toml: cannot be read", "train", "--config", "none.toml")


def test_the_same_training_from_a_file_in_python_and_on_the_command_line(chain):
    workspace = antigram.Workspace(chain.folder / "workspace")
    options = ("--mode", "baseline", *TINY, "--seed", 3, "--clip-norm", 1, "--device", "cpu")
    code, out, _ = chain("train", *options, "--no-report", "--print-config")
    assert code == 0
    path = file(chain.folder, out)
    chain.json("train", *options, "--name", "words")
    chain.json("train", "--config", path, "--name", "file")
    antigram.train_student(workspace, **antigram.train_options(path), name="python")
    want = numbers_of(workspace.runs / "words")
    assert want == numbers_of(workspace.runs / "file") == numbers_of(workspace.runs / "python")
