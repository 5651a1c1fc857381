"""Train a student on a store of the workspace, and write the report of its run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from antigram.model.choices import Mode
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.publish import check_goal
from antigram.pipeline.workspace import Workspace, claimed_run, plain_name
from antigram.studies.localised import check_local_cache, localised
from antigram.studies.options import Options, check_options

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from antigram.model.training.config import TrainConfig
    from antigram.studies.job import Job

__all__ = ["Display", "parted_arguments", "train_student"]

TORCHVISION = "torchvision"  # the word for `init`; a file of this name is ./torchvision


class Display(Protocol):
    """Progress of a training, shown while it runs; `TrainingDisplay` is one implementation."""

    def on_progress(self, epoch: int, done: int, steps: int, known: Mapping[str, float]) -> None:
        """Show the steps done in an epoch and the latest measured values."""

    def on_message(self, text: str) -> None:
        """Show a line."""


class _Silent:
    def on_progress(self, *_: object) -> None:
        pass

    def on_message(self, *_: object) -> None:
        pass


def _silence(_: int) -> AbstractContextManager[Display]:
    return nullcontext(_Silent())


def train_student(
    workspace: Workspace,
    *,
    mode: Mode,
    name: str | None = None,
    device: str = "auto",
    init: Path | str | Sequence[Path | str] | None = None,
    save: Path | None = None,
    resume: bool = False,
    keep_resume: bool = False,
    report: bool = True,
    device_memory: int | None = None,
    local_cache: Path | None = None,
    evict_days: float | None = None,
    display: Callable[[int], AbstractContextManager[Display]] = _silence,
    on_message: OnMessage = lambda _: None,
    **arguments: Any,  # noqa: ANN401 - as `Options` and `TrainConfig` declare them
) -> dict[str, Any]:
    """Train a student on a store, and write the curves and the report of its run.

    Args:
        workspace: holds the store and the caches; the run is written to it.
        mode: ``baseline``, ``wi``, ``frozen``, ``online``, ``cached``, ``dann`` or
            ``coral``.
        name: name of the run; default: MODE-STORE-seedN, with a number if that name is taken.
        device: device of the training, such as ``cpu``, ``cuda:1`` or ``auto``.
        init: checkpoint whose weights, without its classifier, initialise the student; or the word
            ``torchvision`` for torchvision's initial weights in narrow VGGs, too; or both.
        save: file for a copy of the best weights.
        resume: continue the interrupted run.
        keep_resume: keep ``last.pt`` at the end, so that the run can be resumed with more epochs.
        report: write the curves and the report, which takes seconds. A later call with ``resume``
            and the same arguments writes them for a finished run.
        device_memory: bytes of GPU memory for data; default: half of the free memory.
        local_cache: folder for local copies of a store (``data``) and of caches that are named by
            addresses such as ``s3://bucket/NAME.zarr``: see `local_copy`.
        evict_days: first delete the copies in that folder that no training has asked for in as
            many days.
        display: called with the maximum number of epochs; returns a context manager whose value
            is a `Display`.
        on_message: called with a line of text for each default that was chosen.
        arguments: further fields of `Options` and `TrainConfig`; None stands for the default. In a
            resumed run, ``epochs`` and ``patience`` default to the values of the run.

    Returns:
        The content of the run's ``result.json``.

    Raises:
        InputError: an argument is missing, unknown or does not fit, or memory does not suffice.
        StoredDataError: a store, cache, checkpoint or run is damaged or stale.
        DistributedError: another process of the torchrun job has ended.
    """
    ends = {key: arguments.get(key) for key in ("epochs", "patience")}
    options, settings = parted_arguments(mode=mode, **arguments)
    begin_with, words = _split_init(init)
    settings |= words
    if save is not None:
        check_goal("`save`", save)
    check_local_cache(options, local_cache, evict_days)

    import torch  # imported only now, so that contradictory options are refused at once

    from antigram.model.training.device import named_device
    from antigram.model.training.distributed import distributed_context
    from antigram.model.training.result import copy_best
    from antigram.model.training.resume import keep_ends
    from antigram.model.training.student import build_student
    from antigram.model.training.train import train
    from antigram.pipeline.execution.process import keep_freed_memory
    from antigram.studies.job import resolve

    torch_device = named_device(device)
    if torch_device.type == "cpu":
        keep_freed_memory(of_any_size=True)
    with ExitStack() as held:
        distributed = held.enter_context(distributed_context(torch_device))
        torch_device = distributed.device(torch_device)
        options, addresses = localised(options, local_cache, evict_days, on_message)
        job = resolve(workspace, options, settings, torch_device, on_message)
        config, store = job.config, job.store
        begin = _begin(job, begin_with, on_message)
        net = build_student(config, len(store.classes[config.task]), begin, store.shape)
        control = "-shuffled" if config.shuffle_labels else ""
        default = f"{config.mode}{control}-{store.name}-seed{config.seed}"
        named = None if name is None else plain_name(name)
        folder = Path()
        if distributed.leads:
            folder = held.enter_context(claimed_run(workspace.runs, named, default, resume=resume))
        folder = Path(distributed.share(str(folder)))
        if resume:
            config = keep_ends(folder, config, ends)
        shown = held.enter_context((display if distributed.leads else _silence)(config.epochs))
        try:
            result = train(
                net,
                store,
                job.sources,
                config,
                folder,
                device=torch_device,
                on_progress=shown.on_progress,
                resume=resume,
                keep_resume=keep_resume,
                distributed=distributed,
                device_memory=device_memory,
                addresses=addresses,
                on_message=shown.on_message,
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{torch_device}: out of memory ({str(error).partition('.')[0]}). Take a smaller "
                "`batch_clips`, `device_memory=0` or `precision=bf16`; `antigram plan` tells "
                "what a step takes."
            ) from None
        except KeyboardInterrupt:
            shown.on_message(
                f"stopped; the same training with `resume` and `name={folder.name}` goes on"
            )
            raise
    if distributed.leads:
        if report:
            _draw(folder, job, config, workspace, torch_device)
        if save is not None:
            copy_best(folder, save)
    return result


def parted_arguments(
    *,
    mode: Mode,
    **arguments: Any,  # noqa: ANN401 - as `train_student` takes them
) -> tuple[Options, dict[str, Any]]:
    """Return the options of a training, and its further fields of `TrainConfig`, checked.

    Args:
        mode: as in `train_student`.
        arguments: as in `train_student`.

    Raises:
        InputError: arguments contradict each other.
    """
    fields = {key: arguments.pop(key) for key in Options.__slots__ if key in arguments}
    for key, kind in (("layers", str), ("betas", str), ("ckpts", Path)):
        fields[key] = tuple(map(kind, fields.get(key, ())))
    options = Options(mode=mode, **fields)
    settings = {key: value for key, value in arguments.items() if value is not None}
    check_options(options, settings)
    return options, settings


def _draw(
    folder: Path, job: Job, config: TrainConfig, workspace: Workspace, device: torch.device
) -> None:
    """Write the report of a finished run, with what its network makes of single segments."""
    from antigram.studies.report import draw_run
    from antigram.studies.report.segments import segment_parts

    draw_run(
        folder,
        lambda: segment_parts(
            folder, job.store, config.task, workspace, against=config.against, device=device
        ),
    )


def _split_init(
    init: Path | str | Sequence[Path | str] | None,
) -> tuple[Path | None, dict[str, str]]:
    """Return the checkpoint to begin with, and the setting ``init`` if it is given.

    Raises:
        InputError: two checkpoints are given.
    """
    given = [init] if isinstance(init, Path | str) else list(init or ())
    files = [Path(each) for each in given if str(each) != TORCHVISION]
    if len(files) > 1:
        raise InputError(f"`init` {files[1]}: a student begins with one checkpoint; give one")
    words = {"init": TORCHVISION} if len(files) < len(given) else {}
    return files[0] if files else None, words


def _begin(job: Job, init: Path | None, on_message: OnMessage) -> Mapping[str, Tensor] | None:
    """Return the initial weights of all but the classifier; None for random weights."""
    from antigram.model.training.guards import load_teacher

    mode = job.config.mode
    if mode in ("wi", "frozen") and job.teacher is not None:
        if init is not None:
            raise InputError(f"`init`: `mode={mode}` begins with `ckpts`; use one of the two")
        return job.teacher.body()
    return load_teacher(init, on_message).body() if init is not None else None
