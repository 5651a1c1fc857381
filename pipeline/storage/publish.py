"""Put finished work in place in one step, and repair what a killed process left of such a step.

What is not finished never lies inside of what is published. Beside ``NAME`` (a store, a cache, a
run, a corpus) lie, hidden:

* ``.NAME.partial``: work that is going on, or was interrupted; the next build of NAME resumes it;
* ``.NAME.import``: an import that is going on;
* ``.NAME.old``: what a newer NAME replaces. It is complete until its name ends in ``.trash``, so
  that without a NAME beside it, it is NAME again;
* ``.NAME.layerNN.old``: likewise of a layer of a cache;
* ``.NAME.trash``: being deleted;
* ``.NAME.sources``: what the recordings of a store were (`pipeline.features.source_record`); no
  leftover as long as there is such a store;
* ``.NAME.lock``: the lock of the process that makes NAME (`pipeline.workspace.locked`).

A single file is written as ``FILE.*.partial`` beside its goal (`pipeline.storage.durable`).
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
from antigram.pipeline.storage.manifest import drop_strangers

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
_LAYER = re.compile(r"(?P<name>.+\.zarr)\.(?P<layer>layer\d\d)", re.DOTALL)
_INNER = re.compile(r"\.(?P<layer>layer\d\d)\.(?P<kind>old|trash)")  # of version 0.1.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """What a process that was killed, or is still running, left behind.

    Attributes:
        path: of the file or folder.
        goal: the store, cache, run or corpus that it belongs to, and whose lock guards it.
        kind: ``partial``, ``import``, ``old``, ``trash``, ``lock``, ``sources``, or ``file`` for a
            single file that was being written.
        place: where an ``old`` one came from, and goes back to if nothing is there.
    """

    path: Path
    goal: Path
    kind: str
    place: Path

    @property
    def is_lost(self) -> bool:
        """Whether a swap was cut between its two renames: this is the only version there is."""
        return self.kind == "old" and self.place.parent.is_dir() and not self.place.exists()


def work_folder(goal: Path) -> Path:
    """Folder in which ``goal`` is made; what an interrupted build has done is kept there."""
    return goal.with_name(f".{goal.name}.partial")


def check_goal(option: str, goal: Path) -> None:
    """Refuse a file that cannot be written, before the work whose result it is to hold.

    Args:
        option: that names it, for the message.
        goal: the file.

    Raises:
        InputError: its folder is not there, or it is no file.
        OSError: the system refuses its name, or what is written beside it.
    """
    if not (folder := goal.absolute().parent).is_dir():
        raise InputError(f"{option} {goal}: there is no folder {folder}")
    try:
        check_replaceable(goal)
    except InputError as error:
        raise InputError(f"{option} {error}") from None
    beside = work_folder(goal)
    try:
        beside.touch(exist_ok=False)
    except FileExistsError:  # another process writes it, or was killed as it did
        return
    beside.unlink(missing_ok=True)


def publish(new: Path, goal: Path) -> None:
    """Put a finished group in the place of another; nothing but what its manifest lists goes along.

    A killed writer may have left files in it. Running readers keep their maps of the old files;
    they stay valid until they are closed. Whatever kills this, `recover` repairs.

    Args:
        new: the finished group.
        goal: a store, a cache, or a layer in a cache.
    """
    drop_strangers(Folder(new))
    aside = _aside(goal)
    if goal.exists():
        discard(aside)
        goal.rename(aside)
    new.rename(goal)
    fsync_folder(goal.parent)
    with suppress(OSError):  # the new one is there: what is left of the old one, `clean` removes
        discard(aside)


def put_files(source: Path, goal: Path, names: tuple[str, ...]) -> None:
    """Move finished files into a published folder, each in place of the one that is there."""
    for name in names:
        (goal / name).parent.mkdir(exist_ok=True)
        (source / name).replace(goal / name)
        fsync_folder((goal / name).parent)


def discard(path: Path) -> None:
    """Delete a file or folder; a folder gets another name first, so that no half of it is used."""
    found = _HIDDEN.fullmatch(path.name)
    if found is not None and found["kind"] != "trash" and path.is_dir() and not path.is_symlink():
        trash = path.with_name(f".{found['name']}.trash")
        remove(trash)
        path = path.rename(trash)
    remove(path)


def _aside(goal: Path) -> Path:
    """Where a replaced folder waits: beside the published group, never inside."""
    if goal.parent.suffix == ".zarr":
        return goal.parent.with_name(f".{goal.parent.name}.{goal.name}.old")
    return goal.with_name(f".{goal.name}.old")


def parse(path: Path) -> Leftover | None:
    """What an entry of a folder of stores, caches, runs or corpora is, if it is a leftover."""
    if (found := _HIDDEN.fullmatch(path.name)) is None:
        if path.suffix == PARTIAL and path.is_file():
            goal = path.with_suffix("")
            return Leftover(path, goal, "file", goal)
        return None
    layer = _LAYER.fullmatch(found["name"])
    goal = path.with_name(layer["name"] if layer else found["name"])
    place = goal / layer["layer"] if layer else goal
    return Leftover(path, goal, found["kind"], place)


def leftovers_of(goal: Path) -> Iterator[Leftover]:
    """Leftovers inside of a store, cache or run: files that were being written, old layers."""
    if not goal.is_dir():
        return
    for path in sorted(goal.rglob("*" + PARTIAL)):
        if path.is_file():
            yield Leftover(path, goal, "file", path)
    for path in sorted(goal.glob(".layer*")):
        if (found := _INNER.fullmatch(path.name)) is not None:
            yield Leftover(path, goal, found["kind"], goal / found["layer"])


def recover(goal: Path) -> None:
    """Repair what a killed process left of publishing ``goal``; its unfinished work is kept.

    To be called by the process that holds the lock: a folder that was put aside goes back to its
    place if nothing took it, and else goes.
    """
    beside = (parse(path) for path in sorted(goal.parent.iterdir())) if goal.parent.is_dir() else ()
    found = [left for left in beside if left is not None and left.goal == goal]
    for left in (*found, *leftovers_of(goal)):
        if left.kind in ("old", "trash", "file"):
            settle(left)


def settle(left: Leftover) -> None:
    """Put a folder back that a cut swap had put aside, and delete any other leftover but a lock."""
    if left.is_lost:
        left.path.rename(left.place)
        fsync_folder(left.place.parent)
    elif left.kind != "lock":
        discard(left.path)
