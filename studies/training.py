"""From what is asked of a training to a run of the workspace that has ended and is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from antigram.model.choices import Mode
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.publish import check_goal
from antigram.pipeline.workspace import Workspace, claimed_run, plain_name
from antigram.studies.options import Options, check_options

if TYPE_CHECKING:
    from torch import Tensor

    from antigram.studies.job import Job

__all__ = ["Display", "train_student"]


class Display(Protocol):
    """What shows a training while it goes on: `TrainingDisplay`, for one."""

    def on_progress(self, epoch: int, done: int, steps: int, known: Mapping[str, float]) -> None:
        """Show where the training is."""

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
    init: Path | None = None,
    save: Path | None = None,
    resume: bool = False,
    keep_resume: bool = False,
    device_memory: int | None = None,
    display: Callable[[int], AbstractContextManager[Display]] = _silence,
    on_message: OnMessage = lambda _: None,
    **asked: Any,  # noqa: ANN401 - as `Options` and `TrainConfig` declare them
) -> dict[str, Any]:
    """Train a student on a store, and draw the curves of its run.

    Args:
        workspace: where the run goes, and where store and caches are looked up.
        mode: ``baseline``, ``wi``, ``frozen``, ``online`` or ``cached``.
        name: name of the run; default: MODE-STORE-seedN, numbered if it is taken.
        device: where the student is trained.
        init: a checkpoint whose convolutions the student begins with.
        save: where a copy of the best weights goes.
        resume: go on with the run that was interrupted.
        keep_resume: keep ``last.pt`` at the end, to go on with more epochs.
        device_memory: bytes of a GPU for data; default: half of what is free.
        display: called with the most epochs there can be; gives what shows the training.
        on_message: told which defaults were taken, in lines for people.
        asked: further fields of `Options` and `TrainConfig`; None stands for the default, which in
            a resumed run is the run's own number of ``epochs`` and ``patience``.

    Returns:
        The content of the run's ``result.json``.

    Raises:
        InputError: something is missing, unknown or does not fit, or memory does not suffice.
        StoredDataError: a store, cache, checkpoint or run is damaged or stale.
        DistributedError: another process of a job of torchrun is gone.
    """
    own = {key: asked.pop(key) for key in Options.__slots__ if key in asked}
    for key, kind in (("layers", str), ("betas", str), ("ckpts", Path)):
        own[key] = tuple(map(kind, own.get(key, ())))
    options = Options(mode=mode, **own)
    ends = {key: asked.get(key) for key in ("epochs", "patience")}
    settings = {key: value for key, value in asked.items() if value is not None}
    check_options(options, settings)
    if save is not None:
        check_goal("`save`", save)

    import torch  # only now: what makes no sense is refused at once

    from antigram.model.training.device import named_device
    from antigram.model.training.distributed import distributed_context
    from antigram.model.training.result import copy_best
    from antigram.model.training.resume import keep_ends
    from antigram.model.training.student import build_student
    from antigram.model.training.train import train
    from antigram.pipeline.execution.process import keep_freed_memory
    from antigram.studies.job import resolve
    from antigram.studies.report import draw_run

    place = named_device(device)
    if place.type == "cpu":
        keep_freed_memory(of_any_size=True)
    with ExitStack() as held:
        distributed = held.enter_context(distributed_context(place))
        place = distributed.device(place)
        job = resolve(workspace, options, settings, place, on_message)
        config, store = job.config, job.store
        begin = _begin(job, init, on_message)
        net = build_student(config, len(store.classes[config.task]), begin)
        default = f"{config.mode}-{store.name}-seed{config.seed}"
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
                device=place,
                on_progress=shown.on_progress,
                resume=resume,
                keep_resume=keep_resume,
                distributed=distributed,
                device_memory=device_memory,
                on_message=shown.on_message,
            )
        except torch.OutOfMemoryError as error:
            raise InputError(
                f"{place}: out of memory ({str(error).partition('.')[0]}). Take a smaller "
                "`batch_clips`, `device_memory=0` or `precision=bf16`; `antigram plan` tells "
                "what a step takes."
            ) from None
        except KeyboardInterrupt:
            shown.on_message(
                f"stopped; the same training with `resume` and `name={folder.name}` goes on"
            )
            raise
    if distributed.leads:
        draw_run(folder)
        if save is not None:
            copy_best(folder, save)
    return result


def _begin(job: Job, init: Path | None, on_message: OnMessage) -> Mapping[str, Tensor] | None:
    """Weights that the student's convolutions begin with."""
    from antigram.model.training.guards import load_teacher

    mode = job.config.mode
    if mode in ("wi", "frozen") and job.teacher is not None:
        if init is not None:
            raise InputError(f"`init`: `mode={mode}` begins with `ckpts`; use one of the two")
        return job.teacher.state
    return load_teacher(init, on_message).state if init is not None else None
