"""Your own recordings: a directory for each class, or a ``metadata.csv``.

Layouts, in the order in which they are looked for (docs/own-recordings.md has examples):

* ``metadata.csv`` with a column ``file_name`` or ``file`` (relative path) and label columns; a
  column ``split`` (train, validation, test) is the official split. This is Hugging Face's
  AudioFolder. An empty cell: not known for that clip. The main label is ``--main-label``, else the
  column ``label``, else the first that can be one; ``--labels`` picks. It is read strictly.
* ``train/CLASS/*.wav``, ``validation/CLASS/...``, ``test/CLASS/...``: an official split.
* ``CLASS/**/*.wav``: the label is called ``label``.

Recordings longer than a row are segmented; segments of one file are never parted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from antigram.pipeline.audio.decoding import SUFFIXES
from antigram.pipeline.corpora.label_columns import Spellings, choose_labels
from antigram.pipeline.corpora.strict_csv import BadCellError, Row, Table, read_table, split_line
from antigram.pipeline.corpus import (
    Clip,
    Corpus,
    CorpusError,
    Found,
    Note,
    Rejected,
    Skipped,
    Split,
)
from antigram.pipeline.storage.regular import is_named

__all__ = ["FOLDER"]

_FILE = ("file_name", "file")  # what the column of paths is called
_SPLITS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def _names(option: str, value: str) -> tuple[str, ...]:
    """Names of columns, as a line of CSV: one that holds a comma stands in quotes."""
    try:
        names = tuple(name.strip() for _, name in split_line(value)) if value else ()
    except BadCellError as error:
        raise CorpusError(f"--{option} {value!r}: {error}") from None
    if "" in names or len(set(names)) < len(names):
        raise CorpusError(
            f"--{option} {value!r}: wanted names of columns, each once, like mood,singer"
        )
    return names


def _from_metadata(home: Path, options: Mapping[str, str]) -> Iterator[Found]:
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
        _names("labels", options.get("labels", "")),
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
    found = [name for name in _FILE if name in table.names]
    if len(found) == 1 and set(table.names) - {*found, "split"}:
        return found[0]
    raise CorpusError(
        f"folder: {table.path}: columns {list(table.names)}; wanted file_name, or file (paths "
        f"below {home}), and at least one label column"
    )


def _path(home: Path, table: Table, row: Row, index: int) -> str:
    """Path of a row's file, relative and with ``/``."""
    name = row.cells[index].strip()
    path = Path(os.path.normpath(name))
    if not name or path.is_absolute() or ".." in path.parts or not name.isprintable():
        raise CorpusError(
            f"folder: {table.where(row, index)}: {table.names[index]} is {name!r}; wanted a path "
            f"below {home}"
        )
    return path.as_posix()


def _check_named_once(table: Table, paths: list[str], index: int) -> None:
    first: dict[str, int] = {}
    for number, path in enumerate(paths):
        if (before := first.setdefault(path, number)) != number:
            raise CorpusError(
                f"folder: {table.where(table.rows[number], index)}: names {path}, as does line "
                f"{table.rows[before].number}; wanted one line for each file"
            )


def _values(table: Table, index: int) -> list[str]:
    """Classes of a label column, less the blanks around them."""
    spellings, name = Spellings(), table.names[index]
    # A column has few classes and many rows: each spelling is looked at once.
    known: dict[str, str] = {"": ""}
    for row in table.rows:
        cell = row.cells[index]
        if cell in known:
            continue
        value = known[cell] = cell.strip()
        where = f"folder: {table.where(row, index)}"
        if not value.isprintable():
            raise CorpusError(f"{where}: {name} is {cell!r}; wanted text that shows")
        if value:
            spellings.add(cell, where)
    return [known[row.cells[index]] for row in table.rows]


def _split(table: Table, row: Row) -> Split | None:
    if "split" not in table.names:
        return None
    index = table.names.index("split")
    split = row.cells[index].strip().lower()
    if split and split not in _SPLITS:
        raise CorpusError(
            f"folder: {table.where(row, index)}: split is {split!r}; wanted train, validation or "
            "test"
        )
    return _SPLITS.get(split)


def _notes(table: Table, labels: tuple[str, ...], left_out: Mapping[str, str]) -> Iterator[Note]:
    if left_out:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
        yield Note(
            f"{table.path.name}: labels are {', '.join(labels)} (the first is the main one). "
            f"Not taken: {reasons}. --labels and --main-label pick others."
        )


def _audio_below(home: Path) -> set[str]:
    """Audio files of a folder by their names, relative to it; hidden ones left out."""
    found = set()
    for where, inner, names in os.walk(home):
        inner[:] = [name for name in inner if not name.startswith(".")]
        relative = os.path.relpath(where, home)
        found |= {os.path.normpath(f"{relative}/{name}") for name in names if _is_audio(name)}
    return found


def _is_audio(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122


def _from_directories(home: Path) -> Iterator[Found]:
    tops = sorted(p for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
    is_split = bool(tops) and all(p.name.lower() in _SPLITS for p in tops)
    homes = [(p, _SPLITS[p.name.lower()]) for p in tops] if is_split else [(home, None)]
    spellings = Spellings()
    for folder in dict.fromkeys((home, *(folder for folder, _ in homes))):
        if loose := sum(p.is_file() and _is_audio(p.name) for p in folder.iterdir()):
            yield Skipped("audio file outside the folders of classes", loose)
    for folder, split in homes:
        for label in sorted(p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."):
            spellings.add(label.name, f"folder: {label}")
            # os.walk does not follow links, so a loop of them cannot catch it.
            for where, inner, names in os.walk(label):
                inner.sort()
                for path in (Path(where) / name for name in sorted(names)):
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


def _clips(home: Path, options: Mapping[str, str]) -> Iterator[Found]:
    if is_named(home / "metadata.csv"):
        yield from _from_metadata(home, options)
        return
    for key, value in options.items():
        if value not in ("", "label"):
            raise CorpusError(
                f"folder: {home}: --{key.replace('_', '-')} {value!r}: without a metadata.csv the "
                "only label is 'label', the name of a file's folder"
            )
    yield from _from_directories(home)


def _resolve(option: str, value: str) -> str:
    """Names as they are compared: without the blanks around them; quotes where they need them."""
    option = option.replace("_", "-")
    if option == "main-label":
        return value.strip()
    quoted = (
        '"' + n.replace('"', '""') + '"' if set(n) & set(',"') else n for n in _names(option, value)
    )
    return ",".join(quoted)


def _adapt(corpus: Corpus, options: Mapping[str, str]) -> Corpus:
    picked, main = _names("labels", options["labels"]), options["main_label"]
    if picked and main and main not in picked:
        raise CorpusError(
            f"--main-label {main!r}: is not among --labels {options['labels']}; name it there, too"
        )
    return corpus


FOLDER = Corpus(
    name="folder",
    labels=(),
    seconds=1.0,
    longer="segment",
    official=True,
    licence="yours",
    citation="Your own recordings.",
    how_to_get="It is your own recordings, `antigram prepare folder --source DIR`: DIR holds a "
    "directory for each class, or a metadata.csv (file_name, label, ...).",
    # Only ever the folder itself: below it, each class would look like a corpus.
    is_home=lambda folder: (
        is_named(folder / "metadata.csv")
        or any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())
    ),
    list_clips=_clips,
    options={"labels": "", "main_label": ""},
    resolve=_resolve,
    adapt=_adapt,
)
