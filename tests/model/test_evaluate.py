import csv

import numpy as np
import pytest
import soundfile
import torch

from model.arch import Arch
from model.batches import Batches
from model.checkpoint import Checkpoint
from model.evaluate import Scores, evaluate, evaluate_checkpoint
from model.predict import predict
from pipeline.errors import InputError
from tests.model.tiny import CLASSES, CPU, RATE, checkpoint_of, make_store, sound

ARCH = Arch("vgg11", 2)
CONFUSION = np.array([[3, 1, 0], [2, 2, 0], [0, 0, 0]])


def test_scores_match_hand_counts():
    scores = Scores(["a", "b", "none"], CONFUSION)
    assert scores.accuracy == 5 / 8
    assert scores.recall == {"a": 0.75, "b": 0.5, "none": None}
    assert scores.unweighted_average_recall == (0.75 + 0.5) / 2
    content = scores.to_json()
    assert content["confusion"] == CONFUSION.tolist()
    assert content["accuracy"] == 5 / 8
    assert content["recall"] == scores.recall
    assert content["unweighted_average_recall"] == 0.625


def test_without_clips_there_is_no_score():
    scores = Scores(["a"], np.zeros((1, 1), np.int64))
    assert scores.accuracy is None
    assert scores.unweighted_average_recall is None


class Says(torch.nn.Module):
    """Decides a class that the first bin of a clip spells out."""

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
    net = Says().train()
    scores = evaluate(net, Told(store, "label", None, 7, CPU), rows, store.classes["label"])
    np.testing.assert_array_equal(scores.confusion, want)
    assert not net.training


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory):
    """The same test clips beside quiet and beside loud training clips."""
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


def sharp(arch, store):
    """A checkpoint whose decisions vary from clip to clip: large weights, logits centred."""
    found = checkpoint_of(arch, store, seed=4)
    for name, tensor in found.state_dict.items():
        if name.startswith("classifier") and name.endswith("weight"):
            tensor.mul_(20)
    found.state_dict["classifier.6.bias"] -= logits_of(found, store, "test").mean(0)
    assert len(logits_of(found, store, "test").argmax(1).unique()) > 1
    return found


def test_another_store_is_renormalised_to_the_checkpoints_own_mean_and_deviation(two_stores):
    quiet, loud = two_stores
    assert loud.std > 5 * quiet.std
    checkpoint = sharp(ARCH, quiet)
    own = evaluate_checkpoint(checkpoint, quiet, "test", device=CPU)
    other = evaluate_checkpoint(checkpoint, loud, "test", device=CPU)
    assert own.confusion.sum() == 24
    np.testing.assert_array_equal(other.confusion, own.confusion)
    as_is = logits_of(checkpoint, loud, "test")
    decided = np.bincount(as_is.argmax(1), minlength=3)
    assert decided.tolist() != own.confusion.sum(0).tolist(), "this test cannot fail"


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
    assert found.recall["extra"] is None
    for name, value in straight.recall.items():
        assert found.recall[name] == value
    assert found.accuracy == straight.accuracy


def test_what_the_checkpoint_cannot_judge_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="label has classes the checkpoint does not know: noise"):
        evaluate_checkpoint(
            checkpoint_of(ARCH, store, classes=["high", "low"]), store, "test", device=CPU
        )
    odd = checkpoint_of(ARCH, store)
    object.__setattr__(odd.recipe, "hop", 64)
    try:
        other = type(store)(store.path)
        with pytest.raises(InputError, match="hop is 128, the checkpoint was trained with 64"):
            evaluate_checkpoint(odd, other, "test", device=CPU)
    finally:
        object.__setattr__(odd.recipe, "hop", 128)
    elsewhere = checkpoint_of(ARCH, store)
    object.__setattr__(elsewhere, "task", "emotion")
    with pytest.raises(InputError, match="no label 'emotion'"):
        evaluate_checkpoint(elsewhere, store, "test", device=CPU)


def test_predict_says_of_a_file_what_its_stored_features_say(store, corpus):
    checkpoint = sharp(ARCH, store)
    places = [0, 5, 14, 27, 41]
    files = [corpus / store.sources[place].partition("#")[0] for place in places]
    with torch.no_grad():
        x = torch.from_numpy(store.features.read()[places])[:, None]
        want = torch.cat([checkpoint.net()(one[None]).softmax(1) for one in x]).numpy()
    found = list(predict(checkpoint, files, device=CPU))
    assert [p.file for p in found] == [str(file) for file in files]
    for one, probabilities in zip(found, want, strict=True):
        assert list(one.probabilities) == checkpoint.classes
        np.testing.assert_allclose(list(one.probabilities.values()), probabilities, atol=1e-5)
        assert one.label == checkpoint.classes[int(probabilities.argmax())]
        assert one.start_s == 0
        assert set(one.to_json()) == {"file", "start_s", "label", "probabilities"}
    assert want.std(0).max() > 0.01, "all files look alike to this net"


def test_a_long_file_is_predicted_in_the_windows_it_would_be_stored_in(store, tmp_path, rng):
    y = sound("high", rng, seconds=2.6)
    soundfile.write(tmp_path / "long.wav", y, RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "second.wav", y[RATE : 2 * RATE], RATE, subtype="FLOAT")
    checkpoint = sharp(ARCH, store)
    found = list(predict(checkpoint, [tmp_path / "long.wav"], device=CPU))
    assert [p.start_s for p in found] == [0, 1, 2]
    (alone,) = predict(checkpoint, [tmp_path / "second.wav"], device=CPU)
    assert found[1].probabilities == pytest.approx(alone.probabilities, abs=1e-6)


def test_a_corpus_that_is_cut_gives_one_prediction_a_file(store, tmp_path, rng):
    soundfile.write(tmp_path / "long.wav", sound("high", rng, seconds=2.6), RATE)
    checkpoint = checkpoint_of(ARCH, store)
    object.__setattr__(checkpoint, "recipe", type(store.recipe)(corpus="gsc", longer="cut"))
    assert len(list(predict(checkpoint, [tmp_path / "long.wav"], device=CPU))) == 1


def test_a_file_that_is_no_audio_is_refused_by_name(store, tmp_path):
    (tmp_path / "text.wav").write_text("hello")
    for name in ("text.wav", "missing.wav"):
        with pytest.raises(InputError, match=name):
            list(predict(checkpoint_of(ARCH, store), [tmp_path / name], device=CPU))
