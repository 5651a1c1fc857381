"""Download a corpus, and prepare it as a feature store of the workspace."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from antigram.pipeline.audio.noise import NoiseBank, noise_files
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.corpora import find_corpus
from antigram.pipeline.corpus import Corpus, CorpusError, locate
from antigram.pipeline.download.corpora import Downloaded, download
from antigram.pipeline.errors import InputError
from antigram.pipeline.execution.dask_cluster import cluster_at
from antigram.pipeline.features.naming import recipe_for, store_name
from antigram.pipeline.features.preparation import prepare
from antigram.pipeline.features.prepared import Prepared
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.features.within import Training, training_of
from antigram.pipeline.workspace import Workspace, is_fold_name, plain_name

__all__ = ["download_corpus", "prepare_corpus"]


def download_corpus(
    workspace: Workspace,
    corpus: str,
    *,
    subset: str | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> Downloaded:
    """Download a corpus, check it, and unpack it where `prepare_corpus` looks for it.

    Args:
        workspace: the corpus is written to its folder ``corpora``.
        corpus: name of the corpus.
        subset: name of a subset, if the corpus has any; default: subset of the first archive.
        on_progress: called with the name of a stage, megabytes done, and total megabytes.
        on_message: called with a line of text for each action.

    Raises:
        InputError: the corpus is unknown or cannot be downloaded, the network failed, an archive
            has another hash than expected, the disk is too small, or the target is not empty.
    """
    return download(
        find_corpus(corpus),
        workspace.corpora / corpus,
        subset=subset,
        on_progress=on_progress,
        on_message=on_message,
    )


def prepare_corpus(
    workspace: Workspace,
    corpus: str,
    *,
    source: Path | None = None,
    preset: str | None = None,
    noise_source: Path | None = None,
    clean_source: Path | None = None,
    audio_root: Path | None = None,
    within: str | None = None,
    name: str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    max_rejected: int = 0,
    check_sources: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
    **options: object,
) -> Prepared:
    """Make the feature store of a corpus; leave an existing store with the same recipe alone.

    Args:
        workspace: the store is written to it, and corpora are looked up in it.
        corpus: name of the corpus; ``demo`` is synthesised if it does not exist yet.
        source: folder of the corpus, or the folder above it; for ``manifest``, a file or its
            folder; default: the usual folders.
        preset: ``paper``: the settings of the paper; other arguments override them.
        noise_source: folder of MS-SNSD or its ``noise_train``, if noise is mixed in; default: the
            usual folders.
        clean_source: folder of clean speech, for a corpus that is mixed from it.
        audio_root: for ``manifest``, folder of the recordings, in which relative paths begin;
            default: the folder of the manifest.
        within: name of a store; only the recordings of its training split are used.
        name: name of the store; default: corpus plus non-default options.
        workers: number of processes; default: the number of cores.
        scheduler: address or file of a Dask scheduler, whose workers then do the work.
        max_rejected: number of unusable recordings and segments that may be left out.
        check_sources: read all recordings of an existing store again, to detect edits.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line of text for each choice made.
        options: fields of `Recipe` (``seconds``, ``noise``, ``split``, ...) and options of
            the corpus; None stands for the default.

    Raises:
        InputError: an argument is unknown or missing, or the corpus has no usable recording.
    """
    known = {key: value for key, value in options.items() if value is not None}
    adapter = find_corpus(corpus)
    adapter, recipe = recipe_for(adapter, {**adapter.preset(preset), **known})
    only: Training | None = None
    if within is not None:
        only = training_of(FeatureStore(workspace.store(within, on_message)))
        recipe = replace(recipe, within=only.fingerprint)
    cores = workers or len(os.sched_getaffinity(0))
    if adapter.open_source is not None:
        candidates = workspace.corpus_candidates(adapter.name, source)
        adapter, home = adapter.open_source(candidates, audio_root)
    elif audio_root is not None:
        raise CorpusError(f"`audio_root`: the recordings of {corpus} are in its own folder")
    else:
        home = _locate(workspace, adapter, source, cores, on_progress)
    on_message(f"{corpus}: {home}")
    recordings: Mapping[str, list[Path]] | None = None
    if recipe.noise != "none":
        folders = workspace.corpus_candidates("ms-snsd", noise_source)
        if adapter.has_noise and noise_source is None:
            folders = [home]
        folder, recordings = noise_files(folders)
        on_message(f"noise: {len(recordings)} classes in {folder}")
        recipe = replace(recipe, noise_files=NoiseBank.digest_of(recordings))
    if adapter.list_mixtures is not None:
        home = clean_source or home / "clean_train"
        on_message(f"clean speech: {home}")
    elif clean_source is not None:
        raise CorpusError(f"`clean_source`: {corpus} is not mixed from clean speech")
    target = workspace.features / f"{plain_name(name or store_name(adapter, recipe))}.zarr"
    if is_fold_name(target.stem):
        raise InputError(f"`name` {name!r}: names with @ belong to folds; give another name")
    with cluster_at(scheduler, on_message) as cluster:
        return prepare(
            adapter,
            home,
            recipe,
            target,
            noise=recordings,
            only=only,
            workers=cores,
            cluster=cluster,
            max_rejected=max_rejected,
            check_all=check_sources,
            on_progress=on_progress,
            on_message=on_message,
        )


def _locate(
    workspace: Workspace,
    corpus: Corpus,
    source: Path | None,
    workers: int,
    on_progress: OnProgress,
) -> Path:
    """Return the folder of a corpus; synthesise the corpus if it can be and no folder exists."""
    candidates = workspace.corpus_candidates(corpus.name, source)
    missing = source is None and not any(path.is_dir() for path in candidates)
    if corpus.synthesise is not None and missing:
        corpus.synthesise(candidates[-1], workers=workers, on_progress=on_progress)
    return locate(corpus, candidates)
