"""A user's own network: a function in a Python file, named as ``FILE.py:function``.

The file is imported only when a user names it. A checkpoint holds its name and SHA-256, and never
imports code by itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from antigram.model.nets.arch import FULL_WIDTH, OWN, Arch
from antigram.model.nets.user_code import function_of, source_digest
from antigram.pipeline.errors import InputError

__all__ = ["build_own", "import_own", "named_arch", "own_arch", "takes"]

_ARGUMENTS = ("classes", "shape", "width", "dropout")
# Functions of the files that were named in this process, by architecture at the full width.
_KNOWN: dict[Arch, Callable[..., Any]] = {}


def named_arch(text: str | None, width: int | None, origin: Arch | None = None) -> Arch:
    """Return the architecture that a user asks for.

    Args:
        text: name of one of antigram's networks, or ``FILE.py:function``; None for that of
            ``origin``.
        width: width; None for that of ``origin``.
        origin: architecture of the teacher; by default a standard VGG16.

    Raises:
        InputError: there is no such network, or it cannot have the width; or as for `own_arch`.
    """
    if text is not None and OWN in text:
        return own_arch(text, width)
    base = origin or Arch()
    if text is None and width is not None and not takes(base, "width"):
        raise InputError(f"`width` {width}: {base.name} takes no width; leave it out")
    wide = base.width if width is None else width
    return replace(base, width=wide) if text is None else Arch(text, wide)


def import_own(text: str | None) -> None:
    """Import the file of a network of which a checkpoint will be opened.

    Args:
        text: ``FILE.py:function``; None to do nothing.

    Raises:
        InputError: the text is no such name, or as for `own_arch`.
    """
    if text is None:
        return
    if OWN not in text:
        raise InputError(
            f"`arch` {text}: a checkpoint says which of antigram's networks it has; give `arch` "
            "for a network of your own, as FILE.py:function, and leave it out otherwise"
        )
    own_arch(text)


def own_arch(text: str, width: int | None = None) -> Arch:
    """Import the file of a network, and return its architecture.

    Args:
        text: ``FILE.py:function``, FILE being a path. The function returns a module that takes
            ``(segment, 1, frame, freq)`` and returns logits ``(segment, class)``. Its parameters
            are any of ``classes`` (needed), ``shape``, the ``(frame, freq)`` of a segment,
            ``width`` and ``dropout``; they are passed by name.
        width: for a function with the parameter ``width``; default: 64.

    Raises:
        InputError: there is no such file or function, the file cannot be imported, the function
            has other parameters, or the width is given and the function does not take it.
    """
    path, function, digest = source_digest(text, "arch")
    arch = Arch(f"{path.name}:{function}", source=digest)
    if arch not in _KNOWN:
        _KNOWN[arch] = _checked(text, function_of(text, "arch"))
    if width is None:
        return arch
    if not takes(arch, "width"):
        raise InputError(f"`width` {width}: {text} takes no width; leave it out")
    return replace(arch, width=width)


def _checked(text: str, function: Callable[..., Any]) -> Callable[..., Any]:
    parameters = inspect.signature(function).parameters.values()
    needed = {p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    if "classes" not in {p.name for p in parameters} or needed - set(_ARGUMENTS):
        raise InputError(
            f"`arch` {text}: {text.rpartition(':')[2]} has the parameters "
            f"{', '.join(p.name for p in parameters) or 'none'}; wanted classes, and any of "
            "shape, width, dropout"
        )
    return function


def takes(arch: Arch, parameter: str) -> bool:
    """Return whether the function of a network has a parameter; of antigram's own, all have.

    Raises:
        InputError: the file of the network was not named in this process.
    """
    return not arch.source or parameter in inspect.signature(_known(arch)).parameters


def _known(arch: Arch) -> Callable[..., Any]:
    if (function := _KNOWN.get(replace(arch, width=FULL_WIDTH))) is None:
        others = [other for other in _KNOWN if other.name == arch.name]
        if others:
            raise InputError(
                f"`arch` {arch.name}: the file has changed: its SHA-256 is "
                f"{others[-1].source[:12]}, that of the network was {arch.source[:12]}. Name the "
                "file as it was"
            )
        raise InputError(
            f"the network {arch.name} is a user's own, and no code is imported by itself: name "
            f"its file with `arch=FOLDER/{arch.name}` (SHA-256 {arch.source[:12]})"
        )
    return function


def build_own(arch: Arch, classes: int, shape: tuple[int, int], dropout: float) -> nn.Module:
    """Build a user's own network.

    Args:
        arch: from `own_arch`.
        classes: number of outputs.
        shape: ``(frame, freq)`` of a segment.
        dropout: passed if the function has this parameter.

    Raises:
        InputError: the file was not named in this process, or has changed; or the function raises,
            or does not return a module.
    """
    function = _known(arch)
    values = {"classes": classes, "shape": shape, "width": arch.width, "dropout": dropout}
    known = inspect.signature(function).parameters
    try:
        net = function(**{name: value for name, value in values.items() if name in known})
    except Exception as error:
        raise InputError(
            f"`arch` {arch.name}: the function failed: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    if not isinstance(net, nn.Module):
        raise InputError(
            f"`arch` {arch.name}: the function returned {type(net).__name__}; wanted a module"
        )
    return net
