"""What the command line does, done from Python: functions that take a workspace and names."""

import inspect
from pathlib import Path
from typing import Any

import pytest

import antigram
from antigram import cli
from antigram.studies.demo import antigram_command

TINY: dict[str, Any] = {"arch": "vgg11", "width": 1, "epochs": 1, "device": "cpu"}
FUNCTIONS = {
    "cache-grams": "cache_grams",
    "clean": "clean",
    "compare": "compare",
    "corpora": "describe_corpora",
    "demo": "run_demo",
    "download": "download_corpus",
    "evaluate": "evaluate_file",
    "explain": "explain_file",
    "export": "export",
    "export-model": "export_model",
    "import": "import_",
    "layers": "list_layers",
    "plan": "plan",
    "predict": "predict_files",
    "prepare": "prepare_corpus",
    "reproduce": "reproduce",
    "probe": "probe",
    "status": "status",
    "study": "study",
    "track": "track_run",
    "train": "train_student",
    "verify": "verify_named",
}


def test_every_command_has_a_function_which_takes_what_its_options_give():
    assert set(FUNCTIONS) == set(cli.app.commands)
    own = {
        "help",
        "workspace",
        "as_json",
        "verbose",
        "stream",  # chooses the function `stream_files`, which has `hop_seconds`
        "hop_seconds",
    }  # of every command; dry_run chooses a function
    for command, name in FUNCTIONS.items():
        taken = inspect.signature(getattr(antigram, name)).parameters
        given = {param.name for param in cli.app.commands[command].params} - own
        if not any(p.kind is p.VAR_KEYWORD for p in taken.values()):
            assert given <= set(taken), command
        assert all(
            p.default is not p.empty or p.name in given
            for p in taken.values()
            if p.kind is p.KEYWORD_ONLY
        ), command


def test_the_chain_from_python(audio, tmp_path):
    workspace = antigram.Workspace(tmp_path / "workspace")
    said = []
    store = antigram.prepare_corpus(
        workspace, "folder", source=audio, name="tones", workers=1, on_message=said.append
    ).store
    assert said[0] == f"folder: {audio}"
    teacher = tmp_path / "net.pt"
    first = antigram.train_student(workspace, mode="baseline", save=teacher, seed=1, **TINY)
    assert antigram.estimate_grams(workspace, teacher, [3], device="cpu")["name"] == "tones--net"
    built = antigram.cache_grams(workspace, teacher, [3], device="cpu")
    assert (built.computed, list(built.layers)) == (30, [3])
    result = antigram.train_student(workspace, mode="cached", layers=["net:3"], betas=[0.5], **TINY)
    assert (result["layers"], result["beta"]) == ([3], 0.5)
    assert (Path(result["run"]) / "report.html").is_file()
    for resume in (False, True):  # a report that was left out is written later
        named: dict[str, Any] = {"mode": "baseline", "name": "plain", "resume": resume}
        plain = antigram.train_student(workspace, report=resume, **named, **TINY)
        run = Path(plain["run"])
        assert (run / "report.html").is_file() == (run / "curves.png").is_file() == resume
    scores = antigram.evaluate_file(workspace, teacher, device="cpu")
    assert scores.segments.accuracy == first["accuracy"]["test"]
    table = tmp_path / "table.csv"
    predicted = antigram.predict_files(teacher, [audio / "low"], table=table, device="cpu")
    assert len(predicted.recordings) == len(table.read_text().splitlines()) - 1 == 10
    exported = antigram.export(workspace, "tones", tmp_path / "tones.h5")
    again = antigram.import_(workspace, exported.file, name="again")
    assert antigram.FeatureStore(again.path).fingerprint == store.fingerprint
    done = antigram.verify_named(workspace, recompute=4, ckpt=teacher, data="tones", device="cpu")
    assert [each.problems for each in done] == [[]] * 6
    there = antigram.status(workspace)
    assert [len(there[kind]) for kind in ("stores", "caches", "runs")] == [2, 1, 3]
    assert antigram.clean(workspace, dry_run=True).removed == []


def test_a_teacher_of_what_the_student_learns_is_named(audio, tmp_path):
    workspace, teacher, said = antigram.Workspace(tmp_path / "workspace"), tmp_path / "net.pt", []
    tones = antigram.prepare_corpus(workspace, "folder", source=audio, workers=1).store

    def train(mode, **options):
        said.clear()
        antigram.train_student(workspace, mode=mode, **options, **TINY, on_message=said.append)
        return [text for text in said if "which the student learns too" in text]

    assert train("baseline", save=teacher) == []
    antigram.cache_grams(workspace, teacher, [3], device="cpu", on_message=said.append)
    assert any(f"was trained for {tones.main_label}, the main label of" in text for text in said)
    (cached,) = train("cached")
    (online,) = train("online", ckpts=[teacher], layers=[3])
    assert f"was trained for {tones.main_label}" in cached
    assert cached.partition("was")[2] == online.partition("was")[2]
    assert train("cached", betas=[-1]) == train("wi", ckpts=[teacher]) == []  # transfer learning
    antigram.train_student(
        workspace, mode="baseline", shuffle_labels=True, save=tmp_path / "shuffled.pt", **TINY
    )
    assert train("online", ckpts=[tmp_path / "shuffled.pt"], layers=[3]) == []


def test_a_student_of_ones_own_is_compared_with_a_teacher_at_layers_of_other_names(audio, tmp_path):
    workspace, teacher = antigram.Workspace(tmp_path / "workspace"), tmp_path / "net.pt"
    antigram.prepare_corpus(workspace, "folder", source=audio, workers=1)
    antigram.train_student(workspace, mode="baseline", save=teacher, **TINY)
    antigram.cache_grams(workspace, teacher, [2], aggregation="pairwise", device="cpu")
    own = tmp_path / "own.py"
    own.write_text(
        "from torch import nn\n\ndef net(classes):\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 3, 2, 1), nn.ReLU(inplace=True),\n"
        "        nn.AdaptiveAvgPool2d(9), nn.Flatten(), nn.Linear(243, classes))\n"
    )
    student: dict[str, Any] = {
        "arch": f"{own}:net",
        "epochs": 1,
        "device": "cpu",
        "layers": ["0=2"],
    }
    cached = antigram.train_student(workspace, mode="cached", **student)
    assert cached["layers"] == ["0"]
    assert cached["at_initial"]["0"]["folder--net"] > 0
    online = antigram.train_student(
        workspace, mode="online", ckpts=[teacher], aggregation="pairwise", **student
    )
    assert online["at_initial"]["0"]["net"] == pytest.approx(
        cached["at_initial"]["0"]["folder--net"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"mode": "baseline", "lr": -1.0}, "`lr` -1.0: wanted"),
        ({"mode": "baseline", "dropout": 1.2}, "`dropout` 1.2: wanted"),
        ({"mode": "online", "layers": [5]}, "`mode=online` needs the teacher: `ckpts=FILE`"),
        ({"mode": "frozen", "ckpts": ["n.pt"]}, "`mode=frozen` needs a layer: `layers` 1 to 13"),
    ],
)
def test_a_mistake_in_python_names_the_argument(asked, match, tmp_path):
    with pytest.raises(antigram.InputError, match=match):
        antigram.train_student(antigram.Workspace(tmp_path), **asked)


def test_the_demo_calls_the_antigram_that_is_imported(tmp_path, monkeypatch):
    command, script = antigram_command()
    assert Path(script) == Path(cli.__file__).resolve()
    installed = tmp_path / "site-packages" / "antigram"
    installed.mkdir(parents=True)
    (installed / "cli.py").touch()  # no link, as in a checkout
    monkeypatch.setattr(antigram, "__path__", [str(installed)])
    assert antigram_command() == [command, "-P", "-m", "antigram"]
