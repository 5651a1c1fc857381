"""Your own recordings: a directory for each class, or a ``metadata.csv``.

The first of these layouts that matches is used (docs/own-recordings.md has examples):

* ``metadata.csv`` with a column ``file_name`` or ``file`` (relative path) and label columns, as in
  Hugging Face's AudioFolder. A column ``split`` (train, validation, test) is the official split. An
  empty cell means that the label of that file is unknown. The main label is ``--main-label``, else
  the column ``label``, else the first suitable column; ``--labels`` selects columns. The table is
  parsed strictly.
* ``train/CLASS/*.wav``, ``validation/CLASS/...``, ``test/CLASS/...``: an official split.
* ``CLASS/**/*.wav``: the label is called ``label``.

Recordings longer than a segment are segmented; all segments of a file are in the same split.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.audio.decoding import SUFFIXES
from antigram.pipeline.corpora.label_columns import (
    Spellings,
    check_options,
    choose_labels,
    column_names,
    resolve_option,
)
from antigram.pipeline.corpora.split_names import SPLIT_NAMES
from antigram.pipeline.corpora.strict_csv import Row, Table, read_table
from antigram.pipeline.corpus import (
    Clip,
    Corpus,
    CorpusError,
    Entry,
    Note,
    Rejected,
    Skipped,
    Split,
)
from antigram.pipeline.storage.regular import is_named

__all__ = ["FOLDER"]

_FILE = ("file_name", "file")  # accepted names of the column of paths


def _from_metadata(home: Path, options: Mapping[str, str]) -> Iterator[Entry]:
    table = read_table(home / "metadata.csv")
    columns = {name: [row.cells[i] for row in table.rows] for i, name in enumerate(table.names)}
    column = _file_column(home, table)
    paths = [_path(home, table, row, table.names.index(column)) for row in table.rows]
    _check_named_once(table, paths, table.names.index(column))
    chosen = choose_labels(
        {
            name: [value.strip() for value in values]
            for name, values in columns.items()
            if name not in (column, "split")
        },
        column_names("labels", options.get("labels", "")),
        options.get("main_label", ""),
        f"folder: {table.path}",
    )
    yield from _notes(table, chosen.labels, chosen.left_out)
    labels = {name: _values(table, table.names.index(name)) for name in chosen.labels}
    for number, (row, path) in enumerate(zip(table.rows, paths, strict=True)):
        if not is_named(home / path):
            yield Rejected(path, f"{table.where(row, table.names.index(column))}: no such file")
            continue
        yield Clip(
            id=path,
            path=path,
            labels={name: values[number] for name, values in labels.items()},
            split=_split(table, row),
        )
    if unnamed := len(_audio_below(home) - set(paths)):
        yield Skipped("audio file that metadata.csv does not name", unnamed)


def _file_column(home: Path, table: Table) -> str:
    names = [name for name in _FILE if name in table.names]
    if len(names) == 1 and set(table.names) - {*names, "split"}:
        return names[0]
    raise CorpusError(
        f"folder: {table.path}: columns {list(table.names)}; wanted file_name, or file (paths "
        f"below {home}), and at least one label column"
    )


def _path(home: Path, table: Table, row: Row, index: int) -> str:
    """Return the relative path of a row's file, with ``/``."""
    name = row.cells[index].strip()
    path = Path(os.path.normpath(name))
    if not name or path.is_absolute() or ".." in path.parts or not name.isprintable():
        raise CorpusError(
            f"folder: {table.where(row, index)}: {table.names[index]} is {name!r}; wanted a path "
            f"below {home}"
        )
    return path.as_posix()


def _check_named_once(table: Table, paths: list[str], index: int) -> None:
    numbers: dict[str, int] = {}
    for number, path in enumerate(paths):
        if (first_number := numbers.setdefault(path, number)) != number:
            raise CorpusError(
                f"folder: {table.where(table.rows[number], index)}: names {path}, as does line "
                f"{table.rows[first_number].number}; wanted one line for each file"
            )


def _values(table: Table, index: int) -> list[str]:
    """Return the classes of a label column, without surrounding blanks."""
    spellings, name = Spellings(), table.names[index]
    # A column has few classes and many rows: each spelling is checked once.
    known: dict[str, str] = {"": ""}
    for row in table.rows:
        cell = row.cells[index]
        if cell in known:
            continue
        value = known[cell] = cell.strip()
        where = f"folder: {table.where(row, index)}"
        if not value.isprintable():
            raise CorpusError(f"{where}: {name} is {cell!r}; wanted visible text")
        if value:
            spellings.add(cell, where)
    return [known[row.cells[index]] for row in table.rows]


def _split(table: Table, row: Row) -> Split | None:
    if "split" not in table.names:
        return None
    index = table.names.index("split")
    split = row.cells[index].strip().lower()
    if split and split not in SPLIT_NAMES:
        raise CorpusError(
            f"folder: {table.where(row, index)}: split is {split!r}; wanted train, validation or "
            "test"
        )
    return SPLIT_NAMES.get(split)


def _notes(table: Table, labels: tuple[str, ...], left_out: Mapping[str, str]) -> Iterator[Note]:
    if left_out:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        yield Note(
            f"{table.path.name}: labels are {', '.join(labels)} (the first is the main one). "
            f"Not taken: {reasons}. `labels` and `main_label` pick others."
        )


def _audio_below(home: Path) -> set[str]:
    """Return the relative paths of the audio files below a folder, without hidden ones."""
    paths = set()
    for parent, subfolders, names in os.walk(home):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        relative = os.path.relpath(parent, home)
        paths |= {os.path.normpath(f"{relative}/{name}") for name in names if _is_audio(name)}
    return paths


def _is_audio(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def _from_directories(home: Path) -> Iterator[Entry]:
    tops = sorted(p for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
    is_split = bool(tops) and all(p.name.lower() in SPLIT_NAMES for p in tops)
    homes = [(p, SPLIT_NAMES[p.name.lower()]) for p in tops] if is_split else [(home, None)]
    spellings = Spellings()
    for folder in dict.fromkeys((home, *(folder for folder, _ in homes))):
        if loose := sum(p.is_file() and _is_audio(p.name) for p in folder.iterdir()):
            yield Skipped("audio file outside the folders of classes", loose)
    for folder, split in homes:
        for label in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
            spellings.add(label.name, f"folder: {label}")
            # os.walk does not follow links, so that a cycle of links ends.
            for parent, subfolders, names in os.walk(label):
                subfolders.sort()
                for path in (Path(parent) / name for name in sorted(names)):
                    if not _is_audio(path.name):
                        yield Skipped("not audio by its name")
                        continue
                    relative = path.relative_to(home)
                    yield Clip(
                        id=relative.as_posix(),
                        path=relative.as_posix(),
                        labels={"label": label.name},
                        split=split,
                    )


def _clips(home: Path, options: Mapping[str, str]) -> Iterator[Entry]:
    if is_named(home / "metadata.csv"):
        yield from _from_metadata(home, options)
        return
    for key, value in options.items():
        if value not in ("", "label"):
            raise CorpusError(
                f"folder: {home}: `{key}` {value!r}: without a metadata.csv the "
                "only label is 'label', the name of a file's folder"
            )
    yield from _from_directories(home)


FOLDER = Corpus(
    name="folder",
    labels=(),
    seconds=1.0,
    longer="segment",
    official=True,
    licence="yours",
    citation="Your own recordings.",
    how_to_get="It is your own recordings, `antigram prepare folder` with `source=DIR`: DIR "
    "holds a directory for each class, or a metadata.csv (file_name, label, ...).",
    # `locate` tests the folder itself first; each class folder below it would pass, too.
    is_home=lambda folder: (
        is_named(folder / "metadata.csv")
        or any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())
    ),
    list_clips=_clips,
    options={"labels": "", "main_label": ""},
    resolve=resolve_option,
    adapt=check_options,
)
