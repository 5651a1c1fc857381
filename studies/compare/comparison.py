"""One command's work: folds, teachers, caches, students, and the answer."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.process import versions
from antigram.pipeline.features.folds import make_folds, make_teacher_view
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.durable import write_text
from antigram.pipeline.workspace import Workspace, plain_name
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import Design
from antigram.studies.compare.jobs import FoldData, Job, jobs_of
from antigram.studies.compare.results import arm_results
from antigram.studies.compare.runner import run_jobs
from antigram.studies.compare.tables import write_tables

__all__ = ["compare", "compare_runs"]

_FOLDS = 5  # by default, or as many as there are groups
_TRAIN_SHARE = 0.75  # of the segments, for the estimate
_PILOT_STEPS = 3


def compare(
    workspace: Workspace,
    *,
    task: str | None = None,
    against: str,
    data: str | None = None,
    folds: str | None = None,
    name: str | None = None,
    workers: int | None = None,
    seed: int = 0,
    dry_run: bool = False,
    on_message: OnMessage = lambda _: None,
    **asked: Any,  # noqa: ANN401 - further fields of `Design`
) -> dict[str, Any]:
    """Find out whether anti-transfer helps on a store: arms over folds and seeds, compared.

    What is finished is used again, so that a comparison that was stopped goes on, and several
    processes share one.

    Args:
        workspace: where everything goes.
        task: label that the students learn; default: the store's main one.
        against: label that the teachers learn, such as the speaker.
        data: the store; default: the only one, or the one prepared last.
        folds: ``kfold:LABEL:K`` or ``confounded:LABEL:OTHER``; default: ``kfold`` over ``against``
            with five folds, or one for each class if there are fewer.
        name: name of the study; default: STORE-TASK-against-AGAINST.
        workers: trainings at once; default: the cores.
        seed: seed of the folds.
        dry_run: only list the jobs, and estimate what they take.
        on_message: called with lines for people.
        asked: further fields of `Design`; None stands for the default.

    Returns:
        ``study``, ``report``, ``stand_ins``, ``jobs``, ``arms``, ``data`` and ``settings``; with
        ``dry_run`` ``jobs``, ``hours``, ``bytes`` and ``seconds_per_step``.

    Raises:
        InputError: something is missing or does not fit, or a job failed.
        StoredDataError: stored data is damaged.
    """
    store = FeatureStore(workspace.store(data, on_message))
    store.labels(against)
    groups = len(store.classes[against])
    design = Design(
        task=task or store.main_label,
        against=against,
        folds=folds or f"kfold:{against}:{min(_FOLDS, groups)}",
        **{key: value for key, value in asked.items() if value is not None},
    )
    store.labels(design.task)
    study = plain_name(name or f"{store.name}-{design.task}-against-{against}")
    folder = workspace.root / "studies" / study
    with ExitStack() as stack:
        divided = _beside_nothing(store, stack) if dry_run else store
        stores = _folds(divided, design, seed, workspace, store.path.parent)
    jobs = list(jobs_of(study, design, stores, str(workspace.runs)))
    workers = workers or len(os.sched_getaffinity(0))
    if dry_run:
        return _estimate(jobs, store, design, workers)
    database = Database(folder / "results.sqlite")
    settings = {**design.to_json(), "seed": seed, "store": store.fingerprint}
    environment = versions(("antigram", "numpy", "torch", "zarr"))
    database.set("settings", {**settings, "versions": environment})
    write_text(folder / "settings.json", json.dumps(settings, indent=2) + "\n")
    begun = time.perf_counter()
    counts = run_jobs(
        jobs, database, workspace, task=design.task, workers=workers, on_message=on_message
    )
    chance = 1 / len(store.classes[design.task])
    results = arm_results(jobs, database, design, store.labels(against), chance)
    content: dict[str, Any] = {
        "study": str(folder),
        "report": str(folder / "report.html"),
        "stand_ins": {},
        "jobs": counts,
        "arms": [arm.to_json() for arm in results],
        "chance": chance,
        "warnings": list(_warnings(jobs, database)),
        "data": {
            "store": store.name,
            "task": design.task,
            "against": against,
            "folds": len(stores),
            "seeds": design.seeds,
        },
        "settings": {**settings, **environment},
        "seconds": round(time.perf_counter() - begun, 1),
    }
    took = [(f"antigram {' '.join(job.command)}", database.result(job.key)[1]) for job in jobs]
    write_tables(folder, content, took)
    return content


def _folds(
    store: FeatureStore, design: Design, seed: int, workspace: Workspace, folder: Path
) -> list[FoldData]:
    """Make the folds and the teachers' views of a store.

    Args:
        store: that they are made beside.
        design: settings.
        seed: decides who is in which fold.
        workspace: where jobs look up stores by name.
        folder: of the stores that the jobs will read; outside of the workspace, they get paths.
    """
    inside = folder.resolve() == workspace.features.resolve()

    def called(view: FeatureStore) -> str:
        return view.name if inside else str(folder.resolve() / f"{view.name}.zarr")

    found = []
    for path in make_folds(store, design.folds, seed=seed):
        fold = FeatureStore(path)
        teacher = FeatureStore(make_teacher_view(fold, design.against, seed=seed))
        fingerprints = (fold.fingerprint, teacher.fingerprint)
        found.append(FoldData(called(fold), called(teacher), fingerprints))
    return found


def _beside_nothing(store: FeatureStore, stack: ExitStack) -> FeatureStore:
    """Open a store through a link in a temporary folder, so that its folds replace no others."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="antigram-")))
    (folder / store.path.name).symlink_to(store.path.resolve(), target_is_directory=True)
    return FeatureStore(folder / store.path.name)


def _warnings(jobs: Sequence[Job], database: Database) -> Iterator[str]:
    """Yield what trainings say of teachers that have learned nothing."""
    for job in jobs:
        if job.kind == "teacher":
            for note in database.result(job.key)[0].get("notes", ()):
                yield f"{job.name}: {note}"


def _estimate(
    jobs: Sequence[Job], store: FeatureStore, design: Design, workers: int
) -> dict[str, Any]:
    """List the jobs, and estimate hours and bytes; an upper bound, as trainings stop early."""
    from antigram.cache.plan import plan_layers
    from antigram.model.loss.sources import TapSpec
    from antigram.model.nets.arch import Arch
    from antigram.studies.plan import bare_net

    arch = Arch(design.arch, design.width)
    second = _pilot(store, design)
    steps = math.ceil(_TRAIN_SHARE * len(store) / design.batch_clips) * design.epochs
    trainings = sum(job.kind != "cache" for job in jobs)
    plans = plan_layers(
        store, bare_net(arch), TapSpec(arch=arch, layers=arch.check_layers(design.at_layers))
    )
    of_cache = len(store) * sum(plan.bytes_per_clip for plan in plans.values())
    caches = sum(job.kind == "cache" for job in jobs)
    return {
        "jobs": [
            {"kind": job.kind, "name": job.name, "command": f"antigram {' '.join(job.command)}"}
            for job in jobs
        ],
        "hours": round(trainings * steps * second / workers / 3600, 2),
        "bytes": caches * of_cache,
        "seconds_per_step": round(second, 4),
        "estimated_from": f"{_PILOT_STEPS} steps of the baseline on one thread; every epoch is run",
    }


def _pilot(store: FeatureStore, design: Design) -> float:
    """Time of a training step on one thread of this machine, in seconds."""
    import torch
    from torch.nn import functional

    from antigram.model.nets.arch import Arch
    from antigram.model.nets.vgg import Vgg

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        classes = len(store.classes[design.task])
        net = Vgg(Arch(design.arch, design.width), classes).to(memory_format=torch.channels_last)
        adam = torch.optim.Adam(net.parameters())
        x = torch.zeros(design.batch_clips, 1, *store.shape)
        y = torch.zeros(design.batch_clips, dtype=torch.int64)
        times = []
        for _ in range(_PILOT_STEPS + 1):
            begun = time.perf_counter()
            functional.cross_entropy(net(x), y).backward()  # type: ignore[no-untyped-call]
            adam.step()
            adam.zero_grad()
            times.append(time.perf_counter() - begun)
    finally:
        torch.set_num_threads(threads)
    return statistics.median(times[1:])


def compare_runs(workspace: Workspace, names: Sequence[str]) -> dict[str, Any]:
    """Put runs that are there side by side.

    Args:
        workspace: where runs are looked up.
        names: of two or more runs.

    Returns:
        ``runs``: for each its name, mode, data, task, layers, accuracies, chance and seed.

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
