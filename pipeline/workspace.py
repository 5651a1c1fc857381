"""Paths, names and locks of the corpora, stores, caches and runs in a workspace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from antigram.pipeline.errors import InputError
from antigram.pipeline.storage.files import identity_at
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.opening import is_exported
from antigram.pipeline.storage.root import has_parts

__all__ = ["Workspace", "claimed_run", "is_fold_name", "is_locked", "locked", "plain_name"]

_LOCK_S = 0.1  # long enough to open a lock file again that was deleted while it was opened


@contextmanager
def locked(target: Path, doing: str) -> Iterator[None]:
    """Hold an exclusive lock on making ``target``; the lock of a dead process counts as released.

    The lock file is deleted while the lock is held. A process that opened it in the meantime has
    locked a deleted file; `FileLock` notices that and opens the file again.

    Args:
        target: store, cache or folder that is made.
        doing: what is done to ``target``, for the message: "preparing".

    Raises:
        InputError: another process holds the lock.
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
    """Lock a run's folder for a training: a new folder, or with ``resume`` the existing one.

    Args:
        runs: folder of the runs.
        name: name of the run; None takes ``default``.
        default: name used if none is given; a number is appended if it is taken.
        resume: whether to continue an existing run.

    Yields:
        The run's folder.

    Raises:
        InputError: the name is taken, there is no run to resume, or another process trains it.
    """
    names = [default, *(f"{default}-{n}" for n in range(2, 10_000))] if name is None else [name]
    if resume:
        existing = [runs / candidate for candidate in names if (runs / candidate).exists()]
        if not existing:
            hint = "; name one with `name`" if name is None else ""
            raise InputError(f"`resume`: there is no run {names[0]} in {runs}{hint}")
        with locked(existing[-1], "training"):
            yield existing[-1]
        return
    with ExitStack() as locks:
        yield next(folder for n in names if _is_claimed(folder := runs / n, locks, name))


def _is_claimed(folder: Path, locks: ExitStack, name: str | None) -> bool:
    """Lock a run's folder and return True if it is new; raise if a named run is taken."""
    if not folder.exists():
        try:
            locks.enter_context(locked(folder, "training"))
        except InputError:
            if name is not None:
                raise
            return False
        if not folder.exists():  # the previous owner of the lock may have made it meanwhile
            return True
        locks.close()
    if name is not None:
        raise InputError(
            f"{folder}: a run of this name exists; choose another name, or `resume` it"
        )
    return False


def is_locked(target: Path) -> bool:
    """Whether another process holds the lock of ``target``; True if that cannot be checked."""
    if not (path := _lock_of(target)).is_file():
        return False
    try:
        with FileLock(path, timeout=0):
            return False
    except OSError:  # `Timeout`, or a lock file that this user may not open
        return True


def _made_ns(path: Path) -> int:
    """Return when a store or cache was written, in ns, by the time of its root document."""
    identity = identity_at(path / "zarr.json") or identity_at(path)
    return 0 if identity is None else identity.mtime_ns


def _lock_of(target: Path) -> Path:
    return target.with_name(f".{target.name}.lock")


def plain_name(name: str) -> str:
    """Return a name of a store, cache or run without the suffix ``.zarr``.

    Raises:
        InputError: the name is not a single, printable part of a path.
    """
    if not name or name.startswith((".", "-")) or "/" in name or "\\" in name:
        raise InputError(f"`name` {name!r}: wanted a plain name, without slashes or a leading dot")
    if not name.isprintable():
        raise InputError(f"`name` {name!r}: holds characters that do not show; wanted a plain name")
    return name.removesuffix(".zarr")


def is_fold_name(name: str) -> bool:
    """Whether a name is reserved for folds: ``NAME@K`` or ``NAME@K-LABEL``."""
    return "@" in name


@dataclass(frozen=True, slots=True)
class Workspace:
    """A folder with the subfolders ``features``, ``grams``, ``runs`` and ``corpora``."""

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
        """Return the folders to search for a corpus.

        They are ``source`` if it is given, else ``$ANTIGRAM_CORPORA/NAME`` and ``corpora/NAME``.
        """
        if source is not None:
            return [source]
        shared = os.environ.get("ANTIGRAM_CORPORA")
        return [*([Path(shared) / name] if shared else []), self.corpora / name]

    @staticmethod
    def members(folder: Path) -> list[Path]:
        """Return the finished stores or caches of a folder, damaged ones too, oldest first."""
        members = [
            path
            for path in folder.glob("[!.]*.zarr")
            if (path / "zarr.json").is_file() or has_parts(Folder(path))
        ]
        return sorted(members, key=lambda p: (_made_ns(p), p.name))

    @staticmethod
    def named(folder: Path, name: str, what: str) -> Path:
        """Return the path of a store, cache or run, given by name or as a path.

        Args:
            folder: folder to look the name up in.
            name: name or path.
            what: what the path leads to, for the message: "feature store".

        Raises:
            InputError: no such store, cache or run exists; the message lists the known names.
        """
        for path in (Path(name), folder / f"{name}.zarr", folder / name):
            if path.is_dir() or is_exported(path):
                return path
        known = sorted(p.name.removesuffix(".zarr") for p in folder.glob("[!.]*") if p.is_dir())
        listed = f"there are {', '.join(known)}" if known else "there are none"
        raise InputError(f"no {what} is called {name!r} in {folder}: {listed}")

    def store(self, name: str | None, on_message: Callable[[str], None]) -> Path:
        """Return the path of the named store, else of the only one, else of the one prepared last.

        Folds (``NAME@K``) are chosen by name alone.

        Args:
            name: name or path of a store; None chooses one and reports which.
            on_message: called with the line that says which store was chosen.

        Raises:
            InputError: there is no such store, or the workspace has no store.
        """
        if name is not None:
            return self.named(self.features, name, "feature store")
        members = self.members(self.features)
        stores = [path for path in members if not is_fold_name(path.stem)] or members
        if not stores:
            raise InputError(
                f"{self.features}: no feature store yet; make one with `antigram prepare CORPUS`"
            )
        why = "the only one" if len(stores) == 1 else "the one prepared last"
        on_message(f"store: {stores[-1].stem} ({why})")
        return stores[-1]
