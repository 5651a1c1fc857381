"""Options of a training in a TOML file: `antigram train` with `config`, and `train_options`.

The keys of the file are those of the command's options, written with ``-`` or ``_``; their types
are those of `Options`, `TrainConfig` and `train_student`. This module imports no torch.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from antigram.model.training.config import TrainConfig
from antigram.pipeline.errors import InputError
from antigram.studies.options import Options
from antigram.studies.training import parted_arguments

__all__ = ["config_answer", "key_of", "read_config", "train_options"]

# Options that are called otherwise than the library's argument.
_SPELLED = {"ckpts": "ckpt", "caches": "cache", "layers": "layer", "betas": "beta"}
_SPELLED |= {"batch_clips": "batch-size"}
# Arguments of `train_student` itself; `device-memory` is in GB in the file, as on the command line.
_OF_TRAIN: dict[str, Any] = {
    "name": str,
    "device": str,
    "init": Sequence[Path],
    "save": Path,
    "resume": bool,
    "keep_resume": bool,
    "report": bool,
    "device_memory": float,
    "local_cache": Path,
    "evict_days": float,
}
_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
_WANTED |= {Path: "the path of a file, as text"}


def train_options(file: Path | str) -> dict[str, Any]:
    """Read the options of a training from a TOML file.

    Args:
        file: a file as `antigram train` takes it with ``config``, or prints it with
            ``print_config``. Relative paths in it are relative to the current directory.

    Returns:
        Arguments of `train_student`: ``train_student(workspace, **train_options(file))``.

    Raises:
        InputError: the file cannot be read; or a key is unknown or has a value of another type. The
            message names file and key.
    """
    options = read_config(file)
    if "device_memory" in options:
        options["device_memory"] = int(options["device_memory"] * 1e9)
    return options


def read_config(file: Path | str) -> dict[str, Any]:
    """Read a file as `train_options` does, with ``device_memory`` in GB."""
    try:
        content = tomllib.loads(Path(file).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{file}: cannot be read as TOML: {why}") from None
    known = {key_of(argument).replace("-", "_"): argument for argument in _types()}
    options: dict[str, Any] = {}
    for key, value in content.items():
        argument = known.get(key.replace("-", "_"))
        if argument is None:
            wanted = ", ".join(sorted(map(key_of, _types())))
            raise InputError(f"{file}: {key}: no option of train; wanted one of {wanted}")
        if argument in options:
            raise InputError(f"{file}: {key}: is given twice, with - and with _; keep one")
        try:
            options[argument] = _converted(value, _types()[argument])
        except TypeError as error:
            raise InputError(f"{file}: {key}: is {_toml(value)}; wanted {error}") from None
    return options


def config_answer(
    values: Mapping[str, Any], about: Mapping[str, str | None]
) -> tuple[dict[str, Any], str]:
    """Return options as JSON, and as the text of a file that `read_config` reads.

    Args:
        values: arguments of `train_student`, with ``device_memory`` in GB; None or empty if not
            given.
        about: help text of options, by argument; it stands in a comment for each option whose
            default depends on data, teacher or an earlier run.

    Raises:
        InputError: options contradict each other.
    """
    arguments = {name: value for name, value in values.items() if name not in _OF_TRAIN}
    parted_arguments(**arguments)  # raises if they contradict each other
    # With `resume`, the run's own epochs and patience count, and they are not known here.
    defaults = {} if values.get("resume") else _defaults()
    used: dict[str, Any] = {}
    lines = []
    for argument in _types():
        value = values.get(argument)
        value = defaults.get(argument) if value is None else value
        key = key_of(argument)
        if value is None or value == ():
            text = about.get(argument) or "default: none"
            lines.append(f"# {key}: not given. {text}")
            continue
        used[key] = _plain(value)
        lines.append(f"{key} = {_toml(used[key])}")
    return {"options": used}, "\n".join(lines)


def key_of(argument: str) -> str:
    """Return the key that stands for an argument of `train_student`, as its option is spelled."""
    return _SPELLED.get(argument, argument.replace("_", "-"))


@cache
def _types() -> dict[str, Any]:
    """Return the type of each argument: that of `Options`, or else of `TrainConfig`."""
    own = get_type_hints(Options)
    settings = get_type_hints(TrainConfig)
    del settings["beta"]  # `betas` of `Options` has it, too
    later = {name: kind for name, kind in settings.items() if name not in own}
    return {**own, **later, **_OF_TRAIN}


def _defaults() -> dict[str, Any]:
    """Return the defaults of `TrainConfig` that depend on no other choice."""
    known = {field.name: field.default for field in fields(TrainConfig)}
    own = {*Options.__slots__, "beta", *_OF_TRAIN}
    return {
        name: value
        for name, value in known.items()
        if name not in own and value is not MISSING and value is not None
    }


def _converted(value: object, wanted: Any) -> Any:  # noqa: ANN401 - types and values of TOML
    """Return a value of a file as an argument.

    Raises:
        TypeError: it has another type than is wanted; the text is what is wanted.
    """
    parts = [part for part in get_args(wanted) if part is not NoneType]
    if NoneType in get_args(wanted) and parts:  # X | None
        wanted, parts = parts[0], list(get_args(parts[0]))
    if get_origin(wanted) is Literal:
        choice = str(value) if isinstance(value, int) else value  # such as 32
        if choice not in parts:
            raise TypeError(", ".join(map(str, parts)))
        return choice
    if get_origin(wanted) is Sequence:
        texts = value if isinstance(value, list) else [value]
        return tuple(_item(text, parts[0]) for text in texts)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if wanted is Path and isinstance(value, str) and value:
        return Path(value)
    if type(value) is not wanted or value == "":
        raise TypeError(_WANTED[wanted])
    return value


def _item(value: object, wanted: type) -> Any:  # noqa: ANN401 - a text or a path
    """Return one of several values; numbers of layers and betas may be numbers or text."""
    if wanted is str and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return _converted(value, wanted)


def _plain(value: object) -> Any:  # noqa: ANN401 - what TOML can hold
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _toml(value: object) -> str:
    """Return a value as TOML; what JSON escapes in a text, TOML escapes alike."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str | bool | int):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value)  # dates and tables, in messages only
