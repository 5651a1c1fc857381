"""Jobs of a comparison: each a command line that a user could type, and what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from antigram.pipeline.storage.hashing import digest
from antigram.studies.compare.design import ARMS, Design

__all__ = ["FoldData", "Job", "jobs_of"]

_NAME_DIGITS = 8  # of a job's key, in the names of runs and caches


@dataclass(frozen=True, slots=True)
class FoldData:
    """The stores of one fold.

    Attributes:
        student: name of the store that students are trained and tested on.
        teacher: name of the store that the teacher is trained on.
        fingerprints: fingerprints of the two.
    """

    student: str
    teacher: str
    fingerprints: tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command.

    Attributes:
        key: SHA-256 of what decides the result: the command, the jobs that it needs and the data.
        kind: ``teacher``, ``cache`` or ``training``.
        name: name of the run or cache that it makes.
        command: words of the command line.
        needs: keys of the jobs that come before.
        fold: number of the fold.
        arm: name of the arm, for a training; else empty.
        layer: convolution layer, for a training at one layer; else None.
        seed: seed of the training.
        data: name of the store that the command reads.
    """

    key: str
    kind: str
    name: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    fold: int
    arm: str = ""
    layer: int | None = None
    seed: int = 0
    data: str


def jobs_of(study: str, design: Design, folds: Sequence[FoldData], runs: str) -> Iterator[Job]:
    """List the jobs of a comparison, each behind those that it needs.

    Args:
        study: name of the comparison.
        design: its settings.
        folds: the stores of each fold.
        runs: folder of the workspace's runs.
    """
    shared = {
        "epochs": design.epochs,
        "patience": design.patience,
        "batch-size": design.batch_clips,
        "lr": design.lr,
    }
    shape = {"arch": design.arch, "width": design.width}
    controls = {ARMS[name].control for name in design.arms if ARMS[name].layered}
    for fold, data in enumerate(folds):
        teacher = _job(
            *(study, "teacher", f"teacher.k{fold}", fold, data.teacher, data.fingerprints[1], ()),
            {"mode": "baseline", "task": design.against, "seed": fold, **shape, **shared},
        )
        yield teacher
        ckpt = f"{runs}/{teacher.name}/best.pt"
        caches = {}
        for control in sorted(controls, key=str):
            options: dict[str, Any] = {"ckpt": ckpt, "layer": list(design.at_layers)}
            if control is not None:
                options |= {"teacher-control": control, "control-seed": fold}
            caches[control] = _job(
                *(study, "cache", f"{control or 'grams'}.k{fold}", fold),
                *(data.student, data.fingerprints[0], (teacher.key,)),
                options,
            )
            yield caches[control]
        for seed in range(design.seeds):
            for name in ("baseline", *design.arms):
                arm = ARMS[name]
                own = {
                    "mode": arm.mode,
                    "task": design.task,
                    "seed": seed,
                    **shared,
                    **arm.settings,
                }
                for layer in design.at_layers if arm.layered else (None,):
                    options = {**own, **shape}
                    needs: tuple[str, ...] = ()
                    if arm.mode in ("wi", "frozen"):
                        options, needs = {**own, "ckpt": ckpt}, (teacher.key,)
                    if layer is not None:
                        cache = caches[arm.control]
                        options = {**own, "cache": cache.name, "layer": layer}
                        needs = (cache.key,)
                    at = "" if layer is None else str(layer)
                    yield _job(
                        *(study, "training", f"{name}{at}.k{fold}.s{seed}", fold),
                        *(data.student, data.fingerprints[0], needs),
                        options,
                        arm=name,
                        layer=layer,
                        seed=seed,
                    )


def _job(
    study: str,
    kind: str,
    name: str,
    fold: int,
    data: str,
    fingerprint: str,
    needs: tuple[str, ...],
    options: Mapping[str, Any],
    **about: Any,  # noqa: ANN401 - further fields of `Job`
) -> Job:
    """Make a job; its name ends in its key, so that other settings never meet its files."""
    decides = {k: v for k, v in options.items() if k not in ("ckpt", "cache")}
    key = digest({"kind": kind, "options": decides, "needs": list(needs), "data": fingerprint})
    own = f"{study}.{name}.{key[:_NAME_DIGITS]}"
    words = ["cache-grams" if kind == "cache" else "train", "--data", data, "--name", own]
    for option, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            words += [f"--{option.replace('_', '-')}", f"{each}"]
    return Job(
        key=key,
        kind=kind,
        name=own,
        command=tuple(words),
        needs=needs,
        fold=fold,
        data=data,
        **about,
    )
