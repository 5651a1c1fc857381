"""Import a function from a Python file that the user names as ``FILE.py:function``.

Nothing is imported unless the user names it: checkpoints and caches hold names and digests only.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from antigram.pipeline.errors import InputError

__all__ = ["function_of", "source_digest"]


def source_digest(text: str, argument: str) -> tuple[Path, str, str]:
    """Return the file, the function's name and the SHA-256 of the file of ``FILE.py:function``.

    Args:
        text: ``FILE.py:function``, FILE being a path.
        argument: name of the argument, for the message.

    Raises:
        InputError: the file cannot be read.
    """
    name, _, function = text.rpartition(":")
    path = Path(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"`{argument}` {text}: cannot read {path}: {error.strerror}; wanted FILE.py:function"
        ) from None
    return path, function, hashlib.sha256(content).hexdigest()


def function_of(text: str, argument: str) -> Callable[..., Any]:
    """Import the file of ``FILE.py:function``, and return the function.

    Args:
        text: ``FILE.py:function``, FILE being a path.
        argument: name of the argument, for the message.

    Raises:
        InputError: there is no such file or function, or the file cannot be imported.
    """
    path, name, _ = source_digest(text, argument)
    spec = importlib.util.spec_from_file_location(f"antigram_own_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"`{argument}` {text}: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(
            f"`{argument}` {text}: {path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
        raise InputError(
            f"`{argument}` {text}: {path} has no function {name}; it has "
            f"{', '.join(known) or 'none'}"
        )
    return function  # type: ignore[no-any-return]
