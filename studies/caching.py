"""Build a Gram cache of the workspace from a teacher and a store, or estimate its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from antigram.cache.build import Built, build_cache
from antigram.cache.estimate import estimate
from antigram.cache.plan import LayerPlan, plan_layers
from antigram.model.choices import (
    INT8_NOTE,
    Aggregation,
    Codec,
    Control,
    Layer,
    Precision,
    RowDtype,
    Tap,
)
from antigram.model.loss.at_loss import check_combination
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.own import import_own
from antigram.model.training.any_teacher import AnyTeacher
from antigram.model.training.device import named_device
from antigram.model.training.distributed import DistributedContext, distributed_context
from antigram.model.training.external_teacher import ExternalTeacher
from antigram.model.training.guards import load_teacher, spectrum_note
from antigram.model.training.teacher_controls import control_teacher
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.dask_cluster import cluster_at
from antigram.pipeline.execution.process import keep_freed_memory
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace, plain_name
from antigram.studies.job import layer_numbers
from antigram.studies.teachers import open_external

__all__ = ["CacheJob", "cache_grams", "estimate_grams", "plan_cache"]


@dataclass(frozen=True, slots=True)
class CacheJob:
    """A cache to build, with validated arguments.

    Attributes:
        store: the feature store.
        teacher: the teacher that runs over the store.
        plans: layer -> plan of its rows.
        target: path of the cache, ``NAME.zarr``.
        made_from: names of store and checkpoint, for display only.
    """

    store: FeatureStore
    teacher: AnyTeacher
    plans: Mapping[Layer, LayerPlan]
    target: Path
    made_from: Mapping[str, str]


def plan_cache(
    workspace: Workspace,
    ckpt: Path | None,
    layers: Sequence[str | int],
    *,
    teacher: str | None = None,
    source: Path | None = None,
    noise_source: Path | None = None,
    data: str | None = None,
    tap: Tap = "relu",
    aggregation: Aggregation = "gram",
    grid: tuple[int, int] | None = None,
    codec: Codec | Literal["auto"] = "auto",
    dtype: RowDtype | None = None,
    energy: float | None = None,
    rank: int | None = None,
    precision: Precision = "32",
    views: int | None = None,
    teacher_control: Control | None = None,
    control_seed: int = 0,
    seed: int = 0,
    name: str | None = None,
    arch: str | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> CacheJob:
    """Open the store and the teacher, and validate the arguments against them.

    Args:
        workspace: holds the store; the cache is written to it.
        ckpt: checkpoint of the teacher; None with ``teacher``.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all``, which is the
            default with ``teacher``.
        teacher: a teacher that antigram did not train, instead of ``ckpt``: a name, or
            ``FILE.py:function``; see `external_net`.
        source: folder of the store's recordings, for a teacher that takes audio; default: the
            folder that it was prepared from.
        noise_source: folder of the noise, if noise was mixed in: see `audio_of`.
        data: name of the store; default: the only one, or the one prepared last.
        tap: ``relu``, ``conv`` or ``released``.
        aggregation: what is computed from the feature maps, such as ``gram``.
        grid: height and width that ``pairwise`` averages maps to; default: `default_grid`.
        codec: form of the rows; ``auto`` chooses the smaller exact one.
        dtype: dtype of the rows; default: float16, with compmul float32. int8 takes half the
            space of float16, and changes similarities by up to 0.001: see docs/method.md.
        energy: fraction of ||G||^2 that lowrank keeps.
        rank: rank of lowrank, instead of ``energy``.
        precision: precision of the teacher's computation.
        views: number of augmented views of each training segment; default: none.
        teacher_control: ``permuted``, ``random`` or ``mean-gram``: see `control_teacher`.
        control_seed: seed of the permutation or of the untrained weights.
        seed: seed of the views.
        name: name of the cache; default: STORE--CKPT or STORE--TEACHER, plus the control.
        arch: ``FILE.py:function`` of a teacher that is a user's own network.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line of text for each default that was chosen.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
        StoredDataError: the store or the checkpoint is damaged.
    """
    if (ckpt is None) == (teacher is None):
        raise InputError("`ckpt`, `teacher`: give one of the two, for the network to run")
    opened: AnyTeacher
    if ckpt is None:
        store = FeatureStore(workspace.store(data, on_message))
        opened = open_external(
            str(teacher),
            store,
            workspace,
            source=source,
            noise_source=noise_source,
            on_progress=on_progress,
            on_message=on_message,
        )
        _check_external(str(teacher), opened, arch, views, teacher_control)
        numbers = opened.layers(layers or ["all"])
        label = plain_name(str(opened.arch).replace(".py:", "-"))
    else:
        if source or noise_source:
            raise InputError("`source`: goes with `teacher`; a checkpoint takes stored features")
        if not layers:
            raise InputError("`layers`: name the layers of the checkpoint to cache, or all")
        import_own(arch)
        opened = control_teacher(load_teacher(ckpt, on_message), teacher_control, control_seed)
        store = FeatureStore(workspace.store(data, on_message))
        if note := spectrum_note(ckpt, opened, store):
            on_message(note)
        numbers, label = layer_numbers(layers, opened.arch, store.shape), ckpt.stem
    if grid is not None and aggregation != "pairwise":
        raise InputError("`grid`: goes with `aggregation=pairwise`, which averages maps to it")
    check_combination(aggregation, tap, "cos2", numbers)
    if aggregation == "compmul" and dtype == "float16":
        on_message("compmul: its values differ so little that float16 costs 1 % of the gradient")
    if dtype == "int8":
        on_message(f"{INT8_NOTE}, and takes half the space of float16")
    plans = plan_layers(
        store,
        opened,
        TapSpec(
            arch=opened.arch,
            layers=numbers,
            tap=tap,
            aggregation=aggregation,
            grids={} if grid is None else dict.fromkeys(numbers, grid),
        ),
        codec=codec,
        dtype=dtype or ("float32" if aggregation == "compmul" else "float16"),
        energy=energy,
        rank=rank,
        precision=precision,
        views=None if views is None else Views.for_shape(store.shape, count=views, seed=seed),
        control=teacher_control,
    )
    if data is None and opened.task == store.main_label:
        on_message(
            f"{ckpt} was trained for {opened.task}, the main label of {store.name}: if students "
            "learn from another store, name that store with `data`"
        )
    made_from, default = (
        {"store": store.name, "checkpoint": label, "task": opened.task},
        f"{store.name}--{label}",
    )
    if teacher_control is not None:
        made_from |= {"control": teacher_control, "control_seed": str(control_seed)}
        default += f"-{teacher_control}{control_seed or ''}"
    target = workspace.grams / f"{plain_name(name or default)}.zarr"
    return CacheJob(store, opened, plans, target, made_from)


def _check_external(
    name: str, teacher: AnyTeacher, arch: str | None, views: int | None, control: Control | None
) -> None:
    """Raise if an argument belongs to checkpoints, or to teachers that take features."""
    if arch is not None:
        raise InputError(f"`arch`: belongs to `ckpt`; {name} brings its own network")
    if control not in (None, "mean-gram"):
        raise InputError(
            f"`teacher_control={control}`: changes the weights of a checkpoint; with `teacher`, "
            "mean-gram can be had, and for the others a file with a function of your own"
        )
    if views is not None and isinstance(teacher, ExternalTeacher) and teacher.audio is not None:
        raise InputError(f"`views`: changes stored features, and {name} takes audio; leave it out")


def cache_grams(
    workspace: Workspace,
    ckpt: Path | None,
    layers: Sequence[str | int],
    *,
    batch_clips: int = 32,
    device: str = "auto",
    scheduler: str | None = None,
    check_all: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
    **arguments: Any,  # noqa: ANN401 - as `plan_cache` declares them
) -> Built:
    """Run a teacher over a store once and store its Gram matrices.

    Args:
        workspace: holds the store; the cache is written to it.
        ckpt: checkpoint of the teacher; None with ``teacher``.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all``.
        batch_clips: segments in a batch.
        device: device of the teacher, such as ``cpu`` or ``auto``.
        scheduler: address or file of a Dask scheduler, whose workers then compute, on CPUs.
        check_all: read every byte of existing layers, even of those larger than 8 GB: see
            `cache.build.build_cache`.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line of text for each default that was chosen.
        arguments: further arguments of `plan_cache`.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
        StoredDataError: the store or the checkpoint is damaged.
        DistributedError: another process of the torchrun job has ended.
    """
    job = plan_cache(
        workspace, ckpt, layers, on_progress=on_progress, on_message=on_message, **arguments
    )
    if scheduler is not None and device == "auto":
        device = "cpu"  # workers with and without a GPU would mix two kinds of bytes
    torch_device = named_device(device)
    if scheduler is not None and (torch_device.type != "cpu" or DistributedContext().size > 1):
        raise InputError(
            "`scheduler`: its workers compute on CPUs; for GPUs, use torchrun without `scheduler`"
        )
    if torch_device.type == "cpu":
        keep_freed_memory(of_any_size=True)  # the teacher then takes a quarter less time
    with (
        cluster_at(scheduler, on_message) as cluster,
        distributed_context(torch_device) as distributed,
    ):
        return build_cache(
            job.store,
            job.teacher,
            job.plans,
            job.target,
            made_from=job.made_from,
            batch_clips=batch_clips,
            device=distributed.device(torch_device),
            on_progress=on_progress if distributed.leads else lambda *_: None,
            distributed=distributed,
            cluster=cluster,
            check_all=check_all,
        )


def estimate_grams(
    workspace: Workspace,
    ckpt: Path | None,
    layers: Sequence[str | int],
    *,
    batch_clips: int = 32,
    device: str = "auto",
    on_message: OnMessage = lambda _: None,
    **arguments: Any,  # noqa: ANN401 - as `plan_cache` declares them
) -> dict[str, Any]:
    """Estimate the cost of `cache_grams` with the same arguments; write nothing.

    Returns:
        ``dry_run``, ``cache``, ``name``, ``device``, and the fields of `cache.estimate`: bytes,
        seconds and break-even.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
        StoredDataError: the store or the checkpoint is damaged.
    """
    job = plan_cache(workspace, ckpt, layers, on_message=on_message, **arguments)
    torch_device = named_device(device)
    costs = estimate(
        job.plans, job.store, job.teacher, batch_clips=batch_clips, device=torch_device
    )
    names = {"cache": str(job.target), "name": job.target.name.removesuffix(".zarr")}
    return {"dry_run": True, **names, "device": str(torch_device), **costs}
