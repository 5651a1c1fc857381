"""Scores are compared with chance and majority by recordings; poor ones cause a warning."""

import math
from pathlib import Path

import numpy as np
import pytest

from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.evaluate import Tally
from antigram.model.training.result import copy_best
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.model.training.worth import accuracies_text, score, student_note, teacher_note
from tests.support.nets import CPU
from tests.support.report_pages import page_of


@pytest.fixture
def run(store, config, tmp_path):
    def run(name="run", **changes):
        given, said = config(**{"epochs": 1, **changes}), []
        net = build_student(given, 3, None)
        result = train(net, store, None, given, tmp_path / name, device=CPU, on_message=said.append)
        return tmp_path / name, result, said

    return run


def test_chance_and_majority_stand_beside_the_accuracies_of_a_run_and_its_checkpoint(
    run, store, tmp_path
):
    folder, result, _ = run()
    labels = store.labels("label")
    usual = np.bincount(labels[store.rows("train", "label")]).argmax()
    assert result["chance"] == 1 / 3
    for split in ("train", "validation", "test"):
        own = labels[store.rows(split, "label")]
        kept = result["scores"][split]
        assert kept["accuracy"] == result["accuracy"][split]
        assert (kept["chance"], kept["majority"]) == (1 / 3, np.mean(own == usual))
        assert kept["segments"] == kept["recordings"] == len(own)
    assert result["majority"] == result["scores"]["test"]["majority"]
    copy_best(folder, tmp_path / "saved.pt")
    assert load_checkpoint(tmp_path / "saved.pt").scores == result["scores"]
    (table,) = [t for t in page_of(folder).tables if ["chance", "33.3%"] in t]
    names = [row[0] for row in table]
    assert "always the most frequent class, validation" in names
    assert f"test {result['accuracy']['test']:.3f} (chance 0.333, " in accuracies_text(result)


def test_a_network_that_is_not_above_chance_says_so_at_the_end(run):
    folder, result, said = run(lr=1e-12)
    (note,) = [text for text in said if "not above chance" in text]
    assert result["notes"] == [note]
    assert "one-sided binomial test" in note
    assert note in page_of(folder).texts


def tally(correct, wrong):
    return Tally(["a", "b"], np.array([[correct, wrong], [0, 0]]), 0.25)


def test_windows_of_a_recording_do_not_count_as_independent():
    of_one = score(tally(90, 10), tally(90, 10))
    assert of_one["p"] < 1e-10
    of_many = score(tally(90, 10), tally(4, 1))
    assert of_many["p"] == sum(math.comb(5, k) for k in (4, 5)) / 2**5
    assert (of_many["segments"], of_many["recordings"]) == (100, 5)
    assert student_note({"validation": of_one, "test": of_one}) is None
    note = student_note({"validation": of_one, "test": of_many})
    assert "test 0.900 (chance 0.500, majority 0.250), p = 0.19 of 5 recordings" in note
    assert "validation" not in note


def test_a_split_without_segments_is_not_judged():
    none = score(tally(0, 0), tally(0, 0))
    assert none["accuracy"] is None
    assert student_note({"validation": none, "test": none}) is None


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ({}, False),
        ({"validation": {}}, False),
        ({"validation": {"accuracy": "high", "chance": 0.5}}, False),
        ({"validation": {"accuracy": 0.4}}, False),
        ({"validation": {"accuracy": 0.4, "chance": 0.25, "majority": 0.3}}, False),
        ({"validation": {"accuracy": 0.4, "chance": 0.25, "majority": 0.4}}, True),
        ({"validation": {"accuracy": 0.4, "chance": 0.25, "majority": 0.3, "p": 0.2}}, True),
        ({"validation": {"accuracy": 0.0, "chance": 0.5, "majority": None}}, True),
    ],
)
def test_a_teacher_is_judged_by_its_own_validation_scores(scores, said):
    note = teacher_note(Path("emo.pt"), scores)
    assert (note is not None) == said
    if said:
        assert note.startswith("warning: emo.pt: by its own scores nothing shows")
