"""Files of a run, checked by the run's ``manifest.json``.

The manifest lists, for each file, the states that it may be in: its size and crc32c, or null if it
may be missing. A file has one state, except while it is being changed: the new state is added to
the manifest before the change, and the old state is removed after the change. So a run that is
killed between any two writes is intact, and the manifest reveals everything that this run did not
write: flipped bits, deleted files, files of another run.

Runs of version 1 have no manifest, and their files are not checked. TensorBoard appends to its
event files by itself; these are added to the manifest when the process that wrote them has ended.
This module does not import torch.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from antigram.pipeline.errors import DamagedError, StoredDataError
from antigram.pipeline.storage.archive import Sink
from antigram.pipeline.storage.chunks import crc32c
from antigram.pipeline.storage.durable import atomic_file, write_text
from antigram.pipeline.storage.hashing import canonical_json, digest
from antigram.pipeline.storage.manifest import Problem
from antigram.pipeline.storage.publish import leftovers_of, recover

__all__ = [
    "CONFIG",
    "DRAWN",
    "ENDS",
    "MANIFEST",
    "VERSION",
    "RunFiles",
    "has_manifest",
    "run_state",
    "verify_files",
]

VERSION = 2  # version of a run's format, stored in config.json; from 2 on, runs have a manifest
CONFIG, MANIFEST = "config.json", "manifest.json"
DRAWN = ("curves.png", "report.html")  # files that are made from a finished run
FORMAT = {"format": "antigram/run-manifest", "format_version": 1}
ENDS = ("epochs", "patience")  # settings that end a training, without effect on earlier epochs
_EVENTS = "events.out.tfevents.*"
_AT_ONCE = 16 << 20  # bytes
_PART = 4 << 20  # bytes; a checksum holds Python's lock, and other threads wait for it

_State = dict[str, int] | None  # bytes and crc32c; None: missing


@dataclass(slots=True)
class _Summed:
    """A file that counts the bytes written to it and computes their checksum."""

    file: BinaryIO
    bytes: int = 0
    crc32c: int = 0

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - see `Sink`
        view = memoryview(data).cast("B")
        for start in range(0, view.nbytes, _PART):
            part = view[start : start + _PART]
            self.crc32c = crc32c(np.frombuffer(part, np.uint8), self.crc32c)
            self.file.write(part)
        self.bytes += view.nbytes
        return view.nbytes

    def flush(self) -> None:
        self.file.flush()

    def state(self) -> _State:
        return {"bytes": self.bytes, "crc32c": self.crc32c}


@dataclass(slots=True)
class RunFiles:
    """Files of a run; a single process may write them, with one thread at a time.

    Attributes:
        folder: the run's folder.
        settings: content of config.json.
        version: version of the run's format.
    """

    folder: Path
    settings: dict[str, Any]
    version: int = VERSION
    _states: dict[str, list[_State]] = field(default_factory=dict)
    _manifest: str = ""  # text of the manifest on disk

    def begin(self) -> None:
        """Create the folder of a new run, with its config.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clear_leftovers()  # of a process that was killed before it had written config.json
        for name in ("metrics.jsonl", "best.pt"):  # these are left if the first epoch was killed
            (self.folder / name).unlink(missing_ok=True)
        self.settings = {"format": "antigram/run", "format_version": VERSION, **self.settings}
        self.write_json(CONFIG, self.settings)

    def move_end(self, config: Mapping[str, Any]) -> None:
        """Store the settings of a run that is resumed with other ``epochs`` or ``patience``."""
        self.settings = {**self.settings, "config": dict(config)}
        self.write_json(CONFIG, self.settings)

    @classmethod
    def open(cls, folder: Path) -> RunFiles | None:
        """Open a run's folder; return None if the run was killed before it wrote config.json.

        Raises:
            StoredDataError: the run was written by a newer version.
            DamagedError: config.json or the manifest is missing or damaged.
        """
        path = folder / CONFIG
        if not path.is_file():
            if _may_lack_config(folder):
                return None
            raise DamagedError(f"{path}: missing; the run cannot be resumed. Start a new one.")
        try:
            settings = json.loads(path.read_bytes())
            version = settings.get("format_version", 1)
        except (OSError, ValueError, AttributeError) as error:
            raise DamagedError(
                f"{path}: unreadable ({error}). Restore it, or start a new run."
            ) from None
        if isinstance(version, int) and version > VERSION:
            raise StoredDataError(
                f"{path}: written by version {version}, this reads up to {VERSION}. "
                "Update antigram."
            )
        if version == 1 and not (folder / MANIFEST).exists():
            return cls(folder, settings, 1)
        states, manifest = _read_manifest(folder)
        files = cls(folder, settings, VERSION, states, manifest)
        files.check(CONFIG)
        if json.loads(manifest)["run"] != _identity(settings):
            raise DamagedError(f"{folder / MANIFEST}: of another run; {path} has other settings")
        return files

    def __contains__(self, name: str) -> bool:
        """Return whether the run has a file of this name."""
        if self.version < VERSION:
            return (self.folder / name).is_file()
        return name in self._states and (self.folder / name).exists()

    def check(self, *names: str) -> None:
        """Read files and compare them with the manifest.

        Raises:
            DamagedError: a file is missing, or is not as this run wrote it.
        """
        for name in names:
            if problem := self.problem(name):
                raise DamagedError(
                    f"{self.folder / name}: {problem}. Restore it, or start a new run."
                )

    def problem(self, name: str) -> str:
        """Return what is wrong with a file; empty if it is intact, or if there is no manifest."""
        if self.version < VERSION:
            return ""
        path, states = self.folder / name, self._states.get(name, [None])
        try:
            state = _state_of(path)
        except OSError as error:
            return f"unreadable: {error.strerror}"
        if state in states:
            return ""
        if state is None:
            return "missing"
        if name not in self._states:
            return "not a file of this run"
        if state["bytes"] not in {known["bytes"] for known in states if known}:
            return "another length than this run wrote: truncated, or of another run"
        return "not as this run wrote it (crc32c): a bit has flipped, or it is of another run"

    def write(self, name: str, write: Callable[[Sink], object]) -> None:
        """Write a file atomically, and record its state in the manifest.

        Args:
            name: name of the file.
            write: called with the open file.
        """
        self.write_all({name: write})

    def write_all(self, contents: Mapping[str, Callable[[Sink], object]]) -> None:
        """Write files, each atomically, and record their states in the manifest.

        All are written and flushed before the first of them is renamed, so that a process that is
        killed hardly ever leaves some of them new and others old.

        Args:
            contents: for each file, by name, what `write` takes; they are renamed in this order.
        """
        states: dict[str, _State] = {}
        with ExitStack() as stack:
            for name, write in reversed(list(contents.items())):  # the last opened is renamed first
                file = stack.enter_context(atomic_file(self.folder / name))
                summed = _Summed(file)
                write(summed)
                states[name] = summed.state()
                if len(contents) > 1:
                    file.flush()
                    os.fsync(file.fileno())
            self._announce(states)
        self._states |= {name: [state] for name, state in states.items()}
        self._write_manifest()

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write bytes to a file: see `write`."""
        self.write(name, lambda file: file.write(content))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Write JSON to a file: see `write`."""
        self.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def remove(self, *names: str) -> None:
        """Delete files; a file that does not exist is ignored."""
        for name in names:
            if name in self:
                self._announce({name: None})
                (self.folder / name).unlink(missing_ok=True)
            self._states.pop(name, None)
        self._write_manifest()

    def adopt_events(self) -> None:
        """Add TensorBoard's event files to the manifest, once no process writes to these."""
        for path in self.folder.glob(_EVENTS):
            self._states.setdefault(path.name, [_state_of(path)])
        self._write_manifest()

    def clear_leftovers(self) -> None:
        """Delete unfinished files of a process that was killed while it wrote them."""
        recover(self.folder)

    def verify(self) -> Iterator[Problem]:
        """Yield a problem for each file that is damaged, missing or unknown."""
        finished = "result.json" in self
        for name in sorted(self._states):
            if problem := self.problem(name):
                yield Problem(self.folder / name, problem)
        known = {self.folder / name for name in (MANIFEST, *self._states)}
        known |= set(_leftovers(self.folder))
        if not finished:
            known |= set(self.folder.glob(_EVENTS))
        for path in sorted(set(self.folder.rglob("*")) - known):
            if not path.is_dir():
                yield Problem(path, "unknown file: this run did not write it")

    def _announce(self, states: Mapping[str, _State]) -> None:
        """Add states to the manifest, before the files are changed to them."""
        for name, state in states.items():
            self._states[name] = [*self._states.get(name, [None]), state]
        self._write_manifest()

    def _write_manifest(self) -> None:
        """Write the manifest, if it has changed."""
        if self.version < VERSION:
            return
        content = {**FORMAT, "run": _identity(self.settings), "files": self._states}
        if (text := _text(content)) != self._manifest:
            write_text(self.folder / MANIFEST, text)
            self._manifest = text


def has_manifest(folder: Path) -> bool:
    """Return whether a run should have a manifest: from format version 2 on.

    If the file is then missing, it was deleted.
    """
    path = folder / CONFIG
    if (folder / MANIFEST).exists() or not path.exists():
        return (folder / MANIFEST).exists() or _may_lack_config(folder)
    try:
        version = json.loads(path.read_bytes()).get("format_version", 1)
    except (OSError, ValueError, AttributeError):
        return False
    return bool(version != 1)


def verify_files(folder: Path) -> Iterator[Problem]:
    """Yield the problems of a run with a manifest, even while a training writes to it."""
    for _ in range(5):
        before = _bytes_of(folder / MANIFEST)
        problems = list(_verify(folder))
        if not problems or _bytes_of(folder / MANIFEST) == before:
            break
    yield from problems


def _verify(folder: Path) -> Iterator[Problem]:
    try:
        files = RunFiles.open(folder)
    except StoredDataError as error:
        where, _, problem = str(error).partition(": ")
        yield Problem(Path(where), problem)
        if where == str(folder / MANIFEST) or not isinstance(error, DamagedError):
            return
        try:
            files = RunFiles(folder, {}, VERSION, _read_manifest(folder)[0])
        except DamagedError as manifest_error:
            yield Problem(folder / MANIFEST, str(manifest_error).partition(": ")[2])
            return
        yield from (p for p in files.verify() if p.path != Path(where))
        return
    if files is not None:
        yield from files.verify()


def run_state(folder: Path) -> str:
    """Return a text about an intact run: whether it is finished, and any unfinished files."""
    finished = (folder / "result.json").is_file()
    text = "finished" if finished else "not finished: the same command with `resume` goes on"
    if left := list(_leftovers(folder)):
        text += f"; {len(left)} unfinished files of a killed process, which `resume` removes"
    return text


def _leftovers(folder: Path) -> Iterator[Path]:
    """Return the files that were being written when a process was killed."""
    return (left.path for left in leftovers_of(folder))


def _may_lack_config(folder: Path) -> bool:
    """Return whether config.json may be missing, as the run was killed before it was written."""
    if (folder / MANIFEST).exists():
        return None in _read_manifest(folder)[0].get(CONFIG, [None])
    return not set(folder.rglob("*")) - set(_leftovers(folder))


def _read_manifest(folder: Path) -> tuple[dict[str, list[_State]], str]:
    """Return the states of each file, and the text of the manifest.

    Raises:
        DamagedError: the manifest is missing or damaged.
        StoredDataError: the manifest was written by a newer version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_bytes().decode()
        content = json.loads(text)
        del content["digest"]
        intact = text == _text(content)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing; without it nothing can be checked") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"{path}: unreadable: {error}") from None
    if not intact:
        raise DamagedError(f"{path}: does not match its own digest")
    if {key: content.get(key) for key in FORMAT} != FORMAT:
        raise StoredDataError(
            f"{path}: written by version {content.get('format_version')}, "
            f"this reads up to {FORMAT['format_version']}. Update antigram."
        )
    return content["files"], text


def _text(content: Mapping[str, Any]) -> str:
    """Return the text of a manifest, with its own digest."""
    return canonical_json({**content, "digest": digest(content)}) + "\n"


def _identity(settings: Mapping[str, Any]) -> str:
    """Return a digest of the settings that decide a run's numbers; `ENDS` are left out."""
    config = {key: value for key, value in settings["config"].items() if key not in ENDS}
    identity = {"config": config, **{key: settings[key] for key in ("features", "grams")}}
    return digest(json.dumps(identity, sort_keys=True))  # text, as file names may not be UTF-8


def _state_of(path: Path) -> _State:
    """Return the size and crc32c of a file; None if there is no such file.

    Raises:
        OSError: the file is not regular, or cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise OSError(0, "not a regular file")
        with path.open("rb") as file:
            size = crc = 0
            while part := file.read(_AT_ONCE):
                size, crc = size + len(part), crc32c(part, crc)
    except FileNotFoundError:
        return None
    return {"bytes": size, "crc32c": crc}


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
