"""The values that each setting may take, as `Literal` types.

Each list is written once: mypy checks code against it, the command line offers its values, and the
library refuses all others.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from antigram.pipeline.errors import InputError

__all__ = [
    "Dtype",
    "Features",
    "LastWindow",
    "Longer",
    "Noise",
    "SnrMode",
    "Split",
    "Window",
    "check_choice",
    "check_choices",
    "choices_of",
]

Dtype = Literal["float32", "float16"]
Features = Literal["magnitude", "log-magnitude", "mel", "log-mel"]
Longer = Literal["cut", "segment"]
Noise = Literal["none", "low", "high"]
SnrMode = Literal["exact", "released"]
Split = Literal["train", "validation", "test"]
LastWindow = Literal["pad", "end"]
# Windows of scipy.signal that take no further parameter.
Window = Literal[
    "barthann", "bartlett", "blackman", "blackmanharris", "bohman", "boxcar", "cosine",
    "exponential", "flattop", "hamming", "hann", "lanczos", "nuttall", "parzen", "taylor",
    "triang", "tukey",
]  # fmt: skip


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Raise if a setting's value is not one of the known values.

    Args:
        name: name of the setting, for the message.
        value: value of the setting.
        known: the accepted values, as `typing.get_args` returns them for a `Literal`.

    Raises:
        InputError: the value is unknown; the message lists the accepted values.
    """
    if value not in known:
        wanted = ", ".join(str(choice) for choice in known if choice is not None)
        raise InputError(f"{name} is {value!r}; wanted: {wanted}")


def check_choices(settings: object) -> None:
    """Check every field of a dataclass that is annotated with a `Literal`, or a `Literal` or None.

    Raises:
        InputError: a field has an unknown value; the message lists the accepted values.
    """
    for name, known in choices_of(type(settings)).items():
        check_choice(name, getattr(settings, name), known)


def choices_of(kind: type[Any]) -> dict[str, tuple[object, ...]]:
    """Return the accepted values of each dataclass field that is annotated with a `Literal`."""
    known = {name: tuple(_values(hint)) for name, hint in get_type_hints(kind).items()}
    return {name: values for name, values in known.items() if any(v is not None for v in values)}


def _values(hint: Any) -> list[object]:  # noqa: ANN401 - an annotation has no type of its own
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        parts = get_args(hint)
        values = [value for part in parts for value in _values(part)]
        return [*values, None] if NoneType in parts else values
    return []
