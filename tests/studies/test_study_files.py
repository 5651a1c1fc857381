"""Studies as TOML files: what is read, what is refused, and the studies that come along."""

import json
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from antigram import cli
from antigram.pipeline.errors import InputError
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import ARMS, Variant
from antigram.studies.compare.estimate import _named_folds
from antigram.studies.compare.files import LIBRARY, library, read_study, study_of
from antigram.studies.compare.jobs import FoldData, StoreData, plan_jobs
from antigram.studies.compare.results import claim_results, setting_results
from antigram.studies.reproduce import REPRODUCED, gains

FILE = """
title = "t"
task = "word"
against = "speaker"
layers = [5, 9]
seeds = 2

[training]
width = 4

[data.words]
corpus = "asc"
limit_per_class = 20

[settings.natural]
data = "words"
folds = "kfold:speaker:2"

[teachers.speaker]
task = "speaker"

[arms.at]
mode = "cached"
layered = true

[[claims]]
name = "H1"
text = "It helps."
arm = "at"
over = ["baseline"]
setting = "natural"

[presets.small]
seeds = 1

[presets.small.training]
width = 2
"""


def tables(**changes):
    return {**tomllib.loads(FILE), **changes}


def planned(study):
    other = {name: StoreData(f"{study.name}-{name}") for name in study.data}
    return plan_jobs(study, _named_folds(study), other, "ws/runs")


def test_keys_of_a_registered_study_are_those_of_its_kept_results():
    results = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
    kept = sqlite3.connect(results / "is-it-invariance.sqlite")
    rows = kept.execute("SELECT key, kind, name, result FROM jobs WHERE state = 'done'").fetchall()
    kept.close()
    found = {name.partition(".")[2].rpartition(".")[0]: (key, json.loads(result or "{}"))
             for key, kind, name, result in rows if kind in ("training", "teacher")}  # fmt: skip
    at = "confounded."
    student = found[f"{at}baseline.k0.s0"][1]["features"]
    teacher = found[f"{at}teacher-speaker.k0"][1]["features"]
    study = read_study("is-it-invariance")[0].restricted(["confounded", "wi", "at", "dann"])
    fold = FoldData(
        StoreData("students", student),
        {label: StoreData("teachers", teacher) for label in ("speaker", "word")},
    )
    planned = plan_jobs(study, {"confounded": [fold], "natural": []}, {}, "runs").jobs
    jobs = [job for job in planned if job.kind in ("teacher", "training")]
    keys = {job.name.partition(".")[2].rpartition(".")[0]: job.key for job in jobs}
    for name in ("baseline.k0.s0", "teacher-speaker.k0", "wi.k0.s0", "at5.k0.s0", "dann.k0.s1"):
        assert keys[at + name] == found[at + name][0], name
    assert all("--init" in job.command for job in jobs)


def test_a_key_tells_initial_weights_only_where_they_are_not_torchvisions():
    def keys(**training):
        study, _ = study_of(tables(training=training), "mine")
        return [job.key for job in planned(study).jobs if job.kind != "cache"]

    assert keys(width=4) != keys(width=4, init="torchvision")
    assert keys(width=64) == keys(width=64, init="torchvision")
    assert keys(arch="crnn", width=4) == keys(arch="crnn", width=4, init="torchvision")


def test_a_file_is_read_into_a_study():
    study, stand_ins = study_of(tables(), "mine")
    assert stand_ins == {}
    assert list(study.arms) == ["baseline", "at"]
    assert study.arms["baseline"] == ARMS["baseline"]
    assert (study.at_layers, study.seeds, study.training.width) == ((5, 9), 2, 4)
    setting = study.settings["natural"]
    assert (setting.task, setting.against, setting.folds) == ("word", "speaker", "kfold:speaker:2")


def test_a_preset_replaces_entries_and_names_another_study():
    study, _ = study_of(tables(), "mine", preset="small")
    assert (study.name, study.seeds, study.training.width) == ("mine-small", 1, 2)
    assert study.data == {"words": {"corpus": "asc", "limit_per_class": 20}}
    with pytest.raises(InputError, match="preset 'huge': wanted paper, small"):
        study_of(tables(), "mine", preset="huge")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"colour": 1}, "colour: is unknown; wanted name, title"),
        ({"seeds": "two"}, "seeds: is 'two'; wanted a whole number"),
        ({"seeds": True}, "seeds: is True; wanted a whole number"),
        ({"training": {"width": 1.5}}, r"training.width: is 1.5; wanted a whole number"),
        ({"training": 3}, "training: wanted a table"),
        ({"layers": 5}, "at_layers: is 5; wanted a list"),
        ({"arms": {"at": {"mode": "magic"}}}, r"arms.at.mode: is 'magic'; wanted baseline, wi"),
        ({"arms": {"at": {}}}, r"arms.at.mode: is missing"),
        ({"arms": {"at": {"mode": "wi", "teacher": "x"}}}, "teacher 'x': wanted speaker"),
        ({"settings": {"a": {"data": "x"}}}, "data 'x': wanted words"),
        ({"settings": {}, "claims": []}, "settings: there is at least one"),
    ],
    ids=str,
)
def test_an_entry_that_does_not_fit_is_named(changes, match):
    with pytest.raises(InputError, match=match):
        study_of(tables(**changes), "mine")


def test_a_file_that_is_not_there_or_no_toml_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing: is no file.*is-it-invariance"):
        read_study("nothing")
    (tmp_path / "bad.toml").write_text("a = [")
    with pytest.raises(InputError, match=r"bad\.toml: cannot be read as TOML"):
        read_study(tmp_path / "bad.toml")


def test_a_stand_in_has_labels_of_its_own():
    content = tables(
        data={"words": {"corpus": "iemocap", "seconds": 1.0, "preset": "paper"}},
        task="emotion",
        settings={"natural": {"data": "words", "folds": "kfold:session:2", "against": "speaker"}},
        teachers={"speaker": {"task": "session"}},
    )
    study, stand_ins = study_of(content, "mine", corpus_map={"iemocap": "fsdd", "gsc": "asc"})
    assert stand_ins == {"iemocap": "fsdd"}
    assert study.data["words"] == {"corpus": "fsdd", "seconds": 1.0}
    setting = study.settings["natural"]
    assert (setting.task, setting.against, setting.folds) == ("word", "speaker", "kfold:speaker:2")
    assert study.teachers["speaker"].task == "speaker"


def test_only_some_arms_and_settings_are_run_with_the_same_keys():
    study, _ = study_of(tables(arms={"at": tables()["arms"]["at"], "wi": {"mode": "wi"}}), "mine")
    few = study.restricted(["at"])
    assert list(few.arms) == ["baseline", "at"]
    assert {job.key for job in planned(few).jobs} < {job.key for job in planned(study).jobs}
    with pytest.raises(InputError, match="'nobody': wanted natural, baseline, at, wi"):
        study.restricted(["nobody"])


@pytest.mark.parametrize("name", library())
@pytest.mark.parametrize("preset", [None, "small"])
def test_studies_that_come_along_are_commands_that_a_user_would_type(name, preset):
    if preset and "presets" not in tomllib.loads((LIBRARY / f"{name}.toml").read_text()):
        pytest.skip("has no preset of that name")
    study, _ = read_study(name, preset=preset)
    jobs = planned(study).jobs
    assert len({job.name for job in jobs if job.kind != "probe"}) == len({j.key for j in jobs}) - (
        sum(job.kind == "probe" for job in jobs)
    )
    seen = {}
    for job in jobs:
        seen.setdefault((job.kind, *job.command[::2]), job)
    for job in seen.values():
        command = cli.app.commands[job.command[0]]
        command.make_context(job.command[0], list(job.command[1:]), parent=None)


# The arms of each table and figure, as the paper has them (table 2 trains the teachers alone).
PAPER = {
    "table2": {"baseline"},
    "table3": {"baseline", "wi-noise", "wi-emo", "at-noise", "at-emo"}
    | {"dual-emo-noise", "dual-noise-emo"},
    "table4": {"baseline", "wi-word", "wi-speaker", "at-word", "at-speaker"},
    "table5": {"baseline", "wi-nsynth", "wi-good-sounds", "at-nsynth", "at-good-sounds"},
    "table6": {"baseline"}
    | {
        f"{a}-{s}"
        for a in ("mean", "sum", "compmul", "max", "gram")
        for s in ("cos2", "mse-sigmoid")
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_a_table_has_the_arms_of_the_paper_and_its_sizes(name):
    study, _ = read_study(name, preset="paper")
    assert set(study.arms) == PAPER[name]
    training = study.training
    assert (training.arch, training.width, training.epochs) == ("vgg16", 64, 50)
    assert (training.patience, training.batch_clips, training.lr) == (5, 13, 5e-4)
    for setting in study.settings:
        assert set(study.published[setting]) == PAPER[name]
    if name in ("table3", "table4", "table5"):
        assert study.at_layers == tuple(range(1, 14))


def test_every_table_and_figure_has_its_studies():
    assert {name for names in REPRODUCED.values() for name in names} <= set(library())


def test_gains_are_means_over_the_arms_of_a_group():
    def arm(name, setting, gain):
        return {"arm": name, "setting": setting, "difference": {"mean": gain / 100}}

    published = {"none": {"baseline": 90.0, "at-emo": 92.0, "dual-emo-noise": 95.0}}
    studies = {
        "table3": {
            "arms": [
                {"arm": "baseline", "setting": "none", "difference": None},
                arm("wi-emo", "none", 50),
                arm("at-emo", "none", 1),
                arm("at-emo 5", "none", 9),
                arm("dual-emo-noise", "none", 3),
            ],
            "published": published,
        },
        "table4": {"arms": [arm("at-word", "random", -4)], "published": {}},
    }
    found = {one["group"]: (one["arms"], one["gain"], one["published"]) for one in gains(studies)}
    assert found["all arms"] == (3, pytest.approx(0), pytest.approx(3.5))
    assert found["words"] == (2, pytest.approx(2), pytest.approx(3.5))
    assert found["emotions"] == (1, pytest.approx(-4), None)
    assert found["random split"][0] == found["emotions"][0]
    assert found["dual AT"] == (1, pytest.approx(3), pytest.approx(5))
    assert "sounds" not in found


def test_a_trial_has_a_seed_of_its_own():
    seeds = {Variant(None, None, trial).seed(seed) for trial in range(3) for seed in range(5)}
    assert len(seeds) == 15


@pytest.fixture
def simulated(tmp_path, rng):
    """A study whose arms are right on known shares of the segments of 24 speakers."""

    def make(shares, over, probe=""):
        content = tables(
            layers=[5],
            arms={
                name: {"mode": "baseline", "settings": {"dropout": 0.1 * k}}
                for k, name in enumerate(shares)
                if name != "baseline"
            },
            claims=[{"name": "H", "text": "Yes.", "arm": "a", "over": over, "setting": "natural"}],
            teachers={},
        )
        study, _ = study_of(content, "mine")
        plan, database = planned(study), Database(tmp_path / "results.sqlite")
        groups = np.repeat(np.arange(24, dtype=np.int32), 60)
        database.add(plan.jobs)
        for cell in plan.cells:
            rows = np.flatnonzero(groups % 2 == cell.fold)
            right = rng.random(len(rows)) < shares[cell.arm]
            kept: dict[str, NDArray[Any]] = {
                "row": rows,
                "true": np.zeros(len(rows), np.int32),
                "predicted": np.where(right, 0, 1).astype(np.int32),
                "probability": np.full(len(rows), 0.5, np.float32),
            }
            database.finish(cell.key, {}, 1.0, {"validation": kept, "test": kept})
        result = setting_results(study, "natural", plan, database, groups, 0.1)
        return claim_results(study, {"natural": result})[0]

    return make


def test_a_claim_holds_only_against_all_arms_that_it_names(simulated):
    shares = {"baseline": 0.6, "a": 0.8, "b": 0.8}
    one = simulated(shares, ["baseline"])
    assert one["holds"]
    assert one["p_holm"] == one["p"] == one["differences"]["baseline"]["p"]
    both = simulated(shares, ["baseline", "b"])
    assert not both["holds"]
    assert both["p"] == max(each["p"] for each in both["differences"].values())
    lost = simulated({"baseline": 0.8, "a": 0.6}, ["baseline"])
    assert (lost["holds"], lost["p"]) == (False, 1.0)


def test_a_claim_about_an_arm_that_was_not_run_is_not_tested(simulated):
    found = simulated({"baseline": 0.6, "a": 0.8}, ["baseline", "nobody"])
    assert not found["holds"]
    assert found["note"] == "it was not tested, as there is no result of nobody"


def test_the_library_is_beside_the_code():
    assert Path(LIBRARY).is_dir()
    assert "is-it-invariance" in library()
