"""SpeechBrain: a table (CSV) or an object (JSON) of examples, each with an id, a file and fields.

The file is ``wav`` (else ``file_path``, ``path`` or ``file``). ``start`` and ``stop`` count
samples of the file, as in SpeechBrain's reader; in JSON they may stand beside the file instead,
``"wav": {"file": ..., "start": ..., "stop": ...}``. A placeholder before the path, such as
``{data_root}`` or ``$data_root``, stands for the folder of the recordings.

Files called ``train``, ``valid`` and ``test`` in one folder are the official split.

References:
    https://speechbrain.readthedocs.io/en/latest/API/speechbrain.dataio.dataset.html and
    .../speechbrain.dataio.dataio.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from antigram.pipeline.corpora.manifests.lines import json_members, numbered_lines
from antigram.pipeline.corpora.manifests.pieces import Pieces
from antigram.pipeline.corpora.split_names import SPLIT_NAMES, splits_of
from antigram.pipeline.corpora.strict_csv import read_rows
from antigram.pipeline.corpus import CorpusError

__all__ = ["files_in", "read"]

_FILE = ("wav", "file_path", "path", "file")
_ID = ("ID", "id")
# Measurements, and columns about the other columns of the table.
_NO_FIELDS = ("start", "stop", "duration", "length", "wav_format", "wav_opts")


def files_in(folder: Path) -> list[Path]:
    """Return the tables of a folder that are called after splits; empty if there are none."""
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix in (".csv", ".json") and p.stem.lower() in SPLIT_NAMES
    )


def read(pieces: Pieces, files: list[Path]) -> None:
    """Add the examples of tables.

    Raises:
        CorpusError: a table is damaged, or an example has no id, no file, or a wrong time.
    """
    stems = [path.stem for path in files]
    if len(set(stems)) < len(stems):
        names = ", ".join(path.name for path in files)
        raise CorpusError(f"{files[0].parent}: {names} say the same twice: name one as `source`")
    for path, split in zip(files, splits_of(stems), strict=True):
        pieces.file(path, split)
        seen: set[str] = set()
        for line, id_, fields in _examples(path):
            if id_ in seen:
                raise CorpusError(f"{path}:{line}: the id {id_!r} is that of an earlier line, too")
            seen.add(id_)
            _add(pieces, id_, line, fields)


def _examples(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    if path.suffix == ".json":
        yield from json_members(path)
        return
    rows = read_rows(path, numbered_lines(path))
    header = next(rows)
    key = next((name for name in _ID if name in header.cells), None)
    if key is None:
        raise CorpusError(
            f"{path}:{header.number}: the columns are {', '.join(header.cells)}; wanted ID, wav "
            "and at least one more (SpeechBrain), or file_name and at least one more (AudioFolder)"
        )
    for row in rows:
        fields: dict[str, Any] = dict(zip(header.cells, row.cells, strict=True))
        yield row.number, fields.pop(key), fields


def _add(pieces: Pieces, id_: str, line: int, fields: Mapping[str, Any]) -> None:
    where = pieces.where(line)
    key = next((name for name in _FILE if name in fields), None)
    if not id_ or key is None:
        raise CorpusError(f"{where}: the example {id_!r} has no id or no file; wanted ID and wav")
    file: object = fields[key]
    part = file if isinstance(file, dict) else fields
    if isinstance(file, dict):
        file = file.get("file")
    if not isinstance(file, str):
        raise CorpusError(f"{where}: {key} is {file!r:.60}; wanted the path of one audio file")
    start, stop = _frame(part, "start", where), _frame(part, "stop", where)
    path = pieces.path(file.strip(), line)
    if stop is not None and stop <= (start or 0):
        pieces.reject(path, line, f"the part from sample {start or 0} to {stop} is empty")
        return
    others = {n: v for n, v in fields.items() if n != key and n.lower() not in _NO_FIELDS}
    is_part = start is not None or stop is not None
    pieces.add(id_, path, line, others, start=start or 0, end=stop, frames=is_part)


def _frame(fields: Mapping[str, Any], key: str, where: str) -> int | None:
    """Return a number of samples; None if it is not given."""
    value = fields.get(key)
    if value is None or value == "":
        return None
    frame = value if isinstance(value, int) else None
    if isinstance(value, str) and value.strip().isdecimal():
        frame = int(value)
    if frame is None or isinstance(value, bool) or not 0 <= frame < 1 << 53:
        raise CorpusError(
            f"{where}: {key} is {value!r:.40}; wanted a number of samples, 0 or more: SpeechBrain "
            "counts samples, not seconds"
        )
    return frame
