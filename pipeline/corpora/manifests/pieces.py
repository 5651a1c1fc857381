"""The parts of recordings that a manifest names, with their fields, held compactly in memory.

Each format adds its parts to a `Pieces`, which then chooses labels and groups, and yields clips. A
manifest may have a million lines: fields are held as numbers of their values, and a field whose
values are no classes, like a transcript, is dropped on the way unless the user picked it.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from antigram.pipeline.corpora.label_columns import (
    Spellings,
    choose_labels,
    column_names,
    why_no_label,
)
from antigram.pipeline.corpus import Clip, CorpusError, Entry, Note, Rejected, Skipped, Split
from antigram.pipeline.storage.members import is_member

__all__ = ["Pieces"]

# Names of the field that says who speaks, in lower case.
_SPEAKER = ("speaker", "speaker_id", "spk_id", "spk", "client_id")
# With fewer, a split cannot keep them apart.
_LEAST_SPEAKERS = 3
# A field with this many values is examined; it is dropped if its values are no classes.
_MANY = 20_000
_SPLITS: tuple[Split | None, ...] = (None, "train", "validation", "test")
_PLACEHOLDER = re.compile(r"(?:\{\w+\}|\$\w+|\$\{\w+\})/+")


class _Field:
    """A field of all pieces: the number of the value of each piece, 0 if it is unknown."""

    def __init__(self) -> None:
        self.codes = array("i")
        self.values = [""]
        self.first = array("q", [0])  # the piece that first has the value
        self._numbers = {"": 0}
        self._limit = _MANY
        self.dropped = ""  # why the field is no label, if it was dropped

    def set(self, piece: int, value: str, *, keep: bool) -> None:
        if self.dropped:
            return
        code = self._numbers.setdefault(value, len(self.values))
        if code == len(self.values):
            self.values.append(value)
            self.first.append(piece)
        self.pad(piece)
        if piece < len(self.codes):
            self.codes[piece] = code
        else:
            self.codes.append(code)
        if len(self.values) > self._limit and not keep:
            self._limit *= 2
            if reason := why_no_label(self.of_all()):
                self.dropped = reason
                self.codes, self.values, self._numbers = array("i"), [], {}

    def pad(self, pieces: int) -> None:
        """Add unknown values up to a number of pieces."""
        if (missing := pieces - len(self.codes)) > 0:
            self.codes.extend([0] * missing)

    def of_all(self) -> Sequence[str]:
        """Return the value of each piece, without blanks around it."""
        values = [value.strip() for value in self.values]
        return [values[code] for code in self.codes]


class Pieces:
    """The parts of recordings that a manifest names.

    Args:
        source: folder of the manifest, which messages that are stored do not name.
        home: folder that all recordings are below.
        root: folder that relative paths begin in; None: the folder of the file that has them.
        options: the options ``labels`` and ``main_label``.
    """

    def __init__(
        self, source: Path, home: Path, root: Path | None, options: Mapping[str, str]
    ) -> None:
        self._source = source
        self._home, self._root = os.path.abspath(home), root  # noqa: PTH100 - links stay
        self._picked = column_names("labels", options.get("labels", ""))
        self._main = options.get("main_label", "")
        self._ids: list[str] = []
        self._paths: list[str] = []
        self._starts, self._ends = array("d"), array("d")  # seconds, or frames; an end of -1: None
        self._frames = bytearray()
        self._lines, self._files = array("q"), array("H")
        self._names: list[Path] = []
        self._file_splits: list[Split | None] = []
        self._splits = bytearray()  # index into `_SPLITS` of each piece
        self._fields: dict[str, _Field] = {}
        self._rejected: list[Rejected] = []
        self._skipped: dict[str, int] = {}
        self._notes: list[Note] = []

    def file(self, path: Path, split: Split | None = None) -> None:
        """Begin a file of the manifest, which names the pieces added next, all in one split."""
        self._names.append(path)
        self._file_splits.append(split)

    def where(self, line: int) -> str:
        """Return ``PATH:LINE`` of a line of the present file."""
        return f"{self._names[-1]}:{line}"

    def path(self, name: str, line: int) -> str:
        """Return the path of a recording relative to the folder of all recordings, with ``/``.

        Args:
            name: the path in the manifest; a placeholder such as ``{data_root}/`` stands for the
                folder that relative paths begin in.
            line: line of the present file.

        Raises:
            CorpusError: the path is not below the folder, or has characters that do not show.
        """
        base = self._root or self._names[-1].parent
        relative = _PLACEHOLDER.sub("", name, count=1) if name[:1] in "{$" else name
        full = os.path.normpath(os.path.join(os.path.abspath(base), relative))  # noqa: PTH100, PTH118
        prefix = self._home.rstrip("/") + "/"
        if not name or not name.isprintable() or not full.startswith(prefix):
            raise CorpusError(
                f"{self.where(line)}: the recording {name!r} is not below {self._home}; wanted a "
                "path below it: name with `audio_root` the folder that holds all recordings"
            )
        return full[len(prefix) :]

    def add(
        self,
        id_: str,
        path: str,
        line: int,
        fields: Mapping[str, object],
        *,
        start: float = 0.0,
        end: float | None = None,
        frames: bool = False,
    ) -> int:
        """Add a part of a recording, and return its number.

        Args:
            id_: its id, unique in the manifest.
            path: the recording, from `path`.
            line: line of the present file.
            fields: what the manifest says about it; what is neither text nor an integer is left
                out.
            start: its start, in seconds.
            end: its end, in seconds; None: the end of the recording.
            frames: whether start and end are in frames of the file instead.
        """
        piece = len(self._ids)
        self._ids.append(id_)
        # Pieces of a long recording follow each other, and share its path.
        self._paths.append(self._paths[-1] if piece and self._paths[-1] == path else path)
        self._starts.append(start)
        self._ends.append(-1.0 if end is None else end)
        self._frames.append(frames)
        self._lines.append(line)
        self._files.append(len(self._names) - 1)
        self._splits.append(_SPLITS.index(self._file_splits[-1]))
        for name, value in fields.items():
            self.set_field(piece, name, value)
        return piece

    def set_field(self, piece: int, name: str, value: object) -> None:
        """Set a field of a piece; a value that is neither text nor an integer is left out."""
        if isinstance(value, bool):
            value = "true" if value else "false"
        elif isinstance(value, int):
            value = str(value)
        if not isinstance(value, str) or not value.strip():
            return
        keep = name in self._picked or name == self._main or name.lower() in _SPEAKER
        self._fields.setdefault(name, _Field()).set(piece, value, keep=keep)

    def set_split(self, piece: int, split: Split) -> None:
        """Set the split of a piece, where it is not that of its file."""
        self._splits[piece] = _SPLITS.index(split)

    def note(self, text: str) -> None:
        """Add a line for the user."""
        self._notes.append(Note(text))

    def reject(self, path: str, line: int, reason: str) -> None:
        """Add a part that cannot be used."""
        self._rejected.append(
            Rejected(path, f"{self._shown(len(self._names) - 1, line)}: {reason}")
        )

    def skip(self, reason: str, count: int = 1) -> None:
        """Count what is normal in a manifest but gives no piece."""
        self._skipped[reason] = self._skipped.get(reason, 0) + count

    def entries(self, where: str) -> Iterator[Entry]:
        """Yield the clips, and what was left out.

        Args:
            where: the manifest, with which messages begin.

        Raises:
            CorpusError: nothing can be a label, spellings of a class differ in what does not show,
                or no recording exists.
        """
        yield from (Skipped(reason, count) for reason, count in self._skipped.items())
        yield from self._rejected
        yield from self._notes
        if not self._ids:
            first = "; ".join(f"{one.path}: {one.reason}" for one in self._rejected[:1])
            raise CorpusError(f"{where}: names no usable part of a recording. {first}".rstrip())
        missing = self._missing()
        if missing.issuperset(self._paths):
            first = self._where(0)
            raise CorpusError(
                f"{first}: no recording of {where} exists: {self._home}/{self._paths[0]} is the "
                "first; name with `audio_root` the folder that relative paths begin in"
            )
        labels, notes = self._labels(where)
        yield from notes
        groups, note = self._groups(next(iter(labels), ""))
        yield from note
        shared: dict[tuple[int, ...], dict[str, str]] = {}
        columns = [self._fields[name].codes for name in labels]
        for piece, id_ in enumerate(self._ids):
            path = self._paths[piece]
            if path in missing:
                yield Rejected(path, f"{self._where(piece)}: no such file")
                continue
            codes = tuple(column[piece] for column in columns)
            if (own := shared.get(codes)) is None:
                known = zip(labels.items(), codes, strict=True)
                own = shared[codes] = {n: values[code] for (n, values), code in known if code}
            start, end = self._starts[piece], self._ends[piece]
            is_frames = self._frames[piece]
            yield Clip(
                id=id_,
                path=path,
                labels=own,
                group=groups[piece],
                split=_SPLITS[self._splits[piece]],
                start_s=0.0 if is_frames else start,
                end_s=None if is_frames or end < 0 else end,
                frames=(int(start), None if end < 0 else int(end)) if is_frames else None,
                where=self._where(piece),
            )

    def _where(self, piece: int) -> str:
        return self._shown(self._files[piece], self._lines[piece])

    def _shown(self, file: int, line: int) -> str:
        """Return file and line without the folder, as rejects are stored with the store."""
        return f"{self._names[file].relative_to(self._source).as_posix()}:{line}"

    def _missing(self) -> set[str]:
        """Return the recordings that do not exist; parts of Arrow files do."""
        missing: set[str] = set()
        before = ""
        for path in self._paths:
            if path is not before and not is_member(path):
                before = path
                if not os.path.lexists(f"{self._home}/{path}"):
                    missing.add(path)
        return missing

    def _labels(self, where: str) -> tuple[dict[str, list[str]], list[Note]]:
        """Return the labels with their classes, the main label first, and a line for the user."""
        columns, refused = {}, {}
        for name, field in self._fields.items():
            if field.dropped:
                refused[name] = field.dropped
            else:
                field.pad(len(self._ids))
                columns[name] = field.of_all()
        chosen = choose_labels(columns, self._picked, self._main, where, refused=refused)
        notes = []
        if chosen.left_out:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in chosen.left_out.items())
            notes = [
                Note(
                    f"labels are {', '.join(chosen.labels)} (the first is the main one). "
                    f"Not taken: {reasons}. `labels` and `main_label` pick others."
                )
            ]
        return {name: self._classes(name) for name in chosen.labels}, notes

    def _classes(self, name: str) -> list[str]:
        """Return the classes of a field, checked, without blanks around them."""
        field, spellings, classes = self._fields[name], Spellings(), []
        for value, piece in zip(field.values, field.first, strict=True):
            where = f"{self._names[self._files[piece]]}:{self._lines[piece]}"
            classes.append(value.strip())
            if not classes[-1].isprintable():
                raise CorpusError(f"{where}: {name} is {value!r:.80}; wanted visible text")
            if classes[-1]:
                spellings.add(value, f"{where}: {name}")
        return classes

    def _groups(self, main: str) -> tuple[Sequence[str], list[Note]]:
        """Return the group of each piece: its speaker if that is known, else its recording.

        Recordings that share a speaker, and speakers that share a recording, are one group. If the
        speaker is what a network learns, all speakers have to be in all splits: the recording is
        the group.
        """
        name = next((name for name in self._fields if name.lower() in _SPEAKER), None)
        if name is None:
            return self._paths, []
        if main.lower() in _SPEAKER:
            return self._paths, [
                Note(
                    f"{main} is the main label, so each split has recordings of all speakers; "
                    "with another one, a random split keeps speakers apart"
                )
            ]
        field = self._fields[name]
        field.pad(len(self._ids))
        parent = list(range(len(field.values)))

        def root(code: int) -> int:
            while parent[code] != code:
                parent[code] = code = parent[parent[code]]
            return code

        speaker_of: dict[str, int] = {}
        for path, code in zip(self._paths, field.codes, strict=True):
            if code and (other := root(speaker_of.setdefault(path, code))) != root(code):
                # The smaller name stands for both, whatever the order of the lines.
                one, two = sorted((other, root(code)), key=lambda code: field.values[code])
                parent[two] = one
        roots = [root(code) for code in range(len(field.values))]
        count = len(set(roots) - {0})
        if count < _LEAST_SPEAKERS:
            together = "" if count == len(field.values) - 1 else " that share no recording"
            reason = f"{name} has {count} speakers{together}, too few to keep apart"
            return self._paths, [Note(f"{reason}: a random split divides their recordings")]
        groups = [
            field.values[roots[speaker_of[path]]] if path in speaker_of else path
            for path in self._paths
        ]
        apart = f"a random split keeps the {count} groups of {name} apart"
        return groups, [Note(f"{apart}: those who share a recording are one group")]
