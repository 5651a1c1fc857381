"""What a comparison runs: arms, folds, seeds, layers and the settings they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from antigram.model.choices import ArchName
from antigram.pipeline.choices import check_choices
from antigram.pipeline.errors import InputError

__all__ = ["ARMS", "Arm", "Design"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train the student.

    Attributes:
        mode: mode of the training.
        layered: trained once for each layer; the layer is picked by validation in each fold and
            seed.
        control: of the teacher; None for the teacher itself.
        needs_labels: whether training needs the orthogonal label of the student's own recordings.
        settings: further settings of the training.
        about: in a few words, for tables.
    """

    mode: str
    layered: bool = False
    control: str | None = None
    needs_labels: bool = False
    settings: Mapping[str, Any]
    about: str


# The first is what all others are compared with.
ARMS: dict[str, Arm] = {
    "baseline": Arm(mode="baseline", settings={}, about="no teacher"),
    "wi": Arm(mode="wi", settings={}, about="begins with the teacher's convolutions"),
    "at": Arm(mode="cached", layered=True, settings={}, about="anti-transfer"),
    **{
        control: Arm(
            mode="cached", layered=True, control=control, settings={}, about=f"control: {about}"
        )
        for control, about in (
            ("permuted", "the teacher's channels shuffled"),
            ("random", "an untrained teacher"),
            ("mean-gram", "the teacher's mean Gram for every segment"),
        )
    },
    "dropout": Arm(mode="baseline", settings={"dropout": 0.7}, about="control: dropout 0.7"),
    "weight-decay": Arm(
        mode="baseline", settings={"weight_decay": 0.01}, about="control: weight decay 0.01"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """Settings of a comparison; all of them decide its numbers.

    Attributes:
        task: label that the students learn.
        against: label that the teachers learn; its classes are the groups of the statistics.
        folds: design of the folds: ``kfold:LABEL:K`` or ``confounded:LABEL:OTHER``.
        at_layers: convolution layers that anti-transfer is tried at.
        seeds: number of trainings of each arm in each fold.
        arms: names of arms besides the baseline.
        arch: of teachers and students.
        width: of teachers and students.
        epochs: at most, of each training.
        patience: epochs without a lower validation loss after which a training stops.
        batch_clips: segments in a step.
        lr: learning rate.

    Raises:
        InputError: an arm is unknown, or a number is out of range.
    """

    task: str
    against: str
    folds: str
    at_layers: tuple[int, ...] = (5, 9, 13)
    seeds: int = 5
    arms: tuple[str, ...] = ("wi", "at")
    arch: ArchName = "vgg16"
    width: int = 64
    epochs: int = 50
    patience: int = 10
    batch_clips: int = 13
    lr: float = 5e-4

    def __post_init__(self) -> None:
        check_choices(self)
        if unknown := sorted(set(self.arms) - set(ARMS)):
            known = ", ".join(name for name in ARMS if name != "baseline")
            raise InputError(f"`arms` {unknown[0]!r}: wanted {known}")
        if "baseline" in self.arms or len(set(self.arms)) < len(self.arms) or not self.arms:
            raise InputError("`arms`: name each arm once; the baseline is always run")
        if self.task == self.against:
            raise InputError(f"`against` {self.against}: is the task itself; name another label")
        if self.seeds < 1 or not self.at_layers:
            raise InputError("`seeds` and `at_layers`: wanted at least one of each")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain types."""
        return {**asdict(self), "at_layers": list(self.at_layers), "arms": list(self.arms)}
