"""Distances between covariances against numpy's own, and trainings with them."""

import numpy as np
import pytest
import torch

from antigram.model.loss.domains import Coral, coral_distances
from antigram.model.training.checkpoint import load_checkpoint
from antigram.model.training.config import TrainConfig
from antigram.pipeline.errors import InputError
from tests.support.nets import VGG11
from tests.support.runs import metrics, numbers_of, stop_at, train_baseline


@pytest.fixture
def coral(config):
    def make(**changes):
        given = {"against": "speaker", "batch_clips": 9, "lr": 1e-3, "dropout": 0.2, **changes}
        return config("coral", **given)

    return make


def formed(features, domains):
    """Return distance and number of segments of each domain, by the covariances themselves."""
    found = []
    for domain in np.unique(domains[domains >= 0]):
        own = features[domains == domain]
        others = features[(domains >= 0) & (domains != domain)]
        if min(len(own), len(others)) >= 2:
            apart = np.cov(own, rowvar=False) - np.cov(others, rowvar=False)
            found.append((np.sum(apart**2) / (4 * features.shape[1] ** 2), len(own)))
    return found


@pytest.mark.parametrize(
    "domains",
    [
        [0, 0, 1, 1, 1, 0, 1, 0],
        [4, 0, -1, 4, 0, 2, 0, 4],  # of domain 2 there is one
        [3, 3, 3, 3, 3, 3, 3, 1],  # one other
        [-1, -1, 2, 2, 2, 0, 0, -1],
        [5, 5, 5, 5, 5, 5, 5, 5],
        [0, 1, 2, 3, 4, 5, 6, 7],
        [-1] * 8,
    ],
    ids=str,
)
@pytest.mark.parametrize("features", [3, 40])
def test_distances_are_those_of_covariances_that_are_formed(domains, features, rng):
    x = (rng.standard_normal((8, features)) * rng.uniform(0.1, 3, features) + 5).astype(np.float32)
    distances, segments = coral_distances(torch.from_numpy(x), torch.tensor(domains))
    want = formed(x.astype(np.float64), np.array(domains))
    np.testing.assert_allclose(distances, [distance for distance, _ in want], rtol=1e-4)
    assert segments.tolist() == [count for _, count in want]


def test_the_loss_and_its_gradient_are_those_of_torchs_covariance(rng):
    x = torch.from_numpy(rng.standard_normal((7, 5)).astype(np.float32)).requires_grad_()
    domains = torch.tensor([0, 1, 0, -1, 1, 1, 0])
    loss, sums = Coral(20.0)(x, domains)
    (got,) = torch.autograd.grad(loss, x)
    one, two = (torch.cov(x[domains == n].double().T) for n in (0, 1))
    want = ((one - two) ** 2).sum() / (4 * 5**2)  # of two domains, each is the other's others
    (slope,) = torch.autograd.grad(20 * want, x)
    assert loss.item() == pytest.approx(20 * want.item(), rel=1e-5)
    torch.testing.assert_close(got, slope, rtol=1e-4, atol=1e-6)
    assert not got[3].any()
    np.testing.assert_allclose(sums, [2, 2 * want.item(), 6], rtol=1e-5)


def test_equal_covariances_are_no_distance_whatever_the_means(rng):
    x = torch.from_numpy(rng.standard_normal((4, 6)).astype(np.float32))
    distances, _ = coral_distances(torch.cat([x, x + 3]), torch.arange(8) // 4)
    assert distances.abs().max() < 1e-6


def test_a_batch_in_which_nothing_can_be_compared_has_no_loss():
    x = torch.ones(3, 4, requires_grad=True)
    loss, sums = Coral(1.0)(x, torch.tensor([0, 1, 2]))
    loss.backward()
    assert loss.item() == 0
    assert sums.tolist() == [0, 0, 0]
    assert not x.grad.any()


def test_without_beta_a_run_is_a_baseline_and_with_it_covariances_come_closer(
    spoken, config, coral, tmp_path
):
    runs = {}
    for name, given in (
        ("baseline", config(batch_clips=9, dropout=0.2, epochs=4)),
        ("off", coral(beta=0.0, epochs=4)),
        ("on", coral(beta=300.0, epochs=4)),
    ):
        result = train_baseline(given, spoken, tmp_path / name)
        runs[name] = metrics(tmp_path / name)
    assert result["needs_labels"] == ["speaker"]
    for a, b in zip(runs["baseline"], runs["off"], strict=True):
        assert a["train"] == {name: b["train"][name] for name in a["train"]}
    for entry in runs["on"]:
        assert entry["train"]["loss"] == entry["train"]["ce"]
        assert 2 <= entry["train"]["coral_segments"] <= 7
    assert runs["on"][-1]["train"]["coral"] < 0.5 * runs["off"][-1]["train"]["coral"]
    assert load_checkpoint(tmp_path / "on" / "best.pt").provenance["mode"] == "coral"


def test_a_stopped_run_ends_in_the_same_numbers_and_goes_on_with_more_epochs(
    spoken, coral, tmp_path
):
    given = coral(beta=50.0, epochs=3, patience=9)
    train_baseline(given, spoken, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_baseline(given, spoken, tmp_path / "cut", on_progress=stop_at(2), save_every_s=0)
    train_baseline(given, spoken, tmp_path / "cut", resume=True)
    assert numbers_of(tmp_path / "cut") == numbers_of(tmp_path / "whole")
    first = coral(beta=50.0, epochs=1, patience=9)
    train_baseline(first, spoken, tmp_path / "longer", keep_resume=True)
    train_baseline(given, spoken, tmp_path / "longer", resume=True)
    assert numbers_of(tmp_path / "longer") == numbers_of(tmp_path / "whole")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "`mode=coral` needs the label.*`against=LABEL`"),
        ({"against": "label"}, "`against=label` is the label to learn"),
        ({"against": "speaker", "beta": -0.1}, "`beta` -0.1: wanted at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        TrainConfig(mode="coral", task="label", arch=VGG11, **changes)
