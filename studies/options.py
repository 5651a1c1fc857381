"""What may be asked of a training, and what of it makes no sense. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.model.choices import Aggregation, ArchName, Mode, Tap
from antigram.model.nets.arch import Arch
from antigram.model.training.config import TrainConfig
from antigram.pipeline.choices import check_choices
from antigram.pipeline.errors import InputError

__all__ = ["Options", "check_options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was typed; None or empty where nothing was.

    ``layers`` and ``betas`` may name a source in front (``emo:5``): a cache, or a checkpoint's
    file without its ending, which also stands for the cache that was made with it.
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
    arch: ArchName | None = None
    width: int | None = None
    augment: bool = False
    views: int | None = None


def check_options(asked: Options, rest: Mapping[str, Any]) -> None:
    """Refuse what cannot be meant, whatever the stores, caches and checkpoints hold.

    Args:
        asked: what decides the sources.
        rest: further fields of `TrainConfig`.

    Raises:
        InputError: naming the argument.
    """
    check_choices(asked)
    arch = Arch(asked.arch or "vgg16", 64 if asked.width is None else asked.width)
    layers = (1,) if asked.layers else ()  # numbers are checked against the net, which is not read
    TrainConfig(mode=asked.mode, task=asked.task or "", arch=arch, layers=layers, **rest)
    mode = asked.mode
    if mode in ("wi", "frozen", "online") and not asked.ckpts:
        raise InputError(f"`mode={mode}` needs the teacher: `ckpts=FILE`")
    if mode in ("wi", "frozen") and len(asked.ckpts) > 1:
        raise InputError(f"`mode={mode}` begins with one net: give one of `ckpts`")
    if mode == "baseline" and asked.ckpts:
        raise InputError("`mode=baseline` has no teacher: leave `ckpts` out; see also `init`")
    if mode in ("online", "frozen") and not asked.layers:
        raise InputError(f"`mode={mode}` needs a layer: `layers` 1 to 13")
    if mode in ("baseline", "wi") and asked.layers:
        raise InputError(f"`mode={mode}` acts at no layer: leave `layers` out")
    if asked.caches and mode != "cached":
        raise InputError(f"`mode={mode}` reads no cache: leave `caches` out")
