"""Build a Gram cache of the workspace from a checkpoint and a store, or estimate its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from antigram.cache.build import Built, build_cache
from antigram.cache.estimate import estimate
from antigram.cache.plan import LayerPlan, plan_layers
from antigram.model.choices import Aggregation, Codec, Control, Dtype, Layer, Precision, Tap
from antigram.model.loss.at_loss import check_combination
from antigram.model.loss.sources import TapSpec
from antigram.model.nets.own import import_own
from antigram.model.training.checkpoint import Teacher
from antigram.model.training.device import named_device
from antigram.model.training.distributed import distributed_context
from antigram.model.training.guards import load_teacher, spectrum_note
from antigram.model.training.teacher_controls import control_teacher
from antigram.pipeline.audio.augmentation import Views
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace, plain_name
from antigram.studies.job import layer_numbers

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
    teacher: Teacher
    plans: Mapping[Layer, LayerPlan]
    target: Path
    made_from: Mapping[str, str]


def plan_cache(
    workspace: Workspace,
    ckpt: Path,
    layers: Sequence[str | int],
    *,
    data: str | None = None,
    tap: Tap = "relu",
    aggregation: Aggregation = "gram",
    codec: Codec | Literal["auto"] = "auto",
    dtype: Dtype | None = None,
    energy: float | None = None,
    rank: int | None = None,
    precision: Precision = "32",
    views: int | None = None,
    teacher_control: Control | None = None,
    control_seed: int = 0,
    seed: int = 0,
    name: str | None = None,
    arch: str | None = None,
    on_message: OnMessage = lambda _: None,
) -> CacheJob:
    """Open the store and the teacher, and validate the arguments against them.

    Args:
        workspace: holds the store; the cache is written to it.
        ckpt: checkpoint of the teacher.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all``.
        data: name of the store; default: the only one, or the one prepared last.
        tap: ``relu``, ``conv`` or ``released``.
        aggregation: what is computed from the feature maps, such as ``gram``.
        codec: form of the rows; ``auto`` chooses the smaller exact one.
        dtype: dtype of the rows; default: float16, with compmul float32.
        energy: fraction of ||G||^2 that lowrank keeps.
        rank: rank of lowrank, instead of ``energy``.
        precision: precision of the teacher's computation.
        views: number of augmented views of each training segment; default: none.
        teacher_control: ``permuted``, ``random`` or ``mean-gram``: see `control_teacher`.
        control_seed: seed of the permutation or of the untrained weights.
        seed: seed of the views.
        name: name of the cache; default: STORE--CKPT, plus the control.
        arch: ``FILE.py:function`` of a teacher that is a user's own network.
        on_message: called with a line of text for each default that was chosen.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
        StoredDataError: the store or the checkpoint is damaged.
    """
    import_own(arch)
    teacher = control_teacher(load_teacher(ckpt, on_message), teacher_control, control_seed)
    store = FeatureStore(workspace.store(data, on_message))
    if note := spectrum_note(ckpt, teacher, store):
        on_message(note)
    numbers = layer_numbers(layers, teacher.arch, store.shape)
    check_combination(aggregation, tap, "cos2", numbers)
    if aggregation == "compmul" and dtype == "float16":
        on_message("compmul: its values differ so little that float16 costs 1 % of the gradient")
    plans = plan_layers(
        store,
        teacher,
        TapSpec(arch=teacher.arch, layers=numbers, tap=tap, aggregation=aggregation),
        codec=codec,
        dtype=dtype or ("float32" if aggregation == "compmul" else "float16"),
        energy=energy,
        rank=rank,
        precision=precision,
        views=None if views is None else Views.for_shape(store.shape, count=views, seed=seed),
        control=teacher_control,
    )
    if data is None and teacher.task == store.main_label:
        on_message(
            f"{ckpt} was trained for {teacher.task}, the main label of {store.name}: if students "
            "learn from another store, name that store with `data`"
        )
    made_from, default = (
        {"store": store.name, "checkpoint": ckpt.stem, "task": teacher.task},
        f"{store.name}--{ckpt.stem}",
    )
    if teacher_control is not None:
        made_from |= {"control": teacher_control, "control_seed": str(control_seed)}
        default += f"-{teacher_control}{control_seed or ''}"
    target = workspace.grams / f"{plain_name(name or default)}.zarr"
    return CacheJob(store, teacher, plans, target, made_from)


def cache_grams(
    workspace: Workspace,
    ckpt: Path,
    layers: Sequence[str | int],
    *,
    batch_clips: int = 32,
    device: str = "auto",
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
    **arguments: Any,  # noqa: ANN401 - as `plan_cache` declares them
) -> Built:
    """Run a teacher over a store once and store its Gram matrices.

    Args:
        workspace: holds the store; the cache is written to it.
        ckpt: checkpoint of the teacher.
        layers: numbers of a VGG's convolution layers, names of modules, or ``all``.
        batch_clips: segments in a batch.
        device: device of the teacher, such as ``cpu`` or ``auto``.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line of text for each default that was chosen.
        arguments: further arguments of `plan_cache`.

    Raises:
        InputError: an argument is missing, unknown or does not fit.
        StoredDataError: the store or the checkpoint is damaged.
        DistributedError: another process of the torchrun job has ended.
    """
    job = plan_cache(workspace, ckpt, layers, on_message=on_message, **arguments)
    torch_device = named_device(device)
    with distributed_context(torch_device) as distributed:
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
        )


def estimate_grams(
    workspace: Workspace,
    ckpt: Path,
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
