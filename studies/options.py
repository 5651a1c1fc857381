"""Options of a training and the checks that need no stored data. This module imports no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.model.choices import NEED_LABELS, Aggregation, Mode, Tap
from antigram.model.nets.arch import OWN, Arch
from antigram.model.training.config import TrainConfig
from antigram.pipeline.choices import check_choices
from antigram.pipeline.errors import InputError

__all__ = ["Options", "check_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that decide the data and the teachers of a training; None or empty if not given.

    Values of ``layers`` and ``betas`` may have the prefix ``SOURCE:``, as in ``emo:5``. SOURCE is
    the name of a cache, or the file name of a checkpoint without its suffix. A checkpoint's name
    also stands for the cache made with that checkpoint. A layer ``STUDENT=TEACHER`` compares a
    layer of the student with another one of the teacher, as in ``layer3=10``.
    """

    mode: Mode
    data: str | None = None
    task: str | None = None
    ckpts: Sequence[Path] = ()
    caches: Sequence[str] = ()
    layers: Sequence[str] = ()
    betas: Sequence[str] = ()
    tap: Tap | None = None
    aggregation: Aggregation | None = None
    arch: str | None = None
    width: int | None = None
    augment: bool = False
    views: int | None = None


def check_options(options: Options, settings: Mapping[str, Any]) -> None:
    """Raise if options contradict each other, before any stored data is read.

    Args:
        options: data and teachers of the training.
        settings: further fields of `TrainConfig`.

    Raises:
        InputError: options contradict each other; the message names the argument.
    """
    check_choices(options)
    own = OWN in (options.arch or "")
    arch = Arch(
        "vgg16" if own else options.arch or "vgg16", 64 if options.width is None else options.width
    )
    # The numbers are checked later, as the checkpoint limits them and is not read here.
    layers = (1,) if options.layers else ()
    mode, task = options.mode, options.task or ""
    # Without an aggregation the cache decides, which is not read here.
    aggregation = options.aggregation or "gram"
    if options.aggregation is None and mode == "cached" and settings.get("similarity") == "cka":
        aggregation = "pairwise"
    TrainConfig(mode=mode, task=task, arch=arch, layers=layers, aggregation=aggregation, **settings)
    if mode in ("wi", "frozen", "online") and not options.ckpts:
        raise InputError(f"`mode={mode}` needs the teacher: `ckpts=FILE`")
    if mode in ("wi", "frozen") and len(options.ckpts) > 1:
        raise InputError(f"`mode={mode}` begins with one network: give one of `ckpts`")
    if mode in ("baseline", *NEED_LABELS) and options.ckpts:
        raise InputError(f"`mode={mode}` has no teacher: leave `ckpts` out; see also `init`")
    if mode in ("online", "frozen") and not options.layers:
        raise InputError(f"`mode={mode}` needs a layer: `layers` 1 to 13")
    if mode in ("baseline", "wi", *NEED_LABELS) and options.layers:
        raise InputError(f"`mode={mode}` uses no layer: leave `layers` out")
    if options.caches and mode != "cached":
        raise InputError(f"`mode={mode}` reads no cache: leave `caches` out")
