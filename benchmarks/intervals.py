"""Check the intervals and tests of a comparison on simulated studies without an effect.

Run it with ``python -m benchmarks.intervals``. Each study has speakers divided over folds, networks
with several seeds, and no effect. Speakers, networks and single measurements each add noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from antigram.studies.statistics import (
    clustered_p,
    compare_arms,
    interval_over_groups,
    sign_flip_p,
)
from benchmarks.record import machine, save

__all__ = ["simulate"]

STUDIES = 2000
_DRAWS, _FLIPS = 1000, 2000  # fewer than in a real comparison, as there are many studies
_ARMS = 4


def simulate(
    rng: np.random.Generator,
    groups: int,
    folds: int,
    seeds: int,
    *,
    of_group: float = 0.03,
    of_network: float = 0.02,
    noise: float = 0.02,
    effect: float = 0.0,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return differences ``(group, seed)`` in accuracy, and the fold of each group.

    Args:
        rng: source of the noise.
        groups: number of speakers.
        folds: number of folds.
        seeds: number of networks in each fold.
        of_group: standard deviation of the noise that a speaker adds.
        of_network: standard deviation of the noise that a network adds.
        noise: standard deviation of the remaining noise.
        effect: true difference.
    """
    fold = np.arange(groups) % folds
    values = effect + rng.normal(0, of_group, (groups, 1))
    values = values + rng.normal(0, of_network, (folds, seeds))[fold]
    return values + rng.normal(0, noise, (groups, seeds)), fold


def _coverage(groups: int, folds: int, seeds: int) -> float:
    """Return the share of studies whose interval holds the true difference, zero."""
    rng, covered = np.random.default_rng(groups), 0
    for study in range(STUDIES):
        interval = interval_over_groups(*simulate(rng, groups, folds, seeds), study, _DRAWS)
        covered += interval.low <= 0 <= interval.high
    return covered / STUDIES


def _family_wise() -> float:
    """Return the share of studies in which an arm without an effect is better or worse."""
    rng, said = np.random.default_rng(1), 0
    for study in range(STUDIES):
        base, fold = simulate(rng, 30, 5, 3)
        arms = {f"arm {n}": base + simulate(rng, 30, 5, 3)[0] for n in range(_ARMS)}
        done = compare_arms(base, arms, fold, seed=study, draws=_DRAWS, flips=_FLIPS)
        said += any(each.verdict in ("better", "worse") for each in done.values())
    return said / STUDIES


def _false_alarms(groups: int, folds: int, seeds: int) -> dict[str, float]:
    """Return, for each test, the share of studies without an effect in which p < .05."""
    rng, flips, clustered = np.random.default_rng(2), 0, 0
    for study in range(STUDIES):
        values, fold = simulate(rng, groups, folds, seeds)
        flips += sign_flip_p(values.mean(1), study, _FLIPS) < 0.05
        clustered += clustered_p(values, fold) < 0.05
    return {"sign_flip": flips / STUDIES, "clustered": clustered / STUDIES}


def main() -> None:
    """Simulate the studies, print the shares, and save them."""
    content = {
        "studies": STUDIES,
        "coverage": {str(groups): _coverage(groups, 5, 3) for groups in (30, 10, 6)},
        "family_wise": _family_wise(),
        "false_alarms": {
            "5 folds, 3 seeds": _false_alarms(30, 5, 3),
            "1 fold, 3 seeds": _false_alarms(30, 1, 3),
        },
        "machine": machine(),
    }
    print(content)
    print(save("intervals", content))


if __name__ == "__main__":
    main()
