"""Hugging Face's AudioFolder: a metadata.csv or metadata.jsonl with a ``file_name`` on each line.

Paths are relative to the file's own folder. Folders called after splits may each have a file of
their own, and a column ``split`` is the official split, too. A folder for each class, without such
a file, is read by `corpora.folder`.

References:
    https://huggingface.co/docs/datasets/audio_dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from antigram.pipeline.corpora.manifests.lines import json_lines, numbered_lines, text
from antigram.pipeline.corpora.manifests.pieces import Pieces
from antigram.pipeline.corpora.split_names import SPLIT_NAMES, splits_of
from antigram.pipeline.corpora.strict_csv import read_rows
from antigram.pipeline.corpus import CorpusError

__all__ = ["files_in", "read"]

_NAMES = ("metadata.csv", "metadata.jsonl")
_FILE = ("file_name", "file")  # as in `corpora.folder`


def files_in(folder: Path) -> list[Path]:
    """Return the files of metadata in a folder, else in its folders that are called after splits.

    Raises:
        CorpusError: a folder has two such files.
    """
    subfolders = sorted(p for p in folder.iterdir() if p.name.lower() in SPLIT_NAMES)
    for folders in ([folder], subfolders):
        files = [p / name for p in folders for name in _NAMES if (p / name).is_file()]
        for one, two in pairwise(files):
            if one.parent == two.parent:
                raise CorpusError(
                    f"{one.parent}: has {one.name} and {two.name}; wanted one of them"
                )
        if files:
            return files
    return []


def read(pieces: Pieces, files: list[Path]) -> None:
    """Add the recordings of files of metadata.

    Raises:
        CorpusError: a file is damaged, or names a recording twice.
    """
    for path, split in zip(files, splits_of([p.parent.name for p in files]), strict=True):
        pieces.file(path, split)
        seen: set[str] = set()
        for line, key, fields in _records(path):
            name = pieces.path(text(fields, key, f"{path}:{line}").strip(), line)
            if name in seen:
                raise CorpusError(f"{path}:{line}: names {name}, as does an earlier line")
            seen.add(name)
            own = fields.pop("split", None) or ""
            if not isinstance(own, str) or (own and own.strip().lower() not in SPLIT_NAMES):
                raise CorpusError(
                    f"{path}:{line}: split is {own!r:.40}; wanted train, validation or test"
                )
            others = {n: v for n, v in fields.items() if n != key}
            piece = pieces.add(name, name, line, others)
            if own:
                pieces.set_split(piece, SPLIT_NAMES[own.strip().lower()])


def _records(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yield line, name of the field of the path, and fields of each recording."""
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        for line, record in json_lines(path):
            yield line, next((name for name in _FILE if name in record), _FILE[0]), record
        return
    rows = read_rows(path, numbered_lines(path))
    header = next(rows)
    key = next((name for name in _FILE if name in header.cells), None)
    if key is None:
        raise CorpusError(
            f"{path}:{header.number}: the columns are {', '.join(header.cells)}; wanted file_name "
            "and at least one more"
        )
    for row in rows:
        yield row.number, key, dict(zip(header.cells, row.cells, strict=True))
