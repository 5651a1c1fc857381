"""What processes that were killed left in a workspace: list it, and remove it."""

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
    "partial": "unfinished work, which the same command would go on with",
    "import": "an import that was interrupted",
    "old": "a replaced version",
    "trash": "being deleted when its process ended",
    "lock": "a lock that no process holds",
    "sources": "the record of a store that is gone",
    "file": "a file that was being written",
}


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean` removed, or would remove.

    Attributes:
        removed: with their bytes.
        restored: what a cut swap had put aside, and the place where it is again.
        busy: stores, caches, runs and corpora that a process works on: nothing of them is touched.
    """

    removed: list[tuple[Leftover, int]]
    restored: list[Leftover]
    busy: list[Path]

    def add(self, leftovers: Sequence[Leftover]) -> None:
        """Note what is about to go, or to go back to its place."""
        for left in leftovers:
            if left.is_lost:
                self.restored.append(left)
            else:
                self.removed.append((left, size_of(left.path)))

    def to_json(self) -> dict[str, Any]:
        """Fields of ``clean --json``."""
        return {
            "removed": [{"path": str(left.path), "bytes": size} for left, size in self.removed],
            "restored": [str(left.origin) for left in self.restored],
            "busy": [str(path) for path in self.busy],
        }

    def lines(self, done: str) -> list[str]:
        """What happened, for people.

        Args:
            done: ``removed``, or ``would be removed``.
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
    """What a leftover is, for people."""
    return "the only version, which `clean` puts back" if left.is_lost else _WHAT[left.kind]


def find_leftovers(workspace: Workspace) -> dict[Path, list[Leftover]]:
    """Leftovers by the store, cache, run or corpus whose lock guards them, sorted.

    What a process works on now is among them.
    """
    found: dict[Path, list[Leftover]] = {}
    rooms = (workspace.features, workspace.grams, workspace.runs, workspace.corpora)
    for room in (*rooms, workspace.corpora / "archives"):
        for path in sorted(room.iterdir()) if room.is_dir() else ():
            beside = parse(path)
            inside = leftovers_of(path) if beside is None and room in rooms[:3] else ()
            for left in (*([beside] if beside else ()), *inside):
                found.setdefault(left.goal, []).append(left)
    return {goal: kept for goal, each in found.items() if (kept := _without_records(goal, each))}


def _without_records(goal: Path, leftovers: list[Leftover]) -> list[Leftover]:
    """Leave out the record of a store that is there, or that `clean` may put back."""
    others = [left for left in leftovers if left.kind != "sources"]
    return others if others or goal.exists() else leftovers


def idle_leftovers(workspace: Workspace) -> list[Leftover]:
    """Leftovers of which no process makes use now."""
    found = find_leftovers(workspace)
    return [left for goal, each in found.items() if not is_locked(goal) for left in each]


def clean(workspace: Workspace, *, dry_run: bool = False) -> Cleaned:
    """Remove leftovers, and put back what a cut swap had put aside.

    What a live process works on is left alone. Unfinished work goes, too: it is what the user asks
    for, and the command that made it begins anew.

    Args:
        workspace: whose.
        dry_run: only tell what would go.

    Raises:
        OSError: one of them cannot be removed.
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
            with locked(goal, "working on"):  # its file goes when it is released
                cleaned.add(leftovers)
                for left in leftovers:
                    settle(left)
        except InputError:
            cleaned.busy.append(goal)
    return cleaned
