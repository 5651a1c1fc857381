"""From a corpus by its name to its recordings, and to a feature store of the workspace."""

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
from antigram.pipeline.features.naming import recipe_for, store_name
from antigram.pipeline.features.preparation import Prepared, prepare
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
    """Fetch a corpus, check it, and unpack it to where `prepare_corpus` looks for it.

    Args:
        workspace: where it goes.
        corpus: its name.
        subset: subset of a corpus that has subsets; default: that of its first archive.
        on_progress: told a stage's name, megabytes done, and megabytes in all.
        on_message: told what happens, in lines for people.

    Raises:
        InputError: there is no such corpus or nothing to download, the network failed, an archive
            is another one, the disk is too small, or something else is in the way.
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
    within: str | None = None,
    name: str | None = None,
    workers: int | None = None,
    max_rejected: int = 0,
    check_sources: bool = False,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
    **asked: object,
) -> Prepared:
    """Make the feature store of a corpus, or leave it alone if it is there with the same recipe.

    Args:
        workspace: where the store goes, and where corpora are looked for.
        corpus: its name; one that is not published, ``demo``, is synthesised if it is not there.
        source: the corpus's folder, or the one above it; default: looked for.
        preset: ``paper``; fields asked for beside it win.
        noise_source: MS-SNSD or its ``noise_train``, if the recipe has noise; default: looked for.
        clean_source: clean speech, of a corpus that is mixed from it.
        within: a store; only the recordings of its training split are taken.
        name: name of the store; default: the corpus and what differs from its defaults.
        workers: processes; default: the cores.
        max_rejected: unusable recordings and segments that may be left out.
        check_sources: read all recordings of a store that is there, for edits.
        on_progress: told a stage's name, how much of it is done, and how much there is.
        on_message: told what was chosen, in lines for people.
        asked: fields of `Recipe` (``seconds``, ``noise``, ``split``, ...) and options of the
            corpus; None stands for the default.

    Raises:
        InputError: something asked for is unknown or missing, or the corpus gives nothing usable.
    """
    known = {key: value for key, value in asked.items() if value is not None}
    adapter = find_corpus(corpus)
    adapter, recipe = recipe_for(adapter, {**adapter.preset(preset), **known})
    only: Training | None = None
    if within is not None:
        only = training_of(FeatureStore(workspace.store(within, on_message)))
        recipe = replace(recipe, within=only.fingerprint)
    cores = workers or len(os.sched_getaffinity(0))
    home = _locate(workspace, adapter, source, cores, on_progress)
    on_message(f"{corpus}: {home}")
    recordings: Mapping[str, list[Path]] | None = None
    if recipe.noise != "none":
        places = workspace.corpus_candidates("ms-snsd", noise_source)
        if adapter.has_noise and noise_source is None:
            places = [home]
        folder, recordings = noise_files(places)
        on_message(f"noise: {len(recordings)} classes in {folder}")
        recipe = replace(recipe, noise_files=NoiseBank.digest_of(recordings))
    if adapter.list_mixtures is not None:
        home = clean_source or home / "clean_train"
        on_message(f"clean speech: {home}")
    elif clean_source is not None:
        raise CorpusError(f"`clean_source`: {corpus} is not mixed from clean speech")
    target = workspace.features / f"{plain_name(name or store_name(adapter, recipe))}.zarr"
    if is_fold_name(target.stem):
        raise InputError(f"`name` {name!r}: names with @ are those of folds; give another")
    return prepare(
        adapter,
        home,
        recipe,
        target,
        noise=recordings,
        only=only,
        workers=cores,
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
    """Folder of a corpus; one that is synthesised is made if there is none."""
    candidates = workspace.corpus_candidates(corpus.name, source)
    missing = source is None and not any(path.is_dir() for path in candidates)
    if corpus.synthesise is not None and missing:
        corpus.synthesise(candidates[-1], workers=workers, on_progress=on_progress)
    return locate(corpus, candidates)
