"""Choose the label columns of a user's table, and the main one among them.

A label is a property that several recordings share. Columns whose values differ from file to file
(ids, file names, free text, measurements) are not labels, unless the user names them.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from antigram.pipeline.corpora.strict_csv import BadCellError, split_line
from antigram.pipeline.corpus import Corpus, CorpusError

__all__ = [
    "Chosen",
    "Spellings",
    "check_options",
    "choose_labels",
    "column_names",
    "resolve_option",
    "why_no_label",
]

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


def column_names(option: str, value: str) -> tuple[str, ...]:
    """Parse names of columns from a line of CSV, where a name with a comma is in quotes.

    Raises:
        CorpusError: the line is malformed, or a name is empty or occurs twice.
    """
    try:
        names = tuple(name.strip() for _, name in split_line(value)) if value else ()
    except BadCellError as error:
        raise CorpusError(f"`{option}` {value!r}: {error}") from None
    if "" in names or len(set(names)) < len(names):
        raise CorpusError(
            f"`{option}` {value!r}: wanted names of columns, each once, like mood,singer"
        )
    return names


def resolve_option(option: str, value: str) -> str:
    """Return the canonical form of `labels` or `main_label`: no blanks around names, few quotes."""
    if option == "main_label":
        return value.strip()
    quoted = (
        '"' + n.replace('"', '""') + '"' if set(n) & set(',"') else n
        for n in column_names(option, value)
    )
    return ",".join(quoted)


def check_options(corpus: Corpus, options: Mapping[str, str]) -> Corpus:
    """Return the corpus as it is.

    Raises:
        CorpusError: `main_label` is not among `labels`.
    """
    picked, main = column_names("labels", options["labels"]), options["main_label"]
    if picked and main and main not in picked:
        raise CorpusError(
            f"`main_label` {main!r}: is not among `labels={options['labels']}`; name it there, too"
        )
    return corpus


def choose_labels(
    columns: Mapping[str, Sequence[str]],
    picked: Sequence[str],
    main: str,
    where: str,
    *,
    refused: Mapping[str, str] | None = None,
) -> Chosen:
    """Choose the label columns of a table.

    Args:
        columns: name -> values ('' where unknown), without the columns of paths and splits.
        picked: names of the columns to take; empty: ``label`` and all columns that can be labels.
        main: name of the main label; empty: ``label``, else the first label with two classes or
            more.
        where: file of the table, with which each message begins.
        refused: names of further columns, not among the picked ones, and why each is no label.

    Raises:
        CorpusError: a named column does not exist, or no column can be a label.
    """
    known = ", ".join(columns) or "none"
    for option, names in (("labels", picked), ("main_label", [main] if main else [])):
        for name in names:
            if name not in columns:
                raise CorpusError(f"{where}: `{option}` {name!r}: no such column; there is {known}")
    reasons = {name: why_no_label(values) for name, values in columns.items()}
    wanted = set(picked) or {"label", main}
    taken = [name for name in picked or columns if name in wanted or not (picked or reasons[name])]
    left_out = {name: reasons[name] or "not picked" for name in columns if name not in taken}
    left_out |= refused or {}
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


def why_no_label(values: Sequence[str]) -> str:
    """Return the reason why a column's values are not classes; empty if they may be classes.

    Args:
        values: the value of each file; '' where it is unknown.
    """
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
