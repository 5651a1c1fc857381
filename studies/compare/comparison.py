"""Run a comparison or a study from its data to its report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from antigram.model.choices import Layer
from antigram.model.nets.arch import Arch
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.workspace import Workspace, plain_name
from antigram.studies.compare.data import make_all_folds, prepare_data
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import (
    ARMS,
    BASELINE,
    Arm,
    Setting,
    Study,
    Teacher,
    Training,
)
from antigram.studies.compare.estimate import estimate
from antigram.studies.compare.files import read_study
from antigram.studies.compare.jobs import Job, Plan, StoreData, plan_jobs
from antigram.studies.compare.results import claim_results, setting_results
from antigram.studies.compare.runner import run_jobs
from antigram.studies.compare.tables import write_tables
from antigram.studies.report import read_metrics

__all__ = ["compare", "compare_runs", "run_study", "study"]

_CURVES = 6  # trainings whose curves a report shows
_FOLDS = 5  # by default, or as many as there are groups


def compare(
    workspace: Workspace,
    *,
    task: str | None = None,
    against: str,
    data: str | None = None,
    folds: str | None = None,
    groups: str | None = None,
    name: str | None = None,
    at_layers: tuple[Layer, ...] | None = None,
    seeds: int | None = None,
    arms: Sequence[str] | None = None,
    workers: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    on_message: OnMessage = lambda _: None,
    **training: Any,  # noqa: ANN401 - fields of `Training`
) -> dict[str, Any]:
    """Find out whether anti-transfer helps on a store, by comparing arms over folds and seeds.

    Finished jobs are used again. A stopped comparison therefore resumes, and several processes can
    share one comparison.

    Args:
        workspace: where everything goes.
        task: label that the students learn; default: the store's main one.
        against: label that the teachers learn, such as the speaker.
        data: the store; default: the only one, or the one prepared last.
        folds: ``kfold:LABEL:K[:N]`` or ``confounded:LABEL:OTHER``; default: ``kfold`` over
            ``groups`` with five folds, or one for each class if there are fewer.
        groups: label whose classes are the groups of the statistics, such as the speaker where
            ``against`` is the emotion; default: ``against``.
        name: name of the study; default: STORE-TASK-against-AGAINST.
        at_layers: layers that anti-transfer is tried at; default: 5, 9 and 13 of a VGG.
        seeds: trainings of each arm in each fold; default: 5.
        arms: names of arms besides the baseline, of `design.ARMS`; default: wi and at.
        workers: trainings at once; default: the cores.
        seed: seed of the folds.
        dry_run: only list the jobs, and estimate what they take.
        on_message: called with lines for people.
        training: fields of `design.Training`; None stands for the default.

    Returns:
        As `run_study`.

    Raises:
        InputError: something is missing or does not fit, or a job failed.
        StoredDataError: stored data is damaged.
    """
    store = FeatureStore(workspace.store(data, on_message))
    store.labels(against)
    by = groups or against
    store.labels(by)
    names = tuple(arms) if arms is not None else ("wi", "at")
    if unknown := sorted(set(names) - set(ARMS)):
        known = ", ".join(one for one in ARMS if one != BASELINE)
        raise InputError(f"`arms` {unknown[0]!r}: wanted {known}")
    if BASELINE in names or len(set(names)) < len(names) or not names:
        raise InputError("`arms`: name each arm once; the baseline is always run")
    learned = task or store.main_label
    store.labels(learned)
    controls = {
        "shuffled-labels": Teacher(task=against, settings={"shuffle_labels": True}),
        "same-task": Teacher(task=learned),
    }
    given: dict[str, Any] = {"at_layers": at_layers, "seeds": seeds}
    arch = training.get("arch")
    if at_layers is None and arch is not None and not Arch(arch).numbered:
        raise InputError(
            f"`at_layers`: name the layers of {arch} at which anti-transfer is tried; "
            f"`antigram layers` with `arch={arch}` lists them"
        )
    study = Study(
        name=plain_name(name or f"{store.name}-{learned}-against-{against}"),
        title=f"Does anti-transfer help? {learned} against {against}",
        question=(
            f"Does a student that learns {learned} become better on unseen recordings of "
            f"{store.name} when it is kept unlike a teacher that knows {against}?"
        ),
        data={store.name: {"store": str(store.path)}},
        settings={
            "": Setting(
                data=store.name,
                folds=folds or f"kfold:{by}:{min(_FOLDS, len(store.classes[by]))}",
                task=learned,
                against=against,
                groups=groups or "",
            )
        },
        teachers={
            "teacher": Teacher(task=against),
            **{one: each for one, each in controls.items() if one in names},
        },
        arms={BASELINE: ARMS[BASELINE], **{one: _arm(one, at_layers) for one in names}},
        training=Training(**{key: value for key, value in training.items() if value is not None}),
        fold_seed=seed,
        **{key: value for key, value in given.items() if value is not None},
    )
    return run_study(workspace, study, workers=workers, dry_run=dry_run, on_message=on_message)


def _arm(name: str, at_layers: tuple[Layer, ...] | None) -> Arm:
    """Return an arm; a baseline that selects has as many trials as the others have layers."""
    arm = ARMS[name]
    if arm.trials == 1 or at_layers is None:
        return arm
    return replace(arm, trials=len(at_layers))


def study(
    workspace: Workspace,
    file: Path | str,
    *,
    preset: str | None = None,
    corpus_map: Mapping[str, str] | None = None,
    only: Sequence[str] = (),
    seeds: int | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Run a study of a TOML file, or one that antigram comes with.

    Args:
        workspace: where everything goes.
        file: the file, or the name of one of antigram's studies.
        preset: table ``presets.NAME`` of the file whose entries replace others.
        corpus_map: corpus -> the corpus that stands in for it.
        only: names of settings and arms; others are left out. The baseline is always run.
        seeds: run fewer (or more) seeds than the file says.
        workers: trainings at once; default: the cores.
        dry_run: only list the jobs, and estimate what they take.
        on_message: called with lines for people.

    Returns:
        As `run_study`.

    Raises:
        InputError: the file is no study, something is missing or does not fit, or a job failed.
        StoredDataError: stored data is damaged.
    """
    read, stand_ins = read_study(file, preset=preset, corpus_map=corpus_map)
    if only:
        read = read.restricted(only)
    if seeds is not None:
        read = replace(read, seeds=seeds)
    return run_study(
        workspace,
        read,
        stand_ins=stand_ins,
        workers=workers,
        dry_run=dry_run,
        on_message=on_message,
    )


def run_study(
    workspace: Workspace,
    study: Study,
    *,
    stand_ins: Mapping[str, str] | None = None,
    workers: int | None = None,
    dry_run: bool = False,
    on_message: OnMessage = lambda _: None,
) -> dict[str, Any]:
    """Run a study: prepare its data, do its jobs, compare its arms, and write tables and report.

    Args:
        workspace: where everything goes; the study itself into ``studies/NAME/``.
        study: what is run.
        stand_ins: corpora that stand in for others, to be named in every table.
        workers: trainings at once; default: the cores.
        dry_run: only list the jobs, and estimate what they take.
        on_message: called with lines for people.

    Returns:
        ``study``, ``report``, ``stand_ins``, ``jobs``, ``arms``, ``claims``, ``data`` and
        ``settings``; with ``dry_run`` ``jobs``, ``hours``, ``bytes`` and ``seconds_per_step``.

    Raises:
        InputError: something is missing or does not fit, or a job failed.
        StoredDataError: stored data is damaged.
    """
    folder = workspace.root / "studies" / study.name
    workers = workers or len(os.sched_getaffinity(0))
    if dry_run:
        return estimate(workspace, study, folder / "results.sqlite", workers, on_message)
    database = Database(folder / "results.sqlite")
    stores = prepare_data(workspace, study, on_message)
    folds = make_all_folds(workspace, study, stores)
    other = {name: StoreData(store.name, store.fingerprint) for name, store in stores.items()}
    plan = plan_jobs(study, folds, other, str(workspace.runs))
    environment = versions(("antigram", "numpy", "torch", "zarr"))
    settings = {
        **study.to_json(),
        "stores": {name: store.fingerprint for name, store in stores.items()},
    }
    database.set("settings", {**settings, "versions": environment})
    write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
    begun = time.perf_counter()
    counts = run_jobs(plan.jobs, database, workspace, workers=workers, on_message=on_message)
    results = {}
    for name, setting in study.settings.items():
        store = stores[setting.data]
        chance = 1 / len(store.classes[setting.task])
        groups = store.labels(setting.group_label)
        results[name] = setting_results(study, name, plan, database, groups, chance)
    first = next(iter(study.settings.values()))
    content: dict[str, Any] = {
        "study": str(folder),
        "title": study.title,
        "question": study.question,
        "report": str(folder / "report.html"),
        "stand_ins": dict(stand_ins or {}),
        "jobs": counts,
        "runs": _shown_runs(plan),
        "arms": [arm.to_json() for result in results.values() for arm in result.arms],
        "claims": claim_results(study, results),
        "notes": list(study.notes),
        "published": {name: dict(arms) for name, arms in study.published.items()},
        "chance": 1 / len(stores[first.data].classes[first.task]),
        "warnings": list(_warnings(plan.jobs, database)),
        "data": {
            "store": stores[first.data].name,
            "task": first.task,
            "against": first.against,
            "groups": first.group_label,
            "folds": len(folds[next(iter(folds))]),
            "seeds": study.seeds,
        },
        "settings": {**settings, **environment},
        "seconds": round(time.perf_counter() - begun, 1),
    }
    took = [(f"antigram {' '.join(job.command)}", database.result(job.key)[1]) for job in plan.jobs]
    from antigram.studies.compare.networks import network_parts  # imports torch

    more = network_parts(study, results, plan, database, workspace)
    write_tables(folder, content, took, _curves_of(plan, workspace), more)
    return content


def _shown_runs(plan: Plan) -> list[str]:
    """Return the names of all teachers, and of one student of each arm of the first setting."""
    names = {job.key: job.name for job in plan.jobs}
    students = {cell.arm: names[cell.key] for cell in reversed(plan.cells) if not cell.seed}
    teachers = [job.name for job in plan.jobs if job.kind == "teacher"]
    return [*teachers, *reversed(students.values())]


def _curves_of(plan: Plan, workspace: Workspace) -> dict[str, list[dict[str, Any]]]:
    """Return the epochs of one training of the baseline and of each arm with a layer.

    They are those of the first setting, fold and seed; runs that are not in this workspace are left
    out.
    """
    names = {job.key: job.name for job in plan.jobs}
    first = plan.cells[0]
    curves: dict[str, list[dict[str, Any]]] = {}
    for cell in plan.cells:
        same = (cell.setting, cell.fold, cell.seed) == (first.setting, first.fold, first.seed)
        run = workspace.runs / names[cell.key]
        if same and (run / "metrics.jsonl").exists() and len(curves) < _CURVES:
            curves[f"{cell.arm} {cell.variant}".strip()] = read_metrics(run)
    return curves


def _warnings(jobs: Sequence[Job], database: Database) -> Iterator[str]:
    """Yield the warnings of trainings about teachers that have learned nothing."""
    for job in jobs:
        if job.kind == "teacher":
            for note in database.result(job.key)[0].get("notes", ()):
                yield f"{job.name}: {note}"


def compare_runs(workspace: Workspace, names: Sequence[str]) -> dict[str, Any]:
    """Show existing runs side by side.

    Args:
        workspace: where runs are looked up.
        names: names of two or more runs.

    Returns:
        ``runs``: for each run, its name, mode, data, task, layers, accuracies, chance and seed.

    Raises:
        InputError: there is no such run, or it has no result yet.
    """
    if len(names) < 2:
        raise InputError("compare: wanted two or more runs, or `data`, `task` and `against`")
    fields = ("mode", "data", "task", "layers", "seed", "accuracy", "chance", "majority", "epochs")
    runs = []
    for name in names:
        folder = workspace.named(workspace.runs, name, "run")
        try:
            result = json.loads((Path(folder) / "result.json").read_bytes())
        except (OSError, ValueError):
            raise InputError(f"{folder}: has no result yet; resume the run first") from None
        runs.append({"name": Path(folder).name, **{key: result.get(key) for key in fields}})
    return {"runs": runs}
