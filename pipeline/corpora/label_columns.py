"""Choose the label columns of a user's table, and the main one among them.

A label is a property that several recordings share. Columns whose values differ from file to file
(ids, file names, free text, measurements) are not labels, unless the user names them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from antigram.pipeline.corpus import CorpusError

__all__ = ["Chosen", "Spellings", "choose_labels"]

_FEW = 5  # least number of known values; fewer may all differ by chance
_WORDS = 3  # a value of this many words counts as a sentence


@dataclass(frozen=True, slots=True)
class Chosen:
    """Label columns, the main one first, and the reason why each other column is not a label."""

    labels: tuple[str, ...]
    left_out: Mapping[str, str]


class Spellings:
    """The spellings of one label's classes; refuses spellings that look the same but differ."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, str]] = {}

    def add(self, value: str, where: str) -> None:
        """Add a value as it is written in the table.

        Args:
            value: the cell's text.
            where: file, line and column, for the message.

        Raises:
            CorpusError: the value differs from an earlier value only in surrounding blanks, or in
                the encoding of its accents.
        """
        normal = unicodedata.normalize("NFC", value).strip()
        first, earlier = self._seen.setdefault(normal, (value, where))
        if first != value:
            difference = "blanks around it" if first.strip() == value.strip() else "encoded accents"
            raise CorpusError(
                f"{where}: {value!r} and {first!r} ({earlier}) differ in nothing but "
                f"{difference}; wanted one spelling of a class: make them equal"
            )


def choose_labels(
    columns: Mapping[str, Sequence[str]], picked: Sequence[str], main: str, where: str
) -> Chosen:
    """Choose the label columns of a table.

    Args:
        columns: name -> values ('' where unknown), without the columns of paths and splits.
        picked: names of the columns to take; empty: ``label`` and all columns that can be labels.
        main: name of the main label; empty: ``label``, else the first label with two classes or
            more.
        where: file of the table, with which each message begins.

    Raises:
        CorpusError: a named column does not exist, or no column can be a label.
    """
    known = ", ".join(columns) or "none"
    for option, names in (("labels", picked), ("main_label", [main] if main else [])):
        for name in names:
            if name not in columns:
                raise CorpusError(f"{where}: `{option}` {name!r}: no such column; there is {known}")
    reasons = {name: _why_not(values) for name, values in columns.items()}
    wanted = set(picked) or {"label", main}
    taken = [name for name in picked or columns if name in wanted or not (picked or reasons[name])]
    left_out = {name: reasons[name] or "not picked" for name in columns if name not in taken}
    if not taken:
        listed = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "none"
        raise CorpusError(
            f"{where}: no column can be a label ({listed}). Wanted: a column whose values are the "
            "classes of the files; name one with `main_label` if it is there"
        )
    if not main:
        informative = [name for name in taken if len(set(columns[name]) - {""}) > 1]
        main = "label" if "label" in taken else (informative or taken)[0]
    return Chosen((main, *(name for name in taken if name != main)), left_out)


def _why_not(values: Sequence[str]) -> str:
    """Return the reason why a column's values are not classes; empty if they may be classes."""
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
