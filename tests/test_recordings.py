"""Decisions for recordings and their segments, as `evaluate` and `predict` give them."""

import csv
import json
import shutil
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from antigram.model.nets.arch import Arch
from antigram.model.nets.vgg import Vgg
from antigram.model.training.checkpoint import save_tensors
from antigram.pipeline.features.store import FeatureStore
from tests.support import corpus_trees
from tests.support.checkpoints import log_probabilities_of, sharp
from tests.support.class_recordings import CLASSES, RATE, sound
from tests.support.shell import Shell
from tests.support.stores import make_store

ARCH = Arch("vgg11", 1)


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    return Shell(tmp_path, capsys, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Recordings of one to three segments, their store, and a net; in a folder of its own."""
    folder, rng = tmp_path_factory.mktemp("recordings"), np.random.default_rng(17)
    lines = []
    for kind in CLASSES:
        for number in range(9):
            y = sound(kind, rng, seconds=1 + number % 3)
            name = f"{kind}/{number}#7.wav"  # no segment's number
            corpus_trees.wav(folder / "audio" / name, y, subtype="FLOAT")
            split = "train" if number < 3 + 2 * (kind == "low") else "test"
            lines.append((name, kind, "loud" if number % 2 else "soft", split))
        lines[-1] = (*lines[-1][:3], "validation")
    with (folder / "audio" / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label", "level", "split"), *lines])
    store = make_store(folder / "audio", folder / "workspace/features/three.zarr", split="official")
    net = sharp(ARCH, store)
    assert len(set(log_probabilities_of(net, store).argmax(1))) == 3
    save_tensors(folder / "net.pt", net.to_plain())
    return folder, store, net


@pytest.fixture
def there(made, shell):
    """A shell in a copy of what was made."""
    shutil.copytree(made[0], shell.folder, dirs_exist_ok=True)
    return shell


@pytest.fixture
def heard(monkeypatch):
    """Record the inputs of the network: a list of (segment, 1, frame, freq) tensors."""
    found, forward = [], Vgg.forward

    def listen(net, x, *arguments):
        found.append(x.clone())
        return forward(net, x, *arguments)

    monkeypatch.setattr(Vgg, "forward", listen)
    return found


def softmax_of_mean(rows):
    shares = np.exp(np.mean(rows, 0))
    return shares / shares.sum()


@pytest.mark.parametrize("last_window", ["end", "pad"])
def test_predict_hears_the_segments_that_the_net_was_trained_on(
    shell, tmp_path, heard, last_window
):
    corpus_trees.iemocap(tmp_path / "iemocap", sessions=2)
    preset = ["--preset", "paper"] if last_window == "end" else []
    prepare = ("prepare", "iemocap", "--source", tmp_path / "iemocap", *preset)
    shell.json(*prepare, "--seconds", 0.9, "--overlap", 0.4, "--name", "turns")
    store = FeatureStore(Path("workspace/features/turns.zarr"))
    assert store.recipe.last_window == last_window
    shell.json("train", "--mode", "baseline", "--arch", "vgg11", "--width", 1, "--epochs", 1,
               "--max-steps", 1, "--save", "emotion.pt")  # fmt: skip
    starts, features = defaultdict(list), defaultdict(list)
    for source, row in zip(store.sources, store.features.read(), strict=True):
        path, _, start = source.rpartition("#")
        starts[path].append(float(start))
        features[path].append(row)
    assert max(map(len, starts.values())) > 3
    heard.clear()
    said = shell.json(
        "predict", "--ckpt", "emotion.pt", *(tmp_path / "iemocap" / p for p in starts)
    )
    found = defaultdict(list)
    for one in said["predictions"]:
        found[one["file"]].append(one["start_s"])
    assert list(found.values()) == list(starts.values())
    rows = np.concatenate(list(features.values()))
    assert_allclose(torch.cat(heard)[:, 0].numpy(), rows, rtol=0, atol=1e-5 * rows.max())


def test_evaluate_scores_recordings_by_the_mean_log_probability_of_their_segments(made, there):
    _, store, net = made
    scores = there.json("evaluate", "--ckpt", "net.pt")
    labels, rows = store.labels("label"), store.rows("test")
    logs = log_probabilities_of(net, store)[rows]
    by_file, segments = defaultdict(list), np.zeros((3, 3), int)
    for row, log in zip(rows, logs, strict=True):
        by_file[store.sources[row].rpartition("#")[0], labels[row]].append(log)
        segments[labels[row], log.argmax()] += 1
    want = np.zeros((3, 3), int)
    for (_, label), log in by_file.items():
        want[label, np.mean(log, 0).argmax()] += 1
    found = scores["recordings"]
    assert found["recordings"] == len(by_file) < len(rows) == scores["clips"]
    assert found["confusion"] == want.tolist()
    assert scores["confusion"] == segments.tolist() != want.tolist()
    assert found["accuracy"] == want.trace() / want.sum()
    recalls = want.diagonal() / want.sum(1)
    assert found["unweighted_average_recall"] == pytest.approx(recalls.mean())
    code, out, _ = there("evaluate", "--ckpt", "net.pt")
    assert code == 0
    assert f"{len(by_file)} recordings: accuracy {found['accuracy']:.4f}" in out
    assert f"{len(rows)} segments: accuracy {scores['accuracy']:.4f}" in out


def test_chance_and_majority_stand_beside_accuracy(made, there):
    _, store, _net = made
    scores = there.json("evaluate", "--ckpt", "net.pt")
    labels = store.labels("label")
    assert scores["chance"] == pytest.approx(1 / 3)
    most = np.bincount(labels[store.rows("train")]).argmax()
    assert store.classes["label"][most] == "low"  # five of its recordings are there to learn
    assert scores["majority"] == pytest.approx((labels[store.rows("test")] == most).mean())
    assert scores["recordings"]["majority"] == pytest.approx(3 / (5 + 3 + 5))
    _, out, _ = there("evaluate", "--ckpt", "net.pt")
    assert f"(chance 0.3333, majority {scores['majority']:.4f})" in out


def test_evaluate_takes_the_task_by_the_name_it_has_in_the_store(made, there):
    _, _store, net = made
    save_tensors(Path("other.pt"), replace(net, task="pitch").to_plain())
    own = there.json("evaluate", "--ckpt", "net.pt")
    assert there.json("evaluate", "--ckpt", "other.pt", "--task", "label") == own
    there.refused(2, "no label 'pitch'", "evaluate", "--ckpt", "other.pt")
    unknown = "level has classes the checkpoint does not know: loud, soft"
    there.refused(2, unknown, "evaluate", "--ckpt", "net.pt", "--task", "level")


def test_predict_gives_segments_and_their_recordings(there):
    said = there.json("predict", "--ckpt", "net.pt", "audio/high/2#7.wav", "audio/low/0#7.wav")
    assert [(p["file"], p["start_s"]) for p in said["predictions"]] == [
        *(("audio/high/2#7.wav", start) for start in (0, 1, 2)),
        ("audio/low/0#7.wav", 0),
    ]
    assert [r["file"] for r in said["recordings"]] == ["audio/high/2#7.wav", "audio/low/0#7.wav"]
    logs = [np.log(list(p["probabilities"].values())) for p in said["predictions"]]
    for one, of in zip(said["recordings"], (logs[:3], logs[3:]), strict=True):
        assert set(one) == {"file", "label", "probabilities"}
        assert list(one["probabilities"]) == list(CLASSES)
        assert_allclose(list(one["probabilities"].values()), softmax_of_mean(of), rtol=1e-9)
        assert one["label"] == CLASSES[np.mean(of, 0).argmax()]
    code, out, _ = there("predict", "--ckpt", "net.pt", "audio/high/2#7.wav")
    assert code == 0
    assert out.splitlines()[0].startswith(f"audio/high/2#7.wav: {said['recordings'][0]['label']} (")
    assert len(out.splitlines()) == 4


def test_predict_tells_what_its_checkpoint_is_worth(made, there):
    _, _store, net = made
    scores = {"test": {"accuracy": 0.75, "chance": 1 / 3, "majority": 0.4}, "train": {}}
    save_tensors(Path("scored.pt"), replace(net, scores=scores).to_plain())
    said = there.json("predict", "--ckpt", "scored.pt", "audio/low/0#7.wav")["checkpoint"]
    known = {"task": "label", "classes": list(CLASSES), "chance": pytest.approx(1 / 3)}
    assert said == {**known, "scores": scores}
    for ckpt, own in (
        ("scored.pt", "test 0.750 (chance 0.333, majority 0.400)"),
        ("net.pt", "not known"),
    ):
        _, _, err = there("predict", "--ckpt", ckpt, "audio/low/0#7.wav")
        line = f"{ckpt}: label: 3 classes, chance 0.333; the checkpoint's own accuracy: {own}\n"
        assert line in err


def test_predict_says_of_stored_recordings_what_evaluate_counts(made, there):
    _, store, _net = made
    scores = there.json("evaluate", "--ckpt", "net.pt")
    files = sorted({store.sources[row].rpartition("#")[0] for row in store.rows("test")})
    said = there.json("predict", "--ckpt", "net.pt", *(f"audio/{file}" for file in files))
    confusion = np.zeros((3, 3), int)
    for one in said["recordings"]:
        truth = Path(one["file"]).parent.name
        confusion[CLASSES.index(truth), CLASSES.index(one["label"])] += 1
    assert confusion.tolist() == scores["recordings"]["confusion"]


def test_predict_takes_folders_and_patterns(there):
    def files(*names):
        said = there.json("predict", "--ckpt", "net.pt", *names)
        return [one["file"] for one in said["recordings"]]

    Path("audio/low/deeper").mkdir()
    shutil.copy("audio/low/0#7.wav", "audio/low/deeper/A.WAV")
    shutil.copy("audio/low/0#7.wav", "audio/low/.hidden.wav")
    Path("audio/low/notes.txt").write_text("no audio")
    low = [f"audio/low/{number}#7.wav" for number in range(9)]
    assert files("audio/low") == [*low, "audio/low/deeper/A.WAV"]
    assert files("audio/*/0#7.wav") == [f"audio/{kind}/0#7.wav" for kind in CLASSES]
    assert files("audio/l*") == files("audio/low")
    assert files("audio/low/**/*.WAV", *low[:2], low[0]) == ["audio/low/deeper/A.WAV", *low[:2]]
    shutil.copy("audio/low/0#7.wav", "audio/[ab]*.wav")  # a file before a pattern
    assert files("audio/[ab]*.wav") == ["audio/[ab]*.wav"]
    Path("empty/inner").mkdir(parents=True)
    Path("empty/notes.txt").write_text("no audio")
    for nothing in ("empty", "empty/*", "nowhere/*.wav"):
        there.refused(2, f"{nothing}: no audio file there", "predict", "--ckpt", "net.pt", nothing)


def test_one_unreadable_file_stops_predict_unless_it_may_be_skipped(there):
    corpus_trees.wav(Path("audio/high/bad.wav"), np.full(8, 0.5)).write_bytes(b"RIFFxx")
    y = np.full(3 * RATE, 0.1, np.float32)
    y[-5] = np.nan  # in its last segment: those before it were heard
    corpus_trees.wav(Path("audio/high/nan.wav"), y, subtype="FLOAT")
    predict = ("predict", "--ckpt", "net.pt")
    there.refused(2, "audio/high/bad.wav: truncated", *predict, "audio/high")
    there.refused(2, "audio/high/nan.wav: NaN", *predict, "audio/high/nan.wav", "audio/low")
    want = there.json(*predict, *(f"audio/high/{number}#7.wav" for number in range(9)))
    code, out, err = there("--json", *predict, "--skip-unreadable", "audio/high")
    said = json.loads(out)
    assert code == 0
    assert [one["file"] for one in said["unreadable"]] == [
        "audio/high/bad.wav",
        "audio/high/nan.wav",
    ]
    assert "NaN" in said["unreadable"][1]["reason"]
    for one in said["unreadable"]:
        assert f"{one['file']}: {one['reason']}" in err
    for kind in ("predictions", "recordings"):
        assert [(p["file"], p["label"]) for p in said[kind]] == [
            (p["file"], p["label"]) for p in want[kind]
        ]
        for one, other in zip(said[kind], want[kind], strict=True):
            assert one["probabilities"] == pytest.approx(other["probabilities"], rel=1e-5)
    bad = ("audio/high/bad.wav", "audio/high/gone.wav")
    there.refused(2, "none of 2 files", *predict, "--skip-unreadable", *bad)


def test_a_table_of_predictions_holds_no_formula_and_no_torn_name(made, there):
    _, _store, net = made
    Path("odd").mkdir()
    names = ["=1+1.wav", "@x.wav", "plus,comma.wav", 'quote"d.wav', "two\nlines.wav"]
    for name in names:
        shutil.copy("audio/high/1#7.wav", f"odd/{name}")
    classes = ["=cmd", "-2", "plain"]
    save_tensors(Path("odd.pt"), replace(net, classes=classes).to_plain())
    there.monkeypatch.chdir("odd")
    said = there.json("predict", "--ckpt", "../odd.pt", ".", "--csv", "../table.csv")
    with Path("../table.csv").open(newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "start_s", "label", *(f"probability_{name}" for name in classes)]
    assert len(rows) == len(said["predictions"]) == 2 * len(names)
    for row, one in zip(rows, said["predictions"], strict=True):
        assert not any(cell.startswith(("=", "+", "-", "@")) for cell in row)
        assert row[0] == ("'" if one["file"][0] in "=@" else "") + one["file"]
        assert row[2] == ("'" if one["label"][0] in "=-" else "") + one["label"]
        assert float(row[1]) == one["start_s"]
        assert [float(cell) for cell in row[3:]] == list(one["probabilities"].values())
    assert {one["file"] for one in said["predictions"]} == set(names)


def test_a_table_is_complete_or_not_there_and_never_in_place_of_a_recording(there):
    predict = ("predict", "--ckpt", "net.pt", "--csv")
    there.refused(2, "wanted a file for the table", *predict, "audio/low/0#7.wav", "audio/high")
    there.refused(2, "there is no folder", *predict, "none/t.csv", "audio/high")
    corpus_trees.wav(Path("audio/high/zz.wav"), np.full(RATE, np.nan), subtype="FLOAT")
    there.refused(2, "zz.wav: NaN", *predict, "t.csv", "audio/high")
    assert not list(Path().glob("*t.csv*"))


def test_many_files_are_predicted_64_segments_at_a_time_as_one_by_one(there, heard):
    for number in range(30):
        y = sound("noise", np.random.default_rng(number), seconds=1 + number % 4)
        corpus_trees.wav(Path(f"many/{number:02d}.wav"), y)
    said = there.json("predict", "--ckpt", "net.pt", "many")
    assert [len(x) for x in heard] == [64, 9]
    for number in (0, 3, 27, 28, 29):
        one = there.json("predict", "--ckpt", "net.pt", f"many/{number:02d}.wav")
        for kind in ("predictions", "recordings"):
            of_many = [p for p in said[kind] if p["file"] == f"many/{number:02d}.wav"]
            assert len(of_many) == len(one[kind]) > 0
            for got, want in zip(of_many, one[kind], strict=True):
                assert got.keys() == want.keys()
                assert got["label"] == want["label"]
                assert got["probabilities"] == pytest.approx(want["probabilities"], rel=1e-5)


def test_a_net_without_finite_logits_decides_nothing(made, there):
    _, store, net = made
    huge = torch.full_like(net.state_dict["classifier.6.weight"], 3e38)
    broken = replace(net, state_dict={**net.state_dict, "classifier.6.weight": huge})
    save_tensors(Path("broken.pt"), broken.to_plain())
    first = store.clip_ids[store.rows("test")[0]]
    there.refused(
        2, f"outputs for segment {first} are not finite", "evaluate", "--ckpt", "broken.pt"
    )
    predict = ("predict", "--ckpt", "broken.pt", "--skip-unreadable")
    there.refused(2, "audio/low/0#7.wav: the network's outputs", *predict, "audio/low/0#7.wav")


def test_help_counts_recordings_where_recordings_are_counted(shell):
    code, out, _ = shell("prepare", "--help")
    assert code == 0
    limits = [" ".join(part.split()) for part in out.split("  --") if part.startswith("limit")]
    assert len(limits) == 2
    assert all("ecordings" in text for text in limits)
