"""Where things lie and how they are called: corpora, stores, caches and runs of one workspace."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.corpus import Corpus
from pipeline.errors import InputError
from pipeline.files import identity_at
from pipeline.hdf5 import SUFFIX
from pipeline.recipe import Recipe
from pipeline.store import has_parts

__all__ = ["Workspace", "claimed_run", "is_locked", "locked", "recipe_for", "store_name"]

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
            hint = "; name one with --name" if name is None else ""
            raise InputError(f"--resume: there is no run {names[0]} in {runs}{hint}")
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
        raise InputError(f"{folder}: a run of this name is there; choose another, or --resume it")
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


def recipe_for(corpus: Corpus, asked: Mapping[str, Any]) -> tuple[Corpus, Recipe]:
    """Recipe for what a user asked, the corpus's own defaults for the rest; and the corpus so set.

    Args:
        corpus: the adapter.
        asked: fields of the recipe, and options of the corpus.

    Raises:
        InputError: the corpus has not such an option, or a value is not one of those known.
    """
    fields = {key: value for key, value in asked.items() if key in Recipe.__dataclass_fields__}
    own = {key: value for key, value in asked.items() if key not in fields}
    if unknown := sorted(set(own) - set(corpus.options)):
        known = ", ".join(map(_flag, corpus.options)) or "none of its own"
        raise InputError(f"{_flag(unknown[0])}: {corpus.name} has no such option; it has {known}")
    for key, value in own.items():
        if not str(value).strip():
            raise InputError(f"{_flag(key)} {value!r}: is empty; give a value, or leave it out")
    options = {k: corpus.resolve(k, v) for k, v in {**corpus.options, **own}.items()}
    corpus = corpus.adapt(corpus, options)
    options = {key: value for key, value in options.items() if value}
    seconds = fields.get("seconds", corpus.seconds)
    defaults = {
        "seconds": seconds,
        "overlap": default_overlap(corpus, seconds),
        "longer": corpus.longer,
        "noise": corpus.noise,
    }
    return corpus, Recipe(corpus=corpus.name, options=options, **{**defaults, **fields})


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def store_name(corpus: Corpus, recipe: Recipe) -> str:
    """Default name of a store: the corpus, and what differs from its defaults."""
    parts = [corpus.name]
    if recipe.noise != corpus.noise:
        parts.append(recipe.noise)
    if recipe.snr_mode != "exact":
        parts.append(recipe.snr_mode)
    parts += [
        value.replace(",", "+")
        for key, value in sorted(recipe.options.items())
        if value != corpus.options[key]
    ]
    if recipe.seconds != corpus.seconds:
        parts.append(f"{recipe.seconds:g}s")
    if recipe.longer == "segment" and recipe.overlap != default_overlap(corpus, recipe.seconds):
        parts.append(f"overlap{recipe.overlap:g}")
    if recipe.split != "random":
        parts.append(recipe.split.replace(":", "-"))
    if recipe.within:
        parts.append(f"within-{recipe.within[:8]}")
    if recipe.last_window != "pad":
        parts.append(recipe.last_window)
    if recipe.limit_per_class:
        parts.append(f"{recipe.limit_per_class}-a-class")
    if recipe.limit:
        parts.append(f"limit{recipe.limit}")
    if recipe.balance:
        parts.append("balanced")
    if recipe.seed:
        parts.append(f"seed{recipe.seed}")
    if recipe.dtype != "float32":
        parts.append("f16")
    return "-".join(parts)[:120]


def default_overlap(corpus: Corpus, seconds: float) -> float:
    """Overlap of a corpus's windows; one-second windows (words) do not overlap, as in the paper."""
    return 0.0 if seconds == 1 else corpus.overlap


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

    def store(self, name: str | None, say: Callable[[str], None]) -> Path:
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
        say(f"store: {found[-1].stem} ({why})")
        return found[-1]
