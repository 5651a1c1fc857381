"""Compare the scores of a network with chance and with the most frequent class.

This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from antigram.model.training.chance import above_chance

__all__ = ["CONTROL", "accuracies_text", "score", "score_text", "student_note", "teacher_note"]

# Before the accuracies of a training on shuffled labels.
CONTROL = "control, labels of training and validation shuffled: "
_LEVEL = 0.05  # level of significance
_JUDGED = ("validation", "test")  # splits that decide; training segments may be memorised


class Counted(Protocol):
    """Counts of predictions, for segments or recordings: `model.training.evaluate.Tally`."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """``(true class, predicted class)`` counts."""

    @property
    def count(self) -> int:
        """Number of predictions."""

    @property
    def accuracy(self) -> float | None:
        """Share of correct predictions; None if nothing was predicted."""

    @property
    def chance(self) -> float:
        """One over the number of classes."""

    @property
    def majority(self) -> float | None:
        """Accuracy of always predicting the most frequent class of the training split."""


def score(segments: Counted, recordings: Counted) -> dict[str, Any]:
    """Return the scores of a split that a result and a checkpoint store.

    Args:
        segments: predictions of the split's segments.
        recordings: predictions of its recordings.

    Returns:
        For segments: ``accuracy``, ``chance``, ``majority`` and their number, ``segments``. For
        recordings: ``recordings_accuracy``, ``recordings_majority`` and their number,
        ``recordings``. ``p`` is the p-value of a one-sided binomial test of the recordings'
        accuracy against the larger of chance and majority. Accuracies and majorities are None if
        the split is empty.
    """
    baseline = max(recordings.chance, recordings.majority or 0.0)
    return {
        "accuracy": segments.accuracy,
        "chance": segments.chance,
        "majority": segments.majority,
        "segments": segments.count,
        "recordings": recordings.count,
        "recordings_accuracy": recordings.accuracy,
        "recordings_majority": recordings.majority,
        "p": above_chance(int(recordings.confusion.trace()), recordings.count, baseline),
    }


def score_text(split: str, known: Mapping[str, Any]) -> str:
    """Return a text such as ``test 0.812 (chance 0.250, majority 0.301)``."""
    parts = [f"{key} {known[key]:.3f}" for key in ("chance", "majority") if _number(known.get(key))]
    return f"{split} {known['accuracy']:.3f}" + (f" ({', '.join(parts)})" if parts else "")


def accuracies_text(result: Mapping[str, Any]) -> str:
    """Return a text with the accuracy of each split that has segments.

    Args:
        result: content of a result.json; earlier versions stored no ``scores``, and the text then
            has accuracies alone.
    """
    scores = result.get("scores", {})
    return ", ".join(
        score_text(split, {"accuracy": value, **scores.get(split, {})})
        for split, value in result["accuracy"].items()
        if value is not None
    )


def student_note(scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return a line that says that a network is not above chance; None if wrong or unknown.

    Args:
        scores: result of `score`, by split; validation and test count.
    """
    at_chance = [split for split in _JUDGED if _learned(scores.get(split, {})) is False]
    if not at_chance:
        return None
    texts = "; ".join(
        f"{score_text(split, scores[split])}, p = {scores[split]['p']:.2g} of "
        f"{scores[split]['recordings']} recordings"
        for split in at_chance
    )
    return (
        f"not above chance or the most frequent class: {texts} (one-sided binomial test, wanted "
        f"p < {_LEVEL:g}). The network shows nothing that it has learned: train longer, with "
        "another `lr`, or on more recordings, before it is compared or taken as a teacher."
    )


def teacher_note(path: Path, scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Return a warning if a checkpoint's own scores are not above chance, else None.

    Args:
        path: the checkpoint, for the message.
        scores: result of `score`, by split; if fields or splits are missing, nothing is known.
    """
    known = scores.get("validation", {})
    if _learned(known) is not False:
        return None
    return (
        f"warning: {path}: by its own scores nothing shows that this network has learned: "
        f"{score_text('validation', known)}. Anti-transfer from it, or weights of it, mean "
        "little: train it longer, with another `lr`, or on more recordings."
    )


def _learned(known: Mapping[str, Any]) -> bool | None:
    """Return whether a split's scores are above chance and majority; None if unknown."""
    if not _number(known.get("accuracy")):
        return None
    if _number(known.get("p")):
        return bool(known["p"] < _LEVEL)
    baselines = [known[key] for key in ("chance", "majority") if _number(known.get(key))]
    return bool(known["accuracy"] > max(baselines)) if baselines else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
