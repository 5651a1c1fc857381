"""Which columns of a user's table are labels, and which of them is the main one.

A label is something that clips have in common. What is another for each file (ids, file names,
free text, measured numbers) is none, unless it is asked for by name.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from antigram.pipeline.corpus import CorpusError

__all__ = ["Chosen", "Spellings", "choose_labels"]

_FEW = 5  # known values: of fewer, nobody can tell whether they are different by chance
_WORDS = 3  # in a value that reads as a sentence


@dataclass(frozen=True, slots=True)
class Chosen:
    """Label columns, the main one first; and why the others are none."""

    labels: tuple[str, ...]
    left_out: Mapping[str, str]


class Spellings:
    """Values of one label; refuses those that look the same and are not."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def add(self, value: str, where: str) -> None:
        """A value as it stands.

        Raises:
            CorpusError: it differs from an earlier one only in blanks around it, or in how its
                accents are encoded.
        """
        looks = unicodedata.normalize("NFC", value).strip()
        first, there = self._seen.setdefault(looks, (value, where))
        if first != value:
            how = "blanks around it" if first.strip() == value.strip() else "encoded accents"
            raise CorpusError(
                f"{where}: {value!r} and {first!r} ({there}) differ in nothing but {how}; wanted "
                "one spelling of a class: make them equal"
            )


def choose_labels(
    columns: Mapping[str, Sequence[str]], picked: Sequence[str], main: str, where: str
) -> Chosen:
    """Choose the label columns of a table.

    Args:
        columns: name -> values (empty where not known), less those with another meaning.
        picked: names of those to take; empty: those that can be labels, and ``label``.
        main: name of the main one; empty: ``label``, else the first with two classes or more.
        where: begins a message.

    Raises:
        CorpusError: a column asked for is not there, or none can be a label.
    """
    there = ", ".join(columns) or "none"
    for option, names in (("--labels", picked), ("--main-label", [main] if main else [])):
        for name in names:
            if name not in columns:
                raise CorpusError(f"{where}: {option} {name!r}: no such column; there is {there}")
    reasons = {name: _why_not(values) for name, values in columns.items()}
    wanted = set(picked) or {"label", main}
    taken = [name for name in picked or columns if name in wanted or not (picked or reasons[name])]
    left_out = {name: reasons[name] or "not picked" for name in columns if name not in taken}
    if not taken:
        listed = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "none"
        raise CorpusError(
            f"{where}: no column can be a label ({listed}). Wanted: a column whose values are the "
            "classes of the files; name one with --main-label if it is there"
        )
    if not main:
        tells = [name for name in taken if len(set(columns[name]) - {""}) > 1]
        main = "label" if "label" in taken else (tells or taken)[0]
    return Chosen((main, *(name for name in taken if name != main)), left_out)


def _why_not(values: Sequence[str]) -> str:
    """Why values are no classes; empty if they can be."""
    known = [value for value in values if value]
    different = len(set(known))
    if not known:
        return "it is empty"
    if len(known) < _FEW or 2 * different <= len(known):
        return ""
    share = f"{different} of {len(known)} differ"
    if different == len(known):
        return f"another value for each file ({share})"
    if all(map(_is_number, known)) and any(not value.isdecimal() for value in known):
        return f"measured numbers ({share})"
    if 2 * sum(len(value.split()) >= _WORDS for value in known) > len(known):
        return f"free text ({share})"
    return ""


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
