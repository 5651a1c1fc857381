"""The effect of AT that a run records, by layer and teacher; recording it changes nothing."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import antigram.model.training.train
from antigram.model.loss.at_loss import at_loss
from antigram.model.loss.sources import LiveGrams, Sources, TapSpec
from antigram.model.training.at_effect import Effect, effect_note
from antigram.model.training.batches import Batches
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.guards import UNTRAINED
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from tests.support.checkpoints import save_teacher
from tests.support.nets import CPU, VGG11
from tests.support.report_pages import page_of
from tests.support.runs import metrics

LAYERS = {"emo": (3, 5), "speaker": (5,)}


@pytest.fixture(scope="module")
def teachers(store, tmp_path_factory):
    home = tmp_path_factory.mktemp("teachers")
    return {
        name: save_teacher(home / f"{name}.pt", VGG11, store, seed=seed)
        for seed, name in enumerate(LAYERS, 21)
    }


@pytest.fixture
def run(store, teachers, config, tmp_path):
    """Train with two teachers; return settings, folder, result, metrics and messages."""

    def run(
        name="run",
        *,
        resume=False,
        on_progress=lambda *_: None,
        layers=None,
        save_every_s=10.0,
        **changes,
    ):
        layers = layers or LAYERS
        given = config("online", layers=(3, 5), **{"dropout": 0.0, **changes})
        specs = {
            teacher: TapSpec(arch=VGG11, layers=layers[teacher], tap=given.tap)
            for teacher in layers
        }
        grams = Sources({n: LiveGrams(teachers[n].net(), spec) for n, spec in specs.items()})
        net, said = build_student(given, 3, None), []
        result = train(
            net,
            store,
            grams,
            given,
            tmp_path / name,
            device=CPU,
            resume=resume,
            on_progress=on_progress,
            save_every_s=save_every_s,
            on_message=said.append,
        )
        return given, tmp_path / name, result, metrics(tmp_path / name), said

    return run


def similarities(net, teachers, store, rows, *, gradients=False):
    """Return mean similarities, or ratios of gradients, computed one by one."""
    x = torch.from_numpy(store.features.read()[rows])[:, None]
    y = torch.from_numpy(store.labels("label")[rows].astype(np.int64))
    maps = {}
    ce = functional.cross_entropy(net(x, (3, 5), "relu", maps.__setitem__), y)
    found = {}
    for name, layers in LAYERS.items():
        rows_of = LiveGrams(teachers[name].net(), TapSpec(arch=VGG11, layers=layers)).rows({}, x)
        for layer in layers:
            at = at_loss(maps[layer], rows_of[layer], "gram").mean()
            found[layer, name] = at.item()
            if gradients:
                norms = [
                    torch.autograd.grad(loss, maps[layer], retain_graph=True)[0].norm()
                    for loss in (at, ce)
                ]
                found[layer, name] = (norms[0] / norms[1]).item()
    return found


def flat(table):
    return {
        (int(layer), name): value for layer, row in table.items() for name, value in row.items()
    }


def test_the_similarities_before_the_first_step_and_at_the_best_epoch_are_noted(
    run, store, teachers
):
    given, folder, result, entries, _ = run(epochs=3, lr=3e-3)
    rows = store.rows("validation", "label")
    first, best = build_student(given, 3, None).eval(), load_checkpoint(folder / "best.pt").net()
    for field, net in (("at_initial", first), ("at_best", best)):
        want = similarities(net, teachers, store, rows)
        assert flat(result[field]) == pytest.approx(want, rel=1e-4)
    assert result["at_initial"] != result["at_best"]
    for entry in entries:
        total = sum(value for row in entry["similarity"].values() for value in row.values())
        assert total == pytest.approx(entry["validation"]["at"], rel=1e-6)
    assert result["at_best"] == entries[result["best_epoch"] - 1]["similarity"]


def test_the_ratios_of_gradients_are_those_at_the_tapped_maps_of_the_first_and_the_last_batch(
    run, store, teachers, monkeypatch
):
    batches, passes = [], Batches.passes

    def spy(self, rows, epoch=0):
        for batch in passes(self, rows, epoch):
            batches.extend([batch.clips] if epoch else [])
            yield batch

    monkeypatch.setattr(Batches, "passes", spy)
    given, _, result, (entry,), _ = run(epochs=1, lr=1e-12, batch_clips=11)
    assert len(batches) == 3
    net = build_student(given, 3, None)
    for place in (0, -1):
        want = similarities(net, teachers, store, batches[place], gradients=True)
        got = {key: pair[place] for key, pair in flat(result["gradient_ratio"]).items()}
        assert got == pytest.approx(want, rel=1e-3)
    assert result["gradient_ratio"] == entry["gradient_ratio"]


@pytest.mark.parametrize("loss", ["paper", "released"])
def test_a_training_has_the_same_weights_whether_it_is_looked_at_or_not(run, loss, monkeypatch):
    layers = None if loss == "paper" else {"emo": (3,)}
    common = {"epochs": 2, "dropout": 0.5, "layers": layers, "loss": loss}
    _, seen, result, *_ = run("seen", **common)
    if loss == "released":
        ratios = result["gradient_ratio"]["3"]["emo"]
        assert all(0 < ratio < np.inf for ratio in ratios), ratios
    validate = antigram.model.training.train._validate
    monkeypatch.setattr(Effect, "gradients", lambda *_, **__: None)
    monkeypatch.setattr(
        "antigram.model.training.train._validate",
        lambda *given: ({}, {}) if given[-1] is UNTRAINED else validate(*given),
    )
    _, alone, *_ = run("alone", **common)
    one, two = (load_checkpoint(path / "best.pt").state_dict for path in (seen, alone))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("when", [(1, 2), (2, 1)], ids=["first epoch", "second epoch"])
def test_a_resumed_run_keeps_what_was_measured_before_the_first_step(run, when):
    class Killed(Exception):
        pass

    def kill(epoch, done, _steps, known):
        if (epoch, done) == when and "clips_per_second" in known:
            raise Killed

    fields = ("at_initial", "at_best", "gradient_ratio", "notes")
    result = run("whole", save_every_s=0)[2]
    with pytest.raises(Killed):
        run("killed", on_progress=kill, save_every_s=0)
    again = run("killed", resume=True, save_every_s=0)[2]
    assert [again[field] for field in fields] == [result[field] for field in fields]
    assert None not in [again[field] for field in fields]


def test_at_that_does_next_to_nothing_is_said_at_the_end_and_on_the_page(run):
    _, folder, result, _, said = run(epochs=1, beta=1e-6)
    (note,) = [text for text in said if "AT did next to nothing" in text]
    assert note in result["notes"]
    page = page_of(folder)
    assert note in page.texts
    (table,) = [t for t in page.tables if t[0][:2] == ["layer", "teacher"]]
    assert [row[:2] for row in table[1:]] == [["3", "emo"], ["5", "emo"], ["5", "speaker"]]
    assert table[1][2] == f"{result['at_initial']['3']['emo']:.4g}"
    said = run("strong", epochs=1, beta=1e3)[4]
    assert not any("next to nothing" in text for text in said)


def test_next_to_nothing_is_below_a_hundredth_at_every_layer():
    ratios = {"3": {"emo": [1e-4, 2e-4]}, "5": {"emo": [5e-4, 1e-5]}}
    assert "at most 0.0005 of" in effect_note(ratios, {"emo": -1.0})
    assert "at layer 5" in effect_note(ratios, {"emo": 1.0})
    assert effect_note(ratios, {"emo": 20.0}) is None
    assert effect_note({**ratios, "5": {"emo": [None, 1e-5]}}, {"emo": 1.0}) is None
    assert effect_note({}, {}) is None
    assert effect_note(None, {"emo": 1.0}) is None


def test_a_training_without_at_has_no_effect_to_measure(store, config, tmp_path):
    given = config(epochs=1)
    result = train(build_student(given, 3, None), store, None, given, tmp_path / "r", device=CPU)
    assert [result[k] for k in ("at_initial", "at_best", "gradient_ratio")] == [{}, {}, {}]
    (entry,) = metrics(tmp_path / "r")
    assert "similarity" not in entry
