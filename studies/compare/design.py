"""The declaration of a study: data, teachers, arms, folds, seeds and shared settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from antigram.model.choices import Control, Init, Layer, Mode
from antigram.model.nets.arch import OWN, Arch
from antigram.pipeline.choices import check_choices
from antigram.pipeline.errors import InputError

__all__ = [
    "ARMS",
    "BASELINE",
    "FOLD",
    "Arm",
    "Claim",
    "Setting",
    "Study",
    "Teacher",
    "Training",
    "Variant",
]

BASELINE = "baseline"  # the arm that all others are compared with
FOLD = "fold"  # data of a teacher: the training recordings of the student's own fold
_NO_TEACHER = (BASELINE, "dann", "coral")  # modes
_TRIAL_SEED = 1000  # between the seeds of two trials; a study has fewer seeds than that


class Variant(NamedTuple):
    """One of the trainings among which an arm selects by validation, in each fold and seed."""

    layer: Layer | None
    beta: float | None
    trial: int

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"{self.layer}"
        beta = "" if self.beta is None else f"b{self.beta:g}"
        return layer + beta + (f"t{self.trial}" if self.trial else "")

    def seed(self, seed: int) -> int:
        """Return the seed of this training, given the seed of the comparison."""
        return seed + _TRIAL_SEED * self.trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Teacher:
    """A network that students are compared with, or begin with.

    Attributes:
        task: label that the teacher learns.
        data: ``fold``, the training recordings of the student's own fold; else the name of other
            data of the study.
        settings: settings of the teacher's training that differ from the study's settings.
        about: what it is, in a few words.
    """

    task: str
    data: str = FOLD
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One way to train the student.

    Attributes:
        mode: mode of the training.
        teacher: name of the teacher; default: the first one, in modes that need any.
        first: name of the teacher of an earlier AT training at the same layer, whose convolutions
            this training begins with (dual AT); empty: none.
        layered: trained once for each layer; the layer is selected by validation in each fold and
            seed.
        layers: layers to select from; empty: the layers of the study.
        betas: weights of the AT loss to select from; empty: 1 alone.
        trials: trainings with different seeds to select from.
        control: control that replaces the teacher; None for the teacher itself.
        aggregation: aggregation of the feature maps of teacher and student.
        needs_labels: whether training needs the orthogonal label of the student's own recordings.
        settings: further settings of the training.
        about: what it is, in a few words.
    """

    mode: Mode
    teacher: str = ""
    first: str = ""
    layered: bool = False
    layers: tuple[Layer, ...] = ()
    betas: tuple[float, ...] = ()
    trials: int = 1
    control: Control | None = None
    aggregation: str = ""
    needs_labels: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""

    def __post_init__(self) -> None:
        check_choices(self)
        if self.trials < 1:
            raise InputError(f"trials is {self.trials}: wanted 1 or more")

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is trained for this arm."""
        return self.mode not in _NO_TEACHER

    def variants(self, at_layers: tuple[Layer, ...]) -> list[Variant]:
        """Return the trainings to select from.

        Args:
            at_layers: layers of the study.
        """
        layers: tuple[Layer | None, ...] = (None,)
        if self.layered or self.layers:
            layers = self.layers or at_layers
        betas: tuple[float | None, ...] = self.betas or (None,)
        return [Variant(*each) for each in itertools.product(layers, betas, range(self.trials))]


_CONTROLS: dict[Control, str] = {
    "permuted": "the teacher's channels shuffled",
    "random": "an untrained teacher",
    "mean-gram": "the teacher's mean Gram for every segment",
}
# Arms that a comparison can name. The baseline is in every study.
ARMS: dict[str, Arm] = {
    BASELINE: Arm(mode="baseline", about="no teacher"),
    "wi": Arm(mode="wi", about="begins with the teacher's convolutions"),
    "at": Arm(mode="cached", layered=True, about="anti-transfer"),
    **{
        control: Arm(mode="cached", layered=True, control=control, about=f"control: {about}")
        for control, about in _CONTROLS.items()
    },
    "dropout": Arm(mode="baseline", settings={"dropout": 0.7}, about="control: dropout 0.7"),
    "weight-decay": Arm(
        mode="baseline", settings={"weight_decay": 0.01}, about="control: weight decay 0.01"
    ),
    "augment": Arm(
        mode="baseline",
        settings={"augment": True},
        about="masks as in SpecAugment, shifts and gain",
    ),
    "pairwise": Arm(
        mode="cached",
        layered=True,
        aggregation="pairwise",
        about="anti-transfer by pairwise similarity (CKA) instead of the Gram",
    ),
    "dann": Arm(mode="dann", needs_labels=True, about="domain-adversarial training"),
    "coral": Arm(mode="coral", needs_labels=True, about="covariances of domains brought together"),
    "baseline-best": Arm(
        mode="baseline", trials=3, about="baseline that selects among as many seeds as layers"
    ),
    "shuffled-labels": Arm(
        mode="cached",
        layered=True,
        teacher="shuffled-labels",
        about="control: a teacher of shuffled labels",
    ),
    "same-task": Arm(
        mode="cached", layered=True, teacher="same-task", about="control: a teacher of the task"
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Data and folds on which all arms are run.

    Attributes:
        data: name of the data of the study.
        folds: ``kfold:LABEL:K[:N]`` or ``confounded:LABEL:OTHER``; empty: the store's own split.
        task: label that the students learn.
        against: label that should not matter, which `dann` and `coral` use.
        groups: label whose classes are the groups of the statistics; empty: that of ``against``.
        arms: names of the arms that are run; empty: all.
    """

    data: str
    folds: str = ""
    task: str
    against: str
    groups: str = ""
    arms: tuple[str, ...] = ()

    @property
    def group_label(self) -> str:
        """Return the label whose classes are the groups of the statistics."""
        return self.groups or self.against


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A statement that the study tests, declared before it is run.

    Attributes:
        name: name of the claim, such as ``H1``.
        text: the statement.
        arm: arm that the claim is about.
        over: arms all of which this arm must beat (an intersection-union test).
        setting: setting in which the claim is tested.
        probe: label of the probe that is compared instead of the accuracy: it must be *lower*.
    """

    name: str
    text: str
    arm: str
    over: tuple[str, ...]
    setting: str
    probe: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings that all trainings of a study share.

    Attributes:
        arch: network of teachers and students, one of antigram's own.
        width: width of teachers and students.
        epochs: largest number of epochs of a training.
        patience: epochs without a lower validation loss after which a training stops.
        batch_clips: segments in a step.
        lr: learning rate.
        init: initial weights of narrow VGGs, ``scaled`` or ``torchvision``: see `Vgg`.
    """

    arch: str = "vgg16"
    width: int = 64
    epochs: int = 50
    patience: int = 10
    batch_clips: int = 13
    lr: float = 5e-4
    init: Init = "scaled"

    def __post_init__(self) -> None:
        check_choices(self)
        if OWN in self.arch:
            raise InputError(f"`arch` {self.arch}: a study takes antigram's networks only")
        Arch(self.arch, self.width)  # raises if there is no such network

    @property
    def shape(self) -> dict[str, Any]:
        """Return the options that decide the network."""
        return {"arch": self.arch, "width": self.width}

    @property
    def options(self) -> dict[str, Any]:
        """Return the options that decide how a network is trained."""
        return {
            "epochs": self.epochs,
            "patience": self.patience,
            "batch-size": self.batch_clips,
            "lr": self.lr,
            **({"init": ["torchvision"]} if self.init == "torchvision" else {}),
        }

    @property
    def decides_init(self) -> dict[str, str]:
        """Return what the keys of trainings say of initial weights.

        Nothing where they are those of torchvision, as in all earlier versions.
        """
        scales = self.init == "scaled" and Arch(self.arch, self.width).scales_init
        return {"init": self.init} if scales else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """A study: each of its arms is run in each setting, fold and seed, and compared.

    Attributes:
        name: name of the study, its folder and its runs.
        title: title of the report.
        question: question that the study answers.
        data: name -> arguments of `prepare_corpus` that make the store, or ``store`` with the name
            of an existing store.
        settings: name -> setting in which arms are run; one setting may have an empty name.
        teachers: name -> teacher.
        arms: name -> arm; the first is the baseline.
        primary: arms that are included in Holm's correction; empty: all.
        at_layers: layers that layered arms select from.
        seeds: trainings of each arm in each fold.
        training: settings that all trainings share.
        claims: statements that are tested.
        probe: label that is probed in every student at its deepest convolution; empty: none.
        fold_seed: seed that decides which recordings are in which fold.
        published: setting -> arm -> accuracy in per cent that a paper reports.
        notes: sentences for the report, such as what a paper found.

    Raises:
        InputError: a name is unknown, or a number is out of range.
    """

    name: str
    title: str = ""
    question: str = ""
    data: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Setting]
    teachers: Mapping[str, Teacher] = field(default_factory=dict)
    arms: Mapping[str, Arm]
    primary: tuple[str, ...] = ()
    at_layers: tuple[Layer, ...] = (5, 9, 13)
    seeds: int = 5
    training: Training = field(default_factory=Training)
    claims: tuple[Claim, ...] = ()
    probe: str = ""
    fold_seed: int = 0
    published: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if next(iter(self.arms), None) != BASELINE or not self.settings:
            raise InputError("arms: the first is the baseline; settings: there is at least one")
        if self.seeds < 1 or not self.at_layers:
            raise InputError("seeds and layers: wanted at least one of each")
        if self.seeds >= _TRIAL_SEED:
            raise InputError(f"`seeds` is {self.seeds}: wanted fewer than {_TRIAL_SEED}")
        _known("primary", self.primary, self.arms)
        for name, setting in self.settings.items():
            if setting.task == setting.against:
                raise InputError(
                    f"`against` {setting.against}: is the task itself; name another label"
                )
            _known("data", [setting.data], self.data)
            _known(f"arms of {name or 'the setting'}", setting.arms, self.arms)
        for teacher in self.teachers.values():
            _known("data", [teacher.data], (FOLD, *self.data))
        for arm in self.arms.values():
            if arm.needs_teacher and not self.teachers:
                raise InputError("teachers: an arm needs one; declare it")
            _known("teacher", [t for t in (arm.teacher, arm.first) if t], self.teachers)
        for claim in self.claims:
            _known(f"setting of {claim.name}", [claim.setting], self.settings)

    def restricted(self, only: Sequence[str]) -> Study:
        """Return the study with only some of its settings and arms.

        Claims about other settings and arms stay, and are reported as not tested.

        Args:
            only: names of settings and arms. If no setting is named, all of them are run, and if no
                arm is named, all arms are run.

        Raises:
            InputError: a name is neither a setting nor an arm.
        """
        _known("`only`", only, [*self.settings, *self.arms])
        settings = {name: each for name, each in self.settings.items() if name in only}
        settings = settings or dict(self.settings)
        wanted = [name for name in self.arms if name in only and name != BASELINE]
        arms = {n: a for n, a in self.arms.items() if n in (BASELINE, *(wanted or self.arms))}
        return replace(
            self,
            settings={
                name: replace(each, arms=tuple(a for a in each.arms if a in arms))
                for name, each in settings.items()
            },
            data={n: d for n, d in self.data.items() if n in self._used(settings, arms)},
            arms=arms,
            primary=tuple(name for name in self.primary if name in arms),
            claims=tuple(claim for claim in self.claims if claim.setting in settings),
        )

    def _used(self, settings: Mapping[str, Setting], arms: Mapping[str, Arm]) -> set[str]:
        """Return the names of the data that settings and the teachers of arms need."""
        own = [arm for arm in arms.values() if arm.needs_teacher]
        teachers = {self.teacher_of(arm) for arm in own} | {arm.first for arm in own if arm.first}
        return {s.data for s in settings.values()} | {self.teachers[t].data for t in teachers}

    def arms_of(self, setting: Setting) -> dict[str, Arm]:
        """Return the arms that are run in a setting, the baseline first."""
        return {
            name: arm
            for name, arm in self.arms.items()
            if not setting.arms or name == BASELINE or name in setting.arms
        }

    def teacher_of(self, arm: Arm) -> str:
        """Return the name of an arm's teacher."""
        return arm.teacher or next(iter(self.teachers))

    def in_family(self, arms: Mapping[str, object]) -> list[str]:
        """Return the arms that are included in Holm's correction."""
        return [a for a in arms if a != BASELINE and (not self.primary or a in self.primary)]

    def to_json(self) -> dict[str, Any]:
        """Return all settings as plain types."""
        return asdict(self)


def _known(argument: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raise if a name is not known."""
    for name in names:
        if name not in known:
            raise InputError(f"{argument} {name!r}: wanted {', '.join(known)}")
