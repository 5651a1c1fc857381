"""Read every byte of stores, caches and runs, and list what is damaged, missing or stale."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.cache.key import layer_name
from antigram.cache.layer import CacheLayer, layers_of, open_root
from antigram.model.training.run_files import has_manifest, run_state, verify_files
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore, is_fold
from antigram.pipeline.storage.archive import SUFFIXES, verify_archive
from antigram.pipeline.storage.exchange import verify_export
from antigram.pipeline.storage.manifest import DOCUMENT, Problem, verify_group
from antigram.pipeline.storage.opening import is_exported, open_backend
from antigram.pipeline.storage.root import has_parts
from antigram.pipeline.workspace import Workspace

__all__ = [
    "Verified",
    "check_kind",
    "kind_of",
    "verified_json",
    "verify",
    "verify_cache",
    "verify_named",
    "verify_run",
    "verify_store",
]


@dataclass(frozen=True, slots=True)
class Verified:
    """What was read, and what is wrong with it."""

    path: Path
    kind: str  # as `kind_of` has it
    problems: Sequence[Problem]

    def line(self) -> str:
        """For people: how much is wrong, and of an intact run how far it came."""
        state = f"; {run_state(self.path)}" if self.kind == "run" and not self.problems else ""
        worth = f"{len(self.problems)} problems" if self.problems else "whole"
        return f"{self.kind} {self.path}: {worth}{state}"


def kind_of(path: Path) -> str:
    """``store``, ``cache``, ``run``, ``export`` or ``checkpoint``: by its place where in doubt."""
    if path.is_file():
        return "export" if is_exported(path) else "checkpoint"
    if (path / "config.json").is_file() or path.parent.name == "runs":
        return "run"
    if any(path.glob("layer[0-9][0-9]")) or path.parent.name == "grams":
        return "cache"
    return "store"


def check_kind(path: Path) -> None:
    """Refuse a path that nothing of antigram's lies at, damaged or not.

    Raises:
        InputError: it is none of a store, cache, run, export or checkpoint.
    """
    if kind_of(path) in ("run", "checkpoint"):
        return
    group = open_backend(path)
    ours = has_parts(group)
    with suppress(OSError):  # all but its root document may be lost
        ours = ours or b'"antigram/' in group.get(DOCUMENT)
    if not ours:
        raise InputError(f"{path}: no store, cache or run there; `antigram status` lists what is")


def verify(path: Path, stores: Sequence[Path] = ()) -> list[Problem]:
    """Read every byte of a store, cache, run, ``FILE.pt`` or ``FILE.h5``.

    Args:
        path: what to check.
        stores: feature stores that a cache may have been made from.

    Returns:
        What is damaged, missing or stale; empty if nothing is.

    Raises:
        InputError: the path is none of these.
    """
    check_kind(path)
    return _problems(path, stores)


def _problems(path: Path, stores: Sequence[Path]) -> list[Problem]:
    match kind_of(path):
        case "run":
            return list(verify_run(path))
        case "cache":
            return list(verify_cache(path, stores))
        case "export":
            return list(verify_export(path))
        case "checkpoint":
            return list(verify_archive(path))
        case _:
            return list(verify_store(path))


def verify_named(
    workspace: Workspace,
    names: Sequence[str] = (),
    *,
    recompute: int | None = None,
    ckpt: Path | None = None,
    data: str | None = None,
    device: str = "auto",
    on_verified: Callable[[Verified], None] = lambda _: None,
    on_message: OnMessage = lambda _: None,
) -> list[Verified]:
    """Read every byte of stores, caches and runs of a workspace, or of what is named.

    Args:
        workspace: whose.
        names: of stores, caches and runs, or paths, also of ``FILE.pt`` and ``FILE.h5``; none: all
            there are.
        recompute: segments of each intact cache that the teacher is run on again, to compare.
        ckpt: the teacher, for ``recompute``.
        data: the store, for ``recompute``; default: the cache's.
        device: where the teacher runs.
        on_verified: told of each as it is done.
        on_message: told which defaults were taken, in lines for people.

    Raises:
        InputError: nothing has such a name, or the teacher or store is another.
    """
    if recompute and ckpt is None:
        raise InputError("`recompute` runs the teacher again: name it with `ckpt`")
    stores = workspace.members(workspace.features)
    done = []
    for path in _with_stores(_chosen(workspace, names)):
        kind, problems = kind_of(path), _problems(path, stores)
        if kind == "cache" and recompute and ckpt is not None and not problems:
            problems = _recomputed(workspace, path, recompute, ckpt, data, device, on_message)
        done.append(Verified(path, kind, problems))
        on_verified(done[-1])
    return done


def verified_json(done: Sequence[Verified]) -> dict[str, Any]:
    """Fields of ``verify --json``."""
    problems = [problem for each in done for problem in each.problems]
    return {
        "ok": not problems,
        "problems": [{"path": str(p.path), "problem": p.problem} for p in problems],
        "checked": [str(each.path) for each in done],
    }


def _chosen(workspace: Workspace, names: Sequence[str]) -> list[Path]:
    """Paths of what is named, or of all stores, caches and runs."""
    every = [p for f in (workspace.features, workspace.grams) for p in sorted(f.glob("[!.]*.zarr"))]
    every += sorted(p for p in workspace.runs.glob("[!.]*") if p.is_dir())
    chosen = []
    for name in names:
        match = [p for p in every if name in (p.name, p.name.removesuffix(".zarr"))]
        path = Path(name)
        if path.is_dir() or is_exported(path) or (path.suffix in SUFFIXES and path.is_file()):
            check_kind(path)
            match = [path]
        if not match:
            known = ", ".join(p.name.removesuffix(".zarr") for p in every) or "nothing"
            raise InputError(f"no store, cache or run is called {name!r}; there is {known}")
        chosen += match
    return chosen if names else every


def _with_stores(paths: Sequence[Path]) -> list[Path]:
    """Add the stores that folds are of, which hold their features, once each."""
    chosen = {path.resolve(): path for path in paths}
    for path in paths:
        if is_fold(path):
            with suppress(InputError, StoredDataError):  # which the fold's own problems name
                if (base := FeatureStore(path).base) is not None:
                    chosen.setdefault(base.path.resolve(), base.path)
    return list(chosen.values())


def _recomputed(
    workspace: Workspace,
    path: Path,
    clips: int,
    ckpt: Path,
    data: str | None,
    device: str,
    on_message: OnMessage,
) -> list[Problem]:
    """Problems that running the teacher again shows."""
    from antigram.cache.recompute import recompute  # torch, which the rest needs not
    from antigram.model.training.checkpoint import open_teacher
    from antigram.model.training.device import named_device
    from antigram.model.training.teacher_controls import control_teacher
    from antigram.studies.job import store_for

    made_from = open_root(path).get("made_from", {})
    seed = int(made_from.get("control_seed", 0))
    teacher = control_teacher(open_teacher(ckpt), made_from.get("control"), seed)
    store = FeatureStore(store_for(workspace, data, (str(path),), on_message))
    return list(recompute(path, store, teacher, clips, named_device(device)))


def verify_store(path: Path) -> Iterator[Problem]:
    """Problems of a feature store."""
    problems = list(verify_group(open_backend(path)))
    yield from problems
    if not problems:
        try:
            store = FeatureStore(path)  # holds the fingerprint against recipe and content
            _ = store.sources
            for label in store.classes:
                store.read_index(label)
        except (InputError, StoredDataError) as error:
            yield _problem(path, error)


def verify_cache(path: Path, stores: Sequence[Path]) -> Iterator[Problem]:
    """Problems of a Gram cache; it is stale if it fits none of the stores.

    Args:
        path: the cache.
        stores: feature stores it may have been made from.
    """
    yield from verify_group(open_backend(path))
    try:
        root = open_root(path)
    except (InputError, StoredDataError) as error:
        yield _problem(path, error)
        return
    numbers = layers_of(path)
    if not numbers:
        yield Problem(path, "holds no layer")
    listed = root.get("layers", {})
    clips = dict(_clips(stores))
    for number in listed:
        if int(number) not in numbers:
            yield Problem(path / layer_name(int(number)), "missing")
    for number in numbers:
        folder = path / f"layer{number:02d}"
        problems = list(verify_group(open_backend(folder)))
        yield from problems
        if not problems:
            try:
                layer = CacheLayer(path, number)
                layer.check_clips(clips.get(layer.key.features, len(layer.values)))
            except (InputError, StoredDataError) as error:
                yield _problem(folder, error)
                continue
            if layer.key.features != root["features"]:
                yield Problem(folder, "stale: made from other features than the rest of the cache")
            elif listed.get(str(number)) != layer.fingerprint:
                yield Problem(folder, "another version of this layer than the cache names")
    if stores and root["features"] not in clips:
        yield Problem(path, "stale: no store of this workspace has the features it was made from")


def _clips(stores: Sequence[Path]) -> Iterator[tuple[str, int]]:
    """Fingerprint and number of clips of each store that opens."""
    for path in stores:
        try:
            store = FeatureStore(path)
            yield store.fingerprint, len(store)
        except (InputError, StoredDataError):
            continue  # reported as that store's own problem


def verify_run(path: Path) -> Iterator[Problem]:
    """Problems of a run; one that was killed has none, as it goes on with ``--resume``."""
    yield from verify_files(path) if has_manifest(path) else _verify_first(path)


def _verify_first(path: Path) -> Iterator[Problem]:
    """Problems of a run of version 1: its JSON files, and each record of its checkpoints."""
    for name in ("config.json", "result.json"):
        file = path / name
        if not file.is_file():
            if name == "config.json":
                yield Problem(file, "missing")
            continue
        try:
            json.loads(file.read_text())
        except (OSError, ValueError) as error:
            yield Problem(file, f"unreadable: {error}")
    metrics = path / "metrics.jsonl"
    if metrics.is_file():
        for number, line in enumerate(metrics.read_bytes().splitlines(), 1):
            try:
                json.loads(line)
            except ValueError as error:
                yield Problem(metrics, f"line {number} is unreadable: {error}")
    for name in ("best.pt", "last.pt"):
        file = path / name
        if not file.is_file():
            if name == "best.pt" and (path / "result.json").is_file():
                yield Problem(file, "missing")
            continue
        yield from verify_archive(file)


def _problem(path: Path, error: Exception) -> Problem:
    return Problem(path, str(error).removeprefix(f"{path}: "))
