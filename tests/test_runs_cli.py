"""Runs from the command line: two of one name, what --resume takes over, what is said of a run."""

import json
import shutil
from pathlib import Path

import pytest

from antigram.pipeline.workspace import locked

TRAIN = ("train", "--mode", "baseline", "--arch", "vgg11", "--width", "1")
RUNS = Path("workspace/runs")


def test_of_two_trainings_of_one_name_the_second_is_refused_in_a_line(chain):
    with locked(RUNS / "mine", "training"):
        named = (*TRAIN, "--epochs", 1, "--name", "mine")
        chain.refused(2, "another process is training it", *named)
        assert not (RUNS / "mine").exists()
    shutil.copytree(RUNS / "baseline-tones-seed0", RUNS / "mine")
    with locked(RUNS / "mine", "training"):
        chain.refused(2, "another process is training it", *named, "--resume")


def test_of_two_trainings_without_a_name_the_second_takes_the_next(chain):
    with locked(RUNS / "baseline-tones-seed0-2", "training"):
        done = chain.json(*TRAIN, "--epochs", 1)
    assert Path(done["run"]).name == "baseline-tones-seed0-3"


def test_a_run_that_goes_on_keeps_its_epochs_and_patience_unless_others_are_asked_for(
    chain,
):
    named = (*TRAIN, "--name", "mine", "--keep-resume")
    chain.json(*named, "--epochs", 2, "--patience", 3)
    assert chain.json(*named, "--resume")["epochs"] == 2
    assert chain.json(*named, "--resume", "--epochs", 3)["epochs"] == 3
    config = json.loads((RUNS / "mine" / "config.json").read_text())["config"]
    assert (config["epochs"], config["patience"]) == (3, 3)


def test_verify_says_of_a_run_whether_it_has_finished_or_how_it_goes_on(chain):
    run = RUNS / "baseline-tones-seed0"
    code, _, err = chain("verify", run)
    assert (code, f"run {run}: intact; finished" in err) == (0, True)
    (RUNS / "begun").mkdir()  # and killed
    (RUNS / "begun" / "config.json.1.partial").write_text("{")
    code, _, err = chain("verify", "begun")
    assert code == 0
    assert "not finished: the same command with --resume goes on; 1 unfinished" in err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"accuracy": 1}'])
def test_status_says_which_result_is_unreadable(chain, text):
    (RUNS / "baseline-tones-seed0" / "result.json").write_text(text)
    (run,) = chain.json("status")["runs"]
    assert run["summary"].startswith("unreadable")
