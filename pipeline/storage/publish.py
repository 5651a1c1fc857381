"""Publish finished folders atomically, and repair what a killed process left behind.

Unfinished work is never stored inside a published folder. These hidden files and folders may exist
beside ``NAME``, which is a store, cache, run or corpus:

* ``.NAME.partial``: work in progress, or interrupted; the next build of NAME resumes it;
* ``.NAME.import``: an import in progress;
* ``.NAME.old``: the previous NAME while it is replaced. It is complete until it is renamed to
  ``.trash``; if NAME does not exist, it is restored;
* ``.NAME.layerNN.old``: the previous version of one layer of a cache, while it is replaced;
* ``.NAME.trash``: a folder that is being deleted;
* ``.NAME.sources``: the record of a store's recordings (`pipeline.features.source_record`); it is
  a leftover only if the store does not exist;
* ``.NAME.lock``: the lock of the process that makes NAME (`pipeline.workspace.locked`).

A single file is written as ``FILE.*.partial`` beside its final path (`pipeline.storage.durable`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.durable import PARTIAL, fsync_folder
from antigram.pipeline.storage.files import check_replaceable, remove
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import LAYER_GROUP, delete_unlisted

__all__ = [
    "Leftover",
    "check_goal",
    "discard",
    "leftovers_of",
    "parse",
    "publish",
    "put_files",
    "recover",
    "settle",
    "work_folder",
]

_HIDDEN = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|import|old|trash|lock|sources)", re.DOTALL)
_LAYER = re.compile(rf"(?P<name>.+\.zarr)\.(?P<layer>{LAYER_GROUP})", re.DOTALL)
# Replaced layers, as version 0.1.0 named them.
_INNER = re.compile(r"\.(?P<layer>layer\d\d)\.(?P<kind>old|trash)")


@dataclass(frozen=True, slots=True)
class Leftover:
    """A file or folder left by a process that was killed or is still running.

    Attributes:
        path: path of the file or folder.
        goal: the store, cache, run or corpus that it belongs to, and whose lock guards it.
        kind: ``partial``, ``import``, ``old``, ``trash``, ``lock``, ``sources``, or ``file`` for a
            single file that was being written.
        origin: former path of an ``old`` folder, to which it is restored if nothing is there.
    """

    path: Path
    goal: Path
    kind: str
    origin: Path

    @property
    def is_lost(self) -> bool:
        """Whether this is the only version: its replacement was interrupted between two renames."""
        return self.kind == "old" and self.origin.parent.is_dir() and not self.origin.exists()


def work_folder(goal: Path) -> Path:
    """Return the folder in which ``goal`` is built, which keeps the work of interrupted builds."""
    return goal.with_name(f".{goal.name}.partial")


def check_goal(option: str, goal: Path) -> None:
    """Raise if a file cannot be written; called before the work whose result it will hold.

    Args:
        option: name of the argument that gave the path, for the message.
        goal: the file.

    Raises:
        InputError: the folder does not exist, or ``goal`` is not a file.
        OSError: the system refuses the name of the file or of the temporary file.
    """
    if not (folder := goal.absolute().parent).is_dir():
        raise InputError(f"{option} {goal}: there is no folder {folder}")
    try:
        check_replaceable(goal)
    except InputError as error:
        raise InputError(f"{option} {error}") from None
    temporary = work_folder(goal)
    try:
        temporary.touch(exist_ok=False)
    except FileExistsError:  # another process is writing it, or was killed while writing
        return
    temporary.unlink(missing_ok=True)


def publish(new: Path, goal: Path) -> None:
    """Move a finished group to its final path, and replace an existing one.

    Files that its manifest does not list, left by a killed writer, are deleted first. Running
    readers keep their maps of the old files. If this is interrupted, `recover` repairs it.

    Args:
        new: the finished group.
        goal: path of a store, a cache, or a layer in a cache.
    """
    delete_unlisted(Folder(new))
    old = _old_path(goal)
    if goal.exists():
        discard(old)
        goal.rename(old)
    new.rename(goal)
    fsync_folder(goal.parent)
    with suppress(OSError):  # `clean` deletes what is left of the old group
        discard(old)


def put_files(source: Path, goal: Path, names: tuple[str, ...]) -> None:
    """Move finished files into a published folder; existing files are replaced."""
    for name in names:
        (goal / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).replace(goal / name)
        fsync_folder((goal / name).parent)


def discard(path: Path) -> None:
    """Delete a file or folder; a folder is renamed first, so that no part of it is used."""
    match = _HIDDEN.fullmatch(path.name)
    if match is not None and match["kind"] != "trash" and path.is_dir() and not path.is_symlink():
        trash = path.with_name(f".{match['name']}.trash")
        remove(trash)
        path = path.rename(trash)
    remove(path)


def _old_path(goal: Path) -> Path:
    """Return the path to which a replaced folder is moved: beside the published group."""
    if goal.parent.suffix == ".zarr":
        return goal.parent.with_name(f".{goal.parent.name}.{goal.name}.old")
    return goal.with_name(f".{goal.name}.old")


def parse(path: Path) -> Leftover | None:
    """Return the leftover that a path is, by its name; None if the path is no leftover."""
    if (match := _HIDDEN.fullmatch(path.name)) is None:
        if path.suffix == PARTIAL and path.is_file():
            goal = path.with_suffix("")
            return Leftover(path, goal, "file", goal)
        return None
    layer = _LAYER.fullmatch(match["name"])
    goal = path.with_name(layer["name"] if layer else match["name"])
    origin = goal / layer["layer"] if layer else goal
    return Leftover(path, goal, match["kind"], origin)


def leftovers_of(goal: Path) -> Iterator[Leftover]:
    """Yield the leftovers inside a store, cache or run: unfinished files and replaced layers."""
    if not goal.is_dir():
        return
    for path in sorted(goal.rglob("*" + PARTIAL)):
        if path.is_file():
            yield Leftover(path, goal, "file", path)
    for path in sorted(goal.glob(".layer*")):
        if (match := _INNER.fullmatch(path.name)) is not None:
            yield Leftover(path, goal, match["kind"], goal / match["layer"])


def recover(goal: Path) -> None:
    """Repair an interrupted publication of ``goal``; unfinished work is kept.

    A folder that was moved aside is restored if nothing has its path, and is deleted otherwise. The
    caller has to hold the lock of ``goal``.
    """
    siblings = (
        (parse(path) for path in sorted(goal.parent.iterdir())) if goal.parent.is_dir() else ()
    )
    leftovers = [left for left in siblings if left is not None and left.goal == goal]
    for left in (*leftovers, *leftovers_of(goal)):
        if left.kind in ("old", "trash", "file"):
            settle(left)


def settle(left: Leftover) -> None:
    """Restore a folder if its replacement was interrupted; delete other leftovers, except locks."""
    if left.is_lost:
        left.path.rename(left.origin)
        fsync_folder(left.origin.parent)
    elif left.kind != "lock":
        discard(left.path)
