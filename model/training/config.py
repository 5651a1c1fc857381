"""Settings of a training: everything that decides its numbers, except its data and teachers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from antigram.model.choices import (
    NEED_LABELS,
    Aggregation,
    ClassWeights,
    Init,
    Layer,
    Loss,
    Mode,
    Precision,
    Schedule,
    Similarity,
    Tap,
    similarity_of,
)
from antigram.model.nets.arch import Arch
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.choices import check_choices
from antigram.pipeline.draw import check_seed
from antigram.pipeline.errors import InputError

__all__ = ["TrainConfig"]


_LATER = {"class_weights": None, "schedule": "constant", "warmup": 0.0, "clip_norm": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Settings of a training, with the paper's values as defaults.

    Attributes:
        mode: ``baseline``, ``wi`` (initial weights of a teacher), ``frozen`` (the same, with the
            lower layers frozen), ``online`` (AT with a live teacher), ``cached`` (AT with a
            cache), ``dann`` (domain-adversarial training) or ``coral`` (equal covariances), the
            last two without a teacher.
        task: label to predict.
        arch: name and width of the student.
        layers: layers that are compared with the teachers; with mode ``frozen``, layers up to the
            highest of these are frozen. Numbers of a VGG's convolution layers, or names of modules.
        against: with modes ``dann`` and ``coral``, the label that the student's features should
            not reveal; the student's own segments need this label.
        shuffle_labels: with mode ``baseline``, whether the labels of training and validation are
            permuted: a control, as in `shuffled_labels`.
        beta: weight of the AT loss, or of the loss against a label.
        betas: pairs of a teacher's name and its own beta, for teachers that do not use ``beta``.
        aggregation: ``gram``, ``mean``, ``sum``, ``max``, ``compmul`` or ``pairwise``.
        tap: point of a layer that is compared: ``relu``, ``conv`` or ``released``.
        similarity: ``cos2``, ``mse-sigmoid`` or ``cka``, as in `at_losses`; None stands for the
            default of the aggregation: ``cka`` with ``pairwise``, else ``cos2``.
        loss: ``paper``, or ``released`` for the loss of the paper's released code.
        epochs: greatest number of epochs.
        patience: epochs without a lower validation loss after which training stops.
        batch_clips: segments in a batch.
        lr: learning rate of Adam.
        dropout: dropout probability before linear layers.
        init: ``scaled``, or ``torchvision`` for the initial weights of torchvision and of the
            paper in narrow VGGs, too: see `Vgg`.
        weight_decay: decoupled from the gradient, as in AdamW; 0 for none, as in the paper.
        class_weights: ``balanced`` weights each class in the cross-entropy of training and
            validation: see `balanced_weights`; None for equal weights.
        schedule: learning rate over the training, as in `Schedule`: ``constant``, ``cosine`` or
            ``plateau``.
        warmup: number of epochs, which may be a fraction, in which the learning rate rises
            linearly, step by step.
        clip_norm: greatest norm of the gradient of all trained parameters together; a longer
            gradient is scaled down to it. None for no limit.
        seed: seed of initial weights, batch orders, dropout and augmentation.
        precision: ``32``, ``tf32`` or ``bf16``.
        max_steps: greatest number of steps; 0 for no limit.
        views: augmentation of the training segments; None for no augmentation.

    Raises:
        InputError: a value is invalid, or two settings exclude each other.
    """

    mode: Mode
    task: str
    arch: Arch
    layers: tuple[Layer, ...] = ()
    against: str | None = None
    shuffle_labels: bool = False
    beta: float = 1.0
    betas: tuple[tuple[str, float], ...] = ()
    aggregation: Aggregation = "gram"
    tap: Tap = "relu"
    similarity: Similarity | None = None
    loss: Loss = "paper"
    epochs: int = 50
    patience: int = 5
    batch_clips: int = 13
    lr: float = 5e-4
    dropout: float = 0.5
    init: Init = "scaled"
    weight_decay: float = 0.0
    class_weights: ClassWeights | None = None
    schedule: Schedule = "constant"
    warmup: float = 0.0
    clip_norm: float | None = None
    seed: int = 0
    precision: Precision = "32"
    max_steps: int = 0
    views: Views | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        similarity = similarity_of(self.aggregation, self.similarity)
        object.__setattr__(self, "similarity", similarity)  # as the class is frozen
        for name, number, least in (
            ("epochs", self.epochs, 1),
            ("patience", self.patience, 1),
            ("batch_clips", self.batch_clips, 1),
            ("max_steps", self.max_steps, 0),
        ):
            if number < least:
                raise InputError(f"`{name}` {number}: wanted at least {least}")
        check_seed(self.seed)
        if not 0 < self.lr < float("inf"):
            raise InputError(f"`lr` {self.lr}: wanted a number above 0")
        for beta in (self.beta, *(value for _, value in self.betas)):
            if not math.isfinite(beta):
                raise InputError(f"`beta` {beta}: wanted a number")
        if not 0 <= self.dropout < 1:
            raise InputError(f"`dropout` {self.dropout}: wanted at least 0, under 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise InputError(f"`weight_decay` {self.weight_decay}: wanted at least 0")
        if not 0 <= self.warmup < float("inf"):
            raise InputError(f"`warmup` {self.warmup}: wanted a number of epochs, at least 0")
        if self.clip_norm is not None and not 0 < self.clip_norm < float("inf"):
            raise InputError(f"`clip_norm` {self.clip_norm}: wanted a number above 0")
        if self.mode == "frozen" and not self.layers:
            raise InputError("`mode=frozen` needs a layer: `layers` 1 to 13")
        if self.shuffle_labels and self.mode != "baseline":
            raise InputError(
                f"`shuffle_labels` makes a control, with `mode=baseline` only; leave it out of "
                f"`mode={self.mode}`"
            )
        self._check_against()
        if self.loss == "released" and self.mode != "online":
            raise InputError(
                "`loss=released` mixes the segments of a batch, so its Grams cannot be cached: "
                "use it with `mode=online`, or leave it out"
            )
        if self.loss == "released" and (self.aggregation, self.similarity) != ("gram", "cos2"):
            raise InputError(
                "`loss=released` has a Gram and a similarity of its own: leave "
                f"`aggregation={self.aggregation}` and `similarity={self.similarity}` out"
            )

    def _check_against(self) -> None:
        if self.mode not in NEED_LABELS:
            if self.against is not None:
                raise InputError(f"`mode={self.mode}` needs no second label: leave `against` out")
            return
        if not self.against:
            raise InputError(
                f"`mode={self.mode}` needs the label that the student is not to tell: "
                "`against=LABEL`"
            )
        if self.against == self.task:
            raise InputError(
                f"`against={self.against}` is the label to learn: name another label of the store"
            )
        if self.beta < 0:
            raise InputError(f"`beta` {self.beta}: wanted at least 0 with `mode={self.mode}`")

    def at_weight(self, source: str) -> float:
        """Return the factor of a teacher's AT loss: its beta, squared for the released loss."""
        beta = dict(self.betas).get(source, self.beta)
        return beta**2 if self.loss == "released" else beta

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain types; without ``views`` if there is no augmentation."""
        plain = {
            **asdict(self),
            "arch": self.arch.to_json(),
            "layers": list(self.layers),
            "betas": dict(self.betas),
        }
        if self.views is None:
            del plain["views"]
        if self.init == "torchvision" or not self.arch.scales_init:  # as in earlier versions
            del plain["init"]
        if not self.shuffle_labels:
            del plain["shuffle_labels"]
        if self.against is None:
            del plain["against"]
        if not self.weight_decay:  # runs of earlier versions lack the field and may be resumed
            del plain["weight_decay"]
        for name, unused in _LATER.items():  # likewise
            if plain[name] == unused:
                del plain[name]
        return plain
