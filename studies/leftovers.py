"""List and remove what killed processes left in a workspace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.files import size_of, size_text
from antigram.pipeline.storage.publish import Leftover, leftovers_of, parse, settle
from antigram.pipeline.workspace import Workspace, is_locked, locked

__all__ = ["Cleaned", "clean", "describe", "find_leftovers", "idle_leftovers"]

_WHAT = {
    "partial": "unfinished work, which the same command would resume",
    "import": "an import that was interrupted",
    "old": "a replaced version",
    "trash": "being deleted when its process ended",
    "lock": "a lock that no process holds",
    "sources": "the record of a deleted store",
    "file": "a file that was being written",
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean` removed, or would remove.

    Attributes:
        removed: removed files and folders, with their sizes in bytes.
        restored: complete versions that were moved back, after an interrupted replacement had moved
            them aside.
        busy: stores, caches, runs and corpora in use by a process, which were left alone.
    """

    removed: list[tuple[Leftover, int]]
    restored: list[Leftover]
    busy: list[Path]

    def add(self, leftovers: Sequence[Leftover]) -> None:
        """Record leftovers that are about to be removed or restored."""
        for left in leftovers:
            if left.is_lost:
                self.restored.append(left)
            else:
                self.removed.append((left, size_of(left.path)))

    def to_json(self) -> dict[str, Any]:
        """Return the fields of ``clean --json``."""
        return {
            "removed": [{"path": str(left.path), "bytes": size} for left, size in self.removed],
            "restored": [str(left.origin) for left in self.restored],
            "busy": [str(path) for path in self.busy],
        }

    def lines(self, done: str) -> list[str]:
        """Return the result as lines of text.

        Args:
            done: the verb of the lines: ``removed`` or ``would be removed``.
        """
        total = size_text(sum(size for _, size in self.removed))
        return [
            *(f"{left.origin}: complete again, from {left.path}" for left in self.restored),
            *(f"{p}: a process works on it; left alone" for p in self.busy),
            *(
                f"{done}: {left.path} ({size_text(size)}): {describe(left)}"
                for left, size in self.removed
            ),
            f"{len(self.removed)} leftovers, {total}",
        ]


def describe(left: Leftover) -> str:
    """Return what a leftover is, as text."""
    return "the only version, which `clean` moves back" if left.is_lost else _WHAT[left.kind]


def find_leftovers(workspace: Workspace) -> dict[Path, list[Leftover]]:
    """Return leftovers, sorted, by the store, cache, run or corpus whose lock guards them.

    Files that a running process works on are included.
    """
    by_goal: dict[Path, list[Leftover]] = {}
    rooms = (workspace.features, workspace.grams, workspace.runs, workspace.corpora)
    for room in (*rooms, workspace.corpora / "archives"):
        for path in sorted(room.iterdir()) if room.is_dir() else ():
            beside = parse(path)
            inside = leftovers_of(path) if beside is None and room in rooms[:3] else ()
            for left in (*([beside] if beside else ()), *inside):
                by_goal.setdefault(left.goal, []).append(left)
    wanted = {goal: _without_records(goal, leftovers) for goal, leftovers in by_goal.items()}
    return {goal: leftovers for goal, leftovers in wanted.items() if leftovers}


def _without_records(goal: Path, leftovers: list[Leftover]) -> list[Leftover]:
    """Leave out the records of stores that exist, or that `clean` may move back."""
    others = [left for left in leftovers if left.kind != "sources"]
    return others if others or goal.exists() else leftovers


def idle_leftovers(workspace: Workspace) -> list[Leftover]:
    """Return the leftovers that no running process uses."""
    by_goal = find_leftovers(workspace).items()
    return [left for goal, leftovers in by_goal if not is_locked(goal) for left in leftovers]


def clean(workspace: Workspace, *, dry_run: bool = False) -> Cleaned:
    """Remove leftovers, and restore versions that an interrupted replacement had moved aside.

    Files that a running process works on are left alone. Unfinished work is removed as well; the
    command that made it then starts from the beginning.

    Args:
        workspace: the workspace to clean.
        dry_run: only list what would be removed.

    Returns:
        What was removed and restored, and what is in use.

    Raises:
        OSError: a leftover cannot be removed.
    """
    cleaned = Cleaned([], [], [])
    for goal, leftovers in find_leftovers(workspace).items():
        if dry_run:
            if is_locked(goal):
                cleaned.busy.append(goal)
            else:
                cleaned.add(leftovers)
            continue
        try:
            with locked(goal, "working on"):  # the lock file is deleted on release
                cleaned.add(leftovers)
                for left in leftovers:
                    settle(left)
        except InputError:
            cleaned.busy.append(goal)
    return cleaned
