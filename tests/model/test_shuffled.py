"""Trainings on shuffled labels: what is permuted, and that results say that they are controls."""

import json
from collections import Counter

import numpy as np
import pytest

from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import load_checkpoint, open_teacher
from antigram.model.training.config import TrainConfig
from antigram.model.training.evaluate import evaluate
from antigram.model.training.guards import load_teacher
from antigram.model.training.predict import about_text
from antigram.model.training.shuffled import shuffled_labels
from antigram.pipeline.errors import InputError
from antigram.pipeline.features.split import SPLITS
from antigram.studies.report import draw_run
from antigram.studies.text import trained_text
from tests.support.class_recordings import write_corpus
from tests.support.nets import CPU, VGG11
from tests.support.runs import metrics, numbers_of, stop_at, train_baseline
from tests.support.stores import make_store


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """Recordings of three segments each."""
    home = tmp_path_factory.mktemp("long")
    return make_store(write_corpus(home / "corpus", seconds=3.0), home / "long.zarr")


def rows_of(store, task="label"):
    return {split: store.rows(split, task) for split in SPLITS}


@pytest.mark.parametrize("seed", [0, 5])
def test_recordings_are_permuted_within_training_and_validation(long, seed):
    rows, true = rows_of(long), long.labels("label").copy()
    labels = shuffled_labels(long, "label", rows, seed)
    np.testing.assert_array_equal(long.labels("label"), true)  # the store's own are not changed
    np.testing.assert_array_equal(labels[rows["test"]], true[rows["test"]])
    for split in ("train", "validation"):
        before, after = {}, {}
        for row in rows[split]:
            before.setdefault(long.recordings[row], set()).add(true[row])
            after.setdefault(long.recordings[row], set()).add(labels[row])
        assert all(len(classes) == 1 for classes in after.values())
        assert Counter(map(min, after.values())) == Counter(map(min, before.values()))
    assert (labels != true)[rows["train"]].mean() > 0.3
    np.testing.assert_array_equal(labels, shuffled_labels(long, "label", rows, seed))
    assert (labels != shuffled_labels(long, "label", rows, seed + 1)).any()


def test_segments_without_a_label_stay_without(spoken):
    rows = rows_of(spoken, "speaker")
    labels = shuffled_labels(spoken, "speaker", rows, 0)
    np.testing.assert_array_equal(labels < 0, spoken.labels("speaker") < 0)


@pytest.fixture
def control(store, config, tmp_path):
    """A control, finished: its settings, folder and result."""
    given = config(shuffle_labels=True)
    return given, tmp_path / "run", train_baseline(given, store, tmp_path / "run")


def test_a_run_learns_the_shuffled_labels_and_is_scored_on_them(control, store):
    given, folder, result = control
    rows = rows_of(store)
    labels = shuffled_labels(store, "label", rows, given.seed)
    batches = Batches(store, "label", None, 13, CPU, labels=labels)
    net = load_checkpoint(folder / "best.pt").net()
    for split in SPLITS:
        scores = evaluate(net, batches, rows[split], store.classes["label"])
        assert result["accuracy"][split] == scores.segments.accuracy
    best = metrics(folder)[result["best_epoch"] - 1]["validation"]
    assert best["accuracy"] == pytest.approx(result["accuracy"]["validation"])


def test_the_same_start_as_a_baseline_and_other_losses(control, store, config, tmp_path):
    _, folder, _ = control
    train_baseline(config(), store, tmp_path / "true")
    assert "shuffle_labels" not in json.loads((tmp_path / "true" / "config.json").read_text())
    assert numbers_of(tmp_path / "true") != numbers_of(folder)
    config_of = json.loads((folder / "config.json").read_text())["config"]
    assert config_of["shuffle_labels"] is True


def test_nothing_of_it_reads_as_a_result_about_the_task(control):
    _, folder, result = control
    assert result["shuffle_labels"] is True
    assert result["notes"][0].startswith("control, no result about label: the labels of training")
    assert not any("train longer" in note for note in result["notes"])
    assert "control, labels of training and validation shuffled: accuracy" in trained_text(result)
    draw_run(folder)
    page = (folder / "report.html").read_text()
    assert "Control, labels of training and validation shuffled" in page
    checkpoint = load_checkpoint(folder / "best.pt")
    assert checkpoint.provenance["labels"] == "shuffled"
    assert "accuracy: control, labels" in about_text(checkpoint)


def test_as_a_teacher_it_is_named_a_control_and_no_warning_says_to_train_it_longer(control):
    _, folder, _ = control
    said = []
    teacher = load_teacher(folder / "best.pt", said.append)
    assert said == [f"{folder / 'best.pt'}: a control, trained on shuffled labels"]
    assert open_teacher(folder / "best.pt").note == said[0]
    assert teacher.scores == {}


def test_a_stopped_control_goes_on_and_not_as_a_baseline(control, store, config, tmp_path):
    given, folder, _ = control
    with pytest.raises(KeyboardInterrupt):
        train_baseline(given, store, tmp_path / "cut", on_progress=stop_at(2))
    with pytest.raises(InputError, match="was started with shuffle_labels true, now null"):
        train_baseline(config(), store, tmp_path / "cut", resume=True)
    train_baseline(given, store, tmp_path / "cut", resume=True)
    assert numbers_of(tmp_path / "cut") == numbers_of(folder)


@pytest.mark.parametrize("mode", ["online", "cached", "wi", "dann"])
def test_other_modes_refuse_shuffled_labels(mode):
    against = "speaker" if mode == "dann" else None
    with pytest.raises(InputError, match="`shuffle_labels` makes a control, with `mode=baseline`"):
        TrainConfig(mode=mode, task="label", arch=VGG11, shuffle_labels=True, against=against)
