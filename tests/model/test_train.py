import json
import math
import shutil

import numpy as np
import pytest
import torch
from torch.nn import functional

from antigram.model.loss.sources import LiveGrams, TapSpec
from antigram.model.nets.networks import extractor_digest
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.result import copy_best
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.store import FeatureStore
from antigram.studies.report import draw_run
from tests.support.files import flip
from tests.support.nets import CPU, VGG11
from tests.support.runs import metrics

NUMBERS = ("loss", "ce", "at", "accuracy")


@pytest.fixture
def run_mode(store, teacher, config, tmp_path):
    """Train in a mode; return settings, folder, result and metrics."""

    def run(mode="baseline", *, name="run", on=store, resume=False, on_progress=None, **changes):
        layers = (3,) if mode in ("frozen", "online") else ()
        given = config(mode, **{"layers": layers, **changes})
        spec = TapSpec(arch=VGG11, layers=layers, tap=given.tap, aggregation=given.aggregation)
        grams = LiveGrams(teacher.net(), spec) if mode == "online" else None
        init = teacher.state if mode in ("wi", "frozen") else None
        net = build_student(given, 3, init)
        extra = {"on_progress": on_progress} if on_progress else {}
        folder = tmp_path / name
        result = train(net, on, grams, given, folder, device=CPU, resume=resume, **extra)
        return given, folder, result, metrics(folder)

    return run


def mean_ce(net, store, split):
    rows = store.rows(split, "label")
    x = torch.from_numpy(store.features.read()[rows])[:, None]
    with torch.no_grad():
        return functional.cross_entropy(
            net(x).double(), torch.from_numpy(store.labels("label")[rows].astype(np.int64))
        ).item()


@pytest.mark.parametrize("mode", ["baseline", "wi", "frozen", "online"])
def test_a_mode_leaves_what_the_format_names_and_the_same_numbers_twice(mode, run_mode, store):
    config, folder, result, entries = run_mode(mode)
    draw_run(folder)
    assert sorted(p.name for p in folder.iterdir() if "events" not in p.name) == [
        "best.pt",
        "config.json",
        "curves.png",
        "manifest.json",
        "metrics.jsonl",
        "report.html",
        "result.json",
    ]
    assert [entry["epoch"] for entry in entries] == [1, 2]
    for entry in entries:
        assert {"epoch", "train", "validation", "seconds", "data_wait_seconds"} <= set(entry)
        for split in ("train", "validation"):
            found = entry[split]
            assert set(NUMBERS) <= set(found)
            assert found["loss"] == pytest.approx(found["ce"] + found["at"], rel=1e-12)
            assert (found["at"] > 0) == (mode == "online")
            assert 0 <= found["accuracy"] <= 1
    wanted = (
        "run mode data task layers beta seed epochs best_epoch accuracy unweighted_average_recall "
        "seconds_per_step clips_per_second data_wait_fraction peak_rss_mb peak_device_mb "
        "parameters environment"
    ).split()
    assert set(wanted) <= set(result)
    assert json.loads((folder / "result.json").read_text()) == result
    assert (result["mode"], result["task"], result["epochs"]) == (mode, "label", 2)
    assert result["run"] == str(folder)
    assert set(result["accuracy"]) == {"train", "validation", "test"}
    stored = json.loads((folder / "config.json").read_text())
    assert stored["config"] == json.loads(json.dumps(config.to_json()))
    assert stored["features"] == store.fingerprint
    _, _, again, repeated = run_mode(mode, name="again")
    for one, two in zip(entries, repeated, strict=True):
        assert one["train"] == two["train"]
        assert one["validation"] == two["validation"]
    for key in ("accuracy", "unweighted_average_recall", "best_epoch"):
        assert result[key] == again[key]


def test_another_seed_gives_other_numbers(run_mode):
    losses = {run_mode(name=str(seed), seed=seed)[3][0]["train"]["loss"] for seed in (0, 1)}
    assert len(losses) == 2


def test_a_training_learns_to_tell_the_classes_apart(run_mode):
    *_, entries = run_mode(epochs=12, lr=3e-3, dropout=0.0, patience=12)
    assert entries[-1]["train"]["ce"] < 0.5 * entries[0]["train"]["ce"]
    assert entries[-1]["validation"]["accuracy"] >= 0.6


def test_metrics_are_means_over_clips_of_the_weights_at_that_time(run_mode, store, config):
    net = build_student(config(), 3, None).eval()
    want = {split: mean_ce(net, store, split) for split in ("train", "validation")}
    *_, entries = run_mode(lr=1e-12, dropout=0.0, epochs=1)
    for split, value in want.items():
        assert entries[0][split]["ce"] == pytest.approx(value, rel=1e-5)


class Counting(LiveGrams):
    def __init__(self, *args):
        super().__init__(*args)
        self.batches = []

    def rows(self, read, x):
        self.batches.append(len(x))
        return super().rows(read, x)


def test_the_last_short_batch_is_trained_on(store, teacher, config, tmp_path):
    grams = Counting(teacher.net(), TapSpec(arch=VGG11, layers=(3,)))
    given = config("online", layers=(3,), epochs=1)
    net = build_student(given, 3, None)
    result = train(net, store, grams, given, tmp_path / "run", device=CPU)
    clips, unseen = (len(store.rows(split, "label")) for split in ("train", "validation"))
    assert clips % 13 != 0
    steps = math.ceil(clips / 13)
    assert result["steps"] == steps
    before = -(-unseen // 13)  # validation also runs before the first step
    assert grams.batches[before : before + steps] == [13] * (steps - 1) + [clips % 13]
    assert grams.batches[:before] == grams.batches[before + steps :]
    assert sum(grams.batches[:before]) == unseen


def test_the_short_batch_counts_by_its_clips(run_mode):
    *_, whole = run_mode("online", name="whole", lr=1e-12, dropout=0.0, epochs=1, batch_clips=64)
    *_, parts = run_mode("online", name="parts", lr=1e-12, dropout=0.0, epochs=1, batch_clips=9)
    for split in ("train", "validation"):
        for key in NUMBERS:
            assert parts[0][split][key] == pytest.approx(whole[0][split][key], rel=1e-5), key


def test_training_stops_when_validation_has_not_improved_for_patience_epochs(run_mode):
    _, _, result, entries = run_mode(epochs=9, patience=2, lr=1e-30)
    assert result["best_epoch"] == 1
    assert result["epochs"] == len(entries) == 3


def test_best_is_the_epoch_with_the_least_validation_loss(run_mode, store):
    _, folder, result, entries = run_mode(epochs=7, patience=7, lr=3e-2)
    losses = [entry["validation"]["loss"] for entry in entries]
    best = int(np.argmin(losses))
    assert best + 1 < len(losses), "the settings of this test should overshoot"
    assert result["best_epoch"] == best + 1
    net = load_checkpoint(folder / "best.pt").net()
    assert mean_ce(net, store, "validation") == pytest.approx(losses[best], rel=1e-5)
    assert result["accuracy"]["validation"] == pytest.approx(
        entries[best]["validation"]["accuracy"]
    )


def test_best_carries_the_preprocessing_of_its_store(run_mode, store, tmp_path):
    _, folder, *_ = run_mode(epochs=1)
    copy_best(folder, tmp_path / "saved.pt")
    found = load_checkpoint(tmp_path / "saved.pt")
    assert (found.recipe, found.mean, found.std) == (store.recipe, store.mean, store.std)
    assert (found.task, found.classes) == ("label", store.classes["label"])


@pytest.mark.parametrize(
    ("mode", "when"),
    [("online", (1, 2)), ("baseline", (2, 2)), ("online", (3, 2))],
    ids=["first epoch", "second epoch", "last epoch"],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(mode, when, run_mode):
    class Killed(Exception):
        pass

    def kill(epoch, done, _steps, known):
        if (epoch, done) == when and "clips_per_second" in known:
            raise Killed

    _, whole, result, entries = run_mode(mode, name="whole", epochs=3)
    with pytest.raises(Killed):
        run_mode(mode, name="killed", epochs=3, on_progress=kill)
    torch.manual_seed(12345)
    _, folder, again, repeated = run_mode(mode, name="killed", epochs=3, resume=True)
    for one, two in zip(entries, repeated, strict=True):
        assert one["train"] == two["train"]
        assert one["validation"] == two["validation"]
    assert (again["accuracy"], again["steps"]) == (result["accuracy"], result["steps"])
    one, two = (load_checkpoint(path / "best.pt").state_dict for path in (whole, folder))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_resuming_a_finished_run_changes_no_number(run_mode):
    *_, result, entries = run_mode()
    *_, again, repeated = run_mode(resume=True)
    assert repeated == entries
    assert again["accuracy"] == result["accuracy"]


def test_resuming_with_other_settings_or_another_store_is_refused(run_mode, store):
    run_mode()
    with pytest.raises(InputError, match=r"was started with lr 0.001, now 0.5\. Resume"):
        run_mode(resume=True, lr=0.5)
    other = FeatureStore(store.path)
    other.fingerprint = "0" * 64
    with pytest.raises(InputError, match=r"was started with features .*, now .0000"):
        run_mode(resume=True, on=other)


def test_max_steps_ends_in_the_middle_of_an_epoch(run_mode):
    _, folder, result, entries = run_mode(max_steps=2, epochs=5)
    assert (result["steps"], result["epochs"], len(entries)) == (2, 1, 1)
    assert (folder / "best.pt").is_file()


def test_negative_beta_is_taken_off_the_loss_and_makes_the_nets_more_alike(run_mode):
    common = {"epochs": 4, "lr": 3e-3, "dropout": 0.0}
    *_, less = run_mode("online", name="less", beta=20.0, **common)
    *_, more = run_mode("online", name="more", beta=-20.0, **common)
    for entry in more:
        found = entry["train"]
        assert found["loss"] == pytest.approx(found["ce"] - 20 * found["at"], rel=1e-9)
    assert more[-1]["train"]["at"] > less[-1]["train"]["at"] + 0.005


def test_weight_decay_shrinks_the_weights_beside_the_gradient_step(run_mode):
    common = {"max_steps": 1, "epochs": 1, "lr": 1e-3}
    given, plain, *_ = run_mode(name="plain", **common)
    decayed, folder, *_ = run_mode(name="decayed", weight_decay=0.5, **common)
    begin = build_student(given, 3, None).state_dict()
    without, found = (load_checkpoint(f / "best.pt").state_dict for f in (plain, folder))
    for name, weights in begin.items():
        torch.testing.assert_close(
            found[name], without[name] - 1e-3 * 0.5 * weights, rtol=1e-5, atol=1e-7
        )
    assert "weight_decay" not in given.to_json()  # as in runs of earlier versions
    assert decayed.to_json()["weight_decay"] == 0.5


def test_the_released_loss_runs_online_and_weighs_beta_squared(run_mode):
    *_, entries = run_mode("online", loss="released", beta=0.5)
    found = entries[0]["train"]
    assert 0 < found["at"] <= 1
    assert found["loss"] == pytest.approx(found["ce"] + 0.25 * found["at"], rel=1e-9)


def test_a_training_leaves_the_frozen_net_as_it_was(store, teacher, config, tmp_path):
    net = teacher.net()
    before = extractor_digest(net.state_dict(), net, 8, "relu")
    grams = LiveGrams(net, TapSpec(arch=VGG11, layers=(3, 8)))
    given = config("online", layers=(3, 8), epochs=1)
    train(build_student(given, 3, None), store, grams, given, tmp_path / "run", device=CPU)
    assert extractor_digest(net.state_dict(), net, 8, "relu") == before
    assert all(p.grad is None for p in net.parameters())


def test_all_modes_see_the_same_batches_and_masks(run_mode):
    *_, plain = run_mode("baseline", name="plain", epochs=1, max_steps=1)
    *_, with_at = run_mode("online", name="at", epochs=1, max_steps=1)
    assert plain[0]["train"]["ce"] == with_at[0]["train"]["ce"]


def test_frozen_layers_do_not_move_and_the_others_do(run_mode, teacher):
    _, folder, *_ = run_mode("frozen", epochs=1)
    state = load_checkpoint(folder / "best.pt").state_dict
    for place in (0, 3, 6):
        assert torch.equal(
            state[f"features.{place}.weight"], teacher.state[f"features.{place}.weight"]
        )
    assert not torch.equal(state["features.8.weight"], teacher.state["features.8.weight"])


def test_a_split_without_clips_is_refused(run_mode, store):
    other = FeatureStore(store.path)
    other.split = np.zeros(len(store), np.int8)
    with pytest.raises(InputError, match="no segment with a label in the validation split"):
        run_mode(on=other)


def test_damaged_features_stop_a_training(run_mode, store, tmp_path):
    broken = shutil.copytree(store.path, tmp_path / "broken.zarr")
    flip(broken / "features" / "c" / "0" / "0" / "0", 100_000)
    with pytest.raises(DamagedError, match=r"features/c/0/0/0.*crc32c"):
        run_mode(on=FeatureStore(broken))
