"""Compute the results of each arm from the predictions of all trainings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from antigram.model.choices import Layer, layer_order
from antigram.studies.compare.costs import Cost, cost_of
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import BASELINE, Claim, Study
from antigram.studies.compare.jobs import Cell, Plan
from antigram.studies.statistics import (
    EQUIVALENT,
    Comparison,
    Interval,
    clustered_p,
    compare_arms,
    holm,
    interval_over_groups,
    mean_of_groups,
    resampled_p,
    resampled_t,
    sign_flip_p,
)

__all__ = [
    "AT_CHANCE",
    "ArmResult",
    "SettingResult",
    "claim_results",
    "setting_results",
    "validation_of",
]

AT_CHANCE = "cannot be judged, as the baseline is not above chance"

Floats = NDArray[np.float64]
Chosen = dict[tuple[int, int], Cell]  # (fold, seed) -> the training that counts
_ALPHA = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmResult:
    """One arm of a comparison.

    Attributes:
        arm: name of the arm; with a single layer or weight, the name ends in it (``at 5``).
        setting: name of the setting; may be empty.
        about: short description.
        layers: layer -> how often it was selected; empty without layers.
        runs: number of trainings that count for the arm.
        accuracy: mean accuracy over groups.
        comparison: comparison with the baseline; None for the baseline itself.
        resampled: difference from the baseline and p by Nadeau and Bengio's corrected t test; None
            where the test is not defined.
        probe: accuracy of the probe over networks; None if no probe was run.
        train: mean accuracy on the training split; None if unknown.
        primary: whether the arm is included in Holm's correction.
        needs_labels: whether the arm needs the orthogonal label of the student's recordings.
        cost: time, memory and disk space of the arm's trainings.
    """

    arm: str
    setting: str
    about: str
    layers: Mapping[Layer, int]
    runs: int
    accuracy: Interval
    comparison: Comparison | None
    resampled: tuple[Interval, float] | None
    probe: Interval | None
    train: float | None
    primary: bool
    needs_labels: bool
    cost: Cost

    def to_json(self) -> dict[str, Any]:
        """Return an entry of ``arms``."""
        difference: dict[str, Any] | None = None
        if (found := self.comparison) is not None:
            difference = {
                **_interval(found.difference),
                "p": found.p,
                "p_holm": found.p_holm if self.primary else None,
                "verdict": found.verdict,
                "groups": found.groups,
                "note": found.note,
                "nadeau_bengio": None,
            }
            if self.resampled is not None:
                interval, p = self.resampled
                difference["nadeau_bengio"] = {**_interval(interval), "p": p}
        return {
            "arm": self.arm,
            "setting": self.setting,
            "about": self.about,
            "layer": "+".join(map(str, sorted(self.layers, key=layer_order))) or None,
            "layers": {
                str(layer): count
                for layer, count in sorted(
                    self.layers.items(), key=lambda pair: layer_order(pair[0])
                )
            },
            "runs": self.runs,
            "accuracy": _interval(self.accuracy, 0.0),
            "difference": difference,
            "train_accuracy": self.train,
            "probe": None if self.probe is None else _interval(self.probe, 0.0),
            "primary": self.primary,
            "needs_labels": self.needs_labels,
            **self.cost.to_json(),
        }


def _interval(interval: Interval, least: float = -1.0) -> dict[str, float | None]:
    """Return an interval's fields; its ends are cut off at what a difference or accuracy can be."""
    ends = {"low": max(interval.low, least), "high": min(interval.high, 1.0)}
    known = {"low": interval.low, "high": interval.high}
    return {
        "mean": interval.mean,
        **{k: None if np.isnan(known[k]) else v for k, v in ends.items()},
    }


@dataclass(frozen=True, slots=True)
class SettingResult:
    """Results of one setting.

    Attributes:
        arms: the baseline, then the other arms, then their variants, which are exploratory.
        scores: arm -> ``(row, seed)`` accuracy; a row is a group in one of its folds.
        folds: ``(row,)``, the fold of each row.
        groups: ``(row,)``, the group of each row.
        probes: arm -> ``(fold, seed)`` accuracy of the probe; empty without probes.
        chosen: arm -> (fold, seed) -> the training that was selected by validation.
    """

    arms: list[ArmResult]
    scores: Mapping[str, Floats]
    folds: NDArray[np.int64]
    groups: NDArray[np.int64]
    probes: Mapping[str, Floats]
    chosen: Mapping[str, Chosen]


def setting_results(
    study: Study,
    name: str,
    plan: Plan,
    database: Database,
    groups: NDArray[np.int32],
    chance: float,
) -> SettingResult:
    """Select layers by validation, and compare every arm with the baseline.

    A layer (or weight, or trial) is selected within each fold and seed by the accuracy on
    validation; ties are decided by the probability of the true classes. Test segments are not used,
    and folds are not pooled.

    Args:
        study: the study, with its settings.
        name: name of the setting.
        plan: all jobs and cells of the study; the trainings must be done.
        database: database with the predictions of the trainings.
        groups: ``(segment,)`` class of ``against`` in the base store, -1 if unknown.
        chance: accuracy of a guess. If the baseline's interval reaches down to it, every arm is
            ``undecided``: networks that have learned nothing are equal to each other.
    """
    arms = study.arms_of(study.settings[name])
    own = [cell for cell in plan.cells if cell.setting == name]
    chosen = _choose(own, database)
    scores: dict[str, Floats] = {}
    for arm, of_arm in chosen.items():
        scores[arm], folds, rows = _by_group(of_arm, database, study.seeds, groups)
    family = study.in_family(arms)
    others = {arm: values for arm, values in scores.items() if arm != BASELINE}
    compared = compare_arms(scores[BASELINE], others, folds, groups=rows, family=family)
    baseline = interval_over_groups(scores[BASELINE], folds, 0, groups=rows)
    if not (baseline.mean if np.isnan(baseline.low) else baseline.low) > chance:
        compared = {
            arm: replace(one, verdict="undecided", note=AT_CHANCE) for arm, one in compared.items()
        }
    probes = {arm: _probes(of_arm, database) for arm, of_arm in chosen.items()}
    probes = {arm: values for arm, values in probes.items() if values.size}
    results = []
    for arm, of_arm in chosen.items():
        declared = arms[arm.partition(" ")[0]]
        trained = {c.key for c in own if c.arm == arm} or {c.key for c in of_arm.values()}
        selected = Counter(c.variant.layer for c in of_arm.values() if c.variant.layer is not None)
        probe = None
        if arm in probes:
            probe = interval_over_groups(probes[arm], np.arange(len(probes[arm])), 0)
        results.append(
            ArmResult(
                arm=arm,
                setting=name,
                about=declared.about,
                layers=selected,
                runs=len(trained),
                accuracy=interval_over_groups(scores[arm], folds, 0, groups=rows),
                comparison=compared.get(arm),
                resampled=None
                if arm == BASELINE
                else _resampled(of_arm, chosen[BASELINE], database),
                probe=probe,
                train=_mean(database, [c.key for c in of_arm.values()], "train"),
                primary=arm in family,
                needs_labels=declared.needs_labels,
                cost=cost_of(trained, plan.jobs, database),
            )
        )
    return SettingResult(results, scores, folds, rows, probes, chosen)


def _choose(cells: Sequence[Cell], database: Database) -> dict[str, Chosen]:
    """Return the trainings that count for each arm, and for each variant if there are several."""
    by_place: dict[tuple[str, int, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        by_place[cell.arm, cell.fold, cell.seed].append(cell)
    chosen: dict[str, Chosen] = defaultdict(dict)
    single: dict[str, Chosen] = defaultdict(dict)
    for (arm, fold, seed), variants in by_place.items():
        chosen[arm][fold, seed] = max(variants, key=lambda cell: validation_of(cell, database))
        for cell in variants if len(variants) > 1 and not variants[-1].variant.trial else ():
            single[f"{arm} {cell.variant}"][fold, seed] = cell
    return {**chosen, **single}


def validation_of(cell: Cell, database: Database) -> tuple[float, float]:
    """Return the accuracy on validation, and the mean log-probability of the true classes."""
    kept = database.predictions(cell.key, "validation")
    accuracy = float(np.mean(kept["predicted"] == kept["true"]))
    return accuracy, float(np.log(kept["probability"].clip(1e-12)).mean())


def _mean(database: Database, keys: Sequence[str], split: str) -> float | None:
    values = [database.result(key)[0].get("accuracy", {}).get(split) for key in keys]
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _by_group(
    cells: Chosen, database: Database, seeds: int, groups: NDArray[np.int32]
) -> tuple[Floats, NDArray[np.int64], NDArray[np.int64]]:
    """Return the accuracy of each test group in each of its folds with each seed.

    Returns:
        Accuracies ``(row, seed)``, and the fold and the group of each row. A group that is tested
        in several folds has a row for each.
    """
    correct: dict[tuple[int, int], dict[int, float]] = defaultdict(dict)
    for (fold, seed), cell in cells.items():
        kept = database.predictions(cell.key, "test")
        of_row = groups[kept["row"]]
        right = kept["predicted"] == kept["true"]
        for group in np.unique(of_row[of_row >= 0]).tolist():
            correct[group, fold][seed] = float(right[of_row == group].mean())
    rows = sorted(correct)
    values = np.array([[correct[row][seed] for seed in range(seeds)] for row in rows])
    return values, np.array([fold for _, fold in rows]), np.array([group for group, _ in rows])


def _resampled(
    cells: Chosen, baseline: Chosen, database: Database
) -> tuple[Interval, float] | None:
    """Compare two arms by Nadeau and Bengio's test over the differences of folds and seeds.

    The test is for several divisions of the same data into training and test segments: with a
    single fold, or if the number of training segments is not known, the result is None.
    """
    if len({fold for fold, _ in cells}) < 2:
        return None
    differences, tested, trained = [], 0, 0
    for at, cell in sorted(cells.items()):
        own, other = (database.predictions(one.key, "test") for one in (cell, baseline[at]))
        right = [float(np.mean(one["predicted"] == one["true"])) for one in (own, other)]
        differences.append(right[0] - right[1])
        scores = database.result(cell.key)[0].get("scores", {})
        if not (segments := scores.get("train", {}).get("segments")):
            return None
        tested, trained = tested + len(own["row"]), trained + segments
    values = np.array(differences)
    return resampled_t(values, tested / trained), resampled_p(values, tested / trained)


def _probes(cells: Chosen, database: Database) -> Floats:
    """Return ``(fold, seed)`` accuracies of the linear probes; empty without probes."""
    values: dict[tuple[int, int], float] = {}
    for place, cell in cells.items():
        if cell.probe:
            (layer,) = database.result(cell.probe)[0]["layers"].values()
            values[place] = float(layer["linear"])
    if not values:
        return np.zeros((0, 0))
    folds, seeds = (sorted({place[axis] for place in values}) for axis in (0, 1))
    return np.array([[values[fold, seed] for seed in seeds] for fold in folds])


def claim_results(study: Study, results: Mapping[str, SettingResult]) -> list[dict[str, Any]]:
    """Test the claims that the study declared; Holm's correction is over all of them.

    A claim about several arms is an intersection-union test: it holds if the arm is better than
    each of them, so its p is the largest of the single p values. A claim about a probe (the label
    is *less* readable) is made only if the accuracies are equivalent.

    Returns:
        For each claim ``name``, ``text``, ``differences`` (arm -> mean, low, high, p), ``p``,
        ``p_holm``, ``holds`` and ``note``.
    """
    found: list[dict[str, Any]] = []
    for claim in study.claims:
        result = results[claim.setting]
        table = result.probes if claim.probe else result.scores
        differences, worst = {}, 0.0
        for other in claim.over:
            if claim.arm not in table or other not in table:
                continue
            sign = -1 if claim.probe else 1
            values = sign * (table[claim.arm] - table[other])
            folds = np.arange(len(values)) if claim.probe else result.folds
            groups = None if claim.probe else result.groups
            p = clustered_p(values, folds, groups)
            if not claim.probe:
                p = max(p, sign_flip_p(mean_of_groups(values, groups), 0))
            p = p if values.mean() > 0 else 1.0
            worst = max(worst, p)
            interval = interval_over_groups(values, folds, 0, groups=groups)
            differences[other] = {**_interval(interval), "p": p}
        missing = [other for other in claim.over if other not in differences]
        found.append(
            {
                "name": claim.name,
                "setting": claim.setting,
                "text": claim.text,
                "arm": claim.arm,
                "differences": differences,
                "p": 1.0 if missing else worst,
                "note": _note(claim, result, missing),
            }
        )
    for one, p in zip(found, holm([one["p"] for one in found]), strict=True):
        one |= {"p_holm": p, "holds": p < _ALPHA and not one["note"]}
    return found


def _note(claim: Claim, result: SettingResult, missing: Sequence[str]) -> str:
    """Return why a claim cannot be made, whatever its p is; an empty text if it can."""
    if missing:
        return f"it was not tested, as there is no result of {', '.join(missing)}"
    if any(arm.comparison and arm.comparison.note == AT_CHANCE for arm in result.arms):
        return AT_CHANCE
    if claim.probe:
        for other in claim.over:
            values = result.scores[claim.arm] - result.scores[other]
            interval = interval_over_groups(values, result.folds, 0, groups=result.groups)
            if not (interval.low >= -EQUIVALENT and interval.high <= EQUIVALENT):
                return f"not claimed, as the accuracy is not equivalent to that of {other}"
    return ""
