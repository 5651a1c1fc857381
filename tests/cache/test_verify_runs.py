"""verify of runs reports everything that a run did not write, and nothing in a killed run."""

import json
import shutil

import numpy as np
import pytest

from antigram.model.nets.arch import Arch
from antigram.model.training.config import TrainConfig
from antigram.studies.verify import verify_run
from tests.support.files import flip
from tests.support.runs import (
    Killed,
    as_version_1,
    killed_before,
    numbers_of,
    stop_at,
    train_baseline,
)

STATES = ("finished", "stopped")


def settings(**changes):
    given = {"arch": Arch("vgg11", 1), "epochs": 2, "patience": 9, "lr": 1e-3, **changes}
    return TrainConfig(mode="baseline", task="label", **given)


@pytest.fixture(scope="module")
def made(store, tmp_path_factory):
    """A finished and a stopped run, each with seeds 0 and 1, by name."""
    home = tmp_path_factory.mktemp("made") / "runs"
    for seed, prefix in ((0, ""), (1, "other-")):
        train_baseline(settings(seed=seed), store, home / f"{prefix}finished")
        with pytest.raises(KeyboardInterrupt):
            train_baseline(
                settings(seed=seed), store, home / f"{prefix}stopped", on_progress=stop_at(2)
            )
    return home


@pytest.fixture(params=STATES)
def run(request, made, tmp_path):
    """A copy of the named run, to damage."""
    return shutil.copytree(made / request.param, tmp_path / "runs" / request.param)


def files_of(run):
    return sorted(path.name for path in run.iterdir())


def found_in(run):
    return {problem.path for problem in verify_run(run)}


def test_a_run_that_finished_or_was_stopped_has_no_problem(run):
    assert not list(verify_run(run))


def test_every_flipped_bit_in_any_file_of_a_run_is_found(run, rng):
    for name in files_of(run):
        raw = (run / name).read_bytes()
        places = {0, len(raw) - 1, *rng.integers(len(raw), size=6).tolist()}
        for place in sorted(places):
            flip(run / name, place, int(rng.integers(8)))
            assert run / name in found_in(run), f"bit in byte {place} of {name}"
            (run / name).write_bytes(raw)
    assert not found_in(run)


def test_every_missing_or_truncated_file_of_a_run_is_found(run):
    assert {"config.json", "metrics.jsonl", "best.pt"} <= set(files_of(run))
    for name in files_of(run):
        raw = (run / name).read_bytes()
        (run / name).write_bytes(raw[:-7])
        assert found_in(run) == {run / name}, f"{name} truncated"
        (run / name).unlink()
        assert found_in(run) == {run / name}, f"{name} deleted"
        (run / name).write_bytes(raw)


def test_every_file_of_another_run_is_found(run, made):
    for name in files_of(run):
        raw = (run / name).read_bytes()
        shutil.copyfile(made / f"other-{run.name}" / name, run / name)
        wanted = {run / name} if name != "manifest.json" else found_in(run) - {run / name}
        assert wanted, name
        assert wanted <= found_in(run), name
        (run / name).write_bytes(raw)


def test_a_file_that_the_run_did_not_write_is_named(run):
    (run / "inner").mkdir()
    for extra in (run / "notes.txt", run / "inner" / "best.pt"):
        extra.write_text("mine\n")
        assert found_in(run) == {extra}
        extra.unlink()


def test_events_of_tensorboard_are_checked_once_the_run_has_ended(store, tmp_path):
    folder = tmp_path / "runs" / "run"
    with pytest.raises(KeyboardInterrupt):
        train_baseline(settings(), store, folder, on_progress=stop_at(2))
    events = folder / "events.out.tfevents.1.host"
    events.write_bytes(b"records")
    assert not found_in(folder)  # TensorBoard may still be writing these files
    train_baseline(settings(), store, folder, resume=True)
    assert not found_in(folder)
    flip(events, 0)
    assert found_in(folder) == {events}


def test_a_run_of_a_newer_version_is_not_called_intact(run):
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    (problem,) = verify_run(run)
    assert "written by version 99, this reads up to 2" in problem.problem


def test_a_run_of_version_1_is_verified_without_a_manifest(run):
    as_version_1(run)
    assert not list(verify_run(run))
    flip(run / "config.json", 0)
    assert found_in(run) == {run / "config.json"}


def test_a_finished_run_of_version_1_without_best_pt_is_not_intact(made, tmp_path):
    run = as_version_1(shutil.copytree(made / "finished", tmp_path / "runs" / "old"))
    (run / "best.pt").unlink()
    assert found_in(run) == {run / "best.pt"}


FEW = (1, 4, 13, 30, 45)


@pytest.mark.parametrize(
    "change",
    [*FEW, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 90) if n not in FEW)],
)
def test_a_run_killed_before_any_change_of_its_files_is_intact_and_goes_on(
    change, store, made, tmp_path
):
    folder = tmp_path / "runs" / "run"
    given = settings()
    try:
        with killed_before(change, folder):
            train_baseline(given, store, folder)
    except Killed:
        pass
    else:
        assert change > 50, "there are more changes than that"
    assert not list(verify_run(folder)) or not folder.exists()
    result = train_baseline(given, store, folder, resume=folder.exists())
    assert not list(verify_run(folder))
    assert files_of(folder) == files_of(made / "finished")
    assert numbers_of(folder) == numbers_of(made / "finished")
    want = json.loads((made / "finished" / "result.json").read_text())
    assert result["accuracy"] == want["accuracy"]
    np.testing.assert_array_equal(result["confusion"], want["confusion"])
