"""The folder beside a cache in which layers are built before they are moved into the cache.

For each layer the folder has the group, such as ``layer05``, ``layer05.parts`` (the norms of each
chunk), ``layer05.json`` (a note: the key and rank of the layer) and journals of the layer's chunks,
one for each rank of the job.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from antigram.cache.ids import NAME as IDS
from antigram.cache.ids import are_damaged, write_ids
from antigram.cache.key import layer_name
from antigram.cache.layer import FORMAT, CacheLayer, layers_of, open_root, version_of
from antigram.cache.plan import LayerPlan
from antigram.model.choices import Layer
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import DOCUMENT, FOLDER, create_group, write_manifest
from antigram.pipeline.storage.publish import discard, publish, put_files

__all__ = [
    "drop_finished",
    "journals_of",
    "note_of",
    "note_path",
    "noted",
    "parts_of",
    "publish_layers",
    "write_root",
]


def publish_layers(
    target: Path,
    partial: Path,
    root: Mapping[str, Any],
    layers: Iterable[Layer],
    ids: Sequence[str],
    *,
    replace_cache: bool,
) -> None:
    """Move finished layers into the cache, each atomically.

    Args:
        target: path of the cache.
        partial: folder beside the cache that has the layers.
        root: metadata of the cache.
        layers: numbers of the layers.
        ids: ids of the segments, in the order of the rows.
        replace_cache: whether to replace the cache by one of these layers, atomically.
    """
    if replace_cache:
        fresh = _fresh_root(partial)
        for layer in layers:
            (partial / layer_name(layer)).rename(fresh / layer_name(layer))
        _make_root(fresh, root, ids)
        publish(fresh, target)
    else:
        for layer in layers:
            publish(partial / layer_name(layer), target / layer_name(layer))


def write_root(target: Path, root: Mapping[str, Any], partial: Path, ids: Sequence[str]) -> None:
    """Write the metadata and the ids of the cache's root, unless they are up to date.

    A complete cache of an earlier version, which has no ids, is left as it is.
    Each file is replaced atomically, the manifest last: if this is interrupted, the next build of
    the cache repairs it.
    """
    with suppress(InputError, StoredDataError):
        stored = open_root(target)
        layers = {str(number): layer.fingerprint for number, layer in _opened(target).items()}
        listed = stored["features"], stored.get("layers")
        if listed == (root["features"], layers) and not are_damaged(Folder(target), target):
            os.utime(target / "zarr.json")  # so that `choose_cache` finds it as the latest
            return
    fresh = _fresh_root(partial)
    _make_root(fresh, root, ids, target)
    of_ids = [entry.key for entry in Folder(fresh).list() if entry.key.startswith(f"{IDS}/")]
    put_files(fresh, target, (*sorted(of_ids), DOCUMENT, f"{FOLDER}/{DOCUMENT}"))


def _fresh_root(partial: Path) -> Path:
    fresh = partial / "root"
    remove(fresh)
    fresh.mkdir(parents=True)
    return fresh


def _make_root(
    folder: Path, root: Mapping[str, Any], ids: Sequence[str], layers: Path | None = None
) -> None:
    """Write ids, and metadata that lists the layers of a cache, so that a deleted one is missed."""
    written = write_ids(Folder(folder), ids)
    held = layers or folder
    opened = _opened(held)
    version = version_of([layer.key.dtype for layer in opened.values()])
    attributes = {"format": FORMAT, "format_version": version, **root}
    attributes["layers"] = {str(number): layer.fingerprint for number, layer in opened.items()}
    create_group(Folder(folder), {"antigram": attributes})
    write_manifest(Folder(folder), written)


def _opened(target: Path) -> dict[Layer, CacheLayer]:
    """Return the layers that open, by number; `verify` reports the others."""
    opened = {}
    for number in layers_of(target):
        with suppress(InputError, StoredDataError):
            opened[number] = CacheLayer(target, number)
    return opened


def drop_finished(partial: Path, plans: Mapping[Layer, LayerPlan]) -> None:
    """Delete the leftovers of published layers; interrupted work on other layers is kept."""
    for number, plan in plans.items():
        note = note_path(partial, number)
        if _read_note(note).get("key") == plan.key.to_json():
            group = note.with_suffix("")
            for path in (group, parts_of(group), *journals_of(group), note):
                remove(path)
    if not any(partial.glob("*.json")):
        discard(partial)


def journals_of(folder: Path) -> list[Path]:
    """Return the journals of an unfinished layer, one for each rank."""
    names = (f"{folder.name}.jsonl", f"{folder.name}.*.jsonl")
    return sorted(path for name in names for path in folder.parent.glob(name))


def parts_of(folder: Path) -> Path:
    """Return the folder with the norms of each chunk of an unfinished layer."""
    return folder.with_suffix(".parts")


def note_path(partial: Path, layer: Layer) -> Path:
    """Return the path of the note on an unfinished layer."""
    return partial / f"{layer_name(layer)}.json"


def note_of(plan: LayerPlan) -> dict[str, Any]:
    """Return the content of the note: key, rank and pilot."""
    return {"key": plan.key.to_json(), "rank": plan.rank, "pilot": dict(plan.pilot)}


def _read_note(path: Path) -> dict[str, Any]:
    """Return the note of an interrupted build; empty if it is missing or unreadable."""
    with suppress(OSError, ValueError, RecursionError):
        if isinstance(note := json.loads(path.read_bytes()), dict):
            return note
    return {}


def noted(plan: LayerPlan, partial: Path) -> LayerPlan | None:
    """Return the plan with the rank that was found by an interrupted build with the same key.

    Returns:
        The plan itself if its codec has no rank; None if there is no such note.
    """
    if plan.key.codec != "lowrank":
        return plan
    match _read_note(note_path(partial, plan.key.layer)):
        case {
            "key": key,
            "rank": int(rank),
            "pilot": {"clips": int(clips), "rank": int(), "cosine_error": float(error)},
        } if key == plan.key.to_json() and plan.rank in (None, rank) and 0 < rank <= plan.side:
            # In the order of `find_rank`, so that the bytes equal those of an uninterrupted build.
            pilot = {"clips": clips, "rank": rank, "cosine_error": error}
            return replace(plan, rank=rank, pilot=pilot)
    return None
