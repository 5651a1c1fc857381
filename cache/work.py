"""The folder in which a cache is made, beside it: what is noted there, and putting layers in place.

Of each layer it holds ``layerNN`` (the group), ``layerNN.json`` (what it will be) and journals of
its chunks, one of each process that makes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from antigram.cache.key import layer_name
from antigram.cache.layer import CacheLayer, layers_of, open_root
from antigram.cache.plan import LayerPlan
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.storage.files import remove
from antigram.pipeline.storage.folder import Folder
from antigram.pipeline.storage.manifest import FOLDER, create_group, write_manifest
from antigram.pipeline.storage.publish import discard, publish, put_files

__all__ = [
    "drop_finished",
    "journals_of",
    "note_of",
    "note_path",
    "noted",
    "publish_layers",
    "write_root",
]


def publish_layers(
    target: Path,
    partial: Path,
    root: Mapping[str, Any],
    layers: Iterable[int],
    *,
    whole_swap: bool,
) -> None:
    """Put finished layers in place: into the cache that is there, or as a new one in one swap."""
    if whole_swap:
        fresh = _fresh_root(partial)
        for layer in layers:
            (partial / layer_name(layer)).rename(fresh / layer_name(layer))
        _make_root(fresh, root)
        publish(fresh, target)
    else:
        for layer in layers:
            publish(partial / layer_name(layer), target / layer_name(layer))


def write_root(target: Path, root: Mapping[str, Any], partial: Path) -> None:
    """Write the cache's own metadata, unless it is there: beside the cache, then moved into it."""
    with suppress(InputError, StoredDataError):
        there = open_root(target)
        if (there["features"], there.get("layers")) == (root["features"], _layer_prints(target)):
            os.utime(target / "zarr.json")  # it is now the cache of this store made last
            return
    fresh = _fresh_root(partial)
    _make_root(fresh, root, target)
    put_files(fresh, target, ("zarr.json", f"{FOLDER}/zarr.json"))


def _fresh_root(partial: Path) -> Path:
    fresh = partial / "root"
    remove(fresh)
    fresh.mkdir(parents=True)
    return fresh


def _make_root(folder: Path, root: Mapping[str, Any], layers: Path | None = None) -> None:
    """Write metadata that names the layers of a cache, so that a lost one is missed."""
    create_group(Folder(folder), {"antigram": {**root, "layers": _layer_prints(layers or folder)}})
    write_manifest(Folder(folder), {})


def _layer_prints(target: Path) -> dict[str, str]:
    """Number -> fingerprint of each layer that opens; verify reports the others."""
    prints = {}
    for number in layers_of(target):
        with suppress(InputError, StoredDataError):
            prints[str(number)] = CacheLayer(target, number).fingerprint
    return prints


def drop_finished(partial: Path, plans: Mapping[int, LayerPlan]) -> None:
    """Delete the notes of layers that are published; interrupted work on others is kept."""
    for number, plan in plans.items():
        note = note_path(partial, number)
        if _read_note(note).get("key") == plan.key.to_json():
            group = note.with_suffix("")
            for path in (group, *journals_of(group), note):
                remove(path)
    if not any(partial.glob("layer[0-9][0-9].json")):
        discard(partial)


def journals_of(folder: Path) -> list[Path]:
    """Journals of a layer in the making, one of each process that makes it."""
    return sorted(folder.parent.glob(f"{folder.name}*.jsonl"))


def note_path(partial: Path, layer: int) -> Path:
    """File that says what a layer in the making will be."""
    return partial / f"{layer_name(layer)}.json"


def note_of(plan: LayerPlan) -> dict[str, Any]:
    """What that file holds."""
    return {"key": plan.key.to_json(), "rank": plan.rank, "pilot": dict(plan.pilot)}


def _read_note(path: Path) -> dict[str, Any]:
    """What an interrupted build noted of a layer; empty if it cannot be understood."""
    with suppress(OSError, ValueError, RecursionError):
        if isinstance(note := json.loads(path.read_bytes()), dict):
            return note
    return {}


def noted(plan: LayerPlan, partial: Path) -> LayerPlan | None:
    """The plan with the rank that an interrupted build found, if it was of the same key."""
    if plan.key.codec != "lowrank":
        return plan
    match _read_note(note_path(partial, plan.key.layer)):
        case {
            "key": key,
            "rank": int(rank),
            "pilot": {"clips": int(clips), "rank": int(), "cosine_error": float(error)},
        } if key == plan.key.to_json() and plan.rank in (None, rank) and 0 < rank <= plan.channels:
            # In the order in which `find_rank` has them: the same bytes as of one build.
            pilot = {"clips": clips, "rank": rank, "cosine_error": error}
            return replace(plan, rank=rank, pilot=pilot)
    return None
