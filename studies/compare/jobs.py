"""Plan the jobs of a study: command lines that a user could type, and their dependencies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from antigram.model.choices import Layer, layer_order
from antigram.model.nets.arch import Arch
from antigram.pipeline.storage.hashing import digest
from antigram.studies.compare.design import BASELINE, FOLD, Arm, Setting, Study, Teacher, Variant

__all__ = ["Cell", "FoldData", "Job", "Plan", "StoreData", "plan_jobs"]

_SECOND = (126, 129)  # frames and frequencies of a segment; no name of a layer depends on them
_NAME_DIGITS = 8  # of a job's key, in the names of runs and caches


@dataclass(frozen=True, slots=True)
class StoreData:
    """A store that jobs read.

    Attributes:
        name: name or path by which commands find the store.
        fingerprint: fingerprint of the store; empty if it does not exist yet.
    """

    name: str
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class FoldData:
    """The stores of one fold.

    Attributes:
        student: the store that students are trained and tested on.
        teachers: label -> view of the fold's training recordings for a teacher of that label.
    """

    student: StoreData
    teachers: Mapping[str, StoreData] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A command, with the jobs that it needs.

    Attributes:
        key: SHA-256 of what decides the result: the command, the jobs that it needs and the data.
        kind: ``teacher``, ``cache``, ``training`` or ``probe``.
        name: name of the run or cache that it makes; for a probe, of the run that it reads.
        command: words of the command line.
        needs: keys of the jobs that come before.
        data: name of the store that the command reads.
        task: label that the student learns, for a training; else empty.
    """

    key: str
    kind: str
    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    data: str
    task: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One training of an arm: its job, and its setting, fold and seed.

    Several cells may share a job: the first trial of an arm that selects among seeds is also the
    training of another arm.

    Attributes:
        setting: name of the setting.
        arm: name of the arm.
        fold: number of the fold.
        seed: seed of the comparison; arms are paired by it.
        variant: layer, beta and trial.
        key: key of the training's job.
        probe: key of the job that probes the training; empty: none.
    """

    setting: str
    arm: str
    fold: int
    seed: int
    variant: Variant
    key: str
    probe: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The jobs of a study, each after the jobs that it needs, and the cells that they fill."""

    jobs: list[Job]
    cells: list[Cell]


def plan_jobs(
    study: Study,
    folds: Mapping[str, Sequence[FoldData]],
    other: Mapping[str, StoreData],
    runs: str,
) -> Plan:
    """List the jobs of a study, seed after seed, so that the first seeds are complete first.

    Args:
        study: what is run.
        folds: setting -> the stores of each of its folds.
        other: data of teachers that are not trained on a fold -> its store.
        runs: folder of the workspace's runs.
    """
    planner = _Planner(study, other, runs)
    for seed in range(study.seeds):
        for name, setting in study.settings.items():
            for fold, data in enumerate(folds[name]):
                planner.add_fold(name, setting, fold, data, seed)
    return Plan(list(planner.jobs.values()), planner.cells)


class _Planner:
    """Collects jobs and cells; a job that is requested again is added only once."""

    def __init__(self, study: Study, other: Mapping[str, StoreData], runs: str) -> None:
        self.study, self.other, self.runs = study, other, runs
        self.jobs: dict[str, Job] = {}
        self.cells: list[Cell] = []

    def add_fold(self, name: str, setting: Setting, fold: int, data: FoldData, seed: int) -> None:
        """Add the trainings of all arms with one seed on one fold, and the jobs that they need."""
        place = f"{name}." if name else ""
        at = f".k{fold}"
        for arm_name, arm in self.study.arms_of(setting).items():
            for variant in arm.variants(self.study.at_layers):
                job = self._student(arm, arm_name, variant, setting, fold, data, seed, place, at)
                probe = self._probe(job) if self.study.probe else ""
                self.cells.append(
                    Cell(
                        setting=name,
                        arm=arm_name,
                        fold=fold,
                        seed=seed,
                        variant=variant,
                        key=job.key,
                        probe=probe,
                    )
                )

    def _student(
        self,
        arm: Arm,
        name: str,
        variant: Variant,
        setting: Setting,
        fold: int,
        data: FoldData,
        seed: int,
        place: str,
        at: str,
    ) -> Job:
        training, needs, decided_by = self.study.training, list[str](), list[str]()
        options: dict[str, Any] = {
            "mode": arm.mode,
            "task": setting.task,
            "seed": variant.seed(seed),
            **training.options,
            **_options(arm.settings),
        }
        if not arm.needs_teacher:
            options |= training.shape
            if arm.mode != BASELINE:
                options["against"] = setting.against
        else:
            called = self.study.teacher_of(arm)
            teacher = self._teacher(called, setting, fold, data, place, at)
            if arm.mode == "cached":
                assert variant.layer is not None
                cache, key = self._cache(arm, called, teacher, variant.layer, fold, data, place, at)
                needs, decided_by = [cache.key], [key]
                options |= {"cache": cache.name, "layer": variant.layer}
            else:
                needs, decided_by = [teacher.key], [teacher.key]
                options["ckpt"] = self._weights(teacher)
                if variant.layer is not None:
                    options["layer"] = variant.layer
        if variant.beta not in (None, 1.0):  # the default
            options["beta"] = variant.beta
        if arm.first:
            earlier = Arm(mode="cached", teacher=arm.first, layered=True)
            first = self._student(
                earlier, f"first-{arm.first}", variant, setting, fold, data, seed, place, at
            )
            needs.append(first.key)
            decided_by.append(first.key)
            options["init"] = [self._weights(first), *options.get("init", ())]
        return self._job(
            "training",
            f"{place}{name}{variant}{at}.s{seed}",
            data.student,
            needs,
            options,
            decided_by=decided_by,
            task=setting.task,
        )

    def _teacher(
        self, name: str, setting: Setting, fold: int, data: FoldData, place: str, at: str
    ) -> Job:
        teacher: Teacher = self.study.teachers[name]
        training = self.study.training
        if teacher.data == FOLD:
            store, seed = data.teachers[teacher.task], fold
        else:
            store, seed, place, at = self.other[teacher.data], 0, "", ""
        label = "" if len(self.study.teachers) == 1 else f"-{name}"
        options = {
            "mode": BASELINE,
            "task": teacher.task,
            "seed": seed,
            **training.shape,
            **training.options,
            **_options(teacher.settings),
        }
        return self._job("teacher", f"{place}teacher{label}{at}", store, [], options)

    def _cache(
        self,
        arm: Arm,
        called: str,
        teacher: Job,
        layer: Layer,
        fold: int,
        data: FoldData,
        place: str,
        at: str,
    ) -> tuple[Job, str]:
        """Return the cache that serves all arms comparing with the same rows, and a key.

        The key identifies the cache's rows at one layer. A training depends on these rows alone, so
        that its key stays the same if the study gets another layer later.
        """
        layers = {layer}
        for other in self.study.arms.values():
            same = (other.mode, other.control, other.aggregation)
            names = (self.study.teacher_of(other), other.first) if other.needs_teacher else ()
            if same == ("cached", arm.control, arm.aggregation) and called in names:
                layers.update(other.layers or self.study.at_layers)
        options: dict[str, Any] = {}
        if arm.aggregation:
            options["aggregation"] = arm.aggregation
        if arm.control is not None:
            options |= {"teacher-control": arm.control, "control-seed": fold}
        name = called if len(self.study.teachers) > 1 else ""
        parts = [part for part in (arm.control, arm.aggregation, name) if part]
        cache = self._job(
            "cache",
            f"{place}{'-'.join(parts) or 'grams'}{at}",
            data.student,
            [teacher.key],
            {"ckpt": self._weights(teacher), "layer": sorted(layers, key=layer_order), **options},
        )
        rows = {"options": options, "layer": layer, "teacher": teacher.key}
        return cache, digest({**rows, "data": data.student.fingerprint})

    def _probe(self, run: Job) -> str:
        deepest = self._deepest()
        options = {"task": self.study.probe, "layer": deepest}
        decides = {"kind": "probe", "options": options, "needs": [run.key]}
        key = digest(decides)
        words = ["probe", run.name, "--task", self.study.probe, "--layer", f"{deepest}"]
        self.jobs.setdefault(
            key,
            Job(
                key=key,
                kind="probe",
                name=run.name,
                command=tuple(words),
                needs=(run.key,),
                data=run.data,
            ),
        )
        return key

    def _deepest(self) -> Layer:
        arch = Arch(self.study.training.arch, self.study.training.width)
        if arch.numbered:
            return arch.layers
        from antigram.model.nets.networks import deepest_layer  # imports torch

        return deepest_layer(arch, _SECOND)

    def _weights(self, run: Job) -> str:
        return f"{self.runs}/{run.name}/best.pt"

    def _job(
        self,
        kind: str,
        name: str,
        data: StoreData,
        needs: Sequence[str],
        options: Mapping[str, Any],
        *,
        decided_by: Sequence[str] | None = None,
        task: str = "",
    ) -> Job:
        """Make a job; its name ends in its key, so that other settings never use its files.

        Args:
            kind: kind of the job.
            name: name of the run or cache, without study and key.
            data: store that the job reads.
            needs: keys of the jobs that come before.
            options: options of the command.
            decided_by: keys of the needed jobs that decide the result; default: ``needs``.
            task: label that the student learns.
        """
        decides = {k: v for k, v in options.items() if k not in ("ckpt", "cache", "init")}
        if kind in ("teacher", "training"):
            decides |= self.study.training.decides_init
        key = digest(
            {
                "kind": kind,
                "options": decides,
                "needs": list(needs if decided_by is None else decided_by),
                "data": data.fingerprint or data.name,
            }
        )
        own = f"{self.study.name}.{name}.{key[:_NAME_DIGITS]}"
        words = ["cache-grams" if kind == "cache" else "train", "--data", data.name, "--name", own]
        for option, value in _flat(options):
            words += [f"--{option}"] if value is True else [f"--{option}", f"{value}"]
        if kind != "cache":
            words.append("--no-report")  # which decides no result; the study has a report
        job = Job(
            key=key,
            kind=kind,
            name=own,
            command=tuple(words),
            needs=tuple(needs),
            data=data.name,
            task=task,
        )
        return self.jobs.setdefault(key, job)


def _options(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by the names of their options."""
    return {name.replace("_", "-"): value for name, value in settings.items()}


def _flat(options: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield an option once for each of its values; an option that is off is left out."""
    for option, value in options.items():
        for each in value if isinstance(value, list | tuple) else [value]:
            if each is not False:
                yield option, each
