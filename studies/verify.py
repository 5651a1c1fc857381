"""Read every byte of stores, caches and runs, and list what is damaged, missing or stale.

The file is long, as each kind of thing is checked in its own way.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from antigram.cache.ids import read_ids
from antigram.cache.key import layer_name
from antigram.cache.layer import BATCHES, CacheLayer, layers_of, open_root
from antigram.model.training.run_files import has_manifest, run_state, verify_files
from antigram.pipeline.callbacks import OnMessage
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.execution.dask_cluster import cluster_at
from antigram.pipeline.features.store import FeatureStore, is_fold
from antigram.pipeline.storage.archive import SUFFIXES, verify_archive
from antigram.pipeline.storage.exchange import verify_export
from antigram.pipeline.storage.manifest import DOCUMENT, LAYER_GROUP, Problem
from antigram.pipeline.storage.objects import is_address
from antigram.pipeline.storage.opening import is_exported, open_backend
from antigram.pipeline.storage.root import has_parts
from antigram.pipeline.storage.verification import RunTasks, verify_group
from antigram.pipeline.workspace import Workspace
from antigram.studies.verify_address import verify_address

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


_SAMPLED = "all metadata, the size of every chunk, and up to {} chunks, drawn at random"


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified path, its kind, and its problems; ``problems`` is empty if it is intact."""

    path: Path | str  # text: an address in an object store
    kind: str  # a result of `kind_of`
    problems: Sequence[Problem]
    sample: int | None = None  # chunks that were read of each group; None: all

    def line(self) -> str:
        """Return a line of text with the number of problems, or the progress of an intact run."""
        state = ""
        if self.kind == "run" and not self.problems:
            state = f"; {run_state(Path(self.path))}"
        worth = f"{len(self.problems)} problems" if self.problems else "intact"
        if self.sample is not None:
            state = f" as far as it was read: {_SAMPLED.format(self.sample)}"
        return f"{self.kind} {self.path}: {worth}{state}"


def kind_of(path: Path) -> str:
    """Return ``store``, ``cache``, ``run``, ``export`` or ``checkpoint``.

    If the files of a folder do not decide its kind, its parent folder does.
    """
    if path.is_file():
        return "export" if is_exported(path) else "checkpoint"
    if (path / "config.json").is_file() or path.parent.name == "runs":
        return "run"
    if (
        any(re.fullmatch(LAYER_GROUP, inner.name) for inner in path.glob("*"))
        or path.parent.name == "grams"
    ):
        return "cache"
    return "store"


def check_kind(path: Path) -> None:
    """Raise if a path holds nothing that antigram wrote, damaged or intact.

    Raises:
        InputError: the path is no store, cache, run, export or checkpoint.
    """
    if kind_of(path) in ("run", "checkpoint"):
        return
    group = open_backend(path)
    ours = has_parts(group)
    with suppress(OSError):  # the root document may be lost
        ours = ours or b'"antigram/' in group.get(DOCUMENT)
    if not ours:
        raise InputError(f"{path}: no store, cache or run there; `antigram status` lists what is")


def verify(path: Path, stores: Sequence[Path] = (), *, sample: int | None = None) -> list[Problem]:
    """Read every byte of a store, cache, run, ``FILE.pt`` or ``FILE.h5``, and check it.

    Args:
        path: path to check.
        stores: feature stores that a cache may have been made from.
        sample: of a store, and of each layer of a cache, read only this many chunks, drawn at
            random, beside all metadata and the sizes of all chunks. By default all are read.

    Returns:
        Damaged, missing and stale parts; empty if the path is intact.

    Raises:
        InputError: the path is no store, cache, run, export or checkpoint.
    """
    check_kind(path)
    return _problems(path, stores, sample)


def _problems(
    path: Path, stores: Sequence[Path], sample: int | None, run: RunTasks | None = None
) -> list[Problem]:
    match kind_of(path):
        case "run":
            return list(verify_run(path))
        case "cache":
            return list(verify_cache(path, stores, sample, run))
        case "export":
            return list(verify_export(path))
        case "checkpoint":
            return list(verify_archive(path))
        case _:
            return list(verify_store(path, sample, run))


def verify_named(
    workspace: Workspace,
    names: Sequence[str] = (),
    *,
    sample: int | None = None,
    recompute: int | None = None,
    ckpt: Path | None = None,
    data: str | None = None,
    device: str = "auto",
    arch: str | None = None,
    teacher: str | None = None,
    source: Path | None = None,
    noise_source: Path | None = None,
    scheduler: str | None = None,
    on_verified: Callable[[Verified], None] = lambda _: None,
    on_message: OnMessage = lambda _: None,
) -> list[Verified]:
    """Read every byte of the stores, caches and runs of a workspace, or only of some of them.

    Args:
        workspace: holds the stores, caches and runs.
        names: names, paths or addresses of stores and caches, names or paths of runs, or paths of
            ``FILE.pt`` and ``FILE.h5``; default: all stores, caches and runs of the workspace.
        sample: of each store, and of each layer of a cache, read only this many chunks, drawn at
            random, beside all metadata and the sizes of all chunks; runs and files are read
            completely. By default everything is read.
        recompute: number of segments of each intact cache to recompute and compare.
        ckpt: checkpoint of the teacher, for ``recompute``.
        data: name of the store, for ``recompute``; default: the cache's store.
        device: device of the teacher.
        arch: ``FILE.py:function`` of a teacher that is a user's own network.
        teacher: a teacher that antigram did not train, instead of ``ckpt``: see `external_net`.
        source: folder of the store's recordings, for a teacher that takes audio.
        noise_source: folder of the noise, if noise was mixed in.
        scheduler: address or file of a Dask scheduler, whose workers then read the chunks of stores
            and caches in folders, unless only a sample is read.
        on_verified: called with each result once it is known.
        on_message: called with a line of text for each default that was chosen.

    Returns:
        One result for each path.

    Raises:
        InputError: a name is unknown, or the cache was made from another teacher or store.
    """
    if recompute and (ckpt is None) == (teacher is None):
        raise InputError("`recompute` runs the teacher again: name it with `ckpt`, or `teacher`")
    if arch is not None:
        from antigram.model.nets.own import import_own  # imports torch

        import_own(arch)
    stores = workspace.members(workspace.features)
    results: list[Verified] = []
    for address in (name for name in names if is_address(name)):
        results.append(Verified(address, *verify_address(address, sample), sample))
        on_verified(results[-1])
    names = [name for name in names if not is_address(name)]
    if results and not names:
        return results
    with cluster_at(scheduler, on_message) as cluster:
        for path in _with_stores(_chosen(workspace, names)):
            run = cluster.seeing(path).run if cluster and path.is_dir() else None
            kind, problems = kind_of(path), _problems(path, stores, sample, run)
            if kind == "cache" and recompute and not problems:
                named = _Named(ckpt, teacher, source, noise_source)
                problems = _recomputed(workspace, path, recompute, named, data, device, on_message)
            sampled = sample if kind in ("store", "cache") else None
            results.append(Verified(path, kind, problems, sampled))
            on_verified(results[-1])
    return results


def verified_json(results: Sequence[Verified]) -> dict[str, Any]:
    """Return the fields of ``verify --json``."""
    problems = [problem for verified in results for problem in verified.problems]
    sampled = {str(v.path): v.sample for v in results if v.sample is not None}
    return {
        "ok": not problems,
        "problems": [{"path": str(p.path), "problem": p.problem} for p in problems],
        "checked": [str(verified.path) for verified in results],
        **({"sampled": sampled} if sampled else {}),
    }


def _chosen(workspace: Workspace, names: Sequence[str]) -> list[Path]:
    """Return the paths of the named stores, caches and runs, or of all."""
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
    """Add the store of each fold, as it holds the fold's features; leave out duplicates."""
    chosen = {path.resolve(): path for path in paths}
    for path in paths:
        if is_fold(path):
            with suppress(InputError, StoredDataError):  # reported as a problem of the fold
                if (base := FeatureStore(path).base) is not None:
                    chosen.setdefault(base.path.resolve(), base.path)
    return list(chosen.values())


@dataclass(frozen=True, slots=True)
class _Named:
    """The teacher that is run again, as `verify_named` takes it."""

    ckpt: Path | None
    teacher: str | None
    source: Path | None
    noise_source: Path | None


def _recomputed(
    workspace: Workspace,
    path: Path,
    clips: int,
    named: _Named,
    data: str | None,
    device: str,
    on_message: OnMessage,
) -> list[Problem]:
    """Recompute rows with the teacher, and return the problems that this reveals."""
    from antigram.cache.recompute import recompute  # imports torch, needed only here
    from antigram.model.training.any_teacher import AnyTeacher
    from antigram.model.training.checkpoint import open_teacher
    from antigram.model.training.device import named_device
    from antigram.model.training.teacher_controls import control_teacher
    from antigram.studies.job import store_for
    from antigram.studies.teachers import open_external

    store = FeatureStore(store_for(workspace, data, (str(path),), on_message))
    teacher: AnyTeacher
    if named.ckpt is not None:
        made_from = open_root(path).get("made_from", {})
        seed = int(made_from.get("control_seed", 0))
        teacher = control_teacher(open_teacher(named.ckpt), made_from.get("control"), seed)
    else:
        teacher = open_external(
            str(named.teacher),
            store,
            workspace,
            source=named.source,
            noise_source=named.noise_source,
            on_message=on_message,
        )
    return list(recompute(path, store, teacher, clips, named_device(device)))


def verify_store(
    path: Path, sample: int | None = None, run: RunTasks | None = None
) -> Iterator[Problem]:
    """Yield the problems of a feature store; ``sample`` as for `verify`, ``run`` for its group."""
    problems = list(verify_group(open_backend(path), sample=sample, run=run))
    yield from problems
    if not problems:
        try:
            store = FeatureStore(path)  # compares the fingerprint with recipe and content
            if sample is None:
                _ = store.sources
                for label in store.classes:
                    store.read_index(label)
        except (InputError, StoredDataError) as error:
            yield _problem(path, error)


def verify_cache(
    path: Path, stores: Sequence[Path], sample: int | None = None, run: RunTasks | None = None
) -> Iterator[Problem]:
    """Yield the problems of a Gram cache, which is stale if it fits none of the stores.

    Args:
        path: path of the cache.
        stores: feature stores that it may have been made from.
        sample: as for `verify`.
        run: as for `verify_group`.
    """
    problems_of_root = list(verify_group(open_backend(path), sample=sample, run=run))
    yield from problems_of_root
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
    fits = root["features"] in clips or root.get("source") == BATCHES
    try:
        ids = None if sample is not None else read_ids(open_backend(path), path)
    except StoredDataError as error:
        ids = None
        if not problems_of_root:
            yield _problem(path, error)
    for text in listed:
        if text not in {str(layer) for layer in numbers}:
            layer = int(text) if text.isdecimal() else text
            yield Problem(path / layer_name(layer), "missing")
    for number in numbers:
        folder = path / layer_name(number)
        problems = list(verify_group(open_backend(folder), sample=sample, run=run))
        yield from problems
        if not problems:
            try:
                layer = CacheLayer(path, number)
                layer.check_clips(clips.get(layer.key.features, len(layer.values)))
                layer.check_ids(ids)
            except (InputError, StoredDataError) as error:
                yield _problem(folder, error)
                continue
            if layer.key.features != root["features"]:
                yield Problem(folder, "stale: made from other features than the rest of the cache")
            elif listed.get(str(number)) != layer.fingerprint:
                yield Problem(folder, "another version of this layer than the cache names")
    if stores and not fits:
        yield Problem(path, "stale: no store of this workspace has the features it was made from")


def _clips(stores: Sequence[Path]) -> Iterator[tuple[str, int]]:
    """Yield fingerprint and number of segments of each store that can be opened."""
    for path in stores:
        try:
            store = FeatureStore(path)
            yield store.fingerprint, len(store)
        except (InputError, StoredDataError):
            continue  # reported as a problem of that store


def verify_run(path: Path) -> Iterator[Problem]:
    """Yield the problems of a run; a killed run is no problem, as ``--resume`` continues it."""
    yield from verify_files(path) if has_manifest(path) else _verify_first(path)


def _verify_first(path: Path) -> Iterator[Problem]:
    """Yield the problems of a run of version 1, in its JSON files and its checkpoints' records."""
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
