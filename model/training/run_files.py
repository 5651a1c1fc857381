"""Files of a run, each vouched for by the run's ``manifest.json``. No torch.

The manifest holds, by file, the states that the file may be in: its size and crc32c, or null where
it may be missing. There is one, but for the file that is being changed: a change is announced there
before it is made, by a state that is added, and settled after it. So a run that is killed between
any two writes is intact, and anything but what this run wrote is found: flipped bits, deleted
files, another run's.

Runs of version 1 have no manifest; nothing vouches for their files. TensorBoard appends to its
files of events by itself: they are added when the process that wrote them has ended.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator, Mapping
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

VERSION = 2  # of a run, as config.json has it; from 2 on there is a manifest
CONFIG, MANIFEST = "config.json", "manifest.json"
DRAWN = ("curves.png", "report.html")  # of a run that has its result
FORMAT = {"format": "antigram/run-manifest", "format_version": 1}
ENDS = ("epochs", "patience")  # when a training ends; changing them changes no epoch before
_EVENTS = "events.out.tfevents.*"
_AT_ONCE = 16 << 20  # bytes

_State = dict[str, int] | None  # bytes and crc32c; None: missing


@dataclass(slots=True)
class _Summed:
    """A file that sums up what is written to it."""

    file: BinaryIO
    bytes: int = 0
    crc32c: int = 0

    def write(self, data: Any, /) -> int:  # noqa: ANN401 - see `Sink`
        view = memoryview(data).cast("B")
        if view.nbytes:
            self.crc32c = crc32c(np.frombuffer(view, np.uint8), self.crc32c)
        self.bytes += view.nbytes
        return self.file.write(view)

    def flush(self) -> None:
        self.file.flush()

    def state(self) -> _State:
        return {"bytes": self.bytes, "crc32c": self.crc32c}


@dataclass(slots=True)
class RunFiles:
    """The files of one run; only one process may write them.

    Attributes:
        folder: the run's.
        settings: content of config.json.
        version: of the run's format.
    """

    folder: Path
    settings: dict[str, Any]
    version: int = VERSION
    _states: dict[str, list[_State]] = field(default_factory=dict)
    _noted: str = ""  # the manifest as it is on disk

    def begin(self) -> None:
        """Make the folder of a new run, and its config.json."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "best.pt"):  # of a first epoch that was killed
            (self.folder / name).unlink(missing_ok=True)
        self.settings = {"format": "antigram/run", "format_version": VERSION, **self.settings}
        self.write_json(CONFIG, self.settings)

    def move_end(self, config: Mapping[str, Any]) -> None:
        """Note the config of a run that goes on for longer than it was to."""
        self.settings = {**self.settings, "config": dict(config)}
        self.write_json(CONFIG, self.settings)

    @classmethod
    def open(cls, folder: Path) -> RunFiles | None:
        """Read what a run's folder holds; None if it was killed before it had noted anything.

        Raises:
            StoredDataError: written by a newer version.
            DamagedError: config.json or the manifest is not as it was written.
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
        states, noted = _read_manifest(folder)
        found = cls(folder, settings, VERSION, states, noted)
        found.check(CONFIG)
        if json.loads(noted)["run"] != _identity(settings):
            raise DamagedError(f"{folder / MANIFEST}: another run's; {path} has other settings")
        return found

    def __contains__(self, name: str) -> bool:
        """Whether the run has such a file."""
        if self.version < VERSION:
            return (self.folder / name).is_file()
        return name in self._states and (self.folder / name).exists()

    def check(self, *names: str) -> None:
        """Read files and hold them against the manifest.

        Raises:
            DamagedError: one is missing, or not as this run wrote it.
        """
        for name in names:
            if problem := self.problem(name):
                raise DamagedError(
                    f"{self.folder / name}: {problem}. Restore it, or start a new run."
                )

    def problem(self, name: str) -> str:
        """What is wrong with a file; '' if nothing is, or if nothing vouches for it."""
        if self.version < VERSION:
            return ""
        path, states = self.folder / name, self._states.get(name, [None])
        try:
            found = _state_of(path)
        except OSError as error:
            return f"unreadable: {error.strerror}"
        if found in states:
            return ""
        if found is None:
            return "missing"
        if name not in self._states:
            return "not a file of this run"
        if found["bytes"] not in {state["bytes"] for state in states if state}:
            return "another length than this run wrote: truncated, or another run's"
        return "not as this run wrote it (crc32c): a bit has flipped, or it is another run's"

    def write(self, name: str, write: Callable[[Sink], object]) -> None:
        """Write a file so that it is there as a whole or not at all, and vouch for it."""
        with atomic_file(self.folder / name) as file:
            summed = _Summed(file)
            write(summed)
            self._announce(name, summed.state())
        self._states[name] = [summed.state()]
        self._note()

    def write_bytes(self, name: str, content: bytes) -> None:
        """See `write`."""
        self.write(name, lambda file: file.write(content))

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """See `write`."""
        self.write_bytes(name, (json.dumps(content, indent=2) + "\n").encode())

    def remove(self, *names: str) -> None:
        """Delete those files that are there."""
        for name in names:
            if name in self:
                self._announce(name, None)
                (self.folder / name).unlink(missing_ok=True)
            self._states.pop(name, None)
        self._note()

    def adopt_events(self) -> None:
        """Vouch for TensorBoard's files, once no process writes them."""
        for path in self.folder.glob(_EVENTS):
            self._states.setdefault(path.name, [_state_of(path)])
        self._note()

    def clear_leftovers(self) -> None:
        """Delete what a process left that was killed while it wrote."""
        recover(self.folder)

    def verify(self) -> Iterator[Problem]:
        """What is wrong with each file."""
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

    def _announce(self, name: str, state: _State) -> None:
        self._states[name] = [*self._states.get(name, [None]), state]
        self._note()

    def _note(self) -> None:
        """Write the manifest."""
        if self.version < VERSION:
            return
        content = {**FORMAT, "run": _identity(self.settings), "files": self._states}
        if (text := _text(content)) != self._noted:
            write_text(self.folder / MANIFEST, text)
            self._noted = text


def has_manifest(folder: Path) -> bool:
    """Whether a run has a manifest, or must have one: all but those of version 1."""
    path = folder / CONFIG
    if (folder / MANIFEST).exists() or not path.exists():
        return (folder / MANIFEST).exists() or _may_lack_config(folder)
    try:
        version = json.loads(path.read_bytes()).get("format_version", 1)
    except (OSError, ValueError, AttributeError):
        return False
    return bool(version != 1)


def verify_files(folder: Path) -> Iterator[Problem]:
    """Problems of a run with a manifest, which a training may be writing meanwhile."""
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
        except DamagedError as other:
            yield Problem(folder / MANIFEST, str(other).partition(": ")[2])
            return
        yield from (p for p in files.verify() if p.path != Path(where))
        return
    if files is not None:
        yield from files.verify()


def run_state(folder: Path) -> str:
    """``finished``, or how an intact run goes on; and what a killed process left."""
    finished = (folder / "result.json").is_file()
    text = "finished" if finished else "not finished: the same command with `resume` goes on"
    if left := list(_leftovers(folder)):
        text += f"; {len(left)} unfinished files of a killed process, which `resume` removes"
    return text


def _leftovers(folder: Path) -> Iterator[Path]:
    """Files that were being written when the process was killed."""
    return (left.path for left in leftovers_of(folder))


def _may_lack_config(folder: Path) -> bool:
    """Whether a run was killed before it had its config.json."""
    if (folder / MANIFEST).exists():
        return None in _read_manifest(folder)[0].get(CONFIG, [None])
    return not set(folder.rglob("*")) - set(_leftovers(folder))


def _read_manifest(folder: Path) -> tuple[dict[str, list[_State]], str]:
    """States by file, and the manifest's text.

    Raises:
        DamagedError: missing, or not as it was written.
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
    """A manifest as it is stored, with its own digest."""
    return canonical_json({**content, "digest": digest(content)}) + "\n"


def _identity(settings: Mapping[str, Any]) -> str:
    """Digest of what decides a run's numbers, less when it ends."""
    config = {key: value for key, value in settings["config"].items() if key not in ENDS}
    kept = {"config": config, **{key: settings[key] for key in ("features", "grams")}}
    return digest(json.dumps(kept, sort_keys=True))  # as text: names of files may be no UTF-8


def _state_of(path: Path) -> _State:
    """Size and crc32c of a file; None if there is none.

    Raises:
        OSError: not a regular file, or it cannot be read.
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
