"""Probes of runs and checkpoints: what is read, what is answered, and what is refused."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import antigram
from antigram.model.nets.arch import Arch
from antigram.pipeline.features.store import FeatureStore
from antigram.studies.probe.division import choose_sample
from antigram.studies.probe.probing import probe_run
from antigram.studies.probe.representation import represent, trained, untrained
from tests.support.checkpoints import checkpoint_of
from tests.support.nets import CPU, VGG11, maps_of
from tests.support.stores import make_store

RUN = Path("workspace/runs/word-run")
TRAIN = ("train", "--mode", "baseline", "--arch", "vgg11", "--width", "2", "--epochs", "1")
FIELDS = {"linear", "mlp", "chance", "majority", "raw_input", "untrained", "selectivity"}


@pytest.fixture(scope="session")
def spoken(tmp_path_factory, write_wav):
    """Recordings of four speakers, who differ in pitch, with five words, which differ in length."""
    home = tmp_path_factory.mktemp("spoken")
    rng = np.random.default_rng(5)
    t = np.arange(4000) / 16_000
    lines = ["file_name,word,speaker,alone,lonely,half,partly"]
    for speaker in range(4):
        for word in range(5):
            for take in range(10):
                name = f"{speaker}{word}{take}.wav"
                y = np.sin(2 * np.pi * (500 + 1500 * speaker) * t) * (t < 0.05 + 0.04 * word)
                write_wav(home / name, 0.3 * y + 0.05 * rng.standard_normal(t.size))
                # "lonely" has one class in each word, "alone" one in all, "partly" one of one word.
                partly = f"both{take % 2}" if word else "only0"
                labels = f"word{word},speaker{speaker},one,of{word},half{take % 2},{partly}"
                lines.append(f"{name},{labels}")
    (home / "metadata.csv").write_text("\n".join(lines))
    return home


@pytest.fixture(scope="session")
def first_run(tmp_path_factory):
    return tmp_path_factory.mktemp("probed") / "made"


@pytest.fixture
def probed(shell, spoken, first_run, one_thread):
    """A workspace with a store and a run that learned words."""
    if not first_run.exists():
        prepare = ("prepare", "folder", "--source", spoken, "--seconds", "0.3")
        shell.json(*prepare, "--main-label", "word", "--name", "spoken")
        shell.json(*TRAIN, "--name", "word-run", "--save", "word.pt")
        shutil.copytree(shell.folder, first_run)
    shutil.copytree(first_run, shell.folder, dirs_exist_ok=True)
    return shell


def test_a_run_is_probed_on_words_that_no_probe_has_heard(probed):
    found = probed.json("probe", "word-run", "--task", "speaker", "--layer", "2", "--layer", "8")
    assert (found["run"], found["task"], found["trained_for"]) == (str(RUN), "speaker", "word")
    assert (found["groups"], found["parts"], found["split"]) == ("word", 5, "all")
    assert (found["segments"], found["recordings"], len(found["classes"])) == (200, 200, 4)
    assert list(found["layers"]) == ["2", "8"]
    for layer in found["layers"].values():
        assert set(layer) >= FIELDS
        assert (layer["chance"], layer["uniform_code_length"]) == (0.25, 2)
        assert layer["interval"]["low"] <= layer["linear"] <= layer["interval"]["high"]
        assert layer["linear"] == pytest.approx(np.mean(layer["parts"]))
        assert layer["selectivity"] == pytest.approx(layer["linear"] - layer["shuffled"])
        assert set(layer["recall"]) == set(found["classes"])
    assert found["layers"]["8"]["raw_input"] == found["layers"]["2"]["raw_input"] > 0.95
    assert found["layers"]["8"]["linear"] > 0.6  # a speaker's pitch is still there
    code, out, _ = probed("probe", "word-run", "--task", "speaker", "--layer", "2", "--parts", "2")
    assert code == 0
    assert "parts that share no word" in out
    assert len(out.splitlines()) == 3


def test_the_task_itself_is_probed_on_speakers_that_no_probe_has_heard(probed):
    found = probed.json("probe", "word-run", "--task", "word", "--layer", "1")
    assert (found["groups"], found["parts"]) == ("speaker", 4)


def test_a_checkpoint_is_probed_as_its_run_is_and_twice_the_same(probed):
    asked = ("--task", "speaker", "--layer", "3", "--data", "spoken", "--parts", "2")
    run = probed.json("probe", "word-run", *asked)
    for again in ("word-run", "word.pt", RUN):
        assert probed.json("probe", again, *asked)["layers"] == run["layers"]
    other = probed.json("probe", "word-run", *asked, "--seed", "1")
    assert other["layers"] != run["layers"]


def test_probing_leaves_torchs_generators_and_the_workspace_alone(probed):
    before = {p: p.read_bytes() for p in Path("workspace").rglob("*") if p.is_file()}
    state = torch.get_rng_state()
    probe_run(RUN, Path("workspace/features/spoken.zarr"), "speaker", [1], parts=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert {p: p.read_bytes() for p in Path("workspace").rglob("*") if p.is_file()} == before


def test_without_further_measures_only_the_linear_probe_runs(probed):
    store = FeatureStore("workspace/features/spoken.zarr")
    quick = probe_run(RUN, store, "speaker", [3], parts=2, measures=())["layers"]["3"]
    full = probe_run(RUN, store, "speaker", [3], parts=2)["layers"]["3"]
    for name, value in quick.items():
        assert value in (None, full[name]), name
    assert quick["linear"] == full["linear"]
    assert quick["mlp"] is quick["untrained"] is quick["selectivity"] is None
    with pytest.raises(antigram.InputError, match="measures 'mpl': wanted any of mlp"):
        probe_run(RUN, store, "speaker", measures=("mpl",))


def test_a_network_is_compared_with_itself_and_with_another(probed):
    probed.json(*TRAIN, "--task", "speaker", "--seed", "3", "--name", "speaker-run")
    asked = ("probe", "word-run", "--task", "speaker", "--layer", "4", "--parts", "2", "--compare")
    same = probed.json(*asked, "word.pt")["layers"]["4"]["cka"]
    assert (same["biased"], same["debiased"]) == pytest.approx((1, 1))
    other = probed.json(*asked, "speaker-run")["layers"]["4"]["cka"]
    assert other["debiased"] < 1
    assert other["untrained_biased"] == same["untrained_biased"]
    code, out, _ = probed(*asked, "speaker-run")
    assert code == 0
    assert "debiased" in out


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        (("word-run", "--task", "accent"), "no label 'accent'; it has"),
        (("word-run", "--task", "alone"), "alone cannot be probed in all splits"),
        (("word-run", "--task", "lonely"), "lonely cannot be probed in all splits"),
        (("word-run", "--task", "speaker", "--layer", "9"), "--layer 9: vgg11 has convolution"),
        (("word-run", "--task", "speaker", "--layer", "0"), "--layer 0: vgg11 has convolution"),
        (("word-run", "--task", "speaker", "--groups", "speaker"), "is the label that is probed"),
        (("word-run", "--task", "speaker", "--groups", "room"), "--groups room: no such label"),
        (("word-run", "--task", "speaker", "--groups", "alone"), "of its 4 classes, 0 have"),
        (("word-run", "--task", "speaker", "--data", "none"), "no feature store is called 'none'"),
        (("missing", "--task", "speaker"), "no run is called 'missing'"),
        (("word-run", "--task", "speaker", "--compare", "missing"), "no run is called 'missing'"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_a_line(asked, match, probed):
    probed.refused(2, match, "probe", *asked)


def test_damaged_and_stale_runs_are_refused(probed):
    asked = ("probe", "word-run", "--task", "speaker", "--layer", "1")
    (RUN.parent / "empty").mkdir()
    probed.refused(2, "has no best.pt", "probe", "empty", "--task", "speaker")
    best = RUN / "best.pt"
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    probed.refused(3, "best.pt: not as this run wrote it", *asked)
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    result = RUN / "result.json"
    before = result.read_text()
    result.write_text("[]")
    probed.refused(3, "result.json", *asked)
    result.write_text(before)
    chunk = next(
        p for p in Path("workspace/features/spoken.zarr/features/c").rglob("0") if p.is_file()
    )
    shutil.copytree("workspace/features/spoken.zarr", "kept")
    chunk.write_bytes(chunk.read_bytes()[:-7])
    probed.refused(3, "features", *asked)
    shutil.rmtree("workspace/features/spoken.zarr")
    probed.refused(3, "was trained on a store spoken", *asked)
    best.unlink()
    probed.refused(2, "has no best.pt", *asked)


def test_a_store_that_was_renamed_is_found_by_its_fingerprint(probed):
    Path("workspace/features/spoken.zarr").rename("workspace/features/moved.zarr")
    found = probed.json("probe", "word-run", "--task", "speaker", "--layer", "1", "--parts", "2")
    assert Path(found["data"]).stem == "moved"


def test_scikit_learn_that_is_missing_is_named(probed, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "sklearn" else find(name)
    )
    probed.refused(2, "needs scikit-learn", "probe", "word-run", "--task", "speaker")


def test_weights_that_overflow_are_named(probed):
    content = torch.load("word.pt", weights_only=True)
    for name, tensor in content["state_dict"].items():
        if name.startswith("features"):
            tensor.mul_(1e18)
    torch.save(content, "large.pt")
    asked = ("--task", "speaker", "--layer", "8")
    probed.refused(2, "at layer 8 are not finite", "probe", "large.pt", *asked)


def test_the_test_split_is_probed_if_it_has_enough_for_each_class(probed):
    store = FeatureStore("workspace/features/spoken.zarr")
    said: list[str] = []
    sample = choose_sample(store, "half", "word", None, 5, 0, said.append)
    assert (sample.split, said) == ("test", [f"segments: the {len(sample.rows)} of the test split"])
    np.testing.assert_array_equal(sample.rows, store.rows("test"))
    said.clear()
    sample = choose_sample(store, "speaker", "word", None, 5, 0, said.append)
    assert (sample.split, len(sample.rows)) == ("all", 200)
    assert said == ["segments: all splits, as only 20 of the test split can be used"]
    for split in ("train", "validation", "test", "all"):
        sample = choose_sample(store, "speaker", "word", split, 5, 0)
        assert len(sample.rows) == (200 if split == "all" else len(store.rows(split)))
        for part in range(5):
            train, test = sample.train_and_test(part)
            assert not set(sample.groups[train]) & set(sample.groups[test])
        np.testing.assert_array_equal(
            np.array(sample.classes)[sample.y],
            np.array(store.classes["speaker"])[store.labels("speaker")[sample.rows]],
        )


def test_classes_of_a_single_group_are_left_out_and_named(probed):
    store = FeatureStore("workspace/features/spoken.zarr")
    said: list[str] = []
    sample = choose_sample(store, "partly", "word", "all", 5, 0, said.append)
    assert (sample.classes, sample.left_out) == (["both0", "both1"], ["only0"])
    assert len(sample.rows) == 160
    assert said == [
        "1 of 3 classes of partly are left out, as they occur in fewer than two parts: only0"
    ]


def test_representations_are_moments_of_the_maps(tmp_path, spoken):
    store = FeatureStore(make_store(spoken, tmp_path / "own.zarr").path)
    checkpoint = checkpoint_of(VGG11, store, classes=["a", "b"])
    net, rows = trained(checkpoint), np.arange(0, len(store), 3)
    scales = {"scaled": (0.5, 0.25)}
    nets = {"net": net, "scaled": net}
    found = represent(nets, (1, 4, 8), store, rows, CPU, scales)
    x = torch.from_numpy(store.features.read()[rows])
    exact = x.numpy().astype(np.float64)
    want = np.concatenate([exact.mean(1), exact.std(1)], 1)
    np.testing.assert_allclose(found.raw_input, want, atol=2e-5)
    for name, given in (("net", x), ("scaled", 0.5 * x + 0.25)):
        maps = maps_of(checkpoint.net(), given[:, None], (1, 4, 8), "relu")
        for layer, values in maps.items():
            flat = values.numpy().reshape(*values.shape[:2], -1).astype(np.float64)
            want = np.concatenate([flat.mean(2), flat.std(2)], 1)
            got = found.of_layers[name][layer]
            np.testing.assert_allclose(got, want, atol=2e-5 * want.max())
    one, two = (untrained(Arch("vgg11", 2), seed).state_dict() for seed in (0, 1))
    assert not torch.equal(one["features.0.weight"], two["features.0.weight"])
