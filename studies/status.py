"""Describe the corpora, stores, caches and runs of a workspace, and what each was made from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from antigram.cache.layer import BATCHES, CacheLayer, layers_of, open_root
from antigram.model.training.worth import CONTROL, score_text
from antigram.pipeline.corpora import CORPORA
from antigram.pipeline.corpus import CorpusError, locate
from antigram.pipeline.errors import InputError, StoredDataError
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.storage.files import size_of, size_text
from antigram.pipeline.storage.publish import Leftover
from antigram.pipeline.workspace import Workspace
from antigram.studies.leftovers import describe, idle_leftovers

__all__ = ["status"]


def status(workspace: Workspace) -> dict[str, Any]:
    """Return the fields of ``status --json``: lists of objects with ``name`` and ``summary``."""
    stores = [_guarded(path, _store) for path in workspace.members(workspace.features)]
    origin = {entry.get("fingerprint"): entry["name"] for entry in stores}
    caches = [
        _guarded(path, lambda p: _cache(p, origin)) for path in workspace.members(workspace.grams)
    ]
    runs = [_run(path, origin) for path in sorted(workspace.runs.glob("[!.]*")) if path.is_dir()]
    return {
        "workspace": str(workspace.root),
        "corpora": [_corpus(entry) for entry in describe_corpora(workspace)],
        "stores": stores,
        "caches": caches,
        "runs": runs,
        "leftovers": [_leftover(left) for left in idle_leftovers(workspace)],
    }


def _guarded(path: Path, describe: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Describe a store or cache, or the problem with it."""
    common: dict[str, Any] = {
        "name": path.name.removesuffix(".zarr"),
        "path": str(path),
        "bytes": size_of(path),
    }
    try:
        fields = describe(path)
    except (InputError, StoredDataError) as error:
        return {**common, "problem": str(error), "summary": f"unusable: {error}"}
    return {**common, **fields, "summary": f"{fields['summary']}; {size_text(common['bytes'])}"}


def _leftover(left: Leftover) -> dict[str, Any]:
    size = size_of(left.path)
    return {
        "name": left.path.name,
        "path": str(left.path),
        "bytes": size,
        "summary": f"{describe(left)}; {size_text(size)}",
    }


def _corpus(entry: dict[str, Any]) -> dict[str, Any]:
    missing = f"not there (looked in {', '.join(entry['looked_in'])})"
    return {"name": entry["name"], "path": entry["path"], "summary": entry["path"] or missing}


def _store(path: Path) -> dict[str, Any]:
    store = FeatureStore(path)
    labels = ", ".join(f"{name} ({len(classes)})" for name, classes in store.classes.items())
    return {
        "fingerprint": store.fingerprint,
        "clips": len(store),
        "shape": list(store.shape),
        "labels": {name: len(classes) for name, classes in store.classes.items()},
        "fold_of": None if store.base is None else store.base.name,
        "summary": f"{_of_store(store)} of {store.shape[0]} x {store.shape[1]}; {labels}; "
        f"{store.fingerprint[:12]}",
    }


def _of_store(store: FeatureStore) -> str:
    """Return the number of segments; for a fold also its store, design and segments in use."""
    if store.base is None:
        return f"{len(store)} clips"
    used = int((store.split >= 0).sum())
    return f"fold of {store.base.name} ({store.design}): {used} of {len(store)} clips"


def _cache(path: Path, origin: dict[Any, str]) -> dict[str, Any]:
    root = open_root(path)
    layers = {number: CacheLayer(path, number) for number in layers_of(path)}
    store = origin.get(root["features"])
    made_from = root.get("made_from", {})
    of = f"of {store}" if store else f"STALE: no store has its features ({made_from.get('store')})"
    if root.get("source") == BATCHES:
        of = "of batches of a loader"
    forms = ", ".join(
        f"{number} ({layer.key.codec} {layer.key.dtype})" for number, layer in layers.items()
    )
    return {
        "store": store,
        "made_from": made_from,
        "layers": {str(number): layer.describe() for number, layer in layers.items()},
        "summary": f"{of}, net {made_from.get('checkpoint')}; layers {forms}",
    }


def _run(path: Path, origin: dict[Any, str]) -> dict[str, Any]:
    common: dict[str, Any] = {"name": path.name, "path": str(path), "bytes": size_of(path)}
    try:
        config = json.loads((path / "config.json").read_text())
        store = origin.get(config["features"], "a store that no longer exists")
        mode = config["config"]["mode"]
        finished = path / "result.json"
        result = json.loads(finished.read_text()) if finished.is_file() else None
        known = {"mode": mode, "store": store, "result": result}
        return {**common, **known, "summary": f"{mode} on {store}; {_outcome(result)}"}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {**common, "summary": f"unreadable: {error}"}


def _outcome(result: dict[str, Any] | None) -> str:
    if result is None:
        return "not finished; resume the run"
    test = result["accuracy"]["test"]
    worth = {"accuracy": test, **result.get("scores", {}).get("test", {})}
    score = "no test split" if test is None else f"accuracy {score_text('test', worth)}"
    control = CONTROL if result.get("shuffle_labels") else ""
    return f"{control}{score}; {result['epochs']} epochs"


def describe_corpora(workspace: Workspace) -> list[dict[str, Any]]:
    """Return the entries of ``corpora --json``: a description of each corpus, and its folder."""
    entries = []
    for corpus in CORPORA.values():
        candidates = workspace.corpus_candidates(corpus.name, None)
        try:
            path: str | None = str(locate(corpus, candidates))
        except CorpusError:
            path = None
        entries.append(
            {
                "name": corpus.name,
                "labels": list(corpus.labels),
                "seconds": corpus.seconds,
                "longer": corpus.longer,
                "overlap": corpus.overlap,
                "official_split": corpus.official,
                "noise": corpus.noise,
                "options": dict(corpus.options),
                "licence": corpus.licence,
                "citation": corpus.citation,
                "homepage": corpus.homepage,
                "how_to_get": corpus.how_to_get,
                "archives": [asdict(archive) for archive in corpus.archives],
                "presets": {k: dict(v) for k, v in corpus.presets.items()},
                "looked_in": [str(candidate) for candidate in candidates],
                "path": path,
            }
        )
    return entries
