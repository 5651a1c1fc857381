import csv
from collections import defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from antigram.model.nets.arch import Arch
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import Checkpoint, load_checkpoint
from antigram.model.training.evaluate import Scores, Tally, evaluate, evaluate_checkpoint
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.corpus import Clip, Corpus
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.store import FeatureStore
from tests.support.checkpoints import checkpoint_of, log_probabilities_of, sharp
from tests.support.class_recordings import CLASSES, RATE, sound
from tests.support.nets import CPU
from tests.support.stores import make_store

ARCH = Arch("vgg11", 2)
CONFUSION = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def test_scores_match_hand_counts():
    scores = Tally(["a", "b", "none"], CONFUSION)
    assert scores.accuracy == 5 / 8
    assert scores.recall == {"a": 0.75, "b": 0.5, "none": None}
    assert scores.unweighted_average_recall == (0.75 + 0.5) / 2
    content = Scores(scores, Tally(["a", "b", "none"], CONFUSION // 2)).to_json()
    assert content["confusion"] == CONFUSION.tolist()
    assert content["accuracy"] == 5 / 8
    assert content["recall"] == scores.recall
    assert content["unweighted_average_recall"] == 0.625
    assert content["recordings"]["confusion"] == (CONFUSION // 2).tolist()
    assert content["recordings"]["accuracy"] == 2 / 3


def test_without_clips_there_is_no_score():
    scores = Tally(["a"], np.zeros((1, 1), np.int64))
    assert scores.accuracy is None
    assert scores.unweighted_average_recall is None


class Says(torch.nn.Module):
    """A network that predicts the class which the first bin of a clip encodes."""

    def forward(self, x):
        return torch.nn.functional.one_hot(x[:, 0, 0, 0].long(), 3).float()


def test_the_confusion_is_counted_from_decisions_row_by_row(store):
    class Told(Batches):
        def _load(self, whole, epoch):
            loaded = super()._load(whole, epoch)
            said = [told[int(clip)] for clip in loaded.clips]
            loaded.x[:] = torch.tensor(said)[:, None, None, None]
            return loaded

    truth = store.labels("label")
    told = {clip: (int(truth[clip]) + (clip % 5 == 0)) % 3 for clip in range(len(store))}
    rows = np.arange(2, 40)
    want = np.zeros((3, 3), int)
    for clip in rows:
        want[truth[clip], told[clip]] += 1
    net: Any = Says().train()
    scores = evaluate(net, Told(store, "label", None, 7, CPU), rows, store.classes["label"])
    np.testing.assert_array_equal(scores.segments.confusion, want)
    assert not net.training


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory):
    """Two stores with the same test clips, one with quiet and one with loud training clips."""
    root, stores = tmp_path_factory.mktemp("twice"), []
    for name, gain in (("quiet", 0.02), ("loud", 0.5)):
        home, rng = root / name, np.random.default_rng(5)
        home.mkdir()
        lines = []
        for split, count in (("test", 8), ("train", 4), ("validation", 1)):
            for number in range(count):
                for kind in CLASSES:
                    y = sound(kind, rng, gain=0.1 if split == "test" else gain)
                    file = f"{split}-{kind}-{number}.wav"
                    soundfile.write(home / file, y, RATE, subtype="FLOAT")
                    lines.append((file, split, kind))
        with (home / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("file_name", "split", "label"), *lines])
        stores.append(make_store(home, root / f"{name}.zarr", split="official"))
    return stores


def logits_of(checkpoint, store, split):
    net, rows = checkpoint.net(), store.rows(split)
    with torch.no_grad():
        return net(torch.from_numpy(store.features.read()[rows])[:, None])


def test_another_store_is_renormalised_to_the_checkpoints_own_mean_and_deviation(two_stores):
    quiet, loud = two_stores
    assert loud.std > 5 * quiet.std
    checkpoint = sharp(ARCH, quiet)
    own = evaluate_checkpoint(checkpoint, quiet, "test", device=CPU)
    other = evaluate_checkpoint(checkpoint, loud, "test", device=CPU)
    assert own.segments.confusion.sum() == 24
    np.testing.assert_array_equal(other.segments.confusion, own.segments.confusion)
    as_is = logits_of(checkpoint, loud, "test")
    decided = np.bincount(as_is.argmax(1), minlength=3)
    assert decided.tolist() != own.segments.confusion.sum(0).tolist(), "this test cannot fail"


def test_classes_are_matched_by_name_and_not_by_place(store):
    checkpoint = sharp(ARCH, store)
    straight = evaluate_checkpoint(checkpoint, store, "train", device=CPU)
    turned = Checkpoint(
        **{
            **{k: getattr(checkpoint, k) for k in ("arch", "task", "recipe", "mean", "std")},
            "classes": ["extra", *reversed(checkpoint.classes)],
            "provenance": {},
            "state_dict": {
                name: torch.cat([tensor[:1] * 0 - 9, tensor.flip(0)])
                if name == "classifier.6.bias"
                else torch.cat([tensor[:1] * 0, tensor.flip(0)])
                if name == "classifier.6.weight"
                else tensor
                for name, tensor in checkpoint.state_dict.items()
            },
        }
    )
    found = evaluate_checkpoint(turned, store, "train", device=CPU)
    assert found.segments.recall["extra"] is None
    for name, value in straight.segments.recall.items():
        assert found.segments.recall[name] == value
    assert found.segments.accuracy == straight.segments.accuracy


def test_what_the_checkpoint_cannot_judge_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="label has classes the checkpoint does not know: noise"):
        evaluate_checkpoint(
            checkpoint_of(ARCH, store, classes=["high", "low"]), store, "test", device=CPU
        )
    odd = checkpoint_of(ARCH, store)
    odd = replace(odd, recipe=replace(odd.recipe, hop=64))
    with pytest.raises(InputError, match="hop is 128, the checkpoint was trained with 64"):
        evaluate_checkpoint(odd, store, "test", device=CPU)
    elsewhere = replace(checkpoint_of(ARCH, store), task="emotion")
    with pytest.raises(InputError, match="no label 'emotion'"):
        evaluate_checkpoint(elsewhere, store, "test", device=CPU)


def stretches(home, *, longer):
    """A store of three files with four labelled parts each, such as words of an utterance."""
    y = np.concatenate([sound(kind, np.random.default_rng(2), seconds=3) for kind in CLASSES])
    clips = []
    for number in range(3):
        soundfile.write(home / f"{number}.wav", np.roll(y, number * RATE), RATE)
        for part in range(4):
            clips.append(
                Clip(
                    id=f"{number}@{part}",
                    path=f"{number}.wav",
                    labels={"label": CLASSES[(number + part) % 3]},
                    start_s=2.0 * part,
                    end_s=2.0 * part + 2,
                )
            )
    corpus = Corpus(
        name="made",
        labels=("label",),
        seconds=1.0,
        longer=longer,
        licence="CC0-1.0",
        citation="",
        how_to_get="",
        is_home=lambda _: True,
        list_clips=lambda _home, _options: clips,
    )
    recipe = Recipe(corpus="made", longer=longer, seed=3)
    return prepare(corpus, home, recipe, home / f"{longer}.zarr").store


def by_recording(checkpoint, store, rows, labels, recordings):
    """Return the confusion matrix of recordings, from log-probabilities of their segments."""
    logs, gathered = log_probabilities_of(checkpoint, store), defaultdict(list)
    for row in rows:
        gathered[recordings[row], labels[row]].append(logs[row])
    confusion = np.zeros((3, 3), int)
    for (_, label), each in gathered.items():
        confusion[label, np.mean(each, 0).argmax()] += 1
    return confusion


@pytest.mark.parametrize(("longer", "each"), [("cut", 1), ("segment", 2)])
def test_parts_of_one_file_with_labels_of_their_own_are_recordings(tmp_path, longer, each):
    store = stretches(tmp_path, longer=longer)
    assert len(store) == 12 * each
    checkpoint = sharp(ARCH, store)
    scores = evaluate_checkpoint(checkpoint, store, "train", device=CPU)
    rows, labels = store.rows("train"), store.labels("label")
    want = by_recording(
        checkpoint, store, rows, labels, [name.partition("#")[0] for name in store.clip_ids]
    )
    np.testing.assert_array_equal(scores.recordings.confusion, want)
    assert scores.recordings.count == len(rows) / each
    assert scores.segments.count == len(rows)


def test_segments_of_one_recording_with_different_labels_are_not_averaged(tmp_path):
    store = stretches(tmp_path, longer="segment")
    # As with noise, which differs from segment to segment.
    labels = np.arange(len(store), dtype=np.int32) % 3
    checkpoint = sharp(ARCH, store)
    batches = Batches(store, "label", None, 5, CPU, labels=labels)
    rows = store.rows("train")
    scores = evaluate(checkpoint.net(), batches, rows, store.classes["label"])
    assert scores.recordings.count == len(rows)
    np.testing.assert_array_equal(scores.recordings.confusion, scores.segments.confusion)


def test_batches_have_the_labels_and_the_scale_that_they_are_given(store):
    labels = (np.arange(len(store), dtype=np.int32) * 7) % 5
    rows = np.array([3, 11, 40])
    given: dict[str, Any] = {"labels": labels, "rescale": (2.0, -0.5), "device_memory": 10**9}
    (batch,) = Batches(store, "label", None, 8, CPU, **given).passes(rows)
    np.testing.assert_array_equal(batch.y, labels[rows])
    want = store.features.take(rows) * np.float32(2) - np.float32(0.5)
    np.testing.assert_array_equal(batch.x[:, 0], want)


class _Patched:
    """Features of a store with a row that is not finite."""

    def __init__(self, features, row, value):
        self.features, self.row, self.value = features, row, value

    def __getattr__(self, name):
        return getattr(self.features, name)

    def __len__(self):
        return len(self.features)

    def take(self, rows, *arguments):
        found = np.array(self.features.take(rows, *arguments))
        found[np.asarray(rows) == self.row, 3, 5] = self.value
        return found

    def gather(self, rows, out, view=None):
        out[:] = self.take(rows)


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_stored_features_that_are_not_finite_are_refused_by_name(store, value):
    row = int(store.rows("test")[2])
    other: Any = FeatureStore(store.path)
    other.features = _Patched(store.features, row, value)
    message = f"stored features of segment {store.clip_ids[row]} are not finite"
    with pytest.raises(StoredDataError, match=message):
        evaluate_checkpoint(checkpoint_of(ARCH, store), other, "test", device=CPU)
    assert evaluate_checkpoint(checkpoint_of(ARCH, store), other, "validation", device=CPU)


def test_a_training_is_not_scored_by_features_that_are_not_finite(store, config, tmp_path):
    row = int(store.rows("test")[-1])  # read at the end of the training only
    other: Any = FeatureStore(store.path)
    other.features = _Patched(store.features, row, np.nan)
    settings = config(epochs=1, max_steps=1)
    net = build_student(settings, 3, None)
    with pytest.raises(StoredDataError, match=f"segment {store.clip_ids[row]} are not finite"):
        train(net, other, None, settings, tmp_path / "run", device=CPU)
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_training_tells_the_accuracy_of_recordings_too(tmp_path, config):
    store = stretches(tmp_path, longer="segment")
    settings = config(epochs=1)
    net = build_student(settings, 3, None)
    result = train(net, store, None, settings, tmp_path / "run", device=CPU)
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    for split, accuracy in result["recordings"]["accuracy"].items():
        scores = evaluate_checkpoint(best, store, split, device=CPU)
        assert accuracy == scores.recordings.accuracy
        assert scores.recordings.count == scores.segments.count / 2
        assert result["accuracy"][split] == scores.segments.accuracy
