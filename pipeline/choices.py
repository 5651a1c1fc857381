"""Values that a setting may take, each list written once, as a `Literal`.

mypy reads the lists there, the command line offers them, and the library checks against them.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from antigram.pipeline.errors import InputError

__all__ = [
    "Dtype",
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
Longer = Literal["cut", "segment"]
Noise = Literal["none", "low", "high"]
SnrMode = Literal["exact", "released"]
Split = Literal["train", "validation", "test"]
LastWindow = Literal["pad", "end"]
# Windows of scipy.signal that need no number beside their name.
Window = Literal[
    "barthann", "bartlett", "blackman", "blackmanharris", "bohman", "boxcar", "cosine",
    "exponential", "flattop", "hamming", "hann", "lanczos", "nuttall", "parzen", "taylor",
    "triang", "tukey",
]  # fmt: skip


def check_choice(name: str, value: object, known: tuple[object, ...]) -> None:
    """Refuse a value that is none of those known.

    Args:
        name: of the setting, for the message.
        value: of the setting.
        known: what `typing.get_args` returns for a `Literal`.

    Raises:
        InputError: naming the setting, its value and those known.
    """
    if value not in known:
        wanted = ", ".join(str(choice) for choice in known if choice is not None)
        raise InputError(f"{name} is {value!r}; wanted: {wanted}")


def check_choices(settings: object) -> None:
    """Check every field of a dataclass that is annotated with a `Literal`, or with one or None.

    Raises:
        InputError: as `check_choice`.
    """
    for name, known in choices_of(type(settings)).items():
        check_choice(name, getattr(settings, name), known)


def choices_of(kind: type[Any]) -> dict[str, tuple[object, ...]]:
    """Field -> values, for each field of a dataclass that is annotated with a `Literal`."""
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
