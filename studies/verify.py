"""Read every byte of stores, caches and runs, and list what is damaged, missing or stale."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from antigram.cache.key import layer_name
from antigram.cache.layer import CacheLayer, layers_of, open_root
from antigram.model.training.run_files import has_manifest, verify_files
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.archive import verify_archive
from antigram.pipeline.storage.exchange import verify_export
from antigram.pipeline.storage.hdf5 import SUFFIX, read_bytes
from antigram.pipeline.storage.manifest import Problem, verify_group
from antigram.pipeline.storage.root import DOCUMENT, has_parts

__all__ = ["check_kind", "kind_of", "verify", "verify_cache", "verify_run", "verify_store"]


def kind_of(path: Path) -> str:
    """``store``, ``cache``, ``run``, ``export`` or ``checkpoint``: by its place where in doubt."""
    if path.is_file():
        return "export" if path.suffix == SUFFIX else "checkpoint"
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
    ours = kind_of(path) in ("run", "checkpoint") or has_parts(path)
    with suppress(OSError):  # all but its root document may be lost
        ours = ours or b'"antigram/' in read_bytes(path / DOCUMENT)
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


def verify_store(path: Path) -> Iterator[Problem]:
    """Problems of a feature store."""
    problems = list(verify_group(path))
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
    yield from verify_group(path)
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
        problems = list(verify_group(folder))
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
