"""The stores of a comparison: a dry run leaves them alone, and jobs name those that they read."""

import shutil
from typing import Any

import pytest

from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.comparison import compare
from antigram.studies.compare.data import make_all_folds
from antigram.studies.compare.design import ARMS, Setting, Study, Teacher, Training
from antigram.studies.compare.jobs import plan_jobs
from tests.support import corpus_trees
from tests.support.files import bytes_of
from tests.support.stores import prepare_gsc

SETTINGS: dict[str, Any] = {"task": "word", "against": "speaker"}
SMALL: dict[str, Any] = {"at_layers": (5,), "seeds": 1, "width": 1, "epochs": 1}
FOLDS = "kfold:speaker:2"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    home = corpus_trees.gsc(tmp_path_factory.mktemp("crossed"), per_word=12)
    return prepare_gsc(home, tmp_path_factory.mktemp("made") / "features" / "gsc.zarr").store


@pytest.fixture
def store(prepared, tmp_path):
    folder = shutil.copytree(prepared.path.parent, tmp_path / "ws" / "features")
    return FeatureStore(folder / "gsc.zarr")


def folds_of(store, workspace):
    study = Study(
        name="study",
        data={"gsc": {"store": str(store.path)}},
        settings={"": Setting(data="gsc", folds=FOLDS, **SETTINGS)},
        teachers={"teacher": Teacher(task="speaker")},
        arms={name: ARMS[name] for name in ("baseline", "wi", "at")},
        at_layers=(5,),
        seeds=1,
        training=Training(width=1, epochs=1),
    )
    return make_all_folds(workspace, study, {"gsc": store})[""], study


def test_a_dry_run_makes_and_replaces_no_fold(store):
    workspace = Workspace(store.path.parents[1])
    before = bytes_of(store.path.parent)
    compare(workspace, **SETTINGS, **SMALL, folds=FOLDS, dry_run=True)
    assert bytes_of(store.path.parent) == before
    folds_of(store, workspace)
    before = bytes_of(store.path.parent)
    compare(workspace, **SETTINGS, **SMALL, folds="confounded:word:speaker", dry_run=True)
    assert bytes_of(store.path.parent) == before


@pytest.mark.parametrize("inside", [True, False])
def test_a_dry_run_lists_the_commands_of_the_run(store, tmp_path, inside):
    workspace = Workspace(store.path.parents[1] if inside else tmp_path / "other")
    asked: dict[str, Any] = {
        **SETTINGS,
        **SMALL,
        "folds": FOLDS,
        "name": "study",
        "data": str(store.path),
    }
    listed = compare(workspace, **asked, dry_run=True)["jobs"]
    folds, study = folds_of(store, workspace)
    jobs = plan_jobs(study, {"": folds}, {}, str(workspace.runs)).jobs
    assert [job["command"] for job in listed] == [f"antigram {' '.join(j.command)}" for j in jobs]


@pytest.mark.parametrize("inside", [True, False])
def test_every_job_can_open_the_store_that_it_names(store, tmp_path, inside):
    workspace = Workspace(store.path.parents[1] if inside else tmp_path / "other")
    folds, _ = folds_of(store, workspace)
    for fold in folds:
        for data in (fold.student, *fold.teachers.values()):
            assert ("/" in data.name) != inside
            assert FeatureStore(workspace.store(data.name, print)).fingerprint == data.fingerprint
