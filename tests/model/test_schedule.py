"""Learning rates, class weights and clipped gradients, held against torch's and scikit-learn's."""

import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional
from torch.optim import lr_scheduler

from antigram.model.nets.arch import Arch
from antigram.model.training.class_weights import balanced_weights, weights_note
from antigram.model.training.config import TrainConfig
from antigram.model.training.schedule import STUCK_EPOCHS, Schedule
from antigram.model.training.student import build_student
from antigram.model.training.train import train
from antigram.pipeline.errors import InputError
from tests.support.nets import CPU
from tests.support.runs import metrics, numbers_of, train_baseline

ARCH = Arch("vgg11", 1)
ALL = {"class_weights": "balanced", "warmup": 0.9, "clip_norm": 0.5}


def settings(**changes):
    given = {"mode": "baseline", "task": "label", "arch": ARCH, "lr": 1e-3, "epochs": 4}
    return TrainConfig(**{**given, **changes})


def adam():
    return torch.optim.Adam([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)


def rate_of(optimiser):
    (group,) = optimiser.param_groups
    return group["lr"]


@pytest.mark.parametrize("warmup", [0, 0.5, 2])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_rates_are_those_of_torchs_schedulers(schedule, warmup):
    steps_in_epoch, steps = 6, 24
    ours, theirs = adam(), adam()
    rates = Schedule(settings(schedule=schedule, warmup=warmup), steps_in_epoch, ours)
    first = int(warmup * steps_in_epoch)
    rest = (
        lr_scheduler.CosineAnnealingLR(theirs, steps - first)
        if schedule == "cosine"
        else lr_scheduler.ConstantLR(theirs, factor=1)
    )
    want: lr_scheduler.LRScheduler = rest
    if first:
        rise = lr_scheduler.LambdaLR(theirs, lambda step: (step + 1) / first)
        want = lr_scheduler.SequentialLR(theirs, [rise, rest], [first])
    for step in range(steps):
        rates.begin_step(step)
        assert rate_of(ours) == pytest.approx(rate_of(theirs), rel=1e-12), step
        theirs.step()
        want.step()
    assert rates.to_plain() == {}


def test_a_plateau_lowers_the_rate_when_torchs_scheduler_does(rng):
    ours, theirs = adam(), adam()
    rates = Schedule(settings(schedule="plateau", epochs=50), 3, ours)
    want = lr_scheduler.ReduceLROnPlateau(
        theirs, factor=0.5, patience=STUCK_EPOCHS - 1, threshold=0, eps=0
    )
    seen = []
    for epoch, loss in enumerate(rng.uniform(0, 1, 40) + np.linspace(1, 0, 40), 1):
        rates.begin_step(3 * epoch - 1)
        assert rate_of(ours) == pytest.approx(rate_of(theirs), rel=1e-12), epoch
        assert rates.end_epoch(3 * epoch, loss) == {"lr": rate_of(ours)}
        want.step(loss)
        seen.append(rate_of(ours))
        stored = rates.to_plain()  # go on from what is stored
        rates = Schedule(settings(schedule="plateau", epochs=50), 3, ours)
        rates.restore(stored)
    assert len(set(seen)) > 4


def test_epochs_of_the_warmup_do_not_count_as_a_plateau():
    rates = Schedule(settings(schedule="plateau", warmup=3), 5, adam())
    for epoch in (1, 2, 3):
        rates.end_epoch(5 * epoch, float(epoch))
    assert rates.rate(15) == 1e-3
    assert rates.to_plain() == {"factor": 1.0, "least": math.inf, "stuck": 0}


def test_a_warmup_as_long_as_the_training_is_refused(store, tmp_path):
    config = settings(warmup=4)
    with pytest.raises(InputError, match=r"`warmup` 4: wanted fewer epochs .* `epochs=4`"):
        train_baseline(config, store, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["warmup", "clip_norm"])
@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_impossible_values_name_the_setting(name, value):
    with pytest.raises(InputError, match=f"`{name}` "):
        settings(**{name: value})


def test_unused_settings_are_not_stored_so_that_earlier_runs_resume():
    plain = settings().to_json()
    assert not {"class_weights", "schedule", "warmup", "clip_norm"} & set(plain)
    used = settings(schedule="cosine", **ALL).to_json()
    assert {**plain, "schedule": "cosine", **ALL} == used


def test_balanced_weights_are_those_of_scikit_learn(rng):
    labels = rng.integers(0, 5, 200) ** 2 // 4
    labels[labels == 2] = 1  # one class does not occur
    seen = np.unique(labels)
    want = compute_class_weight("balanced", classes=seen, y=labels)
    got = balanced_weights(labels, 6)
    np.testing.assert_allclose(got[seen], want, rtol=1e-6)
    assert set(np.flatnonzero(got == 0)) == set(range(6)) - set(seen)
    assert got[labels].mean() == pytest.approx(1)
    assert weights_note(got, "abcdef").startswith(f"class weights: {got[got > 0].min():.3g} (")


def uneven(store):
    """The store's segments without most of those of class 0."""
    labels = store.labels("label")
    rows = {s: store.rows(s, "label") for s in ("train", "validation", "test")}
    rows["train"] = np.concatenate(
        [rows["train"][labels[rows["train"]] > 0], rows["train"][labels[rows["train"]] == 0][:2]]
    )
    return rows, labels


def test_losses_are_means_of_weighted_cross_entropies(store, tmp_path, monkeypatch):
    rows, labels = uneven(store)
    monkeypatch.setattr(type(store), "rows", lambda _, split, *__: rows[split])
    config = settings(lr=1e-30, dropout=0.0, epochs=1, batch_clips=4, class_weights="balanced")
    net, said = build_student(config, 3, None), []
    net.classifier[-1].bias.data = torch.tensor([1.0, 0.0, -1.0])
    train(net, store, None, config, tmp_path / "run", device=CPU, on_message=said.append)
    (entry,) = metrics(tmp_path / "run")
    weights = torch.from_numpy(balanced_weights(labels[rows["train"]], 3)).double()
    for split in ("train", "validation"):
        x = torch.from_numpy(store.features.read()[rows[split]])[:, None]
        y = torch.from_numpy(labels[rows[split]].astype(np.int64))
        with torch.no_grad():
            each = functional.cross_entropy(net(x).double(), y, reduction="none")
        assert entry[split]["ce"] == pytest.approx((each * weights[y]).mean().item(), rel=1e-5)
        assert entry[split]["ce"] != pytest.approx(each.mean().item(), rel=1e-3)
    assert any(text.startswith("class weights: ") for text in said)
    assert "lr" not in entry  # no schedule is used


def test_a_gradient_is_never_longer_than_the_limit(store, tmp_path, monkeypatch):
    seen = []
    step = torch.optim.Adam.step

    def watched(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", watched)
    for name, limit in (("free", None), ("clipped", 0.01)):
        config = settings(epochs=1, clip_norm=limit)
        train_baseline(config, store, tmp_path / name)
    free, clipped = np.split(np.array(seen), 2)
    assert (free > 0.01).any()
    assert (clipped <= 0.01 * (1 + 1e-4)).all()


@pytest.mark.parametrize(
    ("schedule", "stop"), [("constant", 3), ("cosine", 13), ("plateau", 13), ("plateau", 22)]
)
def test_stopped_at_any_step_a_scheduled_run_ends_in_the_same_numbers(
    schedule, stop, store, tmp_path
):
    # The rate is so high that the validation loss rises, and the plateau is met.
    given = {"lr": 1.0, "patience": 9, "batch_clips": 7, "epochs": 5, "init": "torchvision"}
    config = settings(schedule=schedule, **given, **ALL)
    steps = 0

    def stopping(_epoch, _done, _steps, known):
        nonlocal steps
        steps += "clips_per_second" in known
        if steps == stop + 1:
            raise KeyboardInterrupt

    def go(name, on_progress=lambda *_: None, **options):
        net = build_student(config, 3, None)
        how = {"device": CPU, "on_progress": on_progress, "save_every_s": 0, **options}
        return train(net, store, None, config, tmp_path / name, **how)

    go("complete")
    with pytest.raises(KeyboardInterrupt):
        go("cut", stopping)
    go("cut", resume=True)
    want = numbers_of(tmp_path / "complete")
    assert numbers_of(tmp_path / "cut") == want
    rates = [entry["lr"] for entry in want]
    assert (rates[-1] < rates[0]) == (schedule != "constant")


def test_more_epochs_can_follow_on_a_plateau_but_not_on_a_cosine(store, tmp_path):
    def go(schedule, epochs, **options):
        config = settings(schedule=schedule, epochs=epochs, patience=9)
        folder = tmp_path / f"{schedule}-{options.pop('name', 'run')}"
        return train_baseline(config, store, folder, keep_resume=True, **options)

    go("plateau", 2)
    assert go("plateau", 3, resume=True)["epochs"] == 3
    go("plateau", 3, name="complete")
    assert numbers_of(tmp_path / "plateau-run") == numbers_of(tmp_path / "plateau-complete")
    go("cosine", 2)
    with pytest.raises(InputError, match="was started with epochs 2, now 3"):
        go("cosine", 3, resume=True)
    constant = settings(epochs=2, patience=9)
    with pytest.raises(InputError, match='was started with schedule "cosine", now null'):
        train_baseline(constant, store, tmp_path / "cosine-run", resume=True)
