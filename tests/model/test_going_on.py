"""Runs that are resumed for more epochs or after a kill, and runs that cannot be resumed."""

import json
import re
import shutil

import pytest
import torch

import antigram.model.training.train
from antigram.model.nets.arch import Arch
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.config import TrainConfig
from antigram.model.training.streams import FirstStreams
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.studies.report import draw_run
from tests.support.runs import as_version_1, numbers_of, stop_at, train_baseline

ONCE = {"epochs": 3, "patience": 9}


def trained(store, folder, **changes):
    """Train in a folder and return it; arguments with an underscore are those of `train`."""
    options = {key[1:]: changes.pop(key) for key in list(changes) if key.startswith("_")}
    given = {"task": "label", "arch": Arch("vgg11", 1), "epochs": 2, "lr": 1e-3, **changes}
    train_baseline(TrainConfig(mode="baseline", **given), store, folder, **options)
    return folder


@pytest.fixture
def go(store, tmp_path):
    return lambda name="run", **given: trained(store, tmp_path / name, **given)


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """Runs to copy: a finished one, and two that were stopped in their second epoch."""
    home = tmp_path_factory.mktemp("made")
    trained(store, home / "whole", **ONCE)
    for seed, name in ((0, "stopped"), (1, "other")):
        with pytest.raises(KeyboardInterrupt):
            trained(store, home / name, **ONCE, seed=seed, _on_progress=stop_at(2))
    return home


@pytest.fixture
def stopped(made, tmp_path):
    return shutil.copytree(made / "stopped", tmp_path / "run")


def equal_weights(one, two):
    one, two = (load_checkpoint(folder / "best.pt").state_dict for folder in (one, two))
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def config_of(folder):
    return json.loads((folder / "config.json").read_text())["config"]


def test_a_finished_run_drops_last_pt_unless_it_is_kept(go):
    assert not (go("dropped", epochs=1) / "last.pt").exists()
    kept = go("kept", epochs=1, _keep_resume=True)
    assert (kept / "last.pt").exists()
    go("kept", epochs=1, _resume=True)  # nothing to train, and nothing is deleted
    assert (kept / "last.pt").exists()


def test_a_finished_run_goes_on_with_more_epochs_as_if_it_had_not_ended(go, made):
    want = made / "whole"
    folder = go(epochs=1, patience=9, _keep_resume=True)
    go(**ONCE, _resume=True)
    assert numbers_of(folder) == numbers_of(want)
    assert equal_weights(folder, want)
    assert config_of(folder)["epochs"] == 3
    assert json.loads((folder / "result.json").read_text())["epochs"] == 3
    draw_run(folder)
    page = (folder / "report.html").read_text()
    assert "Finished after 3 epochs" in page
    go(**ONCE, _resume=True)  # its settings now
    draw_run(folder)
    assert (folder / "report.html").read_text() == page


def test_a_run_stopped_by_patience_goes_on_when_it_is_raised(go):
    still = {"lr": 1e-30, "epochs": 9}  # no epoch is better than the first
    want = go("whole", patience=2, **still)
    folder = go(patience=1, _keep_resume=True, **still)
    assert len(numbers_of(folder)) == 2
    said = []
    go(patience=1, _resume=True, _on_message=said.append, **{**still, "epochs": 20})
    assert len(numbers_of(folder)) == 2
    assert any("nothing to train" in line and "`patience`" in line for line in said)
    go(patience=2, _resume=True, **still)
    assert numbers_of(folder) == numbers_of(want)
    assert len(numbers_of(folder)) == 3


def test_without_last_pt_more_epochs_are_refused_and_it_says_why(go):
    folder = go(epochs=1)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match=r"last\.pt.*`keep_resume` was not given.*`init="):
        go(epochs=2, _resume=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_refusal_names_what_differs_and_nothing_else(go, stopped):
    with pytest.raises(InputError) as caught:
        go(**ONCE, lr=0.5, seed=7, _resume=True)
    text = str(caught.value)
    assert text.startswith(f"{stopped}: was started with lr 0.001, now 0.5; seed 0, now 7. Resume")
    assert not re.search("dropout|batch_clips|precision|patience [0-9]", text)
    for fewer in ({"epochs": 2, "patience": 9}, {"epochs": 3, "patience": 8}):
        with pytest.raises(
            InputError, match=r"was started with (epochs 3, now 2|patience 9, now 8)"
        ):
            go(**fewer, _resume=True)


def test_a_run_killed_behind_its_result_makes_its_curves_and_report_when_it_is_resumed(
    go, tmp_path, monkeypatch
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(antigram.model.training.train, "_finish", killed)
        with pytest.raises(KeyboardInterrupt):
            go(**ONCE)
    folder = tmp_path / "run"
    assert (folder / "result.json").exists()
    assert not (folder / "report.html").exists()
    before = (folder / "result.json").read_bytes()
    assert (folder / "last.pt").exists()
    go(**ONCE, _resume=True)
    draw_run(folder)
    assert (folder / "result.json").read_bytes() == before
    assert "Finished after 3 epochs" in (folder / "report.html").read_text()
    assert (folder / "curves.png").exists()
    assert not (folder / "last.pt").exists()


def torn_metrics(folder):
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes()[:-30])


def no_best(folder):
    (folder / "best.pt").unlink()


def no_metrics(folder):
    (folder / "metrics.jsonl").unlink()


def last_without_a_key(folder):
    last = torch.load(folder / "last.pt", weights_only=True)
    del last["optimiser"]
    torch.save(last, folder / "last.pt")


def last_of_another_net(folder):
    last = torch.load(folder / "last.pt", weights_only=True)
    last["model"] = {name: tensor[..., :1] for name, tensor in last["model"].items()}
    torch.save(last, folder / "last.pt")


def last_of_a_newer_version(folder):
    last = torch.load(folder / "last.pt", weights_only=True)
    torch.save({**last, "format_version": 99}, folder / "last.pt")


def truncated_last(folder):
    (folder / "last.pt").write_bytes((folder / "last.pt").read_bytes()[:-1000])


def torn_config(folder):
    (folder / "config.json").write_text((folder / "config.json").read_text()[:-30])


def newer_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 99}))


DAMAGES = [
    (torn_metrics, "metrics.jsonl"),
    (no_metrics, "metrics.jsonl"),
    (no_best, "best.pt"),
    (last_without_a_key, "last.pt"),
    (last_of_another_net, "last.pt"),
    (last_of_a_newer_version, "last.pt"),
    (truncated_last, "last.pt"),
    (torn_config, "config.json"),
    (newer_config, "config.json: written by version 99, this reads up to 2"),
]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("damage", "said"), DAMAGES, ids=[d.__name__ for d, _ in DAMAGES])
def test_a_damaged_run_is_refused_in_a_line(damage, said, version, go, stopped):
    if version == 1:
        as_version_1(stopped)
    damage(stopped)
    with pytest.raises(StoredDataError, match=re.escape(f"{stopped}/{said}")) as caught:
        go(**ONCE, _resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["last.pt", "metrics.jsonl", "best.pt"])
def test_a_file_of_another_run_is_refused(name, go, stopped, made):
    shutil.copyfile(made / "other" / name, stopped / name)
    with pytest.raises(StoredDataError, match=rf"{name}: .*of another run"):
        go(**ONCE, _resume=True)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"epochs": "three"}'])
def test_an_unreadable_result_is_refused_in_a_line(text, version, go, made, tmp_path):
    folder = shutil.copytree(made / "whole", tmp_path / "run")
    if version == 1:
        as_version_1(folder)
    (folder / "result.json").write_text(text)
    with pytest.raises(StoredDataError, match=r"result\.json: "):
        go(**ONCE, _resume=True)


def test_a_deleted_manifest_is_missed(go, stopped):
    (stopped / "manifest.json").unlink()
    with pytest.raises(StoredDataError, match=r"manifest\.json: missing"):
        go(**ONCE, _resume=True)


def test_a_run_of_version_1_goes_on_with_the_orders_it_began_with(go, stopped, monkeypatch):
    as_version_1(stopped)
    drawn = []
    first = FirstStreams.order

    def spy(self, rows, epoch):
        drawn.append(epoch)
        return first(self, rows, epoch)

    monkeypatch.setattr(FirstStreams, "order", spy)
    go(**ONCE, _resume=True)
    assert drawn == [2, 3]
    assert not (stopped / "manifest.json").exists()


def test_a_folder_that_holds_something_else_is_not_taken_for_a_run(go, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "best.pt").write_text("mine")
    with pytest.raises(InputError, match="choose another"):
        go()
    with pytest.raises(StoredDataError, match=r"config\.json: missing"):
        go(_resume=True)
    assert (tmp_path / "run" / "best.pt").read_text() == "mine"
