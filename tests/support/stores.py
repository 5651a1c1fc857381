"""Prepare feature stores of small corpora, completely or until half-way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from antigram.pipeline.audio.noise import NoiseBank, noise_files
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.corpora.gsc import GSC
from antigram.pipeline.execution.dask_cluster import DaskCluster
from antigram.pipeline.features.preparation import OnProgress, prepare
from antigram.pipeline.features.prepared import Prepared
from antigram.pipeline.features.recipe import Recipe
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage import chunks
from antigram.pipeline.storage.hashing import canonical_json
from antigram.pipeline.storage.manifest import _as_group

ROW_BYTES = 126 * 129 * 4
IDS = ["", "naïve", "日本/a", "x" * 500, "z"]


def make_store(home: Path, target: Path, **recipe) -> FeatureStore:
    given = {"corpus": "folder", "longer": "segment", **recipe}
    return prepare(CORPORA["folder"], home, Recipe(**given), target).store


def gsc_recipe(**changes) -> Recipe:
    return Recipe(corpus="gsc", options={"words": "digits"}, **changes)


def prepare_gsc(
    home: Path,
    target: Path,
    *,
    workers: int = 1,
    cluster: DaskCluster | None = None,
    memory: int | None = None,
    noise_home: Path | None = None,
    max_rejected: int = 0,
    on_progress: OnProgress | None = None,
    on_message: Callable[[str], None] | None = None,
    check_all: bool = False,
    **changes,
) -> Prepared:
    """Prepare with 4 rows a chunk, so that a handful of clips makes several chunks."""
    noise = noise_files([noise_home])[1] if noise_home else None
    if noise is not None:
        changes = {"noise": "high", "noise_files": NoiseBank.digest_of(noise), **changes}
    recipe = gsc_recipe(**changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "_TARGET_BYTES", 4 * ROW_BYTES)
        return prepare(
            GSC,
            home,
            recipe,
            target,
            noise=noise,
            workers=workers,
            cluster=cluster,
            memory=memory,
            max_rejected=max_rejected,
            on_progress=on_progress,
            on_message=on_message,
            check_all=check_all,
        )


class Stopped(Exception):
    """Raised by a preparation that stops half-way."""


def stop_at(stage: str, at_least: int):
    def on_progress(now: str, done: int, _total: int) -> None:
        if now == stage and done >= at_least:
            raise Stopped

    return on_progress


def edit_store(path: Path, change) -> None:
    """Change the attribute ``antigram`` of a store, as if another version had written it."""
    document = json.loads((path / "zarr.json").read_text())
    change(document["attributes"]["antigram"])
    (path / "zarr.json").write_text(json.dumps(document))
    listed = path / "manifest" / "zarr.json"
    content = json.loads(listed.read_text())["attributes"]
    del content["digest"]
    content["metadata"]["zarr.json"] = chunks.crc32c((path / "zarr.json").read_bytes())
    listed.write_text(canonical_json(_as_group(content)) + "\n")
