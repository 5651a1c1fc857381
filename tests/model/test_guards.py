"""Mistakes that would go unnoticed: classes that are not learned, losses that diverge."""

import csv

import numpy as np
import pytest
import soundfile
import torch

from antigram.model.loss.codecs import encode_rows
from antigram.model.loss.sources import TapSpec
from antigram.model.training.guards import LossGuard
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.mapped import MappedArray
from tests.support.class_recordings import CLASSES, RATE, sound
from tests.support.nets import CPU, VGG11
from tests.support.stores import make_store

SPEAKERS = ("ann", "bob", "cid", "dee", "eve")


@pytest.fixture
def run(store, config, tmp_path):
    """Train the tiny network; return messages and result."""

    def run(*, on=store, grams=None, name="run", **changes):
        given = config("online" if grams else "baseline", layers=(3,) if grams else (), **changes)
        net = build_student(given, len(on.classes[given.task]), None)
        said = []
        result = train(net, on, grams, given, tmp_path / name, device=CPU, on_message=said.append)
        return said, result

    return run


@pytest.fixture(scope="module")
def voices(tmp_path_factory):
    """A store of three sounds by five speakers, split by speaker."""
    home, rng = tmp_path_factory.mktemp("voices") / "corpus", np.random.default_rng(1)
    home.mkdir()
    lines = [("file_name", "label", "speaker")]
    for speaker in SPEAKERS:
        for kind in CLASSES:
            for take in range(2):
                lines.append((f"{speaker}-{kind}-{take}.wav", kind, speaker))
                soundfile.write(home / lines[-1][0], sound(kind, rng), RATE, subtype="FLOAT")
    with (home / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    return make_store(home, home.parent / "voices.zarr", split="by:speaker")


def test_a_speaker_net_without_a_known_validation_speaker_is_refused(run, voices, tmp_path):
    wanted = (
        r"voices\.zarr: none of the \d+ validation segments has a speaker that is seen in training "
        r".*`split=by:speaker`.*prepare with `split=random`"
    )
    with pytest.raises(InputError, match=wanted):
        run(on=voices, task="speaker")
    assert not (tmp_path / "run").exists()


def test_classes_that_training_lacks_are_counted_and_named(run, voices):
    other = FeatureStore(voices.path)
    labels, speakers = other.labels("speaker"), other.classes["speaker"]
    other.split = np.zeros(len(other), np.int8)
    other.split[labels == speakers.index("eve")] = 1
    other.split[np.flatnonzero(labels == speakers.index("ann"))[:2]] = 1
    other.split[labels == speakers.index("bob")] = 2
    said, result = run(on=other, task="speaker", epochs=1)
    seen = "have a speaker that is not seen in training, and count as wrong"
    assert f"6 of 8 validation segments {seen}: eve" in said
    assert f"6 of 6 test segments {seen}: bob" in said
    assert result["accuracy"]["test"] == 0
    assert not any(seen in text for text in run(on=voices, epochs=1, name="label")[0])


@pytest.mark.parametrize("steps", [0, 1], ids=["seen in training", "seen in validation"])
def test_a_diverging_loss_is_the_users_and_names_epoch_step_rate_and_segments(run, store, steps):
    with pytest.raises(InputError, match=r"the loss is (nan|inf) with `lr=1e\+30`") as caught:
        run(lr=1e30, epochs=3, max_steps=steps)
    text = str(caught.value)
    assert text.startswith("validation after epoch 1, step 1" if steps else "epoch 1, step 2: ")
    assert "lower `lr`" in text
    assert "verify" not in text
    assert 1 <= sum(name in text for name in store.clip_ids) <= 13


def test_of_several_losses_the_first_that_is_not_finite_names_its_batch(store):
    guard = LossGuard(store, None, 0.1)
    for batch in ([0, 1], [2, 3], [4, 5], [6, 7]):
        guard.add(np.array(batch))
    with pytest.raises(InputError, match=r"now: the loss is inf with") as caught:
        guard.check(torch.tensor([1.0, torch.inf, torch.nan]), 1, "now")  # of the last three
    assert [name for name in store.clip_ids if name in str(caught.value)] == store.clip_ids[4:6]
    guard.add(np.array([0]))
    guard.check(torch.tensor([2.0]), 1, "now")


def test_a_validation_looks_at_its_losses_once(run, store, monkeypatch):
    looked = []
    check = LossGuard.check

    def spy(self, losses, epoch, when, *advice):
        looked.append((when, losses.numel()))
        check(self, losses, epoch, when, *advice)

    monkeypatch.setattr(LossGuard, "check", spy)
    run(epochs=2, batch_clips=2)
    batches = -(-len(store.rows("validation", "label")) // 2)
    assert batches > 1
    assert [n for when, n in looked if when.startswith("validation")] == [batches, batches]


def test_a_stored_feature_that_is_not_finite_is_damage(run, store, monkeypatch):
    bad = store.rows("train", "label")[5]
    gather = MappedArray.gather

    def with_nan(self, rows, out, view=None):
        gather(self, rows, out, view)
        if self.shape == store.features.shape:
            out[np.asarray(rows) == bad, 3, 7] = np.nan

    monkeypatch.setattr(MappedArray, "gather", with_nan)
    with pytest.raises(DamagedError, match="the features of") as caught:
        run()
    assert [name for name in store.clip_ids if name in str(caught.value)] == [store.clip_ids[bad]]


class Stored:
    """Rows of a cache, one of them with an infinite norm."""

    views, stored_bytes, arrays, identity = None, 1, (), {"3": "made for a test"}

    def __init__(self, bad):
        self.spec, self.bad = TapSpec(arch=VGG11, layers=(3,)), bad

    def keep_on(self, device): ...

    def params(self, clips, epoch): ...

    def read(self, clips, epoch=0):
        maps = torch.ones(len(clips), 8, 31, 32)
        rows = encode_rows(maps, "gram", torch.float32, "packed")
        rows.row_norm[torch.from_numpy(clips == self.bad)] = torch.nan
        return {3: rows}

    def rows(self, read, x):
        return read


def test_a_stored_row_of_a_teacher_that_is_not_finite_is_damage(run, store):
    bad = store.rows("train", "label")[7]
    with pytest.raises(DamagedError, match=r"layer 3: the stored rows of .*cache-grams") as caught:
        run(grams=Stored(bad))
    assert [name for name in store.clip_ids if name in str(caught.value)] == [store.clip_ids[bad]]
