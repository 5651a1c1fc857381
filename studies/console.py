"""Parts shared by all commands: parameter types, messages, and handling of failures.

This module names only the options that every command takes. It imports nothing slow.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from antigram.pipeline.errors import DistributedError, InputError, StoredDataError
from antigram.pipeline.execution.terminal import safe, safe_json

if TYPE_CHECKING:
    from antigram.pipeline.workspace import Workspace
    from antigram.studies.display import TrainingDisplay

__all__ = [
    "App",
    "Beta",
    "Context",
    "Device",
    "Layer",
    "Layers",
    "Pairs",
    "common_options",
    "expected_failure",
    "run",
]

_LEADS = os.environ.get("RANK", "0") == "0"  # torchrun's
# Errors of the system that are no defect of antigram even if they name no file.
_SYSTEM_LIMITS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EIO)
_LESS_MEMORY = (
    "Free some, or take a smaller `batch_clips`, `width` or fewer `workers`; "
    "`antigram plan` tells what a step takes."
)
_ARGUMENT = re.compile(r"`([a-z_]+)(?:=(.*?))?`")


class _Pattern(click.ParamType[str]):
    """A parameter type for text that matches a pattern."""

    pattern: str
    wanted: str

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str:
        """Return the text unchanged if it matches the pattern; else fail."""
        if re.fullmatch(self.pattern, value, re.ASCII) is None:
            self.fail(f"{value!r} is not {self.wanted}.", param, ctx)
        return str(value)


class Layer(_Pattern):
    """A parameter type for a layer: ``5``, ``layer3.1``, or ``all``.

    With ``of_source`` also ``STUDENT=TEACHER``, and either with ``NAME:`` before it.
    """

    name = "layer"
    wanted = "the number of a convolution layer, the name of a module, or all"

    def __init__(self, *, of_source: bool = False) -> None:
        self.pattern = r"(\d{1,3}(\.[^\s:=]+)?|[A-Za-z_][^\s:=]*)"
        if of_source:
            self.pattern = rf"(.+:)?{self.pattern}(={self.pattern})?"


class Beta(_Pattern):
    """A parameter type for a weight of the AT loss: ``0.5`` or ``NAME:0.5``."""

    name = "beta"
    pattern = r"(.+:)?[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?"
    wanted = "a number, or NAME:NUMBER"


class Layers(click.ParamType[tuple[int | str, ...]]):
    """A parameter type for layers with commas between them, such as ``5,9,13``."""

    name = "layers"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[int | str, ...]:
        """Return the layers without duplicates: sorted numbers, then names in their order."""
        if isinstance(value, tuple):
            return value
        if re.fullmatch(r"[A-Za-z0-9_][^\s:=,]*(,[A-Za-z0-9_][^\s:=,]*)*", value) is None:
            self.fail(f"{value!r} is no list of layers such as 5,9,13.", param, ctx)
        texts = dict.fromkeys(value.split(","))
        numbers = sorted({int(text) for text in texts if text.isdecimal()})
        return (*numbers, *(text for text in texts if not text.isdecimal()))


class Pairs(click.ParamType[dict[str, str]]):
    """A parameter type for pairs with commas between them, such as ``iemocap=fsdd,gsc=asc``."""

    name = "pairs"

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click declares it
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> dict[str, str]:
        """Return a mapping of the left sides to the right sides."""
        if isinstance(value, dict):
            return value
        if re.fullmatch(r"[^=,]+=[^=,]+(,[^=,]+=[^=,]+)*", value) is None:
            self.fail(f"{value!r} is no list of pairs such as gsc=asc.", param, ctx)
        return dict(pair.split("=") for pair in value.split(","))


class Device(_Pattern):
    """A parameter type for a device as torch names it, or ``auto``."""

    name = "device"
    pattern = r"auto|cpu|cuda(:\d{1,2})?"
    wanted = "cpu, cuda, cuda:1 or auto"


class App(click.Group):
    """A group of commands that rejects empty values and translates library arguments to options.

    Empty text usually comes from an unset variable of the shell.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Raise a usage error that names an option without a value; else parse the arguments."""
        for before, text in zip(["", *args], args, strict=False):
            is_option = text.startswith("--")
            option, equals, value = text.partition("=") if is_option else (before, "=", text)
            if equals and not value.strip():
                name = option if option.startswith("-") else "an argument"
                raise click.UsageError(f"{name} is empty; give a value, or leave it out.", ctx)
        return super().parse_args(ctx, args)

    def in_options(self, text: str) -> str:
        """Replace library arguments in backquotes by the options that stand for them.

        With an option ``--max-steps``, `` `max_steps` `` becomes ``--max-steps`` and
        `` `max_steps=3` `` becomes ``--max-steps 3``. Other text in backquotes stays unchanged.
        """

        def named(match: re.Match[str]) -> str:
            option = options.get(match[1])
            return match[0] if option is None else " ".join(filter(None, (option, match[2])))

        params = [param for command in self.commands.values() for param in command.params]
        declared = [param for param in params if isinstance(param, click.Option)]
        options = {p.opts[-1].strip("-").replace("-", "_"): p.opts[-1] for p in declared}
        options |= {p.name: p.opts[-1] for p in declared if p.name}  # names of library arguments
        return _ARGUMENT.sub(named, text)


@dataclass(slots=True)
class Context:
    """Workspace and output settings of a command.

    Attributes:
        workspace: holds stores, caches and runs.
        json: whether the answer is printed as JSON.
        wording: function applied to each line before it is shown.
    """

    workspace: Workspace
    json: bool
    wording: Callable[[str], str]

    def on_message(self, text: str) -> None:
        """Show a line on stderr; in a torchrun job, only rank 0 does."""
        if _LEADS:
            click.echo(safe(self.wording(text)), err=True)

    @contextmanager
    def progress(self) -> Iterator[dict[str, Any]]:
        """Yield callbacks ``on_progress`` and ``on_message`` that write to stderr."""
        from antigram.pipeline.execution.progress import Progress

        with Progress(wording=self.wording) as shown:
            both = {"on_progress": shown.on_progress, "on_message": shown.on_message}
            yield both if _LEADS else dict.fromkeys(both, lambda *_: None)

    def display(self, epochs: int) -> TrainingDisplay:
        """Return a display for a training of at most ``epochs`` epochs."""
        from antigram.studies.display import TrainingDisplay

        return TrainingDisplay(epochs, self.wording)

    def answer(self, content: Mapping[str, Any], text: str) -> None:
        """Print the answer on stdout, as JSON or as text."""
        if _LEADS:
            click.echo(safe_json(content) if self.json else safe(text))


def expected_failure(error: BaseException) -> tuple[str, int] | None:
    """Return message and exit code of an expected failure; None for a defect of antigram."""
    match error:
        case InputError():
            return str(error), 2
        case StoredDataError():
            return str(error), 3
        case DistributedError():
            return str(error), 1
        case click.exceptions.Abort() | KeyboardInterrupt():
            return "interrupted; run the same command again to continue (train: with `resume`)", 130
        case click.ClickException():
            at = error.ctx if isinstance(error, click.UsageError) else None
            command = at.command_path if at else "antigram"
            return f"{error.format_message()} See `{command} --help`.", 2
        case OSError() if error.filename is not None or error.errno in _SYSTEM_LIMITS:
            where = error.filename or "the workspace"
            text = f"{where}: {error.strerror}. Finished work is kept; solve this and run again."
            return text, 2
        case MemoryError():
            return f"out of memory{f' ({error})' if str(error) else ''}. {_LESS_MEMORY}", 2
        case ImportError() if "failed to map segment" in str(error):  # the linker's words
            return f"out of memory ({error}). {_LESS_MEMORY}", 2
        case RuntimeError() if "can't allocate memory" in str(error):  # torch's, of the host
            return f"out of memory. {_LESS_MEMORY}", 2
    return None


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--workspace``, ``--json`` and ``--verbose`` as options of a command."""

    @click.option("--workspace", type=click.Path(path_type=Path), hidden=True)
    @click.option("--json", "as_json", is_flag=True, hidden=True)
    @click.option("-v", "--verbose", is_flag=True, hidden=True)
    @wraps(command)
    def inner(
        ctx: click.Context,
        workspace: Path | None,
        as_json: bool,  # noqa: FBT001 - click passes flags by name
        verbose: bool,  # noqa: FBT001
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        from antigram.pipeline.workspace import Workspace

        common: Context = ctx.obj
        if workspace is not None:
            common.workspace = Workspace(workspace)
        common.json = common.json or as_json
        ctx.find_root().params["as_json"] = common.json
        if verbose:
            logging.basicConfig(level=logging.DEBUG)
        return command(common, **kwargs)

    return click.pass_context(inner)


def run(app: App) -> int:
    """Run the command of ``sys.argv`` and return its exit code.

    An expected failure is printed as one line on stderr, with ``--json`` also as an object.
    """
    try:
        code = app.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except BaseException as error:
        if (failure := expected_failure(error)) is None:
            raise
        line = safe(" ".join(app.in_options(failure[0]).split()))
        click.echo(f"antigram: {line}", err=True)
        if "--json" in sys.argv:
            click.echo(safe_json({"error": line, "exit_code": failure[1]}))
        return failure[1]
    return code if isinstance(code, int) else 0
