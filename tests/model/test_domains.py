"""Trainings against a second label: losses against references, seeds, resuming and refusals."""

import numpy as np
import pytest
import torch

from antigram.model.loss.domains import Adversary, reversal_strength, reverse_gradient
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.config import TrainConfig
from antigram.model.training.distributed import DistributedContext
from antigram.model.training.domains import prepare_domains
from antigram.model.training.evaluate import evaluate_checkpoint
from antigram.model.training.student import build_student
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.split import SPLITS
from tests.support.nets import CPU, VGG11
from tests.support.runs import as_version_1, metrics, numbers_of, stop_at, train_baseline

TRAINED = ("loss", "ce", "at", "accuracy")


@pytest.fixture
def dann(config):
    def make(**changes):
        return config("dann", **{"against": "speaker", "batch_clips": 5, "lr": 1e-3, **changes})

    return make


def adversary(**changes):
    """A discriminator with weights that are large enough for its gradients to differ."""
    given = {"dropout": 0.0, "beta": 1.5, "steps": 40, "seed": 3, **changes}
    loss = Adversary(6, 4, 3, **given)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.mul_(60).add_(0.1)
    return loss


def test_a_reversed_gradient_leaves_the_values_and_has_the_other_sign(rng):
    values = torch.from_numpy(rng.standard_normal((4, 3)))
    plain, turned = (values.clone().requires_grad_() for _ in range(2))
    (plain.sin() ** 2).sum().backward()
    passed = reverse_gradient(turned, 0.3)
    assert torch.equal(passed, values)
    (passed.sin() ** 2).sum().backward()
    torch.testing.assert_close(turned.grad, -0.3 * plain.grad)


def by_hand(loss, features, domains):
    """Mean cross-entropy of a discriminator and its gradients, in numpy, written out."""
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in loss.parameters())
    known = domains >= 0
    x, y = features[known], domains[known]
    before = x @ w1.T + b1
    hidden = np.maximum(before, 0)
    logits = hidden @ w2.T + b2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    ce = -np.log(shares[np.arange(len(y)), y])
    d_logits = shares.copy()
    d_logits[np.arange(len(y)), y] -= 1
    d_logits /= len(y)
    d_before = (d_logits @ w2) * (before > 0)
    d_features = np.zeros_like(features)
    d_features[known] = d_before @ w1
    gradients = [d_before.T @ x, d_before.sum(0), d_logits.T @ hidden, d_logits.sum(0)]
    return ce, (logits.argmax(1) == y).sum(), d_features, gradients


def test_the_adversarial_loss_is_that_of_numpy_and_only_the_student_sees_it_reversed(rng):
    loss = adversary()
    features = rng.standard_normal((7, 6)).astype(np.float32)
    domains = np.array([0, -1, 2, 1, 1, -1, 0])
    x = torch.from_numpy(features).requires_grad_()
    loss.begin(10)
    mean, sums = loss(x, torch.from_numpy(domains))
    (slope,) = torch.autograd.grad(mean, x, retain_graph=True)
    mean.backward()
    ce, correct, d_features, gradients = by_hand(loss, features.astype(np.float64), domains)
    assert mean.item() == pytest.approx(ce.mean(), rel=1e-5)
    np.testing.assert_allclose(sums, [5, ce.sum(), correct], rtol=1e-5)
    factor = 1.5 * np.tanh(5 * 10 / 40)
    np.testing.assert_allclose(slope, -factor * d_features, rtol=1e-4, atol=1e-7)
    assert not slope[torch.from_numpy(domains < 0)].any()
    for parameter, want in zip(loss.parameters(), gradients, strict=True):
        np.testing.assert_allclose(parameter.grad, want, rtol=1e-4, atol=1e-7)


def test_a_batch_without_a_domain_has_no_loss():
    loss = adversary()
    x = torch.ones(2, 6, requires_grad=True)
    mean, sums = loss(x, torch.tensor([-1, -1]))
    mean.backward()
    assert mean.item() == 0
    assert sums.tolist() == [0, 0, 0]
    assert not x.grad.any()


@pytest.mark.parametrize("progress", [0.0, 0.01, 0.1, 0.5, 1.0])
def test_the_schedule_rises_from_0_to_1(progress):
    assert reversal_strength(progress) == pytest.approx(np.tanh(5 * progress), abs=1e-12)


def test_masks_of_the_discriminator_depend_on_the_step_alone_and_spare_torchs_generator(rng):
    x = torch.from_numpy(rng.standard_normal((200, 6)).astype(np.float32))
    y = torch.from_numpy(rng.integers(0, 3, 200))
    before = torch.get_rng_state()
    losses = []
    for step in (7, 8, 7):
        loss = adversary(dropout=0.5)
        loss.begin(step)
        losses.append(loss(x, y)[0].item())
    assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] == losses[2] != losses[1]
    kept = adversary(dropout=0.0)(x, y)[0].item()
    assert adversary(dropout=0.5).eval()(x, y)[0].item() == kept
    assert adversary(dropout=0.0, seed=4)(x, y)[0].item() != kept


def test_without_beta_the_student_is_that_of_a_baseline(spoken, config, dann, tmp_path):
    train_baseline(config(batch_clips=5), spoken, tmp_path / "baseline")
    train_baseline(dann(beta=0.0), spoken, tmp_path / "dann")
    one, two = metrics(tmp_path / "baseline"), metrics(tmp_path / "dann")
    for split in ("train", "validation"):
        for a, b in zip(one, two, strict=True):
            assert a[split] == {name: b[split][name] for name in TRAINED}
    nets = [load_checkpoint(tmp_path / n / "best.pt").state_dict for n in ("baseline", "dann")]
    assert nets[0].keys() == nets[1].keys()
    assert all(torch.equal(nets[0][name], tensor) for name, tensor in nets[1].items())


def test_a_run_reports_the_discriminator_and_its_checkpoint_is_the_student(spoken, dann, tmp_path):
    result = train_baseline(dann(dropout=0.2), spoken, tmp_path / "run")
    assert (result["mode"], result["against"], result["needs_labels"]) == (
        "dann",
        "speaker",
        ["speaker"],
    )
    entries = metrics(tmp_path / "run")
    for entry in entries:
        for split in ("train", "validation"):
            found = entry[split]
            assert found["loss"] == found["ce"]
            assert found["at"] == 0
            assert found["adversarial"] > 0
            assert 0 <= found["discriminator_accuracy"] <= 1
    least = min(entries, key=lambda entry: entry["validation"]["ce"])
    assert result["best_epoch"] == least["epoch"]
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    scores = evaluate_checkpoint(best, spoken, "test", device=CPU)
    assert scores.segments.accuracy == result["accuracy"]["test"]


def test_the_first_step_is_that_of_a_baseline_and_later_ones_are_not(
    spoken, config, dann, tmp_path
):
    last = {}
    for steps in (1, 3):
        for mode, given in (
            ("baseline", config(batch_clips=5, max_steps=steps)),
            ("dann", dann(max_steps=steps, beta=5.0)),
        ):
            folder = tmp_path / f"{mode}-{steps}"
            train_baseline(given, spoken, folder)
            last[mode, steps] = metrics(folder)[-1]["train"]["ce"]
    assert last["dann", 1] == last["baseline", 1]
    assert last["dann", 3] != last["baseline", 3]


@pytest.mark.parametrize("when", [1, 2, 3])
def test_a_run_stopped_at_any_epoch_ends_in_the_same_numbers(when, spoken, dann, tmp_path):
    given = dann(epochs=3, dropout=0.5)
    train_baseline(given, spoken, tmp_path / "whole", keep_resume=True)
    steps = 0

    def stop(epoch, _done, _steps, known):
        nonlocal steps
        steps += epoch == when and "clips_per_second" in known
        if steps == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_baseline(given, spoken, tmp_path / "cut", on_progress=stop, save_every_s=0)
    train_baseline(given, spoken, tmp_path / "cut", resume=True, keep_resume=True)
    assert numbers_of(tmp_path / "cut") == numbers_of(tmp_path / "whole")
    one, two = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut")
    )
    for part in ("model", "domain_loss"):
        assert all(torch.equal(one[part][name], two[part][name]) for name in one[part])
    averages = [state["optimiser"]["state"] for state in (one, two)]
    assert len(averages[0]) == len(one["model"]) + len(one["domain_loss"])
    for number, state in averages[0].items():
        assert torch.equal(state["exp_avg"], averages[1][number]["exp_avg"])


def test_a_run_goes_on_with_more_patience_but_not_with_more_epochs(spoken, dann, tmp_path):
    train_baseline(dann(), spoken, tmp_path / "run", keep_resume=True)
    with pytest.raises(InputError, match=r"started with epochs 2, now 4.*\(`patience` may be"):
        train_baseline(dann(epochs=4), spoken, tmp_path / "run", resume=True)
    train_baseline(dann(patience=9), spoken, tmp_path / "run", resume=True)


def test_a_run_without_its_discriminator_cannot_go_on(spoken, dann, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train_baseline(dann(), spoken, tmp_path / "run", on_progress=stop_at(2))
    last = as_version_1(tmp_path / "run") / "last.pt"
    content = torch.load(last, weights_only=True)
    del content["domain_loss"]
    torch.save(content, last)
    with pytest.raises(StoredDataError, match=r"last\.pt: .*domain_loss"):
        train_baseline(dann(), spoken, tmp_path / "run", resume=True)


def prepared(store, given, *, ranks=1):
    context, said = DistributedContext(), []
    context.size = ranks
    rows = {split: store.rows(split, given.task) for split in SPLITS}
    net = build_student(given, 3, None)
    return prepare_domains(store, given, rows, net, CPU, context, said.append), rows, said


def test_domains_are_the_classes_of_the_training_split(spoken, dann):
    found, rows, said = prepared(spoken, dann())
    stored = spoken.labels("speaker")
    lacking = int((stored[rows["train"]] < 0).sum())
    assert lacking
    assert said == [
        f"{lacking} of {len(rows['train'])} training segments have no speaker, and only the loss "
        "of label is computed for them"
    ]
    np.testing.assert_array_equal(found.labels, stored)
    assert found.loss.output.out_features == 3

    # One speaker is kept out of training, and then is none of the domains.
    rows["train"] = rows["train"][stored[rows["train"]] != 1]
    given = dann()
    net = build_student(given, 3, None)
    found = prepare_domains(spoken, given, rows, net, CPU, DistributedContext(), said.append)
    np.testing.assert_array_equal(found.labels, np.array([0, -1, 1, -1])[stored])
    assert found.loss.output.out_features == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"against": "age"}, "no label 'age' for `against`; it has label, speaker, room"),
        ({"against": "room"}, r"`against=room`: the \d+ training segments .* only hall"),
    ],
)
def test_a_label_that_cannot_be_told_is_refused(changes, said, spoken, dann, tmp_path):
    with pytest.raises(InputError, match=said):
        train_baseline(dann(**changes), spoken, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_several_processes_are_refused(spoken, dann):
    with pytest.raises(InputError, match="`mode=dann` trains in one process, and this job has 2"):
        prepared(spoken, dann(), ranks=2)


@pytest.mark.parametrize(
    ("mode", "changes", "said"),
    [
        ("dann", {}, "`mode=dann` needs the label.*`against=LABEL`"),
        ("dann", {"against": ""}, "`mode=dann` needs the label"),
        ("dann", {"against": "label"}, "`against=label` is the label to learn"),
        ("dann", {"against": "speaker", "beta": -1.0}, "`beta` -1.0: wanted at least 0"),
        ("baseline", {"against": "speaker"}, "`mode=baseline` needs no second label"),
        ("online", {"against": "speaker"}, "`mode=online` needs no second label"),
    ],
)
def test_settings_that_do_not_fit_are_refused(mode, changes, said):
    with pytest.raises(InputError, match=said):
        TrainConfig(mode=mode, task="label", arch=VGG11, **changes)
