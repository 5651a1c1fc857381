"""Find the recordings of a store, and render the audio of its segments again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from antigram.pipeline.audio.noise import noise_files
from antigram.pipeline.callbacks import OnMessage, OnProgress
from antigram.pipeline.corpora import find_corpus
from antigram.pipeline.corpus import Corpus, CorpusError, locate
from antigram.pipeline.errors import DamagedError, InputError
from antigram.pipeline.features.segment_audio import SegmentAudio, open_audio
from antigram.pipeline.features.source_record import path_of, read_home
from antigram.pipeline.features.store import FeatureStore
from antigram.pipeline.workspace import Workspace

__all__ = ["audio_of"]


def audio_of(
    store: FeatureStore,
    workspace: Workspace,
    *,
    source: Path | None = None,
    noise_source: Path | None = None,
    sample_rate: int | None = None,
    on_progress: OnProgress = lambda *_: None,
    on_message: OnMessage = lambda _: None,
) -> SegmentAudio:
    """Return the audio of a store's segments, rendered again from the recordings.

    Args:
        store: the feature store, or a fold of one.
        workspace: corpora are looked up in it if the record of the store names no folder.
        source: folder of the corpus, or the folder above it; for ``ms-snsd`` also the folder of
            clean speech; default: the folder that the store's record names.
        noise_source: folder of MS-SNSD or its ``noise_train``, if noise was mixed in; default: the
            usual folders.
        sample_rate: rate of the audio in Hz; default: the rate of the store.
        on_progress: called with the name of a stage, the amount done, and the total.
        on_message: called with a line of text for each folder that was chosen.

    Raises:
        InputError: the corpus or its noise is not there; or as for `open_audio`.
        StoredDataError: the store is damaged.
    """
    corpus = find_corpus(store.recipe.corpus)
    corpus = corpus.adapt(corpus, {**corpus.options, **store.recipe.options})
    recorded = _recorded(store.base or store)
    if corpus.open_source is not None:
        candidates = workspace.corpus_candidates(corpus.name, source)
        corpus, home = corpus.open_source(candidates, recorded)
    elif source is None and recorded is not None:
        home = recorded
    else:
        home = _home(store, corpus, workspace, source)
    on_message(f"recordings: {home}")
    noise: Mapping[str, list[Path]] | None = None
    if store.recipe.noise != "none":
        candidates = workspace.corpus_candidates("ms-snsd", noise_source)
        if corpus.has_noise and noise_source is None:
            candidates.insert(0, home.parent if corpus.list_mixtures is not None else home)
        folder, noise = noise_files(candidates)
        on_message(f"noise: {folder}")
    return open_audio(
        store,
        corpus,
        home,
        noise,
        sample_rate=sample_rate,
        on_progress=on_progress,
        on_message=on_message,
    )


def _recorded(store: FeatureStore) -> Path | None:
    """Return the folder that a store was prepared from; None if it is not known or not there."""
    with suppress(DamagedError, OSError):
        home = read_home(path_of(store.path), store.fingerprint)
        return home if home is not None and home.is_dir() else None
    return None


def _home(store: FeatureStore, corpus: Corpus, workspace: Workspace, source: Path | None) -> Path:
    """Return the folder that the paths of a store's recordings are relative to."""
    is_mixed = corpus.list_mixtures is not None
    if is_mixed and source is not None and not (source / "clean_train").is_dir():
        return source  # of clean speech
    try:
        home = locate(corpus, workspace.corpus_candidates(corpus.name, source))
    except CorpusError as error:
        raise InputError(
            f"{store.path}: the audio that it was made of is needed, and there is no record of "
            f"where it is, or it is not there any more: {error}"
        ) from None
    return home / "clean_train" if is_mixed else home
