"""List the jobs of a study and estimate their cost, without running anything."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.designs import Design
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace
from antigram.studies.compare.data import make_all_folds, store_name, teacher_labels
from antigram.studies.compare.database import Database
from antigram.studies.compare.design import Study
from antigram.studies.compare.jobs import FoldData, Job, Plan, StoreData, plan_jobs

__all__ = ["estimate"]

_TRAIN_SHARE = 0.75  # of the segments
_PILOT_STEPS = 3


def estimate(
    workspace: Workspace, study: Study, database: Path, workers: int, on_message: OnMessage
) -> dict[str, Any]:
    """List the commands of a study, and estimate its hours and bytes.

    Args:
        workspace: where stores are looked up.
        study: what would be run.
        database: database of earlier runs of the study, if there is one.
        workers: trainings at once.
        on_message: called with lines for people.

    Returns:
        ``jobs`` (kind, name and command of each), ``hours`` and ``bytes`` of what is not done yet
        (None while data is not prepared), ``seconds_per_step``, ``estimated_from`` and
        ``not_prepared`` (names of data).
    """
    stores = _there(workspace, study, on_message)
    with ExitStack() as stack:
        beside = {name: _beside_nothing(store, stack) for name, store in stores.items()}
        ready = all(setting.data in stores for setting in study.settings.values())
        folds = make_all_folds(workspace, study, stores, beside) if ready else _named_folds(study)
    other = {
        name: StoreData(stores[name].name, stores[name].fingerprint)
        if name in stores
        else StoreData(store_name(study, name))
        for name in study.data
    }
    plan = plan_jobs(study, folds, other, str(workspace.runs))
    missing = [name for name in study.data if name not in stores]
    kept = Database(database) if database.exists() else None
    states = kept.states() if kept else {}
    left = [job for job in plan.jobs if states.get(job.key) != "done"]
    prepares = [_prepare_command(study, name) for name in missing]
    found: dict[str, Any] = {
        "jobs": [
            *({"kind": "prepare", "name": store_name(study, n), "command": c} for n, c in prepares),
            *(
                {"kind": job.kind, "name": job.name, "command": f"antigram {' '.join(job.command)}"}
                for job in plan.jobs
            ),
        ],
        "hours": None,
        "bytes": None,
        "seconds_per_step": None,
        "estimated_from": f"data that is not prepared yet: {', '.join(missing)}",
        "not_prepared": missing,
    }
    if missing:
        return found
    took = _seconds_so_far(plan, kept, states)
    sizes = {
        data.student.name: len(stores[study.settings[n].data])
        for n, each in folds.items()
        for data in each
    }
    found["bytes"] = sum(
        sizes[job.data] * _bytes_per_segment(job, study, stores)
        for job in left
        if job.kind == "cache"
    )
    if took:
        seconds = sum(took.get(job.kind, 0.0) for job in left)
        found["estimated_from"] = f"{len(states)} jobs of this study that were run before"
    else:
        first = stores[next(iter(study.settings.values())).data]
        found["seconds_per_step"] = round(step := _pilot(first.shape, study), 4)
        segments = {store.name: len(store) for store in stores.values()}
        training = study.training
        seconds = sum(
            math.ceil(
                _TRAIN_SHARE
                * segments.get(Path(job.data).stem.partition("@")[0], 0)
                / training.batch_clips
            )
            * training.epochs
            * step
            for job in left
            if job.kind in ("teacher", "training")
        )
        found["estimated_from"] = (
            f"{_PILOT_STEPS} steps of the baseline on one thread; every epoch is run"
        )
    found["hours"] = round(seconds / workers / 3600, 2)
    return found


def _there(workspace: Workspace, study: Study, on_message: OnMessage) -> dict[str, FeatureStore]:
    """Open the existing stores of a study."""
    stores = {}
    for name, wanted in study.data.items():
        if "store" in wanted:
            stores[name] = FeatureStore(workspace.store(str(wanted["store"]), on_message))
            continue
        path = workspace.features / f"{store_name(study, name)}.zarr"
        try:
            stores[name] = FeatureStore(path)
        except (InputError, StoredDataError):
            continue
    return stores


def _beside_nothing(store: FeatureStore, stack: ExitStack) -> FeatureStore:
    """Open a store through a link in a temporary folder, so that its folds replace no others."""
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="antigram-")))
    (folder / store.path.name).symlink_to(store.path.resolve(), target_is_directory=True)
    return FeatureStore(folder / store.path.name)


def _named_folds(study: Study) -> dict[str, list[FoldData]]:
    """Return empty folds for data that is not prepared, as many as there will be."""
    folds = {}
    for name, setting in study.settings.items():
        store = store_name(study, setting.data)
        names = [store]
        if setting.folds:
            names = [f"{store}@{k}" for k in range(Design.parse(setting.folds).folds)]
        mark = "-" if setting.folds else "@"
        folds[name] = [
            FoldData(
                StoreData(fold),
                {
                    label: StoreData(f"{fold}{mark}{label}")
                    for label in teacher_labels(study, setting)
                },
            )
            for fold in names
        ]
    return folds


def _prepare_command(study: Study, name: str) -> tuple[str, str]:
    options = dict(study.data[name])
    words = ["antigram", "prepare", str(options.pop("corpus")), "--name", store_name(study, name)]
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        words += [flag] if value is True else [flag, f"{value}"]
    return name, " ".join(words)


def _seconds_so_far(
    plan: Plan, kept: Database | None, states: Mapping[str, str]
) -> dict[str, float]:
    """Return the mean time of finished jobs by kind; empty if no training is finished."""
    times: dict[str, list[float]] = {}
    for job in plan.jobs:
        if kept is not None and states.get(job.key) == "done":
            times.setdefault(job.kind, []).append(kept.result(job.key)[1])
    return (
        {kind: statistics.mean(each) for kind, each in times.items()} if "training" in times else {}
    )


def _bytes_per_segment(job: Job, study: Study, stores: Mapping[str, FeatureStore]) -> int:
    """Return the bytes that a cache takes for each segment."""
    from antigram.cache.plan import plan_layers
    from antigram.model.loss.sources import TapSpec
    from antigram.model.nets.arch import Arch
    from antigram.studies.plan import bare_net

    words = list(job.command)
    layers = [words[i + 1] for i, word in enumerate(words) if word == "--layer"]
    arch = Arch(study.training.arch, study.training.width)
    spec = TapSpec(arch=arch, layers=arch.check_layers(layers))
    store = next(iter(stores.values()))
    return sum(
        plan.bytes_per_clip
        for plan in plan_layers(store, bare_net(arch, store.shape), spec).values()
    )


def _pilot(shape: tuple[int, int], study: Study) -> float:
    """Return the time of a training step on one thread of this machine, in seconds."""
    import torch
    from torch.nn import functional

    from antigram.model.nets.arch import Arch
    from antigram.model.nets.networks import build_net

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        training = study.training
        net = build_net(Arch(training.arch, training.width), 10, shape).to(
            memory_format=torch.channels_last
        )
        adam = torch.optim.Adam(net.parameters())
        x = torch.zeros(training.batch_clips, 1, *shape)
        y = torch.zeros(training.batch_clips, dtype=torch.int64)
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
