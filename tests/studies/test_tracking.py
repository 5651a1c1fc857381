"""Runs are handed to MLflow and Weights & Biases, which are fakes here."""

import json
import sys
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import antigram
from tests.support.report_pages import entry, result


class Mlflow(ModuleType):
    def __init__(self):
        super().__init__("mlflow")
        self.__spec__ = ModuleSpec("mlflow", None)
        self.calls = []

    def set_experiment(self, name):
        self.calls.append(("experiment", name))

    @contextmanager
    def start_run(self, run_name):
        self.calls.append(("begin", run_name))
        yield SimpleNamespace(info=SimpleNamespace(run_id="m1"))
        self.calls.append(("end", run_name))

    def log_params(self, params):
        assert len(params) <= 100
        self.calls.append(("params", params))

    def log_metrics(self, metrics, step):
        self.calls.append(("metrics", step, metrics))


class Wandb(ModuleType):
    id, summary = "w1", None

    def __init__(self):
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.logged, self.summary, self.finished = {}, {}, False

    def init(self, project, name, config):
        self.given = (project, name, config)
        return self

    def log(self, numbers, step):
        self.logged[step] = numbers

    def finish(self):
        self.finished = True


@pytest.fixture
def workspace(tmp_path):
    run = tmp_path / "runs" / "emo"
    run.mkdir(parents=True)
    entries = [entry(1, sources=["speech & co"]), entry(2, sources=["speech & co"], at=None)]
    entries[0] |= {"lr": 5e-4, "gradient_ratio": {"3": {"net": [0.25, None]}}}
    (run / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in entries))
    config: dict[str, Any] = {
        "mode": "cached",
        "arch": {"name": "vgg11", "width": 2},
        "layers": [3, 5],
    }
    config |= {f"field {number}": number for number in range(120)}
    (run / "config.json").write_text(json.dumps({"config": config, "features": "f00"}))
    (run / "result.json").write_text(
        json.dumps(result(["a", "b"], [[1, 0], [0, 1]], layers=[3, 5]))
    )
    return antigram.Workspace(tmp_path)


def test_mlflow_is_given_settings_metrics_and_result(workspace, monkeypatch):
    fake = Mlflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    said = antigram.track_run(workspace, "emo", to="mlflow", project="voices")
    assert (said["id"], said["epochs"], said["finished"]) == ("m1", 2, True)
    assert fake.calls[:2] == [("experiment", "voices"), ("begin", "emo")]
    assert fake.calls[-1] == ("end", "emo")
    params: dict[str, Any] = {}
    for call in fake.calls:
        params |= call[1] if call[0] == "params" else {}
    assert (params["arch/width"], params["layers"], params["features"]) == (2, [3, 5], "f00")
    assert len(params) == 125
    first, second, last = [call[1:] for call in fake.calls if call[0] == "metrics"]
    assert (first[0], second[0], last[0]) == (1, 2, 2)
    assert first[1]["train/ce"] == 2.0
    assert first[1]["train/at_by_source/speech _ co"] == 0.1
    assert (first[1]["lr"], first[1]["gradient_ratio/3/net/first"]) == (5e-4, 0.25)
    assert "gradient_ratio/3/net/last" not in first[1]
    assert "train/at" not in second[1]
    assert "lr" not in second[1]
    assert last[1]["result/accuracy/test"] == 0.875
    assert not [key for key in last[1] if "confusion" in key or "layers" in key]


def test_wandb_is_given_the_same_and_an_unfinished_run_has_no_result(workspace, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    assert antigram.track_run(workspace, "emo", to="wandb")["id"] == "w1"
    project, name, config = fake.given
    assert (project, name, config["mode"]) == ("antigram", "emo", "cached")
    assert fake.logged[2]["validation/accuracy"] == 0.5
    assert fake.summary["result/accuracy/test"] == 0.875
    assert fake.finished
    (workspace.runs / "emo" / "result.json").unlink()
    fake.summary = {}
    assert antigram.track_run(workspace, "emo", to="wandb")["finished"] is False
    assert fake.summary == {}


def test_mistakes_are_one_line(workspace, shell, monkeypatch):
    words = ("--workspace", workspace.root, "track")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = "--to mlflow needs mlflow, which is not installed: pip install 'antigram[mlflow]'"
    shell.refused(2, line, *words, "emo", "--to", "mlflow")
    shell.refused(2, "no run is called 'other'", *words, "other", "--to", "wandb")
    monkeypatch.undo()
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(fake, "log", lambda *_, **__: 1 / 0)
    with pytest.raises(antigram.InputError, match="`to=wandb`: wandb failed: division by zero"):
        antigram.track_run(workspace, "emo", to="wandb")
    assert fake.finished
    (workspace.runs / "emo" / "config.json").write_text("[]")
    with pytest.raises(antigram.StoredDataError, match=r"config\.json: unreadable \(holds a list"):
        antigram.track_run(workspace, "emo", to="wandb")


def test_the_command_says_where_the_run_went(workspace, shell, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    words = ("--workspace", workspace.root, "track", "emo", "--to", "wandb")
    code, out, _ = shell(*words)
    assert code == 0
    assert out.startswith("emo: 2 epochs sent to wandb, project antigram, as w1")
    assert shell.json(*words, "--project", "p")["project"] == "p"
