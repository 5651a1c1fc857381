"""Your own recordings: a directory for each class, or a ``metadata.csv``.

Layouts, in the order in which they are looked for:

* ``metadata.csv`` with a column ``file_name`` (relative path) and label columns, the first of which
  is the main label; a column ``split`` (train, validation, test) is the official split. This is
  Hugging Face's AudioFolder. An empty cell: not known for that clip.
* ``train/CLASS/*.wav``, ``validation/CLASS/...``, ``test/CLASS/...``: an official split.
* ``CLASS/**/*.wav``: the label is called ``label``.

Recordings longer than a row are segmented; segments of one file are never parted.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.audio import SUFFIXES
from pipeline.corpus import Clip, Corpus, CorpusError, Skipped, Split

__all__ = ["FOLDER"]

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


def _from_metadata(home: Path) -> Iterator[Clip]:
    table = home / "metadata.csv"
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"folder: {table}: not a UTF-8 CSV file: {error}") from None
    labels = [name for name in columns if name not in ("file_name", "split")]
    if "file_name" not in columns or not labels:
        raise CorpusError(
            f"folder: {table}: columns {columns}; wanted file_name and at least one label column"
        )
    for number, line in enumerate(lines, 2):
        name = (line["file_name"] or "").strip()
        path = Path(os.path.normpath(name))
        if not name or path.is_absolute() or ".." in path.parts:
            raise CorpusError(
                f"folder: {table}:{number}: file_name is {name!r}; wanted a path below {home}"
            )
        split = (line.get("split") or "").strip().lower()
        if split and split not in _SPLITS:
            raise CorpusError(
                f"folder: {table}:{number}: split is {split!r}; wanted train, validation or test"
            )
        yield Clip(
            id=path.as_posix(),
            path=path.as_posix(),
            labels={label: (line[label] or "").strip() for label in labels},
            split=_SPLITS.get(split),
        )


def _from_directories(home: Path) -> Iterator[Clip | Skipped]:
    tops = sorted(p for p in home.iterdir() if p.is_dir() and not p.name.startswith("."))
    is_split = bool(tops) and all(p.name.lower() in _SPLITS for p in tops)
    homes = [(p, _SPLITS[p.name.lower()]) for p in tops] if is_split else [(home, None)]
    for place, split in homes:
        for label in sorted(p for p in place.iterdir() if p.is_dir() and p.name[0] != "."):
            # os.walk does not follow links, so a loop of them cannot catch it.
            for where, inner, names in os.walk(label):
                inner.sort()
                for path in (Path(where) / name for name in sorted(names)):
                    if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
                        yield Skipped("not audio by its name")
                        continue
                    relative = path.relative_to(home)
                    yield Clip(
                        id=relative.as_posix(),
                        path=relative.as_posix(),
                        labels={"label": label.name},
                        split=split,
                    )


def _clips(home: Path, _options: Mapping[str, str]) -> Iterator[Clip | Skipped]:
    has_table = (home / "metadata.csv").is_file()
    yield from _from_metadata(home) if has_table else _from_directories(home)


FOLDER = Corpus(
    name="folder",
    labels=(),
    seconds=1.0,
    longer="segment",
    official=True,
    licence="yours",
    how_to_get="It holds a directory for each class, or a metadata.csv (file_name, label, ...).",
    # Only ever the folder itself: below it, each class would look like a corpus.
    is_home=lambda folder: (
        (folder / "metadata.csv").is_file()
        or any(p.is_dir() and not p.name.startswith(".") for p in folder.iterdir())
    ),
    list_clips=_clips,
)
