"""From the predictions of all trainings to what can be said of each arm."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.studies.compare.database import Database
from antigram.studies.compare.design import ARMS, Design
from antigram.studies.compare.jobs import Job
from antigram.studies.statistics import Comparison, Interval, compare_arms, interval_over_groups

__all__ = ["AT_CHANCE", "ArmResult", "arm_results"]

AT_CHANCE = "cannot be judged, as the baseline is not above chance"

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm of a comparison.

    Attributes:
        arm: its name; that of one layer alone ends in it (``at 5``).
        about: what it is.
        layers: layer -> how often it was picked; empty without layers.
        runs: trainings that count for it.
        accuracy: mean over groups.
        comparison: with the baseline; None for the baseline itself.
        primary: whether it belongs to the family that Holm's correction is over.
        needs_labels: whether it needs the orthogonal label of the student's recordings.
        seconds: time that all its trainings took.
    """

    arm: str
    about: str
    layers: Mapping[int, int]
    runs: int
    accuracy: Interval
    comparison: Comparison | None
    primary: bool
    needs_labels: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Return an entry of ``arms``."""
        difference = None
        if (found := self.comparison) is not None:
            difference = {
                **_interval(found.difference),
                "p": found.p,
                "p_holm": found.p_holm if self.primary else None,
                "verdict": found.verdict,
                "groups": found.groups,
                "note": found.note,
            }
        return {
            "arm": self.arm,
            "about": self.about,
            "layer": "+".join(map(str, sorted(self.layers))) or None,
            "layers": {str(layer): count for layer, count in sorted(self.layers.items())},
            "runs": self.runs,
            "accuracy": _interval(self.accuracy),
            "difference": difference,
            "primary": self.primary,
            "needs_labels": self.needs_labels,
            "seconds": round(self.seconds, 1),
        }


def _interval(interval: Interval) -> dict[str, float | None]:
    ends = {"low": interval.low, "high": interval.high}
    return {"mean": interval.mean, **{k: None if np.isnan(v) else v for k, v in ends.items()}}


def arm_results(
    jobs: Sequence[Job],
    database: Database,
    design: Design,
    groups: NDArray[np.int32],
    chance: float,
) -> list[ArmResult]:
    """Pick layers by validation, and compare every arm with the baseline.

    A layer is picked within each fold and seed by the accuracy on validation, and among equals by
    the probability of the true classes; test segments have no say, and folds are not pooled.

    Args:
        jobs: all of the comparison; those that are trainings must be done.
        database: with their predictions.
        design: settings.
        groups: ``(segment,)`` of the base store: the class of ``against``, -1 where it is unknown.
        chance: accuracy of a guess. If the baseline's interval reaches down to it, every arm is
            ``undecided``: networks that have learned nothing are equal to each other.

    Returns:
        The baseline, then the arms, then each layer of layered arms for itself, as exploration.
    """
    trainings = [job for job in jobs if job.kind == "training"]
    by_place: dict[tuple[str, int, int], list[Job]] = defaultdict(list)
    for job in trainings:
        by_place[job.arm, job.fold, job.seed].append(job)
    chosen: dict[str, dict[tuple[int, int], Job]] = defaultdict(dict)
    for (name, fold, seed), layers in by_place.items():
        chosen[name][fold, seed] = max(layers, key=lambda job: _validation(job, database))
        if len(design.at_layers) > 1 and ARMS[name].layered:
            for job in layers:
                chosen[f"{name} {job.layer}"][fold, seed] = job
    scores = {}
    for name, of_arm in chosen.items():
        scores[name], folds = _by_group(of_arm, database, design.seeds, groups)
    family = list(design.arms)
    arms = {name: values for name, values in scores.items() if name != "baseline"}
    compared = compare_arms(scores["baseline"], arms, folds, family=family)
    baseline = interval_over_groups(scores["baseline"], folds, 0)
    if not (baseline.mean if np.isnan(baseline.low) else baseline.low) > chance:
        compared = {
            name: replace(found, verdict="undecided", note=AT_CHANCE)
            for name, found in compared.items()
        }
    found = []
    for name in ("baseline", *design.arms, *(n for n in chosen if " " in n)):
        arm = ARMS[name.partition(" ")[0]]
        own = by_place if " " not in name else {}
        jobs_of_arm = [j for (a, *_), each in own.items() if a == name for j in each]
        jobs_of_arm = jobs_of_arm or list(chosen[name].values())
        picked = Counter(j.layer for j in chosen[name].values() if j.layer is not None)
        found.append(
            ArmResult(
                arm=name,
                about=arm.about,
                layers=picked,
                runs=len(jobs_of_arm),
                accuracy=interval_over_groups(scores[name], folds, 0),
                comparison=compared.get(name),
                primary=name in family,
                needs_labels=arm.needs_labels,
                seconds=sum(database.result(job.key)[1] for job in jobs_of_arm),
            )
        )
    return found


def _validation(job: Job, database: Database) -> tuple[float, float]:
    """Accuracy on validation, and the mean log-probability of the true classes."""
    found = database.predictions(job.key, "validation")
    accuracy = float(np.mean(found["predicted"] == found["true"]))
    return accuracy, float(np.log(found["probability"].clip(1e-12)).mean())


def _by_group(
    jobs: Mapping[tuple[int, int], Job],
    database: Database,
    seeds: int,
    groups: NDArray[np.int32],
) -> tuple[Floats, NDArray[np.int64]]:
    """Accuracy of each test group with each seed ``(group, seed)``, and the group's folds.

    A group that is tested in several folds counts once, with the mean of its folds.
    """
    correct: dict[int, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    tested: dict[int, set[int]] = defaultdict(set)
    for (fold, seed), job in jobs.items():
        found = database.predictions(job.key, "test")
        of_row = groups[found["row"]]
        right = found["predicted"] == found["true"]
        for group in np.unique(of_row[of_row >= 0]).tolist():
            correct[group][seed].append(float(right[of_row == group].mean()))
            tested[group].add(fold)
    names = sorted(correct)
    values = np.array([[np.mean(correct[g][seed]) for seed in range(seeds)] for g in names])
    ids = {folds: n for n, folds in enumerate(sorted({tuple(sorted(tested[g])) for g in names}))}
    return values, np.array([ids[tuple(sorted(tested[g]))] for g in names])
