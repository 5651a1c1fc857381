"""Data sets that Hugging Face's `datasets` saved to disk: Arrow files, with audio inside or beside.

A row is a piece. Its audio is a column of the type Audio: the bytes of an audio file, which are
read where they lie (`storage.members`), or a path; else a column of paths. Classes are stored as
numbers, and their names in the schema. The parts of a saved DatasetDict are the official split if
they are called so.

References:
    https://huggingface.co/docs/datasets/process#save and https://arrow.apache.org/docs/format.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from antigram.pipeline.corpora.manifests.pieces import Pieces
from antigram.pipeline.corpora.split_names import splits_of
from antigram.pipeline.corpora.text import check_file, read_text
from antigram.pipeline.corpus import CorpusError
from antigram.pipeline.storage.members import member_path
from antigram.pipeline.storage.regular import is_named

__all__ = ["is_saved", "parts_in", "read"]

# Names of a column of paths, for a data set without a column of the type Audio.
_PATHS = ("audio", "path", "file", "file_name", "wav")
_END = b"\xff\xff\xff\xff\0\0\0\0"  # ends a stream; without it, the last batches may be missing
_MOST = 1 << 50  # bytes; the file is mapped, not read


class _Layout(NamedTuple):
    """Columns of a data set.

    Attributes:
        audio: name of the column of audio.
        labels: the names of classes of each other column of text or integers; empty if its values
            are the classes.
    """

    audio: str
    labels: Mapping[str, Sequence[str]]


def is_saved(folder: Path) -> bool:
    """Whether a folder is a saved Dataset or DatasetDict."""
    return is_named(folder / "dataset_dict.json") or is_named(folder / "state.json")


def parts_in(folder: Path) -> dict[str, list[Path]]:
    """Return the Arrow files of each part of a data set; a single part has the name ''.

    Raises:
        CorpusError: a file of the data set is damaged, or names files outside its folder.
    """
    if not is_named(folder / "dataset_dict.json"):
        return {"": _files_of(folder)}
    names = _plain_names(
        folder / "dataset_dict.json", _json(folder / "dataset_dict.json"), "splits"
    )
    return {name: _files_of(folder / name) for name in names}


def _files_of(folder: Path) -> list[Path]:
    state = folder / "state.json"
    files = _json(state).get("_data_files")
    if not isinstance(files, list) or not all(isinstance(file, dict) for file in files):
        raise CorpusError(f"{state}: _data_files is {files!r:.60}; wanted a list of files")
    listed = {"filenames": [file.get("filename") for file in files]}
    return [folder / name for name in _plain_names(state, listed, "filenames")]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CorpusError(f"{path}: wanted a JSON object")
    return content


def _plain_names(path: Path, content: Mapping[str, Any], key: str) -> list[str]:
    names = content.get(key)
    if not isinstance(names, list) or not names:
        raise CorpusError(f"{path}: {key} is {names!r:.60}; wanted a list of names")
    for name in names:
        if not isinstance(name, str) or not name or "/" in name or name in (".", ".."):
            raise CorpusError(f"{path}: names {name!r}; wanted the name of an entry of its folder")
    return names


def read(pieces: Pieces, parts: Mapping[str, Sequence[Path]]) -> None:
    """Add the rows of a data set, from `parts_in`.

    Raises:
        CorpusError: pyarrow is not installed, a file is damaged or truncated, or no column has
            audio.
    """
    for (part, files), split in zip(parts.items(), splits_of(list(parts)), strict=True):
        count = 0
        for path in files:
            pieces.file(path, split)
            for row, fields in enumerate(_rows(pieces, path), 1):
                recording = fields.pop("")
                name = f"{part}/{count:08d}" if part else f"{count:08d}"
                count += 1
                if recording is None:
                    pieces.reject(name, row, "a row without audio")
                else:
                    pieces.add(name, str(recording), row, fields)


def _rows(pieces: Pieces, path: Path) -> Iterator[dict[str, object]]:
    """Yield the fields of each row of an Arrow file, and under '' the path of its recording."""
    try:
        import pyarrow as pa  # here: only this format needs it
    except ImportError:
        raise CorpusError(
            f"{path}: pyarrow, which reads Arrow files, is not installed. "
            'Run `pip install -c constraints.txt "pyarrow"`.'
        ) from None
    check_file(path, most=_MOST)
    rows = 0
    try:
        with pa.memory_map(str(path)) as mapped:
            content = mapped.read_buffer()
            _check_ends(path, content)
            with pa.ipc.open_stream(pa.BufferReader(content)) as stream:
                layout = _layout(path, stream.schema)
                for batch in stream:
                    batch.validate(full=True)
                    values = {
                        name: _texts(batch.column(name), names)
                        for name, names in layout.labels.items()
                    }
                    column = batch.column(layout.audio)
                    recordings = _recordings(pieces, path, rows, column, content)
                    for index in range(batch.num_rows):
                        yield {"": recordings[index], **{n: v[index] for n, v in values.items()}}
                    rows += batch.num_rows
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        reason = " ".join(str(error).split())
        raise CorpusError(
            f"{path}:{rows + 1}: damaged or truncated at this row: {reason}"
        ) from None


def _check_ends(path: Path, content: Any) -> None:  # noqa: ANN401 - a buffer of pyarrow
    if content.size >= 6 and content[:6].to_pybytes() == b"ARROW1":
        raise CorpusError(
            f"{path}: is in Arrow's file format; wanted its stream format, as datasets saves it"
        )
    if content.size < len(_END) or content[content.size - len(_END) :].to_pybytes() != _END:
        raise CorpusError(f"{path}: truncated: the end of its stream is missing; save it again")


def _layout(path: Path, schema: Any) -> _Layout:  # noqa: ANN401
    """Return which column has audio and which may be labels."""
    import pyarrow as pa

    if len(set(schema.names)) < len(schema.names):
        raise CorpusError(f"{path}: two columns have the same name: {', '.join(schema.names)}")
    try:
        about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = {name: dict(about["info"]["features"][name]) for name in schema.names if about}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorpusError(f"{path}: its features are not those of datasets: {error!r}") from None
    audio, labels = [], {}
    plain = (pa.types.is_string, pa.types.is_large_string, pa.types.is_integer, pa.types.is_boolean)
    for field in schema:
        feature = features.get(field.name, {})
        if feature.get("_type") == "Audio" or _is_audio(field.type):
            audio.append(field.name)
        elif feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise CorpusError(f"{path}: the classes of {field.name} are {names!r:.60}")
            labels[field.name] = names
        elif any(test(field.type) for test in plain):
            labels[field.name] = []
    audio = audio or [name for name in _PATHS if name in labels][:1]
    if len(audio) > 1 and "audio" in audio:
        audio = ["audio"]
    if len(audio) != 1:
        found = "several columns have" if audio else "no column has"
        raise CorpusError(
            f"{path}: {found} audio ({', '.join(audio or schema.names)}); wanted one, of the type "
            f"Audio, or called {' or '.join(_PATHS)}: select it with datasets, and save again"
        )
    labels.pop(audio[0], None)
    return _Layout(audio[0], labels)


def _is_audio(kind: Any) -> bool:  # noqa: ANN401
    import pyarrow as pa

    return pa.types.is_struct(kind) and {field.name for field in kind} == {"bytes", "path"}


def _texts(column: Any, names: Sequence[str]) -> list[object]:  # noqa: ANN401
    """Return the values of a column; the name of its class for a number of a class."""
    values = column.to_pylist()
    if not names:
        return list(values)
    # -1 is an unknown class.
    return [names[v] if v is not None and 0 <= v < len(names) else None for v in values]


def _recordings(
    pieces: Pieces,
    path: Path,
    before: int,
    column: Any,  # noqa: ANN401
    content: Any,  # noqa: ANN401
) -> list[str | None]:
    """Return the path of the recording of each row of a batch; None for a row without one.

    Args:
        pieces: gives paths relative to the folder of all recordings.
        path: the Arrow file.
        before: number of rows before the batch.
        column: the batch's column of audio.
        content: the bytes of the file, mapped.
    """
    if not _is_audio(column.type):
        names = column.to_pylist()
        if not all(name is None or isinstance(name, str) for name in names):
            raise CorpusError(f"{path}: the column of audio is {column.type}; wanted text or Audio")
        return [
            None if name is None else pieces.path(name, before + row)
            for row, name in enumerate(names, 1)
        ]
    inner, names = column.field("bytes"), column.field("path").to_pylist()
    present = column.is_valid().to_pylist()
    recordings: list[str | None] = []
    spans = _spans(path, inner, content)
    file = ""
    for row, (span, name) in enumerate(zip(spans, names, strict=True), 1):
        if not present[row - 1]:
            recordings.append(None)
        elif span is not None:
            file = file or pieces.path(str(path.absolute()), before + row)
            recordings.append(member_path(file, *span))
        else:
            recordings.append(pieces.path(name, before + row) if name else None)
    return recordings


def _spans(path: Path, values: Any, content: Any) -> list[tuple[int, int] | None]:  # noqa: ANN401
    """Return offset and size, in the file, of each value of a binary array; None where null."""
    import pyarrow as pa

    _, offsets, data = values.buffers()
    if values.null_count == len(values) or data is None:
        return [None] * len(values)
    begin = data.address - content.address
    if not 0 <= begin <= content.size - data.size:
        raise CorpusError(
            f"{path}: its data are compressed; wanted them as they are: save it with datasets"
        )
    wide = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    ends = np.frombuffer(offsets, wide)[values.offset : values.offset + len(values) + 1]
    valid = values.is_valid().to_pylist()
    return [
        (begin + int(first), int(last - first)) if ok else None
        for first, last, ok in zip(ends[:-1], ends[1:], valid, strict=True)
    ]
