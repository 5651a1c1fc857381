"""Differences between arms of a study, with intervals and tests over groups such as speakers.

The unit is the *group*: segments of one speaker are alike, so that counting them as independent
makes any difference significant. Test groups that were judged by the same *network* are alike, too:
a training with another seed gives another difference, common to all groups of its fold. The primary
figure is the mean over groups of the difference in accuracy between an arm and the baseline, both
trained with the same seeds on the same folds. Interval and test take both kinds of likeness into
account.

References:
    Efron and Tibshirani (1993), An Introduction to the Bootstrap. Cameron, Gelbach and Miller
    (2011), Robust Inference With Multiway Clustering. Holm (1979). Nadeau and Bengio (2003),
    Inference for the Generalization Error. Schuirmann (1987), on equivalence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "EQUIVALENT",
    "FEW_GROUPS",
    "Comparison",
    "Interval",
    "bootstrap_interval",
    "clustered_p",
    "compare_arms",
    "holm",
    "interval_over_groups",
    "least_p",
    "mean_of_groups",
    "resampled_p",
    "resampled_t",
    "sign_flip_p",
    "t_interval",
    "two_way",
    "verdict",
]

Floats = NDArray[np.float64]

FEW_GROUPS = 20  # with fewer groups, the percentile bootstrap covers too little
EQUIVALENT = 0.005  # region of practical equivalence: half a point of accuracy, either way
_DRAWS = 10_000  # draws of the bootstrap
_FLIPS = 100_000  # draws of the sign-flip test, if not all flips can be computed
_EXACT = 20  # up to this number of groups, all sign flips are computed
_LEVEL = 0.95
_ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % confidence interval.

    Attributes:
        mean: mean over groups.
        low: lower end; NaN with fewer than two groups.
        high: upper end.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Difference between an arm and the baseline, with its tests.

    Attributes:
        difference: mean over groups of arm minus baseline, in [-1, 1].
        p: two-sided p value of the sign-flip test over groups.
        p_holm: the larger of ``p`` and `clustered_p`, after Holm's correction over the family.
        verdict: ``better``, ``worse``, ``equivalent`` or ``undecided``.
        groups: number of groups.
        note: why nothing could be decided, if there are too few groups; else empty.
    """

    difference: Interval
    p: float
    p_holm: float
    verdict: str
    groups: int
    note: str


def t_interval(values: Floats) -> Interval:
    """Return the mean of groups with Student's t interval.

    Args:
        values: ``(group,)`` one value for each group.
    """
    from scipy import stats

    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half)


def _weights(rows: int, groups: NDArray[np.integer] | None) -> tuple[NDArray[np.intp], Floats]:
    """Return the number of each row's group, and the weight of the row in the mean over groups."""
    if groups is None:
        return np.arange(rows), np.full(rows, 1 / rows)
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return group, 1 / (counts[group] * len(counts))


def mean_of_groups(values: Floats, groups: NDArray[np.integer] | None = None) -> Floats:
    """Return the mean of each group over its folds and seeds, ``(group,)``.

    Args:
        values: ``(row, seed)``; a row is a group in a fold.
        groups: ``(row,)``, the group of each row; default: each row is a group.
    """
    group, weights = _weights(len(values), groups)
    number = int(group.max()) + 1
    means: Floats = np.bincount(group, weights * values.mean(1)).astype(np.float64) * number
    return means


def bootstrap_interval(
    values: Floats,
    folds: NDArray[np.integer],
    seed: int,
    draws: int = _DRAWS,
    groups: NDArray[np.integer] | None = None,
) -> Interval:
    """Return the mean over groups with a bootstrap interval over groups, and seeds within folds.

    Each draw takes groups with replacement. It also takes seeds of each fold with replacement, the
    same seeds for all groups of the fold, because the same networks were tested on all of them. The
    interval is between percentiles of the means.

    Args:
        values: ``(row, seed)`` differences; a row is a group, or a group in one of its folds.
        folds: ``(row,)``, the fold in which each row was tested.
        seed: seed of the draws.
        draws: number of draws.
        groups: ``(row,)``, the group of each row, if a group was tested in several folds and has a
            row for each of them; default: each row is a group.
    """
    rng = np.random.default_rng(seed)
    rows, seeds = values.shape
    group, weight = _weights(rows, groups)
    number = int(group.max()) + 1
    _, fold = np.unique(folds, return_inverse=True)
    means = np.empty(draws)
    step = max(1, 2**22 // values.size)
    for begin in range(0, draws, step):
        n = min(step, draws - begin)
        picked = rng.integers(number, size=(n, number)) + number * np.arange(n)[:, None]
        often = np.bincount(picked.ravel(), minlength=n * number).reshape(n, number)
        # How often each seed of each fold is drawn, as weights that sum to one.
        counts = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=(n, fold.max() + 1))
        of_row = (counts[:, fold] * values).sum(2) / seeds
        means[begin : begin + n] = (often[:, group] * weight * of_row).sum(1)
    tail = (1 - _LEVEL) / 2 * 100
    low, high = np.percentile(means, [tail, 100 - tail])
    return Interval(float(mean_of_groups(values, groups).mean()), float(low), float(high))


def two_way(
    values: Floats, folds: NDArray[np.integer], groups: NDArray[np.integer] | None = None
) -> tuple[float, int]:
    """Return variance and degrees of freedom of the mean, clustered by group and by network.

    Args:
        values: ``(row, seed)`` differences; a row is a group, or a group in one of its folds.
        folds: ``(row,)``, the fold in which each row was tested.
        groups: ``(row,)``, the group of each row, if a group was tested in several folds and has a
            row for each of them; default: each row is a group.

    Returns:
        The variance, and its degrees of freedom: the smaller number of clusters minus one.
    """
    rows, seeds = values.shape
    group, weight = _weights(rows, groups)
    number = int(group.max()) + 1
    _, fold = np.unique(folds, return_inverse=True)
    networks = (int(fold.max()) + 1) * seeds
    least = min(number, networks)
    if least < 2:
        return math.nan, 0
    mean = float(mean_of_groups(values, groups).mean())
    rest = weight[:, None] * (values - mean) / seeds
    by_network = np.zeros((networks // seeds, seeds))
    np.add.at(by_network, fold, rest)
    by_group = np.bincount(group, rest.sum(1))
    of_groups = float(np.square(by_group).sum()) * number / (number - 1)
    of_networks = float(np.square(by_network).sum()) * networks / (networks - 1)
    both = of_groups + of_networks - float(np.square(rest).sum())
    return max(both, of_groups, of_networks), least - 1


def interval_over_groups(
    values: Floats,
    folds: NDArray[np.integer],
    seed: int,
    draws: int = _DRAWS,
    groups: NDArray[np.integer] | None = None,
) -> Interval:
    """Return Student's t interval, clustered by group and network, or the bootstrap interval.

    The wider of the two intervals is returned, as each is too narrow in some cases. With fewer than
    20 groups, it is always the t interval.

    Args:
        values: ``(row, seed)`` differences; a row is a group, or a group in one of its folds.
        folds: ``(row,)``, the fold in which each row was tested.
        seed: seed of the bootstrap's draws.
        draws: number of the bootstrap's draws.
        groups: ``(row,)``, the group of each row; default: each row is a group.
    """
    from scipy import stats

    means = mean_of_groups(values, groups)
    mean = float(means.mean())
    variance, freedom = two_way(values, folds, groups)
    if not freedom:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, freedom)) * math.sqrt(variance)
    clustered = Interval(mean, mean - half, mean + half)
    if len(means) < FEW_GROUPS:
        return clustered
    drawn = bootstrap_interval(values, folds, seed, draws, groups)
    return max((clustered, drawn), key=lambda interval: interval.high - interval.low)


def clustered_p(
    values: Floats, folds: NDArray[np.integer], groups: NDArray[np.integer] | None = None
) -> float:
    """Return the two-sided p value of `two_way`'s t statistic; 1 if it cannot be computed.

    Args:
        values: ``(row, seed)`` differences; a row is a group, or a group in one of its folds.
        folds: ``(row,)``, the fold in which each row was tested.
        groups: ``(row,)``, the group of each row; default: each row is a group.
    """
    from scipy import stats

    variance, freedom = two_way(values, folds, groups)
    if not freedom:
        return 1.0
    mean = float(mean_of_groups(values, groups).mean())
    if not variance:
        return 0.0 if mean else 1.0
    return float(2 * stats.t.sf(abs(mean) / math.sqrt(variance), freedom))


def sign_flip_p(values: Floats, seed: int, flips: int = _FLIPS) -> float:
    """Return the two-sided p value of the hypothesis that differences are symmetric about zero.

    With up to 20 groups, all 2^n sign flips are computed. With more, ``flips`` of them are drawn,
    and p is (b + 1) / (B + 1), which is never zero and keeps the test exact.

    Args:
        values: ``(group,)`` differences.
        seed: seed of the draws.
        flips: number of sign flips that are drawn.
    """
    n = len(values)
    seen = abs(values.sum())
    slack = 1e-12 * max(
        1.0, float(np.abs(values).sum())
    )  # flips that tie with the observed sum count
    if n <= _EXACT:
        sums = np.zeros(1)
        for value in values:
            sums = np.concatenate([sums + value, sums - value])
        return float(np.mean(np.abs(sums) >= seen - slack))
    rng = np.random.default_rng(seed)
    extreme, step = 0, max(1, 2**22 // n)
    for begin in range(0, flips, step):
        signs = rng.integers(0, 2, size=(min(step, flips - begin), n), dtype=np.int8) * 2 - 1
        extreme += int(np.count_nonzero(np.abs(signs @ values) >= seen - slack))
    return (extreme + 1) / (flips + 1)


def least_p(groups: int) -> float:
    """Return the smallest p that the sign-flip test can give with this number of groups."""
    return 2.0 ** (1 - groups) if groups <= _EXACT else 1 / (_FLIPS + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values after Holm's step-down correction, each comparable with .05."""
    order = np.argsort(p_values, kind="stable")
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected


def verdict(difference: Interval, p_holm: float) -> str:
    """Return ``equivalent`` (within half a point), ``better``, ``worse`` or ``undecided``."""
    if difference.low >= -EQUIVALENT and difference.high <= EQUIVALENT:
        return "equivalent"
    if p_holm < _ALPHA:
        return "better" if difference.mean > 0 else "worse"
    return "undecided"


def resampled_t(values: Floats, test_share: float) -> Interval:
    """Return the mean over random resplits with an interval by Nadeau and Bengio's variance.

    Resplits share most of their training data, so that the plain t interval is too narrow.

    Args:
        values: ``(resplit,)`` differences.
        test_share: test segments over training segments.
    """
    from scipy import stats

    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    variance = float(values.var(ddof=1)) * (1 / n + test_share)
    half = float(stats.t.ppf(0.5 + _LEVEL / 2, n - 1)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)


def resampled_p(values: Floats, test_share: float) -> float:
    """Return the two-sided p value that goes with `resampled_t`; 1 for a single resplit."""
    from scipy import stats

    interval, n = resampled_t(values, test_share), len(values)
    half = (interval.high - interval.low) / 2
    if not half > 0:
        return 0.0 if half == 0 and interval.mean else 1.0
    t = abs(interval.mean) / half * float(stats.t.ppf(0.5 + _LEVEL / 2, n - 1))
    return float(2 * stats.t.sf(t, n - 1))


def compare_arms(
    baseline: Floats,
    arms: Mapping[str, Floats],
    folds: NDArray[np.integer],
    *,
    groups: NDArray[np.integer] | None = None,
    family: Sequence[str] | None = None,
    seed: int = 0,
    draws: int = _DRAWS,
    flips: int = _FLIPS,
) -> dict[str, Comparison]:
    """Compare each arm with the baseline, paired by group.

    Args:
        baseline: ``(row, seed)`` accuracy of each test group with each seed; a group that was
            tested in several folds has a row for each of them.
        arms: name of an arm -> its accuracies, with rows and seeds in the same order.
        folds: ``(row,)``, the fold in which each row was tested.
        groups: ``(row,)``, the group of each row; default: each row is a group.
        family: arms included in Holm's correction; None for all. An arm outside the family is
            exploratory: it gets no corrected p, and can only be ``equivalent`` or ``undecided``.
        seed: seed of bootstrap and sign flips.
        draws: number of bootstrap resamples.
        flips: number of random sign flips, used when there are too many groups to list all.

    Returns:
        A comparison for each arm, by name.
    """
    names = list(arms) if family is None else [name for name in arms if name in family]
    differences = {name: values - baseline for name, values in arms.items()}
    means = {name: mean_of_groups(values, groups) for name, values in differences.items()}
    p = {name: sign_flip_p(each, seed, flips) for name, each in means.items()}
    # Sign flips ignore the noise of training that groups share; the clustered test includes it.
    strict = [max(p[name], clustered_p(differences[name], folds, groups)) for name in names]
    corrected = dict(zip(names, holm(strict), strict=True))
    done = {}
    for name, values in differences.items():
        interval = interval_over_groups(values, folds, seed, draws, groups)
        p_holm = corrected.get(name, math.nan)
        decided, number = verdict(interval, p_holm), len(means[name])
        note = ""
        least = min(1.0, least_p(number) * max(1, len(names)))
        if decided == "undecided" and math.isnan(interval.low):
            note = "cannot be decided with one network or one group: repeat it with more seeds"
        elif decided == "undecided" and least >= _ALPHA:
            note = (
                f"cannot be decided with {number} groups: p cannot come below {least:.2g} in a "
                f"family of {max(1, len(names))}"
            )
        done[name] = Comparison(interval, p[name], p_holm, decided, number, note)
    return done
