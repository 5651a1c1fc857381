"""Where things lie and how they are called: corpora, stores, caches and runs of one workspace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.files import identity_at
from antigram.pipeline.storage.hdf5 import SUFFIX
from antigram.pipeline.storage.root import has_parts

__all__ = ["Workspace", "claimed_run", "is_locked", "locked", "plain_name"]

_LOCK_S = 0.1  # a lock's file that goes just when it is opened is opened anew


@contextmanager
def locked(target: Path, doing: str) -> Iterator[None]:
    """Hold the right to make ``target``; the lock of a process that died is free by itself.

    Its file goes while it is held: whoever has opened it meanwhile holds the lock of nothing, which
    `FileLock` notices, and opens it anew.

    Raises:
        InputError: another process holds it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    path = _lock_of(target)
    try:
        with FileLock(path, timeout=_LOCK_S, poll_interval=_LOCK_S / 4):
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
    except Timeout:
        raise InputError(
            f"{target}: another process is {doing} it now ({path} is locked). Wait for it to end."
        ) from None


@contextmanager
def claimed_run(runs: Path, name: str | None, default: str, *, resume: bool) -> Iterator[Path]:
    """Hold the right to train in a run's folder: a new one, or with ``resume`` the one there.

    Args:
        runs: where runs lie.
        name: of the run, if one is asked for.
        default: its name if none is; numbered if taken.
        resume: whether the run is to go on.

    Raises:
        InputError: the name is taken, there is no such run, or another process trains it.
    """
    names = [default, *(f"{default}-{n}" for n in range(2, 10_000))] if name is None else [name]
    if resume:
        there = [runs / each for each in names if (runs / each).exists()]
        if not there:
            hint = "; name one with `name`" if name is None else ""
            raise InputError(f"`resume`: there is no run {names[0]} in {runs}{hint}")
        with locked(there[-1], "training"):
            yield there[-1]
        return
    with ExitStack() as held:
        yield next(folder for each in names if _is_claimed(folder := runs / each, held, name))


def _is_claimed(folder: Path, held: ExitStack, name: str | None) -> bool:
    """Lock a run's folder if it is new; where it was named, say why it cannot be had."""
    if not folder.exists():
        try:
            held.enter_context(locked(folder, "training"))
        except InputError:
            if name is not None:
                raise
            return False
        if not folder.exists():  # the process that had the lock may have ended by now
            return True
        held.close()
    if name is not None:
        raise InputError(f"{folder}: a run of this name is there; choose another, or `resume` it")
    return False


def is_locked(target: Path) -> bool:
    """Whether a process is making ``target`` now, or may be."""
    if not (path := _lock_of(target)).is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except OSError:  # `Timeout`, or a lock that this user may not open
        return True


def _made_ns(path: Path) -> int:
    """When a store or cache was made; one without its root document: when it lost that."""
    made = identity_at(path / "zarr.json") or identity_at(path)
    return 0 if made is None else made.mtime_ns


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def plain_name(name: str) -> str:
    """Check that a name of a store, cache or run is one part of a path; leave its ending out.

    Raises:
        InputError: it is not.
    """
    if not name or name.startswith((".", "-")) or "/" in name or "\\" in name:
        raise InputError(f"`name` {name!r}: wanted a plain name, without slashes or a leading dot")
    if not name.isprintable():
        raise InputError(f"`name` {name!r}: holds characters that do not show; wanted a plain name")
    return name.removesuffix(".zarr")


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder with ``features``, ``grams``, ``runs`` and ``corpora``."""

    root: Path

    @property
    def features(self) -> Path:
        """Folder of the feature stores."""
        return self.root / "features"

    @property
    def grams(self) -> Path:
        """Folder of the Gram caches."""
        return self.root / "grams"

    @property
    def runs(self) -> Path:
        """Folder of the runs."""
        return self.root / "runs"

    @property
    def corpora(self) -> Path:
        """Folder of the corpora that were downloaded or synthesised."""
        return self.root / "corpora"

    def corpus_candidates(self, name: str, source: Path | None) -> list[Path]:
        """Where a corpus is looked for: the folder named, else the shared one and our own."""
        if source is not None:
            return [source]
        shared = os.environ.get("ANTIGRAM_CORPORA")
        return [*([Path(shared) / name] if shared else []), self.corpora / name]

    @staticmethod
    def members(folder: Path) -> list[Path]:
        """Finished stores or caches in a folder, damaged ones too; the one made last at the end."""
        found = [
            p for p in folder.glob("[!.]*.zarr") if (p / "zarr.json").is_file() or has_parts(p)
        ]
        return sorted(found, key=lambda p: (_made_ns(p), p.name))

    @staticmethod
    def named(folder: Path, name: str, what: str) -> Path:
        """Path of a store, cache or run that is named, or given as a path.

        Raises:
            InputError: there is none; the message lists those there are.
        """
        for path in (Path(name), folder / f"{name}.zarr", folder / name):
            if path.is_dir() or (path.suffix == SUFFIX and path.is_file()):
                return path
        known = sorted(p.name.removesuffix(".zarr") for p in folder.glob("[!.]*") if p.is_dir())
        there = f"there are {', '.join(known)}" if known else "there are none"
        raise InputError(f"no {what} is called {name!r} in {folder}: {there}")

    def store(self, name: str | None, on_message: Callable[[str], None]) -> Path:
        """Path of the store named, else the only one, else the one prepared last.

        Raises:
            InputError: there is none.
        """
        if name is not None:
            return self.named(self.features, name, "feature store")
        found = self.members(self.features)
        if not found:
            raise InputError(
                f"{self.features}: no feature store yet; make one with `antigram prepare CORPUS`"
            )
        why = "the only one" if len(found) == 1 else "the one prepared last"
        on_message(f"store: {found[-1].stem} ({why})")
        return found[-1]
