"""Networks of a study in its report: errors to hear and maps, with and without their files."""

import io
import shutil

import numpy as np
import pytest
import soundfile

from antigram.model.nets.arch import Arch
from antigram.model.training.checkpoint import save_tensors
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare import networks
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import ARMS, Setting, Study, Teacher
from antigram.studies.compare.jobs import FoldData, StoreData, plan_jobs
from antigram.studies.compare.networks import network_parts
from antigram.studies.compare.predictions import predictions_of
from antigram.studies.compare.results import setting_results
from antigram.studies.report import Figure, Sounds
from tests.support import corpus_trees
from tests.support.checkpoints import checkpoint_of
from tests.support.stores import prepare_gsc

ARCH = Arch("vgg11", 2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A study of two seeds whose networks are drawn, with its workspace."""
    folder = tmp_path_factory.mktemp("study")
    home = corpus_trees.gsc(folder / "corpora" / "gsc", per_word=20)
    store = prepare_gsc(home, folder / "ws" / "features" / "gsc.zarr").store
    study = Study(
        name="study",
        data={"gsc": {"store": "gsc"}},
        settings={"": Setting(data="gsc", task="word", against="speaker")},
        teachers={"teacher": Teacher(task="speaker")},
        arms={name: ARMS[name] for name in ("baseline", "wi", "at")},
        at_layers=(3, 5),
        seeds=2,
    )
    fold = FoldData(StoreData(store.name), {"speaker": StoreData(store.name)})
    plan = plan_jobs(study, {"": [fold]}, {}, "runs")
    database = Database(folder / "ws" / "results.sqlite")
    database.add(plan.jobs)
    for number, job in enumerate(plan.jobs):
        kept = {}
        if job.kind == "training":
            run = folder / "ws" / "runs" / job.name
            run.mkdir(parents=True)
            drawn = checkpoint_of(ARCH, store, classes=store.classes["word"], seed=number)
            save_tensors(run / "best.pt", drawn.to_plain())
            kept = predictions_of(run, store.path, "word")
        database.finish(job.key, {}, 1.0, kept)
    return folder, study, plan


@pytest.fixture
def parts(made, tmp_path, monkeypatch):
    """Makes the parts in a copy of the study whose files may be deleted."""
    monkeypatch.delenv("ANTIGRAM_CORPORA", raising=False)
    folder, study, plan = made
    root = shutil.copytree(folder / "ws", tmp_path / "ws")
    workspace, database = Workspace(root), Database(root / "results.sqlite")
    groups = FeatureStore(root / "features" / "gsc.zarr").labels("speaker")
    results = {"": setting_results(study, "", plan, database, groups, 0.1)}

    def parts():
        return network_parts(study, results, plan, database, workspace)[""]

    return parts, workspace, database, results[""]


def test_errors_are_those_in_which_the_true_class_is_least_probable(parts, made):
    make, workspace, database, result = parts
    sounds, maps = make()
    assert isinstance(sounds, Sounds)
    assert isinstance(maps, Figure)
    store = FeatureStore(workspace.features / "gsc.zarr")
    scores = {}
    for at, cell in result.chosen["baseline"].items():
        kept = database.predictions(cell.key, "validation")
        log_p = np.log(kept["probability"]).mean()
        scores[at] = np.mean(kept["predicted"] == kept["true"]), log_p
    best = max(scores, key=lambda at: scores[at])
    names = store.classes["word"]
    rows, words = [], []
    for arm in ("baseline", "at"):
        kept = database.predictions(result.chosen[arm][best].key, "test")
        wrong = np.flatnonzero(kept["predicted"] != kept["true"])
        assert f"{arm}: {len(wrong)} of {len(kept['row'])} test segments" in sounds.text
        for i in sorted(wrong, key=lambda i: kept["probability"][i])[:3]:
            rows.append(kept["row"][i])
            true, predicted = names[kept["true"][i]], names[kept["predicted"][i]]
            words.append(f"word {true}, predicted by {arm} as {predicted} ({true}: ")
    assert len(rows) > 3
    for row, begin, sound in zip(rows, words, sounds.sounds, strict=True):
        assert sound.text.startswith(begin)
        path = store.sources[row].partition("#")[0]
        assert sound.text.endswith(f"{path} from 0 s")
        heard, rate = soundfile.read(io.BytesIO(sound.wav), dtype="float32")
        want, _ = soundfile.read(made[0] / "corpora" / "gsc" / path, dtype="float32")
        assert rate == 16_000
        np.testing.assert_allclose(heard, want[: heard.size], atol=1 / 32_767)
    assert [[picture.alt[:16] for picture in row] for row in maps.rows] == [
        ["baseline: first "] * 2,
        ["at: first two pr"] * 2,
    ]
    assert [picture.alt[-10:] for picture in maps.rows[1]] == ["ed by word", "by speaker"]


def test_recordings_are_cut_so_that_the_report_stays_small(parts, monkeypatch):
    monkeypatch.setattr(networks, "_BYTES", 6 * 8000)
    sounds, _ = parts[0]()
    sizes = [len(sound.wav) for sound in sounds.sounds]
    assert sizes
    assert {size <= 8000 + 44 for size in sizes} == {True}


def test_of_runs_that_are_gone_errors_are_heard_and_maps_are_not(parts):
    make, workspace, *_ = parts
    shutil.rmtree(workspace.runs)
    sounds, maps = make()
    assert sounds.sounds
    assert all(sound.wav for sound in sounds.sounds)
    assert maps.text.startswith("Cannot be shown: ")
    assert "best.pt" in maps.text


def test_of_damaged_weights_the_report_says_so(parts):
    make, workspace, *_ = parts
    for path in workspace.runs.glob("*/best.pt"):
        path.write_bytes(path.read_bytes()[:1000])
    _, maps = make()
    assert maps.text.startswith("Cannot be shown: ")


def test_without_the_store_nothing_is_shown_and_nothing_fails(parts):
    make, workspace, *_ = parts
    shutil.rmtree(workspace.features / "gsc.zarr")
    assert [part.text[:16] for part in make()] == ["Cannot be shown:"] * 2
