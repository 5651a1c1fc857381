"""What the scores of a network are worth: held against chance and the most frequent class.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from antigram.model.training.chance import above_chance

__all__ = ["accuracies_text", "score", "score_text", "student_note", "teacher_note"]

_LEVEL = 0.05
_JUDGED = ("validation", "test")  # training segments may be learned by heart


class Counted(Protocol):
    """Decisions on segments, or on recordings: see `model.training.evaluate.Tally`."""

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(true class, decided class) counts."""

    @property
    def count(self) -> int:
        """How many were decided."""

    @property
    def accuracy(self) -> float | None:
        """Share of correct decisions."""

    @property
    def chance(self) -> float:
        """One over the number of classes."""

    @property
    def majority(self) -> float | None:
        """Accuracy of always answering the most frequent class of the training split."""


def score(segments: Counted, recordings: Counted) -> dict[str, Any]:
    """What a result and a checkpoint keep of a split.

    Returns:
        ``accuracy``, ``chance`` and ``majority`` of ``segments`` (how many); of ``recordings`` (how
        many) ``recordings_accuracy``, ``recordings_majority`` and ``p``: how likely a network that
        knows nothing is correct on as many, by a one-sided binomial test against the larger of
        chance and majority. Accuracy and majority are None without segments.
    """
    known_by_nothing = max(recordings.chance, recordings.majority or 0.0)
    return {
        "accuracy": segments.accuracy,
        "chance": segments.chance,
        "majority": segments.majority,
        "segments": segments.count,
        "recordings": recordings.count,
        "recordings_accuracy": recordings.accuracy,
        "recordings_majority": recordings.majority,
        "p": above_chance(int(recordings.confusion.trace()), recordings.count, known_by_nothing),
    }


def score_text(split: str, known: Mapping[str, Any]) -> str:
    """``test 0.812 (chance 0.250, majority 0.301)``."""
    parts = [f"{key} {known[key]:.3f}" for key in ("chance", "majority") if _number(known.get(key))]
    return f"{split} {known['accuracy']:.3f}" + (f" ({', '.join(parts)})" if parts else "")


def accuracies_text(result: Mapping[str, Any]) -> str:
    """Accuracy of each split that has segments, from a result.json; older ones hold no scores."""
    scores = result.get("scores", {})
    return ", ".join(
        score_text(split, {"accuracy": value, **scores.get(split, {})})
        for split, value in result["accuracy"].items()
        if value is not None
    )


def student_note(scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A line that says so if a trained network is not above chance on validation or test.

    Args:
        scores: split -> `score`.
    """
    poor = [split for split in _JUDGED if _learned(scores.get(split, {})) is False]
    if not poor:
        return None
    each = "; ".join(
        f"{score_text(split, scores[split])}, p = {scores[split]['p']:.2g} of "
        f"{scores[split]['recordings']} recordings"
        for split in poor
    )
    return (
        f"not above chance or the most frequent class: {each} (one-sided binomial test, wanted "
        f"p < {_LEVEL:g}). The network shows nothing that it has learned: train longer, with "
        "another `lr`, or on more recordings, before it is compared or taken as a teacher."
    )


def teacher_note(path: Path, scores: Mapping[str, Mapping[str, Any]]) -> str | None:
    """A line that says so if a checkpoint's own scores show that it has learned nothing.

    Args:
        path: of the checkpoint.
        scores: split -> `score`, or less; nothing is said of checkpoints that carry none.
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
    """Whether a split's scores are above chance and majority; None if they do not say."""
    if not _number(known.get("accuracy")):
        return None
    if _number(known.get("p")):
        return bool(known["p"] < _LEVEL)
    bars = [known[key] for key in ("chance", "majority") if _number(known.get(key))]
    return bool(known["accuracy"] > max(bars)) if bars else None


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
